//! What all controllers share: the client, the stores, the recorder; and the task set that runs them.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::{FutureExt, future};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::runtime::reflector::Store;
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use tokio::task::JoinSet;

use crate::error::Error;
use crate::events::Recorder;
use crate::informer::{Informer, Watched};
use crate::{Config, service_accounts};

/// Objects that a list asks for at once: bounds what a relist holds in memory.
const PAGE: u32 = 200;

/// Shared by all controllers but for the client: each has its own user's.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) config: Config,
    pub(crate) recorder: Recorder,
    pub(crate) pods: Store<Pod>,
    pub(crate) nodes: Store<Node>,
    pub(crate) namespaces: Store<Namespace>,
    pub(crate) replica_sets: Store<ReplicaSet>,
    pub(crate) deployments: Store<Deployment>,
    pub(crate) daemon_sets: Store<DaemonSet>,
    pub(crate) revisions: Store<ControllerRevision>,
    pub(crate) leases: Store<Lease>,
    pub(crate) budgets: Store<PodDisruptionBudget>,
    pub(crate) accounts: Store<ServiceAccount>,
    pub(crate) root_cas: Store<ConfigMap>,
}

impl Context {
    pub(crate) fn new(client: Client, config: Config, informers: &Informers, recorder: Recorder) -> Self {
        Self {
            client,
            config,
            recorder,
            pods: informers.pods.store(),
            nodes: informers.nodes.store(),
            namespaces: informers.namespaces.store(),
            replica_sets: informers.replica_sets.store(),
            deployments: informers.deployments.store(),
            daemon_sets: informers.daemon_sets.store(),
            revisions: informers.revisions.store(),
            leases: informers.leases.store(),
            budgets: informers.budgets.store(),
            accounts: informers.accounts.store(),
            root_cas: informers.root_cas.store(),
        }
    }

    /// The same, acting with `client`.
    pub(crate) fn acting(&self, client: Client) -> Arc<Self> {
        Arc::new(Self { client, ..self.clone() })
    }

    /// The API of a namespaced kind.
    pub(crate) fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// The API of a cluster-scoped kind.
    pub(crate) fn all<K: Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    /// Waits until every store has been filled once.
    async fn synced(&self) {
        // An informer that ended instead is noticed by the supervisor.
        let _ = future::join_all([
            self.pods.wait_until_ready().boxed(),
            self.nodes.wait_until_ready().boxed(),
            self.namespaces.wait_until_ready().boxed(),
            self.replica_sets.wait_until_ready().boxed(),
            self.deployments.wait_until_ready().boxed(),
            self.daemon_sets.wait_until_ready().boxed(),
            self.revisions.wait_until_ready().boxed(),
            self.leases.wait_until_ready().boxed(),
            self.budgets.wait_until_ready().boxed(),
            self.accounts.wait_until_ready().boxed(),
            self.root_cas.wait_until_ready().boxed(),
        ])
        .await;
    }
}

/// The one watch of each kind.
pub(crate) struct Informers {
    pub(crate) pods: Informer<Pod>,
    pub(crate) nodes: Informer<Node>,
    pub(crate) namespaces: Informer<Namespace>,
    pub(crate) replica_sets: Informer<ReplicaSet>,
    pub(crate) deployments: Informer<Deployment>,
    pub(crate) daemon_sets: Informer<DaemonSet>,
    pub(crate) revisions: Informer<ControllerRevision>,
    pub(crate) leases: Informer<Lease>,
    pub(crate) budgets: Informer<PodDisruptionBudget>,
    pub(crate) accounts: Informer<ServiceAccount>,
    pub(crate) root_cas: Informer<ConfigMap>,
}

fn informer<K: Watched>(client: &Client, slim: fn(&mut K)) -> Informer<K> {
    let config = watcher::Config::default().page_size(PAGE);
    Informer::new(Api::all(client.clone()), config, slim)
}

fn named<K: Watched>(client: &Client, name: &str) -> Informer<K> {
    let config = watcher::Config::default()
        .page_size(PAGE)
        .fields(&format!("metadata.name={name}"));
    Informer::new(Api::all(client.clone()), config, |_| {})
}

impl Informers {
    pub(crate) fn new(client: &Client) -> Self {
        let leases = Informer::new(
            Api::namespaced(client.clone(), "kube-node-lease"),
            watcher::Config::default().page_size(PAGE),
            |_| {},
        );
        Self {
            pods: informer(client, slim_pod),
            nodes: informer(client, slim_node),
            namespaces: informer(client, |_| {}),
            replica_sets: informer(client, |_| {}),
            deployments: informer(client, |_| {}),
            daemon_sets: informer(client, |_| {}),
            revisions: informer(client, |_| {}),
            leases,
            budgets: informer(client, |_| {}),
            accounts: named(client, service_accounts::ACCOUNT),
            root_cas: named(client, service_accounts::ROOT_CA),
        }
    }

    /// Whether the kind of `plural` in `group` is watched here, wholly.
    pub(crate) fn watches(group: &str, plural: &str) -> bool {
        matches!(
            (group, plural),
            ("", "pods" | "nodes" | "namespaces")
                | (
                    "apps",
                    "replicasets" | "deployments" | "daemonsets" | "controllerrevisions"
                )
                | ("policy", "poddisruptionbudgets")
        )
    }

    fn drive(self, tasks: &mut Tasks) {
        tasks.add("watch pods", self.pods.drive());
        tasks.add("watch nodes", self.nodes.drive());
        tasks.add("watch namespaces", self.namespaces.drive());
        tasks.add("watch replicasets", self.replica_sets.drive());
        tasks.add("watch deployments", self.deployments.drive());
        tasks.add("watch daemonsets", self.daemon_sets.drive());
        tasks.add("watch controllerrevisions", self.revisions.drive());
        tasks.add("watch leases", self.leases.drive());
        tasks.add("watch poddisruptionbudgets", self.budgets.drive());
        tasks.add("watch serviceaccounts", self.accounts.drive());
        tasks.add("watch root CAs", self.root_cas.drive());
    }
}

/// Drops what no controller reads of a pod: most of a typed Pod's heap is there.
fn slim_pod(pod: &mut Pod) {
    if let Some(spec) = &mut pod.spec {
        spec.volumes = None;
        spec.ephemeral_containers = None;
        let init = spec.init_containers.iter_mut().flatten();
        for container in spec.containers.iter_mut().chain(init) {
            container.command = None;
            container.args = None;
            container.env = None;
            container.env_from = None;
            container.volume_mounts = None;
            container.lifecycle = None;
            container.liveness_probe = None;
            container.readiness_probe = None;
            container.startup_probe = None;
            container.security_context = None;
        }
    }
    if let Some(status) = &mut pod.status {
        status.init_container_statuses = None;
        status.ephemeral_container_statuses = None;
        for container in status.container_statuses.iter_mut().flatten() {
            container.last_state = None;
            container.volume_mounts = None;
            container.allocated_resources = None;
            container.resources = None;
        }
    }
    if let Some(annotations) = &mut pod.metadata.annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
}

fn slim_node(node: &mut Node) {
    if let Some(status) = &mut node.status {
        status.volumes_attached = None;
        status.volumes_in_use = None;
        status.node_info = None;
        status.daemon_endpoints = None;
    }
}

/// Every long-lived task, by name.
#[derive(Default)]
pub(crate) struct Tasks {
    list: Vec<(&'static str, BoxFuture<'static, ()>)>,
}

impl Tasks {
    /// Adds a task that must never end by itself.
    pub(crate) fn add(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.list.push((name, task.boxed()));
    }

    /// Fills the stores, then runs all tasks until one ends.
    pub(crate) async fn supervise(self, context: &Context, informers: Informers) -> Error {
        let mut watches = Self::default();
        informers.drive(&mut watches);
        let mut set = JoinSet::new();
        let mut names = HashMap::new();
        for (name, task) in watches.list {
            names.insert(set.spawn(task).id(), name);
        }
        tokio::select! {
            () = context.synced() => tracing::info!("controllers have read the API"),
            Some(ended) = set.join_next_with_id() => return describe(&names, ended),
        }
        for (name, task) in self.list {
            names.insert(set.spawn(task).id(), name);
        }
        match set.join_next_with_id().await {
            Some(ended) => describe(&names, ended),
            None => Error::Ended("all".into()),
        }
    }
}

fn describe(
    names: &HashMap<tokio::task::Id, &'static str>,
    ended: Result<(tokio::task::Id, ()), tokio::task::JoinError>,
) -> Error {
    let (id, why) = match ended {
        Ok((id, ())) => (id, String::new()),
        Err(error) => (error.id(), format!(": {error}")),
    };
    Error::Ended(format!("{}{why}", names.get(&id).copied().unwrap_or("unknown")))
}
