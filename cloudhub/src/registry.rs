//! What each node should hold, from watches on the Kubernetes API.
//!
//! - one watch each on Pods, Nodes and RuntimeClasses, by the hub's own account; pods of other nodes are dropped
//! - Secrets and ConfigMaps that an edge's pods name: one watch each by name, *as the node*
//! - the lineage of the API's database, read after each list of pods, before a view is made of it
//! - [`Registry::view`]: per node the whole of what it should hold, published when it is complete
//! - what the API says of pods' and nodes' status, for the writer ([`Registry::pod`], [`Registry::node`])
//!
//! State: [`State`] behind one lock, never held over an await. A watch that breaks lists again; until then views stand.

mod kept;
pub mod list_watch;
pub mod references;
pub mod view;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use relay::Lineage;
use serde_json::Value;
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use crate::kube_api::{As, KubeApi};
use crate::lineage::{self, Points};
pub use kept::{EDGE_LABEL, Node, Pod};

use kept::desired;
use list_watch::{Change, Taker, Target, version};
use view::{ApiIdentity, Desired, Kind, NodeView, ObjectKey};

/// A hub above a cluster adds a point to the lineage this often: 24 writes a day, and a backup from an hour ago is known.
const POINTS: Duration = Duration::from_secs(3600);
/// What the API did not take or give is tried again after this.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct State {
    identity: Option<ApiIdentity>,
    era: u64,
    /// By the node that they are bound to, which has a hundred or so: with thousands of nodes nobody may look through all.
    pods: HashMap<String, Vec<Arc<Pod>>>,
    /// Nodes whose pods have changed since the by-name watches were last looked at.
    repodded: BTreeSet<String>,
    /// By node: who wants to know of changes of it and its pods.
    wakes: HashMap<String, Arc<Notify>>,
    nodes: BTreeMap<String, Arc<Node>>,
    classes: BTreeMap<String, Arc<Desired>>,
    marks: BTreeMap<Kind, u64>,
    /// The highest resourceVersion that was seen, in any watch.
    revision: u64,
    lineage: Arc<Lineage>,
    /// How many lists of pods there were when it was read.
    lineage_at: u64,
    /// By node: what was read by name; `None` = it is not there.
    named: HashMap<String, BTreeMap<ObjectKey, Option<Arc<Desired>>>>,
    /// Lists of pods so far.
    pod_lists: u64,
    /// Nodes whose pods are kept.
    served: HashSet<String>,
    /// Nodes whose pods are kept of the list of pods that is under way: those that were served when it began.
    listing: HashSet<String>,
    /// The same of the last list of pods.
    listed: HashSet<String>,
    views: HashMap<String, watch::Sender<Arc<NodeView>>>,
}

/// The registry; clones share it.
#[derive(Debug, Clone)]
pub struct Registry {
    api: KubeApi,
    state: Arc<Mutex<State>>,
    /// Something changed: for who looks at the whole fleet.
    changed: watch::Sender<u64>,
    /// Pods changed: for the by-name watches.
    repodded: Arc<Notify>,
    /// A node became served: its pods were dropped so far.
    list_pods: Arc<Notify>,
    /// Pods were listed: the API may be another state of itself.
    listed: Arc<Notify>,
    points: Points,
}

impl Registry {
    /// A registry that knows nothing yet; [`Self::run`] fills it.
    pub fn new(api: KubeApi, points: Points) -> Self {
        Self {
            api,
            points,
            state: Arc::default(),
            changed: watch::Sender::new(0),
            repodded: Arc::default(),
            list_pods: Arc::new(Notify::new()),
            listed: Arc::new(Notify::new()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes whenever anything does; read what you need after it.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Wakes `wake`, and no earlier one of that node, whenever the node or a pod of it changes; read what you need after it.
    pub fn wake_on_change(&self, node: &str, wake: Arc<Notify>) {
        self.lock().wakes.insert(node.to_owned(), wake);
    }

    /// Nobody asks for changes of `node` any more; unless `wake` has been replaced by then.
    pub fn forget_wake(&self, node: &str, wake: &Arc<Notify>) {
        let mut state = self.lock();
        if state.wakes.get(node).is_some_and(|known| Arc::ptr_eq(known, wake)) {
            state.wakes.remove(node);
        }
    }

    /// Whether all kinds are listed and the API is identified.
    pub fn is_synced(&self) -> bool {
        let state = self.lock();
        state.identity.is_some()
            && [Kind::Pod, Kind::Node, Kind::RuntimeClass]
                .iter()
                .all(|k| state.marks.contains_key(k))
    }

    /// What `node` should hold; an incomplete view (`synced` false) until it is known.
    pub fn view(&self, node: &str) -> watch::Receiver<Arc<NodeView>> {
        let mut state = self.lock();
        let fresh = state.served.insert(node.to_owned());
        let receiver = state
            .views
            .entry(node.to_owned())
            .or_insert_with(|| watch::Sender::new(Arc::default()))
            .subscribe();
        state.publish(node);
        drop(state);
        if fresh {
            self.list_pods.notify_one();
        }
        self.changed.send_modify(|n| *n += 1);
        receiver
    }

    /// How many lists of all pods have been taken.
    pub fn pod_lists(&self) -> u64 {
        self.lock().pod_lists
    }

    /// Lists pods anew; returns what [`Self::pod_lists`] is then at least.
    pub fn list_pods_again(&self) -> u64 {
        let next = self.pod_lists() + 1;
        self.list_pods.notify_one();
        next
    }

    /// A pod that is bound to this served node.
    pub fn pod(&self, node: &str, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let state = self.lock();
        let found = state.pods.get(node)?.iter().find(|pod| pod.is(namespace, name));
        found.cloned()
    }

    /// The pods of served nodes that are not [`Pod::is_patient`].
    pub fn impatient_pods(&self) -> Vec<Arc<Pod>> {
        let state = self.lock();
        let pods = state.pods.values().flatten();
        pods.filter(|pod| !pod.is_patient).cloned().collect()
    }

    /// A node.
    pub fn node(&self, name: &str) -> Option<Arc<Node>> {
        self.lock().nodes.get(name).cloned()
    }

    /// How many pods and objects each served node has, for people.
    pub fn summary(&self) -> Value {
        let state = self.lock();
        let mut nodes = serde_json::Map::new();
        for node in &state.served {
            let pods = state.pods.get(node).map_or(0, Vec::len);
            let view = state.views.get(node).map(|sender| sender.borrow().clone());
            let objects = view.as_ref().map_or(0, |view| view.objects.len());
            let complete = view.is_some_and(|view| view.synced);
            nodes.insert(
                node.clone(),
                serde_json::json!({"pods": pods, "objects": objects, "complete": complete}),
            );
        }
        Value::Object(nodes)
    }

    /// Runs the watches until it is dropped, or until the API's database is put back to an earlier state: then nothing that is
    /// known here stands, and the hub has to start anew.
    pub async fn run(self) {
        self.identify().await;
        tokio::select! {
            () = self.keep_lineage() => {}
            _ = async { tokio::join!(
                self.watch_kind(Kind::Node, "/api/v1/nodes"),
                self.watch_kind(Kind::RuntimeClass, "/apis/node.k8s.io/v1/runtimeclasses"),
                self.watch_pods(),
                self.watch_named(),
            ) } => {}
        }
    }

    /// Learns which API this is: the uid of namespace kube-system.
    async fn identify(&self) {
        loop {
            match self.api.get(As::Hub, "/api/v1/namespaces/kube-system").await {
                Ok(namespace) => {
                    let uid = namespace["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
                    self.lock().identity = Some(ApiIdentity(uid));
                    return;
                }
                Err(error) => tracing::warn!(%error, "cannot read namespace kube-system; trying again"),
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Reads the lineage after each list of pods; adds a point at the start and each hour, where this hub is the one to do it.
    async fn keep_lineage(&self) {
        let mut known = Arc::<Lineage>::default();
        let mut due = Instant::now();
        loop {
            tokio::select! {
                () = self.listed.notified() => {}
                () = tokio::time::sleep_until(due), if known.number() > 0 && self.points == Points::ByHub => {}
            }
            let lists = self.pod_lists();
            let add = self.points == Points::ByHub && Instant::now() >= due;
            match lineage::read(&self.api, add).await {
                Ok(lineage) if lineage.continues(&known) => {
                    if add {
                        due = Instant::now() + POINTS;
                    }
                    known = Arc::new(lineage);
                    self.take_lineage(known.clone(), lists);
                }
                Ok(_) => {
                    tracing::error!(
                        "the API's database was put back to an earlier state: the hub starts anew, and its nodes judge"
                    );
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot read the lineage of the API's database; trying again");
                    tokio::time::sleep(RETRY).await;
                    self.listed.notify_one();
                }
            }
        }
    }

    fn take_lineage(&self, lineage: Arc<Lineage>, lists: u64) {
        let mut state = self.lock();
        state.lineage = lineage;
        state.lineage_at = lists;
        for node in &state.served {
            state.publish(node);
        }
        drop(state);
        self.changed.send_modify(|n| *n += 1);
    }

    async fn watch_kind(&self, kind: Kind, path: &str) {
        let target = Target {
            path: path.to_owned(),
            fields: String::new(),
            node: None,
        };
        list_watch::run(&self.api, &target, |change| self.take(kind, change)).await;
    }

    /// Lists pods again when a node becomes served.
    async fn watch_pods(&self) {
        let target = Target {
            path: "/api/v1/pods".into(),
            fields: "spec.nodeName!=".into(),
            node: None,
        };
        loop {
            tokio::select! {
                biased;
                () = self.list_pods.notified() => {}
                () = list_watch::run(&self.api, &target, Pods(self)) => {}
            }
        }
    }

    fn take(&self, kind: Kind, change: Change) {
        let mut state = self.lock();
        let served_before = state.served.len();
        if kind == Kind::Pod && matches!(change, Change::List(..)) {
            self.listed.notify_one();
        }
        // What is told of a kind as a whole is no news to who wants to know of one node.
        let is_news = matches!(kind, Kind::Pod | Kind::Node) && !matches!(change, Change::Bookmark(_));
        let dirty = match change {
            Change::List(items, rv) => state.replace(kind, items, rv),
            Change::Apply(object) => {
                let rv = version(&object);
                let dirty = state.apply(kind, object);
                state.mark(kind, rv);
                dirty
            }
            Change::Delete(object) => {
                let dirty = state.delete(kind, &object);
                state.mark(kind, version(&object));
                dirty
            }
            Change::Bookmark(rv) => {
                state.mark(kind, rv);
                state.served.iter().cloned().collect()
            }
            Change::Refused(code) => {
                tracing::warn!(%kind, code, "the API refuses the list");
                BTreeSet::new()
            }
        };
        let more_served = state.served.len() > served_before;
        for node in &dirty {
            state.publish(node);
            if let Some(wake) = state.wakes.get(node).filter(|_| is_news) {
                wake.notify_one();
            }
        }
        if kind == Kind::Pod && is_news {
            state.repodded.extend(dirty);
            self.repodded.notify_one();
        }
        drop(state);
        if more_served {
            self.list_pods.notify_one();
        }
        self.changed.send_modify(|n| *n += 1);
    }

    /// Keeps one watch by name for each Secret and ConfigMap that a served node's pods name.
    async fn watch_named(&self) {
        let mut tasks = JoinSet::new();
        let mut running: HashMap<String, HashMap<ObjectKey, AbortHandle>> = HashMap::new();
        loop {
            let repodded = std::mem::take(&mut self.lock().repodded);
            for node in repodded {
                let needed = self.lock().needed(&node);
                let mut watches = running.remove(&node).unwrap_or_default();
                watches.retain(|key, task| {
                    let keep = needed.contains(key);
                    if !keep {
                        task.abort();
                        self.forget(&node, key);
                    }
                    keep
                });
                for key in needed {
                    watches
                        .entry(key.clone())
                        .or_insert_with(|| tasks.spawn(self.clone().watch_one(node.clone(), key)));
                }
                if !watches.is_empty() {
                    running.insert(node, watches);
                }
            }
            while tasks.try_join_next().is_some() {}
            self.repodded.notified().await;
        }
    }

    async fn watch_one(self, node: String, key: ObjectKey) {
        let plural = if key.kind == Kind::Secret {
            "secrets"
        } else {
            "configmaps"
        };
        let target = Target {
            path: format!("/api/v1/namespaces/{}/{plural}", key.namespace),
            fields: format!("metadata.name={}", key.name),
            node: Some(node.clone()),
        };
        list_watch::run(&self.api, &target, |change| {
            let (found, rv) = match change {
                Change::List(items, rv) => (items.into_iter().next(), rv),
                Change::Apply(object) => {
                    let rv = version(&object);
                    (Some(object), rv)
                }
                Change::Delete(object) => (None, version(&object)),
                // The node authorizer may not have seen the pod yet; what was known stands, what was not is waited for.
                Change::Bookmark(_) | Change::Refused(_) => return,
            };
            let found = found.map(|object| Arc::new(desired(key.kind, &object)));
            let mut state = self.lock();
            state.named.entry(node.clone()).or_default().insert(key.clone(), found);
            state.see(rv);
            state.publish(&node);
        })
        .await;
    }

    fn forget(&self, node: &str, key: &ObjectKey) {
        let mut state = self.lock();
        if let Some(named) = state.named.get_mut(node) {
            named.remove(key);
        }
        state.publish(node);
    }
}

/// The watch on pods: of a list only those of served nodes are kept.
struct Pods<'a>(&'a Registry);

impl Taker for Pods<'_> {
    fn begins(&self) {
        self.0.lock().begin_list_of_pods();
    }

    fn wants(&self, pod: &Value) -> bool {
        self.0.lock().listing.contains(node_of(pod))
    }

    fn take(&self, change: Change) {
        self.0.take(Kind::Pod, change);
    }
}

fn node_of(pod: &Value) -> &str {
    pod["spec"]["nodeName"].as_str().unwrap_or_default()
}

impl State {
    /// A node that becomes served from now on waits for the next list: its pods may be on pages of this one that are dropped already.
    fn begin_list_of_pods(&mut self) {
        self.listing.clone_from(&self.served);
    }

    /// All of a kind anew; returns the nodes whose view may differ.
    fn replace(&mut self, kind: Kind, items: Vec<Value>, rv: u64) -> BTreeSet<String> {
        if self.marks.get(&kind).is_some_and(|have| rv < *have) {
            // The API went back in time: an older backup was restored. The edges judge that.
            self.era += 1;
            self.marks.clear();
            self.revision = 0;
        }
        match kind {
            Kind::Pod => {
                // Those whose last pod is gone are among the served.
                self.pods.clear();
                self.listed = std::mem::take(&mut self.listing);
                self.pod_lists += 1;
            }
            Kind::Node => self.nodes.clear(),
            _ => self.classes.clear(),
        }
        for item in items {
            self.apply(kind, item);
        }
        self.marks.insert(kind, rv);
        self.see(rv);
        self.served.iter().cloned().collect()
    }

    fn mark(&mut self, kind: Kind, rv: u64) {
        let mark = self.marks.entry(kind).or_default();
        *mark = rv.max(*mark);
        self.see(rv);
    }

    fn see(&mut self, rv: u64) {
        self.revision = rv.max(self.revision);
    }

    fn apply(&mut self, kind: Kind, mut object: Value) -> BTreeSet<String> {
        // A third of a Node, and nobody here reads it.
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.shift_remove("managedFields");
        }
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let (name, namespace) = (text("name"), text("namespace"));
        match kind {
            Kind::Pod => {
                let node = node_of(&object).to_owned();
                if !self.served.contains(&node) {
                    return BTreeSet::new();
                }
                let pods = self.pods.entry(node.clone()).or_default();
                pods.retain(|pod| !pod.is(&namespace, &name));
                pods.push(Arc::new(Pod::from(&object)));
                BTreeSet::from([node])
            }
            Kind::Node => {
                let node = Node::from(&object);
                if node.is_edge {
                    self.served.insert(name.clone());
                }
                self.nodes.insert(name.clone(), Arc::new(node));
                BTreeSet::from([name])
            }
            _ => {
                self.classes.insert(name, Arc::new(desired(kind, &object)));
                self.served.iter().cloned().collect()
            }
        }
    }

    fn delete(&mut self, kind: Kind, object: &Value) -> BTreeSet<String> {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        match kind {
            Kind::Pod => {
                let node = node_of(object).to_owned();
                let Some(pods) = self.pods.get_mut(&node) else {
                    return BTreeSet::new();
                };
                pods.retain(|pod| !pod.is(&text("namespace"), &text("name")));
                if pods.is_empty() {
                    self.pods.remove(&node);
                }
                BTreeSet::from([node])
            }
            Kind::Node => {
                self.nodes.remove(&text("name"));
                BTreeSet::from([text("name")])
            }
            _ => {
                self.classes.remove(&text("name"));
                self.served.iter().cloned().collect()
            }
        }
    }

    /// What is watched by name for `node`.
    fn needed(&self, node: &str) -> BTreeSet<ObjectKey> {
        let pods = self.pods.get(node).into_iter().flatten();
        let references = pods.flat_map(|pod| &pod.references);
        references.filter(|key| !key.kind.has_mark()).cloned().collect()
    }

    /// Publishes the node's view if it is complete and differs from the last one.
    fn publish(&self, node: &str) {
        let Some(sender) = self.views.get(node) else { return };
        let Some(view) = self.assemble(node) else { return };
        sender.send_if_modified(|current| {
            let differs = **current != view;
            if differs {
                *current = Arc::new(view);
            }
            differs
        });
    }

    fn assemble(&self, node: &str) -> Option<NodeView> {
        let listed = [Kind::Pod, Kind::Node, Kind::RuntimeClass]
            .iter()
            .all(|kind| self.marks.contains_key(kind));
        // A node that became served after the list of pods has none yet: an empty view would be proof that all are gone.
        let placed = self.lineage_at >= self.pod_lists;
        if !listed || !placed || !self.listed.contains(node) || self.identity.is_none() {
            return None;
        }
        let mut objects = BTreeMap::new();
        let mut add = |desired: &Arc<Desired>| objects.insert(desired.key.clone(), desired.clone());
        if let Some(own) = self.nodes.get(node) {
            add(&own.desired);
        }
        let named = self.named.get(node);
        for pod in self.pods.get(node).into_iter().flatten() {
            add(&pod.desired);
            for key in &pod.references {
                if key.kind == Kind::RuntimeClass {
                    self.classes.get(&key.name).map(&mut add);
                } else if let Some(found) = named.and_then(|n| n.get(key))? {
                    add(found);
                }
            }
        }
        Some(NodeView {
            identity: self.identity.clone(),
            synced: true,
            era: self.era,
            marks: self.marks.clone(),
            revision: self.revision,
            lineage: self.lineage.clone(),
            pod_lists: self.pod_lists,
            objects: objects.into_values().collect(),
        })
    }
}

#[cfg(test)]
mod tests;
