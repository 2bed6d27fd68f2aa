//! Wires the node agent; the only file that knows all parts.
//!
//! * key → store (set aside where it is damaged) → everything else reads and writes it;
//! * containerd: client and event pump; pods run on it and outlive us;
//! * node manager → Node row, CNI; pods ← the store; hub ⇄ the store, its streams → kubelet API; the kernel's devices → the hub's uplinks;
//!   admin socket.
//!
//! Nothing here waits for the network or the runtime: both may be away at the start. A store that fails while running ends the process (exit
//! status 74), and it starts again on what is durable. SIGTERM ends it in order and touches no container.

use std::future::Future;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cri::{CriRuntime, Runtime};
use metastore::{Options, Store};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::admin::{Admin, AdminError, Pages};
use crate::config::{self, EdgecoreConfig};
use crate::edgehub::{self, Budgets, EdgeHub};
use crate::kubelet_api::KubeletApi;
use crate::kubelet_api::pods::PodSource;
use crate::node::{NodeInfo, NodeManager};
use crate::pods::{self, NodeFacts, PodManager, PodsConfig, Recorder};
use crate::secret_key::{self, KeyError};
use crate::supervisor::{Ended, Supervisor, stopped};
use crate::uplinks::Uplinks;

/// Exit status after the store failed: EX_IOERR.
const STORE_FAILED: i32 = 74;

/// Why edgecore does not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// A folder cannot be made.
    #[error("cannot make the folder {path}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No key for the store.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The store does not open, and could not be set aside.
    #[error("cannot open the store")]
    Store(#[from] metastore::OpenError),
    /// The opening of the store did not end.
    #[error("the opening of the store broke off")]
    StoreThread(#[from] tokio::task::JoinError),
    /// The admin socket cannot be served.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The store cannot be read.
    #[error("cannot read the store's events: {0}")]
    Rows(#[from] pods::rows::RowError),
    /// The store cannot be read.
    #[error("cannot read the store")]
    Read(#[from] metastore::ReadError),
    /// Signals cannot be waited for.
    #[error("cannot wait for signals")]
    Signal(#[source] std::io::Error),
    /// A task ended.
    #[error(transparent)]
    Ended(#[from] Ended),
}

/// The wired agent, bound and not yet running.
#[derive(Debug)]
pub struct App {
    supervisor: Supervisor,
    /// The kubelet API, for whoever has a stream to serve.
    pub kubelet_api: KubeletApi,
}

/// Builds every part.
///
/// # Errors
/// When a folder, the key, the store or the admin socket cannot be had. Never for want of network or runtime.
pub async fn build(config: EdgecoreConfig) -> Result<App, AppError> {
    tracing::info!(version = crate::node::report::KUBELET_VERSION, config = %json!(config), "edgecore starts");
    let config = Arc::new(config);
    make_folders(&config)?;
    let (store, whole) = open_store(&config).await?;
    let mut supervisor = Supervisor::default();

    let (runtime, pump) = CriRuntime::new(&config.containerd.socket);
    let runtime: Arc<dyn Runtime> = Arc::new(runtime);
    supervisor.forever("containerd-events", pump.run());

    let kubelet_api = KubeletApi::new(&config, runtime.clone(), Arc::new(store.clone()));
    let link = EdgeHub::new(
        config.clone(),
        store.clone(),
        (kubelet_api.clone(), whole),
        supervisor.stop(),
    )?;
    let sessions = link.sessions();
    let (uplinks, budgets) = (link.uplinks(), link.budgets());
    let feeder = Uplinks::new(config.clone(), uplinks.clone(), sessions.clone());
    supervisor.forever("uplinks", feeder.run());
    let metrics = metrics(uplinks.subscribe(), sessions.clone(), budgets.clone());
    kubelet_api.set_metrics(metrics.clone());

    let recorder = Recorder::new(Arc::new(store.clone()), &config.node_name)?;
    supervisor.until_stop("events", events(recorder.clone(), supervisor.stop()));
    let node = NodeManager::new(
        config.clone(),
        store.clone(),
        runtime.clone(),
        link.flags(),
        recorder.clone(),
    );
    let node_info = node.info();
    supervisor.forever("node", node.run());
    let facts = facts(&mut supervisor, node_info.clone());

    let parts = pods::Parts {
        rows: Arc::new(store.clone()),
        runtime,
        recorder,
        api: Arc::new(link.api()),
        node: facts,
        complete: link.complete(),
    };
    let views = run_pods(&mut supervisor, &config, parts);

    supervisor.until_stop("hub", async move {
        link.run().await;
        Ok::<(), String>(())
    });

    let pages = Pages {
        config: json!(*config),
        node: node_info,
        metrics,
        debug: debug_pages(&store, (uplinks.subscribe(), budgets), sessions, views),
    };
    supervisor.forever("admin", Admin::bind(&config.admin_socket, pages)?.run());
    Ok(App {
        supervisor,
        kubelet_api,
    })
}

/// Starts the pods' manager; what its workers see.
fn run_pods(
    supervisor: &mut Supervisor,
    config: &EdgecoreConfig,
    parts: pods::Parts,
) -> watch::Receiver<Arc<Vec<pods::PodView>>> {
    let pods = PodManager::new(pods_config(config), parts);
    let (views, stop) = (pods.pods(), supervisor.stop());
    supervisor.until_stop("pods", async move {
        pods.run(stop).await;
        Ok::<(), String>(())
    });
    views
}

/// Writes events until the stop, and then the last ones.
async fn events(recorder: Recorder, stop: watch::Receiver<bool>) -> Result<(), String> {
    tokio::select! {
        biased;
        () = stopped(stop) => {}
        () = recorder.run() => {}
    }
    recorder.flush().await;
    Ok(())
}

/// What pods know of their node, kept up to date by a task.
fn facts(supervisor: &mut Supervisor, mut info: watch::Receiver<Arc<NodeInfo>>) -> watch::Receiver<Arc<NodeFacts>> {
    let (out, facts) = watch::channel(Arc::new(info.borrow_and_update().facts()));
    supervisor.forever("node-facts", async move {
        while info.changed().await.is_ok() {
            let new = Arc::new(info.borrow_and_update().facts());
            out.send_if_modified(|old| {
                let differs = **old != *new;
                *old = new;
                differs
            });
        }
        std::future::pending().await
    });
    facts
}

fn pods_config(config: &EdgecoreConfig) -> PodsConfig {
    let kubelet = &config.kubelet;
    let logs = &kubelet.container_logs_dir;
    PodsConfig {
        node_name: config.node_name.clone(),
        root_dir: kubelet.root_dir.clone(),
        pod_logs_dir: kubelet.pod_logs_dir.clone(),
        container_logs_dir: Some(logs.clone()).filter(|dir| !dir.as_os_str().is_empty()),
        cgroup_root: kubelet.cgroup_root.clone(),
        cgroup_driver: match kubelet.cgroup_driver {
            config::CgroupDriver::Cgroupfs => cri::CgroupDriver::Cgroupfs,
            config::CgroupDriver::Systemd => cri::CgroupDriver::Systemd,
        },
        start_parallelism: kubelet.pod_start_parallelism as usize,
        cluster_dns: config.cluster_dns.clone(),
        cluster_domain: config.cluster_domain.clone(),
        api_host: config.api_server.host.clone(),
        api_port: config.api_server.port,
        ..PodsConfig::default()
    }
}

impl App {
    /// Runs until SIGTERM or SIGINT, or until a task ends.
    ///
    /// # Errors
    /// The task that ended and should not have.
    pub async fn run(self) -> Result<(), AppError> {
        let mut terminate = signal(SignalKind::terminate()).map_err(AppError::Signal)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(AppError::Signal)?;
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            }
        };
        self.run_until(stop).await
    }

    /// Runs until `stop` says why to end, or until a task ends.
    ///
    /// # Errors
    /// The task that ended and should not have.
    pub async fn run_until(self, stop: impl Future<Output = &'static str>) -> Result<(), AppError> {
        tracing::info!(tasks = ?self.supervisor.names(), "edgecore runs");
        self.supervisor.run(stop).await?;
        tracing::info!("edgecore stopped");
        Ok(())
    }
}

/// Makes the folders, and removes what a power cut has spoilt in one of them.
fn make_folders(config: &EdgecoreConfig) -> Result<(), AppError> {
    let make = |path: &Path, mode| {
        let made = std::fs::DirBuilder::new().recursive(true).mode(mode).create(path);
        made.map_err(|source| AppError::Folder {
            path: path.to_owned(),
            source,
        })
    };
    make(&config.state_dir, 0o700)?;
    make(&config.run_dir, 0o755)?;
    make(&config.kubelet.root_dir, 0o750)?;
    make(&config.kubelet.pod_logs_dir, 0o755)?;
    if let Err(error) = crate::node::cni::remove_damaged_results(&config.network.cni_cache_dir) {
        tracing::error!(%error, "the CNI results cannot be looked through; pods of before a power cut may not start");
    }
    Ok(())
}

/// Opens the store on a thread of its own: it reads every record. False beside it says that the old one was set aside.
async fn open_store(config: &EdgecoreConfig) -> Result<(Store, bool), AppError> {
    let key = secret_key::load_or_make(&config.store_key_file)?;
    let path = config.store_dir();
    let on_fatal = Arc::new(|reason: &str| {
        tracing::error!(
            reason,
            "the store failed; edgecore ends and starts again on what is durable"
        );
        std::process::exit(STORE_FAILED);
    });
    let options = Options {
        key: Some(key),
        on_fatal,
        ..Options::default()
    };
    let opened = tokio::task::spawn_blocking(move || Store::open_or_set_aside(&path, &options)).await??;
    let (store, aside) = opened;
    let whole = aside.is_none();
    if let Some(aside) = aside {
        tracing::error!(path = %aside.path.display(), reason = %aside.reason, "the store was damaged and is set aside; pods go on, the hub will send their specs again");
    }
    Ok((store, whole))
}

/// What the tunnel says of itself to Prometheus.
fn metrics(
    uplinks: watch::Receiver<Vec<tunnel::Uplink>>,
    sessions: watch::Receiver<Option<tunnel::Session>>,
    budgets: Budgets,
) -> crate::metrics::Source {
    crate::metrics::Source::new(move || {
        edgehub::paths::metrics(&uplinks.borrow(), sessions.borrow().as_ref(), &budgets)
    })
}

fn debug_pages(
    store: &Store,
    (uplinks, budgets): (watch::Receiver<Vec<tunnel::Uplink>>, Budgets),
    sessions: watch::Receiver<Option<tunnel::Session>>,
    views: watch::Receiver<Arc<Vec<pods::PodView>>>,
) -> Vec<(&'static str, crate::admin::Source)> {
    let pods = store.clone();
    let pod = |entry: crate::kubelet_api::pods::PodEntry| -> Value {
        let m = |field| entry.metadata(field).to_owned();
        json!({"namespace": m("namespace"), "name": m("name"), "uid": m("uid"), "phase": entry.status["phase"], "podIP": entry.status["podIP"]})
    };
    let list = move || pods.pods().into_iter().map(pod).collect();
    let paths = sessions.clone();
    let paths = move || edgehub::paths::report(&uplinks.borrow(), paths.borrow().as_ref(), &budgets);
    let session = move || {
        let one = |session: &tunnel::Session| {
            let peer = session.peer();
            json!({"epoch": peer.epoch, "uplink": peer.uplink, "hub": peer.remote.to_string()})
        };
        sessions.borrow().as_ref().map(one).into_iter().collect()
    };
    // Not the store's word: what the workers of this process have seen in the runtime.
    let worker = |view: &pods::PodView| -> Value {
        let m = &view.object.metadata;
        json!({"namespace": m.namespace, "name": m.name, "uid": m.uid, "phase": view.status.phase})
    };
    let workers = move || views.borrow().iter().map(worker).collect();
    let objects = store.clone();
    vec![
        ("objects", Box::new(move || edgehub::held_versions(&objects))),
        ("paths", Box::new(paths)),
        ("pods", Box::new(list)),
        ("sessions", Box::new(session)),
        ("workers", Box::new(workers)),
    ]
}
