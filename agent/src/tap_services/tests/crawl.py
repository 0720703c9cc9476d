# What cloud-init makes of the metadata service, as JSON. The first argument is the platform that it takes this for.
import json
import sys

from cloudinit import helpers
from cloudinit.sources import DataSourceEc2 as ec2


class DataSource(ec2.DataSourceEc2):
    url_max_wait = 20
    url_timeout = 10

    def _get_cloud_name(self):
        return sys.argv[1]


paths = helpers.Paths({"cloud_dir": sys.argv[2], "run_dir": sys.argv[2]})
source = DataSource({}, None, paths)
found = source._get_data()
print(json.dumps({
    "found": found,
    "metadata": source.metadata,
    "user_data": (source.userdata_raw or b"").decode(),
    "instance_id": found and source.get_instance_id(),
    "public_keys": found and source.get_public_ssh_keys(),
    "zone": found and source.availability_zone,
    "region": found and source.region,
    "network": found and source.network_config,
}, default=str))
