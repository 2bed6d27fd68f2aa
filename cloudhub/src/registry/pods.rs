//! The pods of served nodes: a list and a watch of all pods, and a list of a newcomer's alone.
//!
//! - of a list of all, what belongs to nodes that were served when it began is kept, page by page
//! - a node that becomes served later is listed alone, so that a robot that joins costs a large cluster nothing; where there are many
//!   ([`MANY`]), all pods are listed again
//! - a newcomer's list is of another moment than the watch, which tells of it meanwhile: what the watch told that is newer stands, and what
//!   it tells later that is older is passed over
//!
//! On failure: a newcomer's list that is refused is tried again, and its view waits.

use serde_json::Value;

use super::list_watch::{self, Change, Taker, Target, version};
use super::view::Kind;
use super::{RETRY, Registry, State};
use crate::kube_api::ApiError;

/// With more newcomers than this, one list of all pods costs less than theirs.
const MANY: usize = 32;

/// How nodes come to be known that became served since all pods were listed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Newcomers {
    /// Each by a list of its own.
    Alone(Vec<String>),
    /// By another list of all.
    WithAll,
    /// When the list of all has ended.
    Later,
}

/// How a node's pods came to be known.
#[derive(Debug, Clone, Copy)]
pub(super) struct Listed {
    /// Which list it was.
    pub(super) number: u64,
    /// It was of this resourceVersion; 0 where the watch went on from the list.
    floor: u64,
}

/// A pod that the watch says is deleted.
#[derive(Debug)]
pub(super) struct Gone {
    namespace: String,
    name: String,
    version: u64,
}

impl From<&Value> for Gone {
    fn from(pod: &Value) -> Self {
        let (namespace, name) = names(pod);
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            version: version(pod),
        }
    }
}

/// The watch on pods: of a list only those of served nodes are kept.
pub(super) struct Pods<'a>(pub(super) &'a Registry);

impl Taker for Pods<'_> {
    fn begins(&self) {
        self.0.lock().begin_list_of_pods();
    }

    fn wants(&self, pod: &Value) -> bool {
        self.0.lock().is_expected(node_of(pod))
    }

    fn take(&self, change: Change) {
        self.0.take(Kind::Pod, change);
    }
}

pub(super) fn node_of(pod: &Value) -> &str {
    pod["spec"]["nodeName"].as_str().unwrap_or_default()
}

fn names(pod: &Value) -> (&str, &str) {
    let text = |field: &str| pod["metadata"][field].as_str().unwrap_or_default();
    (text("namespace"), text("name"))
}

impl Registry {
    /// Watches all pods; lists them again when that is asked for. First the nodes are known: else all would be newcomers.
    pub(super) async fn watch_pods(&self) {
        let target = Target {
            path: "/api/v1/pods".into(),
            fields: "spec.nodeName!=".into(),
            node: None,
        };
        let mut changed = self.changed();
        loop {
            let known = self.lock().marks.contains_key(&Kind::Node);
            if known || changed.changed().await.is_err() {
                break;
            }
        }
        loop {
            tokio::select! {
                biased;
                () = self.list_pods.notified() => {}
                () = list_watch::run(&self.api, &target, Pods(self)) => {}
            }
        }
    }

    /// Lists the pods of nodes that became served since all were listed.
    pub(super) async fn list_newcomers(&self) {
        loop {
            let newcomers = self.lock().newcomers();
            match newcomers {
                Newcomers::Alone(nodes) => {
                    let mut failed = false;
                    for node in nodes {
                        if let Err(error) = self.list_newcomer(&node).await {
                            tracing::warn!(node, %error, "cannot list the pods of a node; trying again");
                            failed = true;
                        }
                    }
                    if failed {
                        tokio::time::sleep(RETRY).await;
                        self.newcomers.notify_one();
                    }
                }
                Newcomers::WithAll => self.list_pods.notify_one(),
                Newcomers::Later => {}
            }
            self.newcomers.notified().await;
        }
    }

    async fn list_newcomer(&self, node: &str) -> Result<(), ApiError> {
        let target = Target {
            path: "/api/v1/pods".into(),
            fields: format!("spec.nodeName={node}"),
            node: None,
        };
        let Some((lists, mark)) = self.lock().begin_newcomer(node) else {
            return Ok(());
        };
        let listed = list_watch::list(&self.api, &target, &|_: Change| {}).await;
        let mut state = self.lock();
        let gone = state.gone.remove(node).unwrap_or_default();
        let (items, rv) = listed?;
        if rv < mark {
            // The API went back in time, which a list of all finds out.
            self.list_pods.notify_one();
            return Ok(());
        }
        // A list of all that has ended meanwhile has begun another watch, which may have gone on from a later moment than this list's; one
        // that has begun, and will have the node, may be of an earlier moment, and the node's view would go back to that.
        if state.pod_lists != lists || state.is_expected(node) {
            self.newcomers.notify_one();
            return Ok(());
        }
        state.end_newcomer(node, items, rv, &gone);
        state.repodded.insert(node.to_owned());
        if let Some(wake) = state.wakes.get(node) {
            wake.notify_one();
        }
        drop(state);
        self.repodded.notify_one();
        self.listed.notify_one();
        self.changed.send_modify(|n| *n += 1);
        Ok(())
    }
}

impl State {
    /// A node that becomes served from now on is a newcomer: its pods may be on pages of this list that are dropped already.
    pub(super) fn begin_list_of_pods(&mut self) {
        self.listing = Some(self.served.clone());
    }

    pub(super) fn end_list_of_pods(&mut self) {
        self.lists += 1;
        self.pod_lists += 1;
        let listed = Listed {
            number: self.lists,
            floor: 0,
        };
        let nodes = self.listing.take().unwrap_or_default();
        self.listed = nodes.into_iter().map(|node| (node, listed)).collect();
    }

    /// Whether the list of all that is under way brings the node's pods.
    fn is_expected(&self, node: &str) -> bool {
        self.listing.as_ref().is_some_and(|nodes| nodes.contains(node))
    }

    /// How served nodes come to be known whose pods no list brings. Before the first list of all there are none.
    pub(super) fn newcomers(&self) -> Newcomers {
        if self.pod_lists == 0 {
            return Newcomers::Later;
        }
        let served = self.served.iter();
        let unlisted = served.filter(|node| !self.listed.contains_key(*node) && !self.is_expected(node));
        let nodes: Vec<_> = unlisted.cloned().collect();
        match (nodes.len() > MANY, &self.listing) {
            (false, _) => Newcomers::Alone(nodes),
            (true, None) => Newcomers::WithAll,
            (true, Some(_)) => Newcomers::Later,
        }
    }

    /// The list of a newcomer's pods begins; returns how many lists of all there were, and how far the watch is. `None`: it is none any more.
    pub(super) fn begin_newcomer(&mut self, node: &str) -> Option<(u64, u64)> {
        if self.listed.contains_key(node) || self.is_expected(node) {
            return None;
        }
        self.gone.insert(node.to_owned(), Vec::new());
        Some((self.pod_lists, self.marks.get(&Kind::Pod).copied().unwrap_or_default()))
    }

    /// A newcomer's pods as of `rv`; `gone`: what the watch has said is deleted since the list began.
    pub(super) fn end_newcomer(&mut self, node: &str, items: Vec<Value>, rv: u64, gone: &[Gone]) {
        let pods = self.pods.entry(node.to_owned()).or_default();
        // What the list does not have of what was there then is gone.
        pods.retain(|pod| pod.version > rv);
        for item in items.into_iter().filter(|item| node_of(item) == node) {
            let (namespace, name) = names(&item);
            let told = |gone: &Gone| gone.namespace == namespace && gone.name == name && gone.version > version(&item);
            let newer = self.pods.get(node).into_iter().flatten();
            if !gone.iter().any(told) && !newer.into_iter().any(|pod| pod.is(namespace, name)) {
                self.apply(Kind::Pod, item);
            }
        }
        if self.pods.get(node).is_some_and(Vec::is_empty) {
            self.pods.remove(node);
        }
        self.lists += 1;
        let listed = Listed {
            number: self.lists,
            floor: rv,
        };
        self.listed.insert(node.to_owned(), listed);
        self.see(rv);
    }

    /// Whether a newcomer's list knows more than what the watch tells here.
    pub(super) fn is_old(&self, node: &str, pod: &Value) -> bool {
        self.listed.get(node).is_some_and(|list| version(pod) <= list.floor)
    }
}
