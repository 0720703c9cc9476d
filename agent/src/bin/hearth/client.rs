//! The connection to the agent, and the lookups that several commands need.

use std::{
    io,
    path::{Path, PathBuf},
};

use hearth_proto::v1::{
    DescribeImagesRequest, DescribeInstancesRequest, Filter, Image, Instance,
    event_service_client::EventServiceClient, flow_log_service_client::FlowLogServiceClient,
    image_service_client::ImageServiceClient, instance_service_client::InstanceServiceClient,
    key_pair_service_client::KeyPairServiceClient, network_service_client::NetworkServiceClient,
    security_group_service_client::SecurityGroupServiceClient,
    snapshot_service_client::SnapshotServiceClient, store_service_client::StoreServiceClient,
    volume_service_client::VolumeServiceClient,
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Request, Status,
    metadata::AsciiMetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{self, Endpoint},
};

use crate::{
    failure::{Failure, rpc},
    filters::filter,
    pages::all_pages,
    sg_names::one_of,
};

/// Where `hearthd` listens when nothing else is said.
pub const DEFAULT_SOCKET: &str = "/run/hearth/hearthd.sock";

/// Largest answer taken, in bytes: a page of objects with their user data is a few MiB.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// The metadata that says which account calls.
const ACCOUNT: &str = "hearth-account";

/// Calls in the name of an account.
#[derive(Clone)]
pub struct AsAccount(AsciiMetadataValue);

impl Interceptor for AsAccount {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert(ACCOUNT, self.0.clone());
        Ok(request)
    }
}

/// A connection that says who calls.
pub type Channel = InterceptedService<transport::Channel, AsAccount>;

/// One client for each service, over one connection.
#[derive(Clone)]
pub struct Client {
    pub instances: InstanceServiceClient<Channel>,
    pub volumes: VolumeServiceClient<Channel>,
    pub snapshots: SnapshotServiceClient<Channel>,
    pub images: ImageServiceClient<Channel>,
    pub keys: KeyPairServiceClient<Channel>,
    pub networks: NetworkServiceClient<Channel>,
    pub security_groups: SecurityGroupServiceClient<Channel>,
    pub flow_logs: FlowLogServiceClient<Channel>,
    pub store: StoreServiceClient<Channel>,
    pub events: EventServiceClient<Channel>,
}

impl Client {
    /// Connects to the agent's Unix socket, to call as `account`.
    pub async fn connect(socket: &Path, account: &str) -> Result<Self, Failure> {
        let account = AsciiMetadataValue::try_from(account)
            .map_err(|_| Failure::new(format!("{account:?} is not the name of an account")))?;
        // Once by hand, because tonic's error does not say which of these it was.
        if let Err(error) = UnixStream::connect(socket).await {
            return Err(unreachable_agent(socket, &error));
        }
        let path: PathBuf = socket.to_owned();
        // The address is never used: the connector goes to the socket.
        let channel = Endpoint::from_static("http://hearthd")
            .connect_with_connector(tower::service_fn(move |_| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }))
            .await
            .map_err(|error| {
                Failure::new(format!("{} does not speak gRPC: {error}", socket.display()))
                    .hint("check that the socket is hearthd's (--socket, HEARTH_SOCKET)")
            })?;
        let channel = InterceptedService::new(channel, AsAccount(account));
        Ok(Self {
            instances: InstanceServiceClient::new(channel.clone())
                .max_decoding_message_size(MAX_ANSWER_BYTES),
            volumes: VolumeServiceClient::new(channel.clone())
                .max_decoding_message_size(MAX_ANSWER_BYTES),
            snapshots: SnapshotServiceClient::new(channel.clone())
                .max_decoding_message_size(MAX_ANSWER_BYTES),
            images: ImageServiceClient::new(channel.clone())
                .max_decoding_message_size(MAX_ANSWER_BYTES),
            keys: KeyPairServiceClient::new(channel.clone())
                .max_decoding_message_size(MAX_ANSWER_BYTES),
            networks: NetworkServiceClient::new(channel.clone())
                .max_decoding_message_size(MAX_ANSWER_BYTES),
            security_groups: SecurityGroupServiceClient::new(channel.clone())
                .max_decoding_message_size(MAX_ANSWER_BYTES),
            flow_logs: FlowLogServiceClient::new(channel.clone())
                .max_decoding_message_size(MAX_ANSWER_BYTES),
            store: StoreServiceClient::new(channel.clone())
                .max_decoding_message_size(MAX_ANSWER_BYTES),
            events: EventServiceClient::new(channel),
        })
    }

    /// All instances with these ids (all there are when empty) that match the filters.
    pub async fn describe_instances(
        &mut self,
        ids: &[String],
        filters: &[Filter],
    ) -> Result<Vec<Instance>, Failure> {
        all_pages(async |page| {
            let request = DescribeInstancesRequest {
                instance_ids: ids.to_vec(),
                filters: filters.to_vec(),
                page,
            };
            let answer = self.instances.describe_instances(request).await;
            let answer = answer.map_err(rpc)?.into_inner();
            Ok((answer.instances, answer.next_token))
        })
        .await
    }

    /// All images with these ids (all there are when empty) that match the filters.
    pub async fn describe_images(
        &mut self,
        ids: &[String],
        filters: &[Filter],
        include_deprecated: bool,
    ) -> Result<Vec<Image>, Failure> {
        all_pages(async |page| {
            let request = DescribeImagesRequest {
                image_ids: ids.to_vec(),
                filters: filters.to_vec(),
                page,
                include_deprecated,
            };
            let answer = self.images.describe_images(request).await;
            let answer = answer.map_err(rpc)?.into_inner();
            Ok((answer.images, answer.next_token))
        })
        .await
    }

    /// The id of an image that is named by its id or by its name.
    pub async fn image_id(&mut self, id_or_name: &str) -> Result<String, Failure> {
        if id_or_name.starts_with("img-") {
            return Ok(id_or_name.to_owned());
        }
        let filters = [filter("name", id_or_name), filter("state", "available")];
        let mut found = self.describe_images(&[], &filters, false).await?;
        // A name with a `*` would match others too; only the very name counts.
        found.retain(|image| image.name == id_or_name);
        one_of(
            "image",
            id_or_name,
            found.into_iter().map(|image| image.image_id).collect(),
        )
        .map_err(|failure| failure.hint_if_none("see what there is with `hearth image list`"))
    }

    /// The id of an instance that is named by its id or by its tag `Name`.
    pub async fn instance_id(&mut self, id_or_name: &str) -> Result<String, Failure> {
        if id_or_name.starts_with("i-") {
            return Ok(id_or_name.to_owned());
        }
        let mut found = self
            .describe_instances(&[], &[filter("tag:Name", id_or_name)])
            .await?;
        found.retain(|instance| {
            instance.state() != hearth_proto::v1::InstanceState::Terminated
                && instance
                    .tags
                    .iter()
                    .any(|tag| tag.key == "Name" && tag.value == id_or_name)
        });
        let ids = found
            .into_iter()
            .map(|instance| instance.instance_id)
            .collect();
        one_of("instance", id_or_name, ids).map_err(|failure| {
            failure.hint_if_none("see what there is with `hearth instance list`")
        })
    }

    /// [`Self::instance_id`] for each.
    pub async fn instance_ids(&mut self, ids_or_names: &[String]) -> Result<Vec<String>, Failure> {
        let mut ids = Vec::with_capacity(ids_or_names.len());
        for id_or_name in ids_or_names {
            ids.push(self.instance_id(id_or_name).await?);
        }
        Ok(ids)
    }
}

fn unreachable_agent(socket: &Path, error: &io::Error) -> Failure {
    let failure = Failure::new(format!("no agent answers at {}: {error}", socket.display()));
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            failure.hint("you may not use this socket; become root, or ask who runs hearthd")
        }
        _ if socket == Path::new(DEFAULT_SOCKET) => failure
            .hint("start it with `hearthd`, or say where it listens (--socket, HEARTH_SOCKET)"),
        _ => failure.hint(format!(
            "start it with `hearthd --socket {}`",
            socket.display()
        )),
    }
}
