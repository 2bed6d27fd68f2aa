//! What each node should hold, from watches on the Kubernetes API.
//!
//! - one watch each on Pods, Nodes and RuntimeClasses, by the hub's own account; pods of other nodes are dropped. The pods of a node that
//!   joins are listed alone (`pods`)
//! - Secrets and ConfigMaps that edges' pods name: one watch each by name, as a node; each node is asked about as itself (`named`)
//! - the lineage of the API's database, read after each list of pods, before a view is made of it
//! - [`Registry::view`]: per node the whole of what it should hold, published when it is complete
//! - what the API says of pods' and nodes' status, for the writer ([`Registry::pod`], [`Registry::node`])
//!
//! State: [`State`] behind one lock, never held over an await. A watch that breaks lists again; until then views stand.

mod kept;
pub mod list_watch;
mod named;
mod pods;
pub mod references;
pub mod view;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use relay::Lineage;
use serde_json::Value;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::kube_api::{As, KubeApi};
use crate::lineage::{self, Points};
pub use kept::{EDGE_LABEL, Node, Pod};

use kept::desired;
use list_watch::{Change, Target, version};
use named::{Applicant, Named};
use pods::{Gone, Listed};
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
    /// What `lists` was when it was read.
    lineage_at: u64,
    /// What is watched by name.
    named: HashMap<ObjectKey, Named>,
    /// Nodes that are to ask for what is watched as another, and all that are about to.
    applicants: VecDeque<Applicant>,
    applying: HashSet<(String, ObjectKey)>,
    /// Lists of pods so far, of all or of one node's: each may show another state of the API's database.
    lists: u64,
    /// Lists of all pods so far.
    pod_lists: u64,
    /// Nodes whose pods are kept.
    served: HashSet<String>,
    /// Nodes whose pods are kept of the list of all pods that is under way: those that were served when it began.
    listing: Option<HashSet<String>>,
    /// Nodes whose pods are known.
    listed: HashMap<String, Listed>,
    /// By node whose pods are being listed alone: what the watch says is deleted meanwhile.
    gone: HashMap<String, Vec<Gone>>,
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
    /// There are [`State::applicants`].
    applied: Arc<Notify>,
    /// All pods are to be listed anew.
    list_pods: Arc<Notify>,
    /// A node may have become served, whose pods were dropped so far.
    newcomers: Arc<Notify>,
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
            applied: Arc::default(),
            list_pods: Arc::default(),
            newcomers: Arc::default(),
            listed: Arc::default(),
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
            self.newcomers.notify_one();
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
                self.list_newcomers(),
                self.watch_named(),
                self.admit_readers(),
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
            let lists = self.lock().lists;
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
        let grew = state.lineage != lineage;
        let before = std::mem::replace(&mut state.lineage_at, lists);
        state.lineage = lineage;
        for (node, listed) in &state.listed {
            if grew || listed.number > before {
                state.publish(node);
            }
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

    fn take(&self, kind: Kind, change: Change) {
        let mut state = self.lock();
        let served_before = state.served.len();
        let all_pods = kind == Kind::Pod && matches!(change, Change::List(..));
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
        let newcomers = all_pods || state.served.len() > served_before;
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
        if all_pods {
            self.listed.notify_one();
        }
        if newcomers {
            self.newcomers.notify_one();
        }
        self.changed.send_modify(|n| *n += 1);
    }
}

impl State {
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
                self.end_list_of_pods();
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
                let node = pods::node_of(&object).to_owned();
                if !self.served.contains(&node) || self.is_old(&node, &object) {
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
                let node = pods::node_of(object).to_owned();
                if let Some(gone) = self.gone.get_mut(&node) {
                    gone.push(Gone::from(object));
                }
                let is_old = self.is_old(&node, object);
                let Some(pods) = self.pods.get_mut(&node).filter(|_| !is_old) else {
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
        // Of a node that became served after the list of pods none is known yet: an empty view would be proof that all are gone.
        let placed = self.listed.get(node).is_some_and(|list| list.number <= self.lineage_at);
        if !listed || !placed || self.identity.is_none() {
            return None;
        }
        let mut objects = BTreeMap::new();
        let mut add = |desired: &Arc<Desired>| objects.insert(desired.key.clone(), desired.clone());
        if let Some(own) = self.nodes.get(node) {
            add(&own.desired);
        }
        for pod in self.pods.get(node).into_iter().flatten() {
            add(&pod.desired);
            for key in &pod.references {
                if key.kind == Kind::RuntimeClass {
                    self.classes.get(&key.name).map(&mut add);
                } else if let Some(found) = self.named(node, key)? {
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
