//! Instances: micro-VMs from RunInstances to terminated.
//!
//! - [`state`]: the life of an instance, drawn, and what is legal when
//! - [`launch`], [`disks`], [`devices`], [`interfaces`]: what a request comes to
//! - [`metadata_options`]: how it may use the metadata service
//! - [`driver`]: lives the life; one task per instance
//! - [`start`], [`cleanup`]: its beginning and its end on the host
//! - [`system`]: what its guest finds in SMBIOS
//! - [`vmm`]: the VMM processes

mod cleanup;
pub mod devices;
pub mod disks;
pub mod driver;
pub mod interfaces;
pub mod launch;
pub mod metadata_options;
pub mod model;
pub mod start;
pub mod state;
pub mod system;
pub mod vmm;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hearth_images::crash_point;
use rusqlite::Connection;
use tokio::sync::{Semaphore, oneshot, watch};

use self::{
    driver::{Change, Handle, Input, Live, plug::PlugInput},
    launch::{LaunchRequest, Launched},
    model::Instance,
    state::{Answer, Asked, InstanceState, answer},
};
use crate::{
    blocking::blocking,
    context::Context,
    db,
    error::{ApiError, ApiResult, Reason},
    host::Memory,
    ids::Kind,
    networks::{self, model::Interface, plug::Plugged},
    query::{
        Described,
        page::{Page, Query},
        tags_weight,
    },
    tags::Tag,
    volumes::model::Volume,
};

/// How long a guest may take to shut down when the caller does not say.
pub const STOP_PATIENCE: Duration = Duration::from_secs(120);

/// An instance and its disks.
#[derive(Clone, Debug)]
pub struct InstanceView {
    pub instance: Instance,
    pub volumes: Vec<Volume>,
    pub interfaces: Vec<Plugged>,
}

/// All instances of the host.
pub struct Instances {
    context: Arc<Context>,
    /// How many VMMs are started at the same time.
    starts: Arc<Semaphore>,
    handles: Mutex<HashMap<String, Handle>>,
}

impl Instances {
    /// None yet; see [`Self::take_up`].
    pub fn new(context: Arc<Context>) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            context,
            starts: Arc::new(Semaphore::new(cpus * 2)),
            handles: Mutex::new(HashMap::new()),
        }
    }

    /// Goes on with the instances in the database, after the agent's start.
    pub async fn take_up(&self) -> ApiResult<()> {
        for row in self.context.db.read(db::instances::living).await? {
            self.drive(row, false);
        }
        Ok(())
    }

    /// RunInstances.
    pub async fn run(&self, request: LaunchRequest) -> ApiResult<Vec<InstanceView>> {
        let context = self.context.clone();
        let memory = blocking("looking at the host", move || {
            context.host.check()?;
            Memory::read()
        });
        let shape = request.check(&self.context.types)?;
        let memory = memory.await??;
        let classes = self.context.classes.clone();
        let launched = self
            .context
            .db
            .write(move |tx| request.commit(tx, &shape, &memory, &classes))
            .await?;
        crash_point("launch.rows-pending");
        let ids = match launched {
            Launched::Earlier(ids) => ids,
            Launched::New(instances) => {
                self.enforce(&instances).await;
                let ids = instances
                    .iter()
                    .map(|instance| instance.id.clone())
                    .collect();
                for instance in instances {
                    self.drive(instance, true);
                }
                ids
            }
        };
        self.context
            .db
            .read(move |connection| ids.iter().map(|id| by_token(connection, id)).collect())
            .await
    }

    /// Tells the firewall of the interfaces of new instances, all at once. Where that fails, the
    /// start of each tries it again, and fails for it.
    async fn enforce(&self, instances: &[Instance]) {
        let ids: Vec<String> = instances.iter().map(|it| it.id.clone()).collect();
        let read = self.context.db.read(move |connection| {
            let mut all = Vec::new();
            for id in &ids {
                let interfaces = db::interfaces::of_instance(connection, id)?;
                all.extend(interfaces.into_iter().map(|it| it.id));
            }
            Ok::<_, db::DbError>(all)
        });
        let told = match read.await {
            Ok(interfaces) => networks::enforce::interfaces(&self.context, &interfaces).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = told {
            tracing::warn!(%error, "the firewall does not know of new instances");
        }
    }

    /// Asks something of several instances: of all, or, when one is missing or in the wrong
    /// state, of none.
    pub async fn ask(
        &self,
        ids: Vec<String>,
        what: Asked,
        patience: Duration,
    ) -> ApiResult<Vec<(String, Change)>> {
        if what == Asked::Start {
            let context = self.context.clone();
            blocking("looking at the host", move || context.host.check()).await??;
        }
        let wanted = ids.clone();
        let states = self
            .context
            .db
            .read(move |connection| states(connection, &wanted))
            .await?;
        for (id, state) in &states {
            if answer(*state, what) == Answer::Refused {
                return Err(driver::refused(id, *state, what));
            }
        }
        let mut asked = Vec::new();
        for (id, state) in states {
            let (reply, result) = oneshot::channel();
            let input = Input::Asked {
                what,
                patience,
                reply,
            };
            let sent = match self.handle_of(&id, state).await {
                Some(handle) => handle.inputs.send(input).is_ok(),
                None => false,
            };
            asked.push((id, state, sent.then_some(result)));
        }
        let mut changes = Vec::new();
        for (id, state, result) in asked {
            let change = match result {
                Some(result) => match result.await {
                    Ok(change) => change?,
                    // Its task has ended: it is terminated.
                    Err(_) => driver::settled(&id, InstanceState::Terminated, what)?,
                },
                None => driver::settled(&id, state, what)?,
            };
            changes.push((id, change));
        }
        Ok(changes)
    }

    /// DescribeInstances.
    pub async fn describe(&self, query: Query) -> ApiResult<Page<InstanceView>> {
        self.context
            .db
            .read(move |connection| {
                let get = |connection: &Connection, id: &str, field: &str| {
                    listed(connection, get(connection, id, field)?)
                };
                let after = |connection: &Connection, seq, limit| {
                    let rows = db::instances::after(connection, seq, limit)?.into_iter();
                    rows.map(|row| Listed::read(connection, row)).collect()
                };
                let page = query.page(connection, "instance_ids", get, after)?;
                let views = page
                    .objects
                    .into_iter()
                    .map(|it| view(connection, it.instance));
                Ok(Page {
                    objects: views.collect::<ApiResult<_>>()?,
                    next_token: page.next_token,
                })
            })
            .await
    }

    /// One instance.
    pub async fn get(&self, id: &str) -> ApiResult<Instance> {
        Kind::Instance.check(id, "instance_id")?;
        let id = id.to_owned();
        self.context
            .db
            .read(move |connection| get(connection, &id, "instance_id"))
            .await
    }

    /// Follows an instance's state; `None` when it is terminated.
    pub fn live(&self, id: &str) -> Option<watch::Receiver<Live>> {
        self.handle(id).map(|handle| handle.live)
    }

    /// Tells the task of an instance that rows of its volumes have changed, and who wants to know
    /// what comes of one that is attached.
    pub fn volumes_changed(
        &self,
        id: &str,
        waits: Option<(String, oneshot::Sender<ApiResult<()>>)>,
    ) {
        if let Some(handle) = self.handle(id) {
            // A task that has ended has settled the rows.
            let _ = handle
                .inputs
                .send(Input::Plug(PlugInput::Changed { waits }));
        }
    }

    /// Starts the tasks anew that came to an end before their instance did: a fault of ours,
    /// which must not leave an instance without anybody to look after it.
    pub async fn revive(&self) -> ApiResult<()> {
        // Asked first: a task ends after the row says terminated.
        let ended: Vec<String> = self
            .handles()
            .iter()
            .filter(|(_, handle)| handle.inputs.is_closed())
            .map(|(id, _)| id.clone())
            .collect();
        for row in self.context.db.read(db::instances::living).await? {
            if ended.contains(&row.id) {
                tracing::error!(instance = row.id, "its task had ended; started anew");
                self.drive(row, false);
            }
        }
        Ok(())
    }

    /// Forgets the tasks of instances that are over.
    pub fn forget(&self, ids: &[String]) {
        let mut handles = self.handles();
        for id in ids {
            handles.remove(id);
        }
    }

    fn drive(&self, row: Instance, new: bool) {
        let id = row.id.clone();
        let handle = driver::spawn(self.context.clone(), self.starts.clone(), row, new);
        self.handles().insert(id, handle);
    }

    /// The handle of an instance whose row was read in this state. A row is committed a moment
    /// before its task starts.
    async fn handle_of(&self, id: &str, state: InstanceState) -> Option<Handle> {
        for _ in 0..100 {
            let handle = self.handle(id);
            if handle.is_some() || state == InstanceState::Terminated {
                return handle;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        None
    }

    fn handle(&self, id: &str) -> Option<Handle> {
        self.handles().get(id).cloned()
    }

    fn handles(&self) -> MutexGuard<'_, HashMap<String, Handle>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn get(connection: &Connection, id: &str, field: &str) -> ApiResult<Instance> {
    db::instances::get(connection, id)?.ok_or_else(|| Kind::Instance.missing(id, field))
}

fn by_token(connection: &Connection, id: &str) -> ApiResult<InstanceView> {
    match db::instances::get(connection, id)? {
        Some(row) => view(connection, row),
        None => Err(ApiError::new(
            Reason::IdempotentInstanceTerminated,
            format!("the instance {id}, which this client token stands for, is long terminated"),
        )),
    }
}

fn view(connection: &Connection, instance: Instance) -> ApiResult<InstanceView> {
    let volumes = db::volumes::of_instance(connection, &instance.id)?;
    let interfaces = networks::plug::read(connection, &instance.id)?;
    Ok(InstanceView {
        instance,
        volumes,
        interfaces,
    })
}

fn states(connection: &Connection, ids: &[String]) -> ApiResult<Vec<(String, InstanceState)>> {
    ids.iter()
        .enumerate()
        .map(|(index, id)| {
            let row = get(connection, id, &format!("instance_ids[{index}]"))?;
            Ok((id.clone(), row.state))
        })
        .collect()
}

/// An instance as Describe looks for it.
pub struct Listed {
    instance: Instance,
    interfaces: Vec<Interface>,
}

impl Listed {
    fn read(connection: &Connection, instance: Instance) -> db::DbResult<Self> {
        let interfaces = db::interfaces::of_instance(connection, &instance.id)?;
        Ok(Self {
            instance,
            interfaces,
        })
    }
}

fn listed(connection: &Connection, instance: Instance) -> ApiResult<Listed> {
    Ok(Listed::read(connection, instance)?)
}

impl Described for Listed {
    const KIND: Kind = Kind::Instance;
    const FILTERS: &'static [&'static str] = &[
        "instance-id",
        "image-id",
        "instance-type",
        "instance-state-name",
        "owner-id",
        "client-token",
        "network-id",
        "private-ipv4",
        "group-id",
        "key-name",
    ];

    fn seq(&self) -> i64 {
        self.instance.seq
    }

    fn id(&self) -> &str {
        &self.instance.id
    }

    fn owner(&self) -> &str {
        &self.instance.owner
    }

    fn values(&self, filter: &str) -> Vec<String> {
        let (it, interfaces) = (&self.instance, self.interfaces.iter());
        match filter {
            "network-id" => return interfaces.map(|it| it.network_id.clone()).collect(),
            "private-ipv4" => return interfaces.map(|it| it.ipv4.to_string()).collect(),
            "group-id" => return interfaces.flat_map(|it| it.groups.clone()).collect(),
            _ => {}
        }
        vec![match filter {
            "instance-id" => it.id.clone(),
            "image-id" => it.image_id.clone(),
            "instance-type" => it.instance_type.clone(),
            "instance-state-name" => it.state.word().to_owned(),
            "owner-id" => it.owner.clone(),
            "client-token" => it.client_token.clone(),
            "key-name" => it.launch.key_name.clone(),
            _ => return Vec::new(),
        }]
    }

    fn weight(&self) -> usize {
        let it = &self.instance;
        tags_weight(&it.tags)
            + it.user_data.len()
            + it.kernel_args.len()
            + it.reason.message.len()
            + self.interfaces.len() * 512
    }

    fn tags(&self) -> &[Tag] {
        &self.instance.tags
    }
}
