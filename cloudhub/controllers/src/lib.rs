//! The embedded control plane's scheduler and controllers: plain clients of the Kubernetes API.
//!
//! * API watch (one a kind, [`informer`]) → store → handlers → a [`queue`] per controller → its `reconcile(key)`
//! * `reconcile`: read the stores → plan (a pure function) → requests → wait for the watch to show them
//!
//! Nothing is kept but caches of the API: a restart begins with a list and goes on. Every controller is level-triggered; one
//! key is never reconciled twice at once. None of them knows who serves the API: the tests run them above an unmodified
//! kube-apiserver and above the embedded one.
//!
//! On failure: a request that fails is repeated with its key's back-off; a watch that fails is begun again; a task that ends
//! by itself ends [`run`] with its name.

mod context;
mod daemonset;
mod deployment;
mod disruption;
mod error;
mod events;
mod expectations;
mod garbage;
mod informer;
mod ipam;
mod namespaces;
mod nodes;
mod pod_gc;
mod pods;
mod queue;
mod replicaset;
mod resources;
mod scheduler;
mod selector;
mod service_accounts;
mod users;

use std::future::Future;
use std::net::Ipv4Addr;
use std::pin::pin;
use std::time::Duration;

use crate::context::{Context, Informers, Tasks};
pub use crate::error::Error;
pub use crate::users::{Clients, User};

/// The rights that a Kubernetes cluster's default roles lack, as YAML: to be applied before [`run`].
pub const RBAC: &str = include_str!("../rbac.yaml");

/// What the controllers need to know beside the API.
#[derive(Debug, Clone)]
pub struct Config {
    /// PEM of the CA that pods check the API server with: ConfigMap kube-root-ca.crt of each namespace.
    pub root_ca: String,
    /// First address and prefix length of the pods' network.
    pub cluster_cidr: (Ipv4Addr, u8),
    /// Prefix length of each node's part of it.
    pub node_mask: u8,
    /// A node whose lease was not renewed for so long is not Ready.
    pub node_grace: Duration,
    /// A new node has so long to report for the first time.
    pub node_startup_grace: Duration,
    /// How often leases are looked at.
    pub node_period: Duration,
    /// A pod bound to a missing node is deleted after this.
    pub orphan_quarantine: Duration,
}

impl Default for Config {
    /// kube-controller-manager's values.
    fn default() -> Self {
        Self {
            root_ca: String::new(),
            cluster_cidr: (Ipv4Addr::new(10, 244, 0, 0), 16),
            node_mask: 24,
            node_grace: Duration::from_secs(50),
            node_startup_grace: Duration::from_secs(60),
            node_period: Duration::from_secs(5),
            orphan_quarantine: Duration::from_secs(40),
        }
    }
}

/// Runs the scheduler and all controllers until `stop` is done.
///
/// # Errors
/// [`Error::Ended`] with the name of a task that ended by itself.
pub async fn run(clients: Clients, config: Config, stop: impl Future<Output = ()>) -> Result<(), Error> {
    let (recorder, inbox) = events::Recorder::new();
    let manager = clients.of(users::MANAGER);
    let mut informers = Informers::new(&manager);
    let context = Context::new(manager.clone(), config, &informers, recorder);
    let by = |user| context.acting(clients.of(user));
    let mut tasks = Tasks::default();
    tasks.add("events", events::write(manager, inbox));
    replicaset::start(&by(users::REPLICA_SETS), &mut informers, &mut tasks);
    deployment::start(&by(users::DEPLOYMENTS), &mut informers, &mut tasks);
    daemonset::start(&by(users::DAEMON_SETS), &mut informers, &mut tasks);
    scheduler::start(&by(users::SCHEDULER), &mut informers, &mut tasks);
    nodes::start(&by(users::NODES), &mut informers, &mut tasks);
    ipam::start(&by(users::NODES), &mut informers, &mut tasks);
    pod_gc::start(&by(users::POD_GC), &mut tasks);
    namespaces::start(&by(users::NAMESPACES), &mut informers, &mut tasks);
    service_accounts::start(&by(users::ACCOUNTS), &by(users::ROOT_CAS), &mut informers, &mut tasks);
    disruption::start(&by(users::DISRUPTION), &mut informers, &mut tasks);
    garbage::start(&by(users::GARBAGE), &mut informers, &mut tasks);
    let mut stop = pin!(stop);
    tokio::select! {
        biased;
        () = &mut stop => Ok(()),
        ended = tasks.supervise(&context, informers) => Err(ended),
    }
}
