//! v1 Events into the store, from where edgehub takes them: aggregated, limited, bounded.
//!
//! * the same event (object, reason, message) again raises its count and keeps its name, so that the API gets one Event;
//! * an object may say 25 different things at once and one more every 5 min (client-go's spam filter);
//! * at most [`MAX_ROWS`] rows wait for the hub; beyond, the oldest goes and the number of lost ones is logged.
//!
//! `record` never waits; [`Recorder::run`] writes. What is not yet written is lost with the process: events are hints for people.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

use super::memory::Now;
use super::report::rfc3339;
use super::rows::Rows;

/// Rows that wait for the hub.
pub const MAX_ROWS: usize = 1000;
/// Different events remembered for counting.
const MAX_SEEN: usize = 512;
/// client-go's EventSourceObjectSpamFilter.
const BURST: u32 = 25;
const REFILL: Duration = Duration::from_secs(300);
/// Events within this time share a write: each write is an fsync, and while pods start, their statuses have more need of the CPU.
const GATHER: Duration = Duration::from_secs(1);
/// The API's limit of an event's message.
const MAX_MESSAGE: usize = 1024;

/// Normal or Warning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be.
    Normal,
    /// Somebody may want to look.
    Warning,
}

/// What an event is about.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// `Pod`, `Node`.
    pub kind: String,
    /// Empty for a Node.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Such as `spec.containers{web}`.
    pub field_path: String,
}

#[derive(Debug, Clone)]
struct Counted {
    about: Reference,
    severity: Severity,
    reason: String,
    message: String,
    first: Duration,
    last: Duration,
    count: u32,
}

#[derive(Debug, Default)]
struct State {
    seen: BTreeMap<String, Counted>,
    pending: BTreeSet<String>,
    tokens: BTreeMap<String, (u32, Duration)>,
    /// Key number of the row in which an event was last written.
    written: BTreeMap<String, u64>,
    /// Key numbers of rows that may still be in the store, oldest first.
    waiting: VecDeque<u64>,
    lost: u64,
}

#[derive(Debug)]
struct Inner {
    rows: Arc<dyn Rows>,
    node: String,
    salt: u128,
    state: Mutex<State>,
    news: Notify,
}

/// Records events. Clone = handle.
#[derive(Debug, Clone)]
pub struct Recorder(Arc<Inner>);

impl Recorder {
    /// A recorder for the node; rows of an earlier run are counted.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn new(rows: Arc<dyn Rows>, node: &str) -> Result<Self, super::rows::RowError> {
        let waiting = rows
            .scan("event/v1/")?
            .iter()
            .filter_map(|(key, _)| key.strip_prefix("event/v1/")?.parse().ok())
            .collect();
        Ok(Self(Arc::new(Inner {
            rows,
            node: node.to_owned(),
            salt: Now::read().wall.as_nanos(),
            state: Mutex::new(State {
                waiting,
                ..State::default()
            }),
            news: Notify::new(),
        })))
    }

    /// Records an event; never waits.
    pub fn record(&self, about: &Reference, severity: Severity, reason: &str, message: &str) {
        let now = Now::read();
        let message = truncate(message);
        let name = self.name(about, reason, message);
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seen) = state.seen.get_mut(&name) {
            seen.count += 1;
            seen.last = now.wall;
        } else {
            if !state.may_speak(&format!("{}{}", about.uid, about.name), now.boottime) {
                return;
            }
            if state.seen.len() >= MAX_SEEN {
                let oldest = state
                    .seen
                    .iter()
                    .min_by_key(|(_, e)| e.last)
                    .map(|(name, _)| name.clone());
                if let Some(oldest) = oldest {
                    state.seen.remove(&oldest);
                    state.written.remove(&oldest);
                    state.pending.remove(&oldest);
                }
            }
            let event = Counted {
                about: about.clone(),
                severity,
                reason: reason.to_owned(),
                message: message.to_owned(),
                first: now.wall,
                last: now.wall,
                count: 1,
            };
            state.seen.insert(name.clone(), event);
            if severity == Severity::Warning {
                // Who stands beside the robot has no kubectl: its log says it too, once.
                tracing::warn!(
                    kind = about.kind,
                    namespace = about.namespace,
                    name = about.name,
                    reason,
                    message
                );
            }
        }
        state.pending.insert(name);
        drop(state);
        self.0.news.notify_one();
    }

    fn name(&self, about: &Reference, reason: &str, message: &str) -> String {
        let mut hash = Sha256::new();
        for part in [&about.kind, &about.uid, &about.field_path, reason, message] {
            hash.update(part.as_bytes());
            hash.update([0]);
        }
        hash.update(self.0.salt.to_le_bytes());
        let digest = hash.finalize();
        let number = digest.iter().take(8).fold(0_u64, |n, b| (n << 8) | u64::from(*b));
        format!("{}.{number:016x}", about.name)
    }

    /// Writes events until it is dropped.
    pub async fn run(&self) {
        loop {
            self.0.news.notified().await;
            tokio::time::sleep(GATHER).await;
            self.flush().await;
        }
    }

    /// Writes what is pending.
    pub async fn flush(&self) {
        let changes = self.take();
        if changes.is_empty() {
            return;
        }
        if let Err(error) = self.0.rows.commit(changes).await {
            tracing::warn!(%error, "events were not written");
        }
    }

    fn take(&self) -> Vec<super::rows::Change> {
        let rows = &self.0.rows;
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changes = Vec::new();
        let present = |n: u64| rows.get(&row_key(n)).ok().flatten().is_some();
        for name in std::mem::take(&mut state.pending) {
            let Some(event) = state.seen.get(&name) else { continue };
            let value = self.render(&name, event);
            let number = match state.written.get(&name) {
                Some(&n) if present(n) => n,
                _ => state.next_number(),
            };
            state.written.insert(name, number);
            changes.push((row_key(number), Some(value)));
        }
        if state.waiting.len() > MAX_ROWS {
            state
                .waiting
                .retain(|&n| present(n) || changes.iter().any(|(key, _)| key == &row_key(n)));
            while state.waiting.len() > MAX_ROWS {
                if let Some(oldest) = state.waiting.pop_front() {
                    changes.push((row_key(oldest), None));
                    state.lost += 1;
                }
            }
            if state.lost > 0 {
                tracing::warn!(lost = state.lost, "events dropped: the hub has not fetched them");
            }
        }
        changes
    }

    fn render(&self, name: &str, event: &Counted) -> Bytes {
        let about = &event.about;
        let namespace = if about.namespace.is_empty() {
            "default"
        } else {
            &about.namespace
        };
        let mut involved = json!({"kind": about.kind, "apiVersion": "v1", "name": about.name, "uid": about.uid});
        if !about.namespace.is_empty() {
            involved["namespace"] = about.namespace.clone().into();
        }
        if !about.field_path.is_empty() {
            involved["fieldPath"] = about.field_path.clone().into();
        }
        json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": involved,
            "reason": event.reason, "message": event.message,
            "source": {"component": "kubelet", "host": self.0.node},
            "firstTimestamp": rfc3339(event.first), "lastTimestamp": rfc3339(event.last), "count": event.count,
            "type": if event.severity == Severity::Normal { "Normal" } else { "Warning" },
            "eventTime": null, "reportingComponent": "kubelet", "reportingInstance": self.0.node,
        })
        .to_string()
        .into()
    }
}

impl State {
    fn may_speak(&mut self, object: &str, now: Duration) -> bool {
        if self.tokens.len() >= MAX_SEEN {
            self.tokens.retain(|_, (_, since)| now.saturating_sub(*since) < REFILL);
        }
        let (left, since) = self.tokens.entry(object.to_owned()).or_insert((BURST, now));
        let refills = u32::try_from(now.saturating_sub(*since).as_secs() / REFILL.as_secs()).unwrap_or(BURST);
        if refills > 0 {
            *left = left.saturating_add(refills).min(BURST);
            *since = now;
        }
        if *left == 0 {
            return false;
        }
        *left -= 1;
        true
    }

    /// Key numbers rise over restarts too: they start at the clock's milliseconds, or after the last row.
    fn next_number(&mut self) -> u64 {
        let clock = u64::try_from(Now::read().wall.as_millis()).unwrap_or(0);
        let number = self.waiting.back().map_or(clock, |last| clock.max(last + 1));
        self.waiting.push_back(number);
        number
    }
}

fn row_key(number: u64) -> String {
    format!("event/v1/{number:020}")
}

fn truncate(message: &str) -> &str {
    let mut end = message.len().min(MAX_MESSAGE);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    &message[..end]
}

#[cfg(test)]
mod tests {
    use super::super::rows::MemRows;
    use super::*;

    fn about(name: &str) -> Reference {
        Reference {
            kind: "Pod".into(),
            namespace: "d".into(),
            name: name.into(),
            uid: name.into(),
            ..Reference::default()
        }
    }

    fn read(rows: &Arc<dyn Rows>) -> Vec<serde_json::Value> {
        let all = rows.scan("event/v1/").expect("scan");
        all.iter()
            .map(|(_, v)| serde_json::from_slice(v).expect("json"))
            .collect()
    }

    #[tokio::test]
    async fn repeats_are_one_event_with_a_count_even_after_the_hub_took_it() {
        let rows: Arc<dyn Rows> = Arc::new(MemRows::default());
        let recorder = Recorder::new(rows.clone(), "n").expect("recorder");
        for _ in 0..3 {
            recorder.record(&about("p"), Severity::Warning, "BackOff", "again");
        }
        recorder.flush().await;
        let first = read(&rows);
        assert_eq!((first.len(), first[0]["count"].as_u64()), (1, Some(3)));
        let key = rows.scan("event/v1/").expect("scan")[0].0.clone();
        rows.commit(vec![(key, None)]).await.expect("commit");
        recorder.record(&about("p"), Severity::Warning, "BackOff", "again");
        recorder.flush().await;
        let second = read(&rows);
        assert_eq!(second[0]["count"], 4);
        assert_eq!(second[0]["metadata"]["name"], first[0]["metadata"]["name"]);
    }

    #[tokio::test]
    async fn one_object_cannot_flood_and_the_table_is_bounded() {
        let rows: Arc<dyn Rows> = Arc::new(MemRows::default());
        let recorder = Recorder::new(rows.clone(), "n").expect("recorder");
        for n in 0..100 {
            recorder.record(&about("p"), Severity::Normal, "R", &n.to_string());
        }
        recorder.flush().await;
        assert_eq!(read(&rows).len(), BURST as usize);
        for n in 0..MAX_ROWS + 50 {
            recorder.record(&about(&format!("q{n}")), Severity::Normal, "R", "m");
            if n % 100 == 0 {
                recorder.flush().await;
            }
        }
        recorder.flush().await;
        assert_eq!(read(&rows).len(), MAX_ROWS);
    }
}
