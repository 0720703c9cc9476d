//! RunInstances: checks a request and turns it into rows.
//!
//! Everything that a request can be refused for is decided here, in one transaction, so that a
//! refused request leaves nothing, and a dry run is the same transaction undone.

use hearth_proto::v1;

use crate::{
    db::{self, Tx},
    error::{ApiError, ApiResult, Reason},
    host::Memory,
    ids::{Kind, shortened},
    images::model::{Image, ImageState},
    instance_types::{self, Catalogue},
    keys,
    networks::{launch::NetworkRequest, plan::Plan},
    tags::{self, Tag},
    time::Millis,
    tokens::ClientToken,
    volumes::{
        classes::Classes,
        model::{Attachment, AttachmentState, GIB, Volume, VolumeState},
    },
};

use super::{
    disks::{self, DiskRequest, DiskSource},
    interfaces,
    metadata_options::MetadataOptions,
    model::{Instance, Interface, Launch, Operation, StateReason},
    state::InstanceState,
};

/// Most instances of one call.
const MAX_COUNT: u32 = 100;

/// Largest user data, in bytes.
const MAX_USER_DATA: usize = 16 << 10;

/// Longest kernel arguments of image and caller together; the kernel takes 2,048 bytes, and
/// the VMM adds its own.
pub const MAX_KERNEL_ARGS: usize = 1536;

/// What a caller asks for.
#[derive(Clone, Debug)]
pub struct LaunchRequest {
    /// The account that will own what is made.
    pub owner: String,
    pub image_id: String,
    pub instance_type: String,
    pub min_count: u32,
    pub max_count: u32,
    pub disks: Vec<DiskRequest>,
    pub user_data: String,
    pub tags: Vec<Tag>,
    pub client_token: String,
    pub token: Option<ClientToken>,
    pub dry_run: bool,
    pub extra_kernel_args: String,
    pub vcpus: u32,
    pub memory_mib: u64,
    pub interfaces: Vec<Interface>,
    pub networks: NetworkRequest,
    pub key_name: String,
    pub metadata_options: v1::MetadataOptions,
}

/// What a request comes to before the database is asked.
#[derive(Clone, Debug)]
pub struct Shape {
    instance_type: String,
    vcpus: u32,
    memory_bytes: u64,
    min_count: u32,
    max_count: u32,
    metadata_options: MetadataOptions,
}

/// Rows that a launch made, or that an earlier one with the same token made.
#[derive(Debug)]
pub enum Launched {
    New(Vec<Instance>),
    Earlier(Vec<String>),
}

impl LaunchRequest {
    /// Checks all that needs no database.
    pub fn check(&self, types: &Catalogue) -> ApiResult<Shape> {
        Kind::Image.check(&self.image_id, "image_id")?;
        let name = match self.instance_type.as_str() {
            "" => instance_types::DEFAULT,
            name => name,
        };
        let shape = types.get(name).ok_or_else(|| {
            ApiError::invalid(
                "instance_type",
                format!("there is no instance type {:?}", shortened(name)),
            )
        })?;
        let (vcpus, memory_mib) = self.overrides(shape)?;
        let (min_count, max_count) = self.counts()?;
        if self.user_data.len() > MAX_USER_DATA {
            return Err(ApiError::invalid(
                "user_data",
                format!(
                    "{} bytes are too many; at most {MAX_USER_DATA}",
                    self.user_data.len()
                ),
            ));
        }
        tags::check(&self.tags, "tags")?;
        check_kernel_args(&self.extra_kernel_args, "extra_kernel_args")?;
        interfaces::check(&self.interfaces, max_count)?;
        self.networks.check(max_count)?;
        let metadata_options =
            MetadataOptions::default().changed(&self.metadata_options, "metadata_options")?;
        Ok(Shape {
            metadata_options,
            instance_type: name.to_owned(),
            vcpus,
            memory_bytes: memory_mib << 20,
            min_count,
            max_count,
        })
    }

    fn overrides(&self, shape: &instance_types::InstanceType) -> ApiResult<(u32, u64)> {
        let vcpus = if self.vcpus == 0 {
            shape.vcpus
        } else {
            self.vcpus
        };
        if let Some(problem) = instance_types::vcpus_problem(vcpus) {
            return Err(ApiError::invalid("vcpus", problem));
        }
        let memory_mib = if self.memory_mib == 0 {
            shape.memory_mib
        } else {
            self.memory_mib
        };
        if let Some(problem) = instance_types::memory_problem(memory_mib) {
            return Err(ApiError::invalid("memory_mib", problem));
        }
        Ok((vcpus, memory_mib))
    }

    fn counts(&self) -> ApiResult<(u32, u32)> {
        let min = self.min_count.max(1);
        let max = if self.max_count == 0 {
            min
        } else {
            self.max_count
        };
        if max > MAX_COUNT || min > MAX_COUNT {
            let field = if max > MAX_COUNT {
                "max_count"
            } else {
                "min_count"
            };
            return Err(ApiError::invalid(
                field,
                format!("at most {MAX_COUNT} in one call"),
            ));
        }
        if min > max {
            return Err(ApiError::invalid(
                "min_count",
                format!("{min} is more than max_count"),
            ));
        }
        Ok((min, max))
    }

    /// Checks the rest and makes the rows.
    pub fn commit(
        &self,
        tx: &mut Tx<'_>,
        shape: &Shape,
        memory: &Memory,
        classes: &Classes,
    ) -> ApiResult<Launched> {
        if let Some(token) = &self.token
            && let Some(ids) = token.earlier(tx)?
        {
            return Ok(Launched::Earlier(ids));
        }
        let image = db::images::get(tx, &self.image_id)?
            .ok_or_else(|| Kind::Image.missing(&self.image_id, "image_id"))?;
        if image.state != ImageState::Available {
            return Err(ApiError::field(
                Reason::ImageUnavailable,
                "image_id",
                format!("the image {} is {}", image.id, image.state.word()),
            ));
        }
        let kernel_args = joined_args(&image.kernel_args, &self.extra_kernel_args)?;
        interfaces::check_free(tx, &self.interfaces)?;
        let disks = disks::plan(&image, &self.disks, shape.max_count, classes)?;
        let committed = db::instances::committed_memory(tx)?;
        let room = memory.room_for(shape.memory_bytes, committed);
        if room < u64::from(shape.min_count) {
            let field = match self.memory_mib {
                0 => "instance_type",
                _ => "memory_mib",
            };
            return Err(memory.no_room(field, shape.memory_bytes, committed));
        }
        let networks = self.networks.wanted(tx, &self.owner)?;
        let count = u64::from(shape.max_count).min(room);
        let count = networks.room(tx, shape.min_count.into(), count)?;
        let mut plan = Plan::default();
        let mut launch = Launch {
            reservation_id: Kind::Instance.new_id()?.replacen("i-", "r-", 1),
            index: 0,
            public_key: keys::of_launch(tx, &self.owner, &self.key_name)?,
            key_name: self.key_name.clone(),
        };
        let mut instances = Vec::new();
        for index in 0..count {
            // At most MAX_COUNT.
            launch.index = index as u32;
            let mut instance = self.instance(shape, &image, &kernel_args, &launch)?;
            db::instances::insert(tx, &mut instance)?;
            networks.insert(tx, &mut plan, &instance)?;
            for disk in &disks {
                self.attach(tx, &instance, &image, disk)?;
            }
            instances.push(instance);
        }
        if let Some(token) = &self.token {
            let ids: Vec<String> = instances
                .iter()
                .map(|instance| instance.id.clone())
                .collect();
            token.keep(tx, &ids)?;
        }
        if self.dry_run {
            return Err(ApiError::new(
                Reason::DryRunOperation,
                "the request would have worked; it was a dry run",
            ));
        }
        Ok(Launched::New(instances))
    }

    fn instance(
        &self,
        shape: &Shape,
        image: &Image,
        kernel_args: &str,
        launch: &Launch,
    ) -> ApiResult<Instance> {
        let id = Kind::Instance.new_id()?;
        Ok(Instance {
            seq: 0,
            interfaces: interfaces::for_instance(&self.interfaces, &id),
            id,
            owner: self.owner.clone(),
            image_id: image.id.clone(),
            instance_type: shape.instance_type.clone(),
            state: InstanceState::Pending,
            reason: StateReason::none(),
            vcpus: shape.vcpus,
            memory_bytes: shape.memory_bytes,
            kernel: image.kernel.clone(),
            initrd: image.initrd.clone(),
            kernel_args: kernel_args.to_owned(),
            boot_protocol: image.boot_protocol,
            user_data: self.user_data.clone(),
            tags: self.tags.clone(),
            client_token: self.client_token.clone(),
            root_device: image.has_root.then(|| super::devices::ROOT.to_owned()),
            launch_time: Millis::now(),
            launched: false,
            operation: Operation::None,
            vmm_pid: None,
            ended: None,
            launch: launch.clone(),
            metadata_options: shape.metadata_options.clone(),
        })
    }

    fn attach(
        &self,
        tx: &mut Tx<'_>,
        instance: &Instance,
        image: &Image,
        disk: &disks::Disk,
    ) -> ApiResult<()> {
        let attachment = Some(Attachment {
            instance_id: instance.id.clone(),
            device: disk.device.clone(),
            delete_on_termination: disk.delete_on_termination,
            read_only: disk.read_only,
            state: AttachmentState::Attached,
            detach_deadline: None,
        });
        let (size_bytes, image_id, snapshot_id) = match &disk.source {
            DiskSource::Existing(id) => {
                let field = format!("{}.volume_id", disk.field);
                let volume =
                    db::volumes::get(tx, id)?.ok_or_else(|| Kind::Volume.missing(id, &field))?;
                crate::volumes::check_free(&volume, &field)?;
                crate::volumes::check_no_snapshot(tx, &volume, &field)?;
                let after = Volume {
                    state: VolumeState::InUse,
                    attachment,
                    ..volume.clone()
                };
                return Ok(db::volumes::update(tx, &volume, &after)?);
            }
            DiskSource::Root { size_bytes } => (
                *size_bytes,
                Some(image.id.clone()),
                image.root_disk().map(|disk| disk.snapshot_id.clone()),
            ),
            DiskSource::OfImage {
                snapshot_id,
                size_bytes,
            } => (
                *size_bytes,
                Some(image.id.clone()),
                Some(snapshot_id.clone()),
            ),
            DiskSource::Empty { size_gib } => (size_gib * GIB, None, None),
            DiskSource::Snapshot { id, size_gib } => {
                let (id_field, size_field) = (
                    format!("{}.snapshot_id", disk.field),
                    format!("{}.size_gib", disk.field),
                );
                let size_bytes =
                    crate::snapshots::volume_size(tx, id, *size_gib, &id_field, &size_field)?;
                (size_bytes, None, Some(id.clone()))
            }
        };
        let mut volume = Volume {
            seq: 0,
            id: Kind::Volume.new_id()?,
            owner: self.owner.clone(),
            state: VolumeState::Creating,
            size_bytes,
            image_id,
            snapshot_id,
            attachment,
            create_time: Millis::now(),
            tags: Vec::new(),
            client_token: String::new(),
            growing_to: None,
            class: disk.class.clone(),
            credits: None,
            modification: None,
        };
        Ok(db::volumes::insert(tx, &mut volume)?)
    }
}

/// Whether a stopped instance may start: there is memory, and nobody works on its volumes.
pub fn check_may_start(tx: &Tx<'_>, instance: &Instance) -> ApiResult<()> {
    let memory = Memory::read()?;
    let committed = db::instances::committed_memory(tx)?;
    if memory.room_for(instance.memory_bytes, committed) == 0 {
        return Err(memory
            .no_room("instance_ids", instance.memory_bytes, committed)
            .with("resource_id", &instance.id));
    }
    for volume in db::volumes::of_instance(tx, &instance.id)? {
        crate::volumes::check_no_snapshot(tx, &volume, "instance_ids")?;
        if volume.growing_to.is_some() {
            return Err(ApiError::new(
                Reason::IncorrectState,
                format!(
                    "the volume {} of {} is being made larger",
                    volume.id, instance.id
                ),
            ));
        }
    }
    Ok(())
}

/// Checks kernel arguments: printable, not endless.
pub fn check_kernel_args(args: &str, field: &str) -> ApiResult<()> {
    if args.len() > MAX_KERNEL_ARGS {
        return Err(ApiError::invalid(
            field,
            format!("at most {MAX_KERNEL_ARGS} bytes"),
        ));
    }
    if !args.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err(ApiError::invalid(
            field,
            "kernel arguments are printable ASCII",
        ));
    }
    Ok(())
}

fn joined_args(of_image: &str, extra: &str) -> ApiResult<String> {
    let joined = format!("{} {}", of_image.trim(), extra.trim())
        .trim()
        .to_owned();
    if joined.len() > MAX_KERNEL_ARGS {
        return Err(ApiError::invalid(
            "extra_kernel_args",
            format!(
                "with the image's, {} bytes are too many; at most {MAX_KERNEL_ARGS}",
                joined.len()
            ),
        ));
    }
    Ok(joined)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::Db;

    const IMAGE: &str = "img-0123456789abcdef0";
    const MEMORY: Memory = Memory {
        total: 16 << 30,
        available: 16 << 30,
    };

    async fn database(dir: &tempfile::TempDir) -> Db {
        let db = Db::open(&dir.path().join("db")).expect("open");
        let mut image = Image {
            seq: 0,
            id: IMAGE.to_owned(),
            owner: "local".to_owned(),
            name: "base".to_owned(),
            description: String::new(),
            state: ImageState::Available,
            architecture: "x86_64".to_owned(),
            kernel: "k".to_owned(),
            initrd: None,
            kernel_args: "console=ttyS0".to_owned(),
            boot_protocol: crate::images::model::BootProtocol::Auto,
            has_root: true,
            root_size_bytes: GIB,
            create_time: Millis(0),
            tags: Vec::new(),
            client_token: String::new(),
            disks: Vec::new(),
            source_instance_id: None,
            deprecation_time: None,
        };
        db.write(move |tx| db::images::insert(tx, &mut image))
            .await
            .expect("insert");
        db
    }

    fn request() -> LaunchRequest {
        LaunchRequest {
            owner: "local".to_owned(),
            image_id: IMAGE.to_owned(),
            instance_type: "m.medium".to_owned(),
            min_count: 0,
            max_count: 0,
            disks: Vec::new(),
            user_data: String::new(),
            tags: Vec::new(),
            client_token: String::new(),
            token: None,
            dry_run: false,
            extra_kernel_args: "quiet".to_owned(),
            vcpus: 0,
            memory_mib: 0,
            interfaces: Vec::new(),
            networks: NetworkRequest::default(),
            key_name: String::new(),
            metadata_options: v1::MetadataOptions::default(),
        }
    }

    async fn launch(db: &Db, request: LaunchRequest) -> ApiResult<Launched> {
        let types = Catalogue::load("/nonexistent".as_ref()).expect("built in");
        let shape = request.check(&types)?;
        let classes = Classes::load("/nonexistent".as_ref()).expect("built in");
        db.write(move |tx| request.commit(tx, &shape, &MEMORY, &classes))
            .await
    }

    async fn count(db: &Db) -> (usize, usize) {
        db.read(|c| {
            Ok::<_, db::DbError>((db::instances::ids(c)?.len(), db::volumes::ids(c)?.len()))
        })
        .await
        .expect("count")
    }

    #[tokio::test]
    async fn a_launch_is_as_many_rows_as_fit_between_the_least_and_the_most() {
        let dir = tempfile::tempdir().expect("tempdir");
        let db = database(&dir).await;
        // 4 GiB each, and a little of 16 GiB is reserved: 3 fit.
        let request = LaunchRequest {
            min_count: 2,
            max_count: 10,
            ..request()
        };
        let Ok(Launched::New(instances)) = launch(&db, request.clone()).await else {
            panic!("3 fit")
        };
        assert_eq!(instances.len(), 3);
        assert_eq!(instances[0].kernel_args, "console=ttyS0 quiet");
        assert_eq!(count(&db).await, (3, 3));
        let full = launch(&db, request).await.expect_err("no room");
        assert_eq!(full.reason(), Reason::InsufficientInstanceCapacity);
        assert_eq!(count(&db).await, (3, 3));
    }

    #[tokio::test]
    async fn a_dry_run_and_a_refused_request_leave_no_rows() {
        let dir = tempfile::tempdir().expect("tempdir");
        let db = database(&dir).await;
        let dry = LaunchRequest {
            dry_run: true,
            ..request()
        };
        let error = launch(&db, dry).await.expect_err("dry");
        assert_eq!(error.reason(), Reason::DryRunOperation);
        let missing = DiskRequest {
            volume_id: "vol-0123456789abcdef0".to_owned(),
            ..Default::default()
        };
        let request = LaunchRequest {
            disks: vec![missing],
            ..request()
        };
        let error = launch(&db, request).await.expect_err("no such volume");
        assert_eq!(error.reason(), Reason::VolumeNotFound);
        assert_eq!(error.fields(), ["block_devices[0].volume_id"]);
        assert_eq!(count(&db).await, (0, 0));
        let events = db
            .read(|c| db::events::after(c, 0, 10))
            .await
            .expect("events");
        assert_eq!(events.len(), 1, "only the image's");
    }

    #[tokio::test]
    async fn a_repeated_launch_with_the_same_token_makes_nothing() {
        let dir = tempfile::tempdir().expect("tempdir");
        let db = database(&dir).await;
        let wire = hearth_proto::v1::RunInstancesRequest::default();
        let token = ClientToken::of("local", "RunInstances", "t", "client_token", &wire);
        let request = LaunchRequest {
            token: token.expect("valid"),
            ..request()
        };
        let Ok(Launched::New(first)) = launch(&db, request.clone()).await else {
            panic!("new")
        };
        let Ok(Launched::Earlier(ids)) = launch(&db, request).await else {
            panic!("earlier")
        };
        assert_eq!(ids, [first[0].id.clone()]);
        assert_eq!(count(&db).await, (1, 1));
    }

    #[test]
    fn impossible_requests_name_their_field() {
        let types = Catalogue::load("/nonexistent".as_ref()).expect("built in");
        let cases = [
            (
                "image_id",
                LaunchRequest {
                    image_id: String::new(),
                    ..request()
                },
            ),
            (
                "image_id",
                LaunchRequest {
                    image_id: "img/../x".to_owned(),
                    ..request()
                },
            ),
            (
                "instance_type",
                LaunchRequest {
                    instance_type: "a/b".to_owned(),
                    ..request()
                },
            ),
            (
                "min_count",
                LaunchRequest {
                    min_count: 2,
                    max_count: 1,
                    ..request()
                },
            ),
            (
                "max_count",
                LaunchRequest {
                    max_count: 101,
                    ..request()
                },
            ),
            (
                "min_count",
                LaunchRequest {
                    min_count: u32::MAX,
                    max_count: 1,
                    ..request()
                },
            ),
            (
                "user_data",
                LaunchRequest {
                    user_data: "x".repeat(16_385),
                    ..request()
                },
            ),
            (
                "vcpus",
                LaunchRequest {
                    vcpus: 33,
                    ..request()
                },
            ),
            (
                "memory_mib",
                LaunchRequest {
                    memory_mib: u64::MAX,
                    ..request()
                },
            ),
            (
                "memory_mib",
                LaunchRequest {
                    memory_mib: 30,
                    ..request()
                },
            ),
        ];
        for (field, request) in cases {
            assert_eq!(request.check(&types).expect_err(field).fields(), [field]);
        }
    }
}
