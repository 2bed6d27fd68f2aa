//! What a controller did and its cache does not show yet.
//!
//! A controller that acts on a cache which is behind its own writes would act twice. So it names each pod that it is about
//! to create or delete, the watch's events tick these off, and until all are ticked off (or [`EXPIRY`] passed, should an
//! event never come) the controller only looks.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use tokio::time::Instant;

use crate::pods::{controller_of, is_deleting};

/// An event that did not come after this was lost: the watch was cut and the object created and deleted in between.
const EXPIRY: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Pending {
    created: HashSet<String>,
    deleted: HashSet<String>,
    since: Instant,
}

/// Pending writes by the owner's uid.
#[derive(Debug, Default)]
pub(crate) struct Expectations {
    pending: Mutex<HashMap<String, Pending>>,
}

impl Expectations {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with(&self, owner: &str, change: impl FnOnce(&mut Pending)) {
        let mut all = self.lock();
        let pending = all.entry(owner.to_owned()).or_insert_with(|| Pending {
            created: HashSet::new(),
            deleted: HashSet::new(),
            since: Instant::now(),
        });
        change(pending);
        if pending.created.is_empty() && pending.deleted.is_empty() {
            all.remove(owner);
        }
    }

    /// To be called before the pod named `name` is created.
    pub(crate) fn creating(&self, owner: &str, name: &str) {
        self.with(owner, |p| {
            p.created.insert(name.to_owned());
            p.since = Instant::now();
        });
    }

    /// To be called before the pod with `uid` is deleted.
    pub(crate) fn deleting(&self, owner: &str, uid: &str) {
        self.with(owner, |p| {
            p.deleted.insert(uid.to_owned());
            p.since = Instant::now();
        });
    }

    /// The request for `what` (a name or a uid) failed: no event will come.
    pub(crate) fn failed(&self, owner: &str, what: &str) {
        self.with(owner, |p| {
            p.created.remove(what);
            p.deleted.remove(what);
        });
    }

    /// How long to wait for the cache at most; `None` when it shows everything.
    pub(crate) fn wait(&self, owner: &str) -> Option<Duration> {
        let mut all = self.lock();
        let left = EXPIRY.saturating_sub(all.get(owner)?.since.elapsed());
        if left.is_zero() {
            all.remove(owner);
            return None;
        }
        Some(left)
    }

    /// To be called for each pod that the watch shows.
    pub(crate) fn seen(&self, pod: &Pod, gone: bool) {
        let Some(owner) = controller_of(&pod.metadata) else {
            return;
        };
        if !self.lock().contains_key(&owner.uid) {
            return;
        }
        self.with(&owner.uid, |p| {
            p.created.remove(&pod.name_any());
            if gone || is_deleting(&pod.metadata) {
                p.deleted.remove(&pod.uid().unwrap_or_default());
            }
        });
    }

    /// The owner is gone.
    pub(crate) fn forget(&self, owner: &str) {
        self.lock().remove(owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::tests::pod;
    use serde_json::json;

    fn child(name: &str, deleting: bool) -> Pod {
        let time = deleting.then_some("2026-01-01T00:00:00Z");
        pod(json!({"metadata": {
            "name": name, "uid": format!("uid-{name}"), "deletionTimestamp": time,
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "rs", "controller": true}],
        }}))
    }

    #[tokio::test(start_paused = true)]
    async fn a_controller_waits_until_the_watch_shows_what_it_did() {
        let expectations = Expectations::default();
        assert_eq!(expectations.wait("rs"), None);
        expectations.creating("rs", "a");
        expectations.deleting("rs", "uid-b");
        assert!(expectations.wait("rs").is_some());
        expectations.seen(&child("a", false), false);
        expectations.seen(&child("b", false), false);
        assert!(expectations.wait("rs").is_some());
        expectations.seen(&child("b", true), false);
        assert_eq!(expectations.wait("rs"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_request_and_a_lost_event_do_not_block_for_ever() {
        let expectations = Expectations::default();
        expectations.creating("rs", "a");
        expectations.failed("rs", "a");
        assert_eq!(expectations.wait("rs"), None);
        expectations.creating("rs", "b");
        tokio::time::advance(EXPIRY).await;
        assert_eq!(expectations.wait("rs"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_may_come_before_the_answer() {
        let expectations = Expectations::default();
        expectations.creating("rs", "a");
        expectations.seen(&child("a", false), false);
        assert_eq!(expectations.wait("rs"), None);
    }
}
