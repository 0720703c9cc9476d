//! The daemon: takes the state directory, goes on with what is there, serves the API.
//!
//! Start: lock the state directory, open database and store, undo what was cut off, take the
//! socket, take up the instances, say that it is ready. End (SIGTERM, SIGINT): no new calls,
//! watches and consoles end, calls under way have [`DRAIN`] to come to their end; guests stay.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt},
        net::UnixStream as StdUnixStream,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hearth_images::Store;
use hearth_proto::v1::{
    event_service_server::EventServiceServer, flow_log_service_server::FlowLogServiceServer,
    image_service_server::ImageServiceServer, instance_service_server::InstanceServiceServer,
    key_pair_service_server::KeyPairServiceServer, network_service_server::NetworkServiceServer,
    security_group_service_server::SecurityGroupServiceServer,
    snapshot_service_server::SnapshotServiceServer, store_service_server::StoreServiceServer,
    volume_service_server::VolumeServiceServer,
};
use rustix::fs::{FlockOperation, flock};
use thiserror::Error;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::{
    api::{
        events::Events, flow_logs::FlowLogApi, images::ImageApi, instances::InstanceApi,
        key_pairs::KeyPairApi, networks::NetworkApi, security_groups::SecurityGroupApi,
        snapshots::SnapshotApi, store::StoreApi, volumes::VolumeApi,
    },
    busy::Busy,
    config::Settings,
    context::Context,
    db::{Db, DbError},
    error::ApiError,
    firewall::{Firewall, Owner},
    flow_logs::{self, FlowLogs},
    host::Host,
    instance_types::Catalogue,
    instances::Instances,
    merging,
    networks::{self, Networks},
    reconcile, shutdown, tap_services,
    turns::Turns,
    upkeep::checksums,
    volumes::classes::Classes,
};

/// How long calls may take to come to their end when the daemon ends.
const DRAIN: Duration = Duration::from_secs(5);

/// Largest message, in bytes: 1 MiB of data and what is around it.
const MAX_MESSAGE: usize = (1 << 20) + (64 << 10);

/// Why the daemon could not start, or ended by itself.
#[derive(Debug, Error)]
pub enum ServerError {
    /// A directory or file.
    #[error("{path:?}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another daemon has the state directory.
    #[error("another hearthd uses the state directory {0:?}; stop it, or give --state-dir")]
    StateDirTaken(PathBuf),
    /// Another daemon has the socket.
    #[error("another hearthd listens on {0:?}; stop it, or give --socket")]
    SocketTaken(PathBuf),
    /// The socket's path is something else.
    #[error("{0:?} is there and is not a socket; remove it, or give --socket")]
    NotASocket(PathBuf),
    /// The database.
    #[error("the database {path:?}: {source}")]
    Database {
        /// Which.
        path: PathBuf,
        /// Why.
        source: DbError,
    },
    /// The volume store.
    #[error("the volume store: {0}")]
    Store(#[from] hearth_images::Error),
    /// The operator's instance types or volume classes.
    #[error("{path:?}: {source}")]
    Catalogue {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Undoing what was cut off.
    #[error("{0}")]
    Reconcile(String),
    /// What the services on taps share.
    #[error(transparent)]
    TapServices(#[from] tap_services::SharedError),
    /// The server itself.
    #[error("serving: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// Reflection.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

fn file_error(path: &Path) -> impl FnOnce(io::Error) -> ServerError {
    let path = path.to_owned();
    move |source| ServerError::File { path, source }
}

/// Serves until `until` comes to its end; `ready` is called once calls are answered.
///
/// # Errors
/// [`ServerError`].
pub async fn serve(
    settings: Settings,
    until: impl Future<Output = ()>,
    ready: impl FnOnce(&Path),
) -> Result<(), ServerError> {
    for dir in [
        &settings.state_dir,
        &settings.kernels(),
        &settings.tmp(),
        &settings.instances(),
    ] {
        private_dir(dir)?;
    }
    let _lock = lock_state_dir(&settings)?;
    let (trigger, shutdown) = shutdown::channel();
    let context = open(settings, shutdown.clone())?;
    if let Err(error) = context.host.check() {
        tracing::warn!("no guest can run here: {}", error.message());
    }
    reconcile::at_start(&context)
        .await
        .map_err(|error| reconcile_error(&error))?;
    let listener = listen(&context.settings.socket)?;
    networks::reconcile::at_start(&context)
        .await
        .map_err(|error| reconcile_error(&error))?;
    let instances = Arc::new(Instances::new(context.clone()));
    instances
        .take_up()
        .await
        .map_err(|error| reconcile_error(&error))?;
    let sweeper = tokio::spawn(reconcile::run(
        context.clone(),
        instances.clone(),
        shutdown.clone(),
    ));
    let summer = tokio::spawn(checksums::run(context.clone(), shutdown.clone()));

    let merger = tokio::spawn(merging::run(context.clone(), shutdown.clone()));
    let watchman = tokio::spawn(networks::reconcile::run(context.clone(), shutdown.clone()));
    let flow_logger = tokio::spawn(flow_logs::run(context.clone(), shutdown.clone()));

    let router = router(&context, &instances).await?;
    ready(&context.settings.socket);
    let mut ending = shutdown.clone();
    let incoming = UnixListenerStream::new(listener);
    let serving = router.serve_with_incoming_shutdown(incoming, async move { ending.wait().await });
    let mut serving = std::pin::pin!(serving);
    let result = tokio::select! {
        result = &mut serving => result,
        () = until => {
            tracing::info!("ending; guests go on");
            trigger.fire();
            tokio::time::timeout(DRAIN, serving).await.unwrap_or_else(|_| {
                tracing::warn!("calls that did not come to their end are cut off");
                Ok(())
            })
        }
    };
    trigger.fire();
    let _ = fs::remove_file(&context.settings.socket);
    // A round of reconciliation that has begun is carried through.
    let _ = tokio::time::timeout(DRAIN, sweeper).await;
    let _ = tokio::time::timeout(DRAIN, summer).await;
    // A merge stops after the piece that it copies.
    let _ = tokio::time::timeout(DRAIN, merger).await;
    let _ = tokio::time::timeout(DRAIN, watchman).await;
    let _ = tokio::time::timeout(DRAIN, flow_logger).await;
    Ok(result?)
}

fn reconcile_error(error: &ApiError) -> ServerError {
    ServerError::Reconcile(error.to_string())
}

fn open(settings: Settings, shutdown: shutdown::Shutdown) -> Result<Arc<Context>, ServerError> {
    let path = settings.database();
    let db = Db::open(&path).map_err(|source| ServerError::Database { path, source })?;
    let owner = Owner::of(&settings.state_dir).map_err(|source| ServerError::File {
        path: settings.state_dir.clone(),
        source,
    })?;
    let path = settings.operator_types();
    let types = Catalogue::load(&path).map_err(|error| ServerError::Catalogue {
        path,
        source: error.into(),
    })?;
    let path = settings.operator_classes();
    let classes = Classes::load(&path).map_err(|error| ServerError::Catalogue {
        path,
        source: error.into(),
    })?;
    Ok(Arc::new(Context {
        store: Store::open(settings.store())?,
        tap_services: tap_services::Shared::open(&settings, db.clone())?,
        db,
        host: Host::new(&settings.vmm),
        types,
        classes: Arc::new(classes),
        busy: Busy::default(),
        firewall: Firewall::new(owner),
        networks: Networks::default(),
        flow_logs: FlowLogs::new(settings.flow_logs()),
        turns: Turns::default(),
        kernels: tokio::sync::Mutex::new(()),
        merge_wanted: tokio::sync::Notify::new(),
        shutdown,
        settings,
    }))
}

async fn router(
    context: &Arc<Context>,
    instances: &Arc<Instances>,
) -> Result<tonic::transport::server::Router, ServerError> {
    let instance_api = InstanceServiceServer::new(InstanceApi {
        context: context.clone(),
        instances: instances.clone(),
    })
    .max_decoding_message_size(MAX_MESSAGE);
    let volume_api = VolumeServiceServer::new(VolumeApi {
        context: context.clone(),
        instances: instances.clone(),
    })
    .max_decoding_message_size(MAX_MESSAGE);
    let snapshot_api = SnapshotServiceServer::new(SnapshotApi {
        context: context.clone(),
        instances: instances.clone(),
    })
    .max_decoding_message_size(MAX_MESSAGE);
    let image_api = ImageServiceServer::new(ImageApi {
        context: context.clone(),
        instances: instances.clone(),
    })
    .max_decoding_message_size(MAX_MESSAGE);
    let network_api = NetworkServiceServer::new(NetworkApi {
        context: context.clone(),
    })
    .max_decoding_message_size(MAX_MESSAGE);
    let key_pair_api = KeyPairServiceServer::new(KeyPairApi {
        context: context.clone(),
    });
    let store_api = StoreServiceServer::new(StoreApi {
        context: context.clone(),
    });
    let event_api = EventServiceServer::new(Events {
        context: context.clone(),
    });
    let flow_log_api = FlowLogServiceServer::new(FlowLogApi {
        context: context.clone(),
    });
    let security_group_api = SecurityGroupServiceServer::new(SecurityGroupApi {
        context: context.clone(),
    });

    let (health, health_service) = tonic_health::server::health_reporter();
    health
        .set_serving::<InstanceServiceServer<InstanceApi>>()
        .await;
    health.set_serving::<VolumeServiceServer<VolumeApi>>().await;
    health
        .set_serving::<SnapshotServiceServer<SnapshotApi>>()
        .await;
    health.set_serving::<ImageServiceServer<ImageApi>>().await;
    health
        .set_serving::<NetworkServiceServer<NetworkApi>>()
        .await;
    health
        .set_serving::<KeyPairServiceServer<KeyPairApi>>()
        .await;
    health.set_serving::<StoreServiceServer<StoreApi>>().await;
    health.set_serving::<EventServiceServer<Events>>().await;
    health
        .set_serving::<FlowLogServiceServer<FlowLogApi>>()
        .await;
    health
        .set_serving::<SecurityGroupServiceServer<SecurityGroupApi>>()
        .await;

    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(hearth_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    Ok(Server::builder()
        .add_service(instance_api)
        .add_service(volume_api)
        .add_service(snapshot_api)
        .add_service(image_api)
        .add_service(network_api)
        .add_service(key_pair_api)
        .add_service(store_api)
        .add_service(event_api)
        .add_service(flow_log_api)
        .add_service(security_group_api)
        .add_service(health_service)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?))
}

fn private_dir(path: &Path) -> Result<(), ServerError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(file_error(path))
}

/// One daemon for a state directory; the lock goes with the process.
fn lock_state_dir(settings: &Settings) -> Result<File, ServerError> {
    let path = settings.lock_file();
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(file_error(&path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(ServerError::StateDirTaken(settings.state_dir.clone()))
        }
        Err(error) => Err(file_error(&path)(error.into())),
    }
}

/// Takes the socket, also from a daemon that is dead.
fn listen(path: &Path) -> Result<UnixListener, ServerError> {
    if let Some(dir) = path.parent() {
        private_dir(dir)?;
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ServerError::NotASocket(path.to_owned()));
        }
        Ok(_) => match StdUnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(file_error(path))?;
            }
            Err(error) => return Err(file_error(path)(error)),
            Ok(_) => return Err(ServerError::SocketTaken(path.to_owned())),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(file_error(path)(error)),
    }
    let listener = UnixListener::bind(path).map_err(file_error(path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(file_error(path))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(dir: &Path) -> Settings {
        Settings {
            state_dir: dir.join("state"),
            socket: dir.join("run/hearthd.sock"),
            vmm: dir.join("hearth-vmm"),
            region: None,
        }
    }

    #[tokio::test]
    async fn a_second_daemon_is_told_what_is_taken() {
        let dir = tempfile::tempdir().expect("tempdir");
        let settings = settings(dir.path());
        private_dir(&settings.state_dir).expect("dir");
        let _lock = lock_state_dir(&settings).expect("first");
        let taken = lock_state_dir(&settings).expect_err("second");
        assert!(matches!(taken, ServerError::StateDirTaken(_)), "{taken}");
        let first = listen(&settings.socket).expect("first");
        let taken = listen(&settings.socket).expect_err("second");
        assert!(matches!(taken, ServerError::SocketTaken(_)), "{taken}");
        drop(first);
        listen(&settings.socket).expect("the first one is dead");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&settings.socket), 0o600);
        assert_eq!(mode(settings.socket.parent().expect("parent")), 0o700);
    }

    #[test]
    fn a_file_in_the_sockets_place_is_left_alone() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("hearthd.sock");
        fs::write(&path, "precious").expect("write");
        assert!(matches!(listen(&path), Err(ServerError::NotASocket(_))));
        assert_eq!(fs::read(&path).expect("still there"), b"precious");
    }

    #[tokio::test]
    async fn the_daemon_starts_on_an_empty_directory_and_ends_when_told() {
        let dir = tempfile::tempdir().expect("tempdir");
        let settings = settings(dir.path());
        let (told, wait) = tokio::sync::oneshot::channel::<()>();
        let socket = settings.socket.clone();
        let until = async {
            let _ = wait.await;
        };
        serve(settings, until, |_| told.send(()).expect("waiting"))
            .await
            .expect("served");
        assert!(!socket.exists());
    }
}
