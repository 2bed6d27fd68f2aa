//! The queue of one controller: keys that want reconciling, each at most once at a time.
//!
//! Owner of the state: [`Queue`]. Informers' handlers `add` keys; the controller's one worker loop `take`s and `done`s them.
//!
//! * `add` of a key that waits already is nothing; of one that is being reconciled, it runs once more afterwards.
//! * A failed key comes back after a back-off of its own, which a success forgets.
//!
//! Its size is bounded by the number of objects that the API holds: a key is in it at most once.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kube::ResourceExt;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::error::Error;

/// First back-off of a failing key: a conflict is settled by the next watch event, which is some milliseconds away.
const BACKOFF_FIRST: Duration = Duration::from_millis(20);
/// Longest back-off: an operator who mended something waits at most this.
const BACKOFF_LAST: Duration = Duration::from_secs(30);
/// Deadline of one reconciliation with all its requests.
const DEADLINE: Duration = Duration::from_secs(60);

/// Namespace (empty for cluster-scoped kinds) and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Key {
    pub(crate) fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    pub(crate) fn of(object: &impl ResourceExt) -> Self {
        Self::new(object.namespace().unwrap_or_default(), object.name_any())
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<Key>,
    dirty: HashSet<Key>,
    active: HashSet<Key>,
    delayed: BTreeSet<(Instant, Key)>,
    due: HashMap<Key, Instant>,
    failures: HashMap<Key, u32>,
}

impl State {
    fn add(&mut self, key: Key) {
        if let Some(at) = self.due.remove(&key) {
            self.delayed.remove(&(at, key.clone()));
        }
        if self.dirty.insert(key.clone()) && !self.active.contains(&key) {
            self.ready.push_back(key);
        }
    }

    fn add_at(&mut self, key: Key, at: Instant) {
        if let Some(&before) = self.due.get(&key) {
            if before <= at {
                return;
            }
            self.delayed.remove(&(before, key.clone()));
        }
        self.due.insert(key.clone(), at);
        self.delayed.insert((at, key));
    }

    /// The next key to reconcile, or when the earliest delayed one is due.
    fn next(&mut self, now: Instant) -> Result<Key, Option<Instant>> {
        while let Some((at, _)) = self.delayed.first() {
            if *at > now {
                break;
            }
            if let Some((_, key)) = self.delayed.pop_first() {
                self.due.remove(&key);
                self.add(key);
            }
        }
        let Some(key) = self.ready.pop_front() else {
            return Err(self.delayed.first().map(|(at, _)| *at));
        };
        self.dirty.remove(&key);
        self.active.insert(key.clone());
        Ok(key)
    }
}

/// How a reconciliation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nothing to do until something changes.
    Done,
    /// Look again after this.
    After(Duration),
    /// It failed: look again after the key's back-off.
    Failed,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    wake: Notify,
}

impl Queue {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, key: Key) {
        self.lock().add(key);
        self.wake.notify_one();
    }

    pub(crate) async fn take(&self) -> Key {
        loop {
            let next = self.lock().next(Instant::now());
            match next {
                Ok(key) => return key,
                Err(None) => self.wake.notified().await,
                Err(Some(at)) => {
                    tokio::select! {
                        () = self.wake.notified() => {}
                        () = sleep_until(at) => {}
                    }
                }
            }
        }
    }

    pub(crate) fn done(&self, key: Key, outcome: Outcome) {
        let mut state = self.lock();
        state.active.remove(&key);
        if state.dirty.contains(&key) {
            state.ready.push_back(key.clone());
        }
        let now = Instant::now();
        match outcome {
            Outcome::Done => {
                state.failures.remove(&key);
            }
            Outcome::After(delay) => {
                state.failures.remove(&key);
                state.add_at(key, now + delay);
            }
            Outcome::Failed => {
                let failures = state.failures.entry(key.clone()).or_default();
                let delay = backoff(*failures);
                *failures += 1;
                state.add_at(key, now + delay);
            }
        }
        drop(state);
        self.wake.notify_one();
    }
}

/// The wait after `failures` failures before the last one.
fn backoff(failures: u32) -> Duration {
    BACKOFF_LAST.min(BACKOFF_FIRST.saturating_mul(1 << failures.min(16)))
}

/// What a reconciliation answers: look again after this, or not.
pub(crate) type Reconciled = Result<Option<Duration>, Error>;

/// Reconciles `queue`'s keys for ever, at most `limit` at once, one key never twice at once.
pub(crate) async fn work<F, R>(name: &'static str, queue: Arc<Queue>, limit: usize, reconcile: F)
where
    F: Fn(Key) -> R,
    R: Future<Output = Reconciled> + Send + 'static,
{
    let mut running = JoinSet::new();
    let mut keys: HashMap<tokio::task::Id, Key> = HashMap::new();
    loop {
        tokio::select! {
            biased;
            Some(ended) = running.join_next_with_id(), if !running.is_empty() => {
                let (id, outcome) = match ended {
                    Ok((id, result)) => (id, outcome(name, keys.get(&id), result)),
                    Err(error) => {
                        tracing::error!(controller = name, key = ?keys.get(&error.id()), %error, "a reconciliation broke");
                        (error.id(), Outcome::Failed)
                    }
                };
                if let Some(key) = keys.remove(&id) {
                    queue.done(key, outcome);
                }
            }
            key = queue.take(), if running.len() < limit => {
                let handle = running.spawn(timeout(DEADLINE, reconcile(key.clone())));
                keys.insert(handle.id(), key);
            }
        }
    }
}

fn outcome(name: &'static str, key: Option<&Key>, result: Result<Reconciled, tokio::time::error::Elapsed>) -> Outcome {
    let key = key.map(ToString::to_string).unwrap_or_default();
    match result {
        Ok(Ok(None)) => Outcome::Done,
        Ok(Ok(Some(after))) => Outcome::After(after),
        Ok(Err(error)) if error.is_conflict() => {
            tracing::debug!(controller = name, key, error = error.chain(), "again");
            Outcome::Failed
        }
        Ok(Err(error)) => {
            tracing::warn!(controller = name, key, error = error.chain(), "reconciliation failed");
            Outcome::Failed
        }
        Err(_) => {
            tracing::warn!(controller = name, key, "reconciliation passed its deadline");
            Outcome::Failed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::new("default", name)
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_added_twice_is_taken_once() {
        let queue = Queue::new();
        queue.add(key("a"));
        queue.add(key("a"));
        queue.add(key("b"));
        assert_eq!(queue.take().await, key("a"));
        assert_eq!(queue.take().await, key("b"));
        assert!(timeout(Duration::from_secs(1), queue.take()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_added_while_reconciled_runs_again_only_afterwards() {
        let queue = Queue::new();
        queue.add(key("a"));
        let taken = queue.take().await;
        queue.add(key("a"));
        assert!(timeout(Duration::from_secs(1), queue.take()).await.is_err());
        queue.done(taken, Outcome::Done);
        assert_eq!(queue.take().await, key("a"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_key_backs_off_until_a_success() {
        let queue = Queue::new();
        queue.add(key("a"));
        let mut waits = Vec::new();
        for _ in 0..3 {
            let start = Instant::now();
            let taken = queue.take().await;
            waits.push(start.elapsed().as_millis());
            queue.done(taken, Outcome::Failed);
        }
        assert_eq!(waits[0], 0);
        assert!(waits[2] > waits[1] && waits[1] >= 20, "{waits:?}");
        assert_eq!(backoff(40), BACKOFF_LAST);
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_not_held_back_by_a_delay() {
        let queue = Queue::new();
        queue.add(key("a"));
        let taken = queue.take().await;
        queue.done(taken, Outcome::After(Duration::from_secs(100)));
        queue.add(key("a"));
        let start = Instant::now();
        assert_eq!(queue.take().await, key("a"));
        assert_eq!(start.elapsed(), Duration::ZERO);
        queue.done(key("a"), Outcome::Done);
        assert!(timeout(Duration::from_secs(200), queue.take()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_panicking_reconciliation_does_not_stop_the_others() {
        let queue = Queue::new();
        let seen = Arc::new(Mutex::new(Vec::new()));
        queue.add(key("bad"));
        queue.add(key("good"));
        let log = Arc::clone(&seen);
        let loop_ = work("test", queue, 4, move |key| {
            let log = Arc::clone(&log);
            async move {
                assert!(key.name != "bad", "as wanted");
                log.lock().expect("not poisoned").push(key.name);
                Ok(None)
            }
        });
        assert!(timeout(Duration::from_secs(1), loop_).await.is_err());
        assert_eq!(*seen.lock().expect("not poisoned"), ["good"]);
    }
}
