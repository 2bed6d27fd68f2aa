//! Events: a bounded queue and one task that writes them.
//!
//! Events are hints for people: when the queue is full one is dropped with a log line, and a failed write is not repeated.
//! The same event again within [`WINDOW`] raises its count instead of making another.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

/// Events that wait to be written.
const QUEUE: usize = 256;
/// Events whose repetition is counted; the least recent is forgotten first.
const REMEMBERED: usize = 256;
/// Repetitions within this are counted in one Event.
const WINDOW: Duration = Duration::from_secs(600);
/// Deadline of one write.
const DEADLINE: Duration = Duration::from_secs(10);

/// What happened to an object.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Happening {
    component: &'static str,
    warning: bool,
    reason: &'static str,
    message: String,
    uid: String,
}

/// One event on its way.
#[derive(Debug)]
pub(crate) struct Entry {
    happening: Happening,
    about: ObjectReference,
}

/// The handle by which one controller reports.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    component: &'static str,
    queue: mpsc::Sender<Entry>,
}

/// The receiving end, for [`write`].
pub(crate) type Inbox = mpsc::Receiver<Entry>;

impl Recorder {
    pub(crate) fn new() -> (Self, Inbox) {
        let (queue, inbox) = mpsc::channel(QUEUE);
        (
            Self {
                component: "kedge",
                queue,
            },
            inbox,
        )
    }

    /// The same recorder under another component's name.
    pub(crate) fn of(&self, component: &'static str) -> Self {
        Self {
            component,
            queue: self.queue.clone(),
        }
    }

    pub(crate) fn normal<K: Resource<DynamicType = ()>>(&self, object: &K, reason: &'static str, message: String) {
        self.record(object, false, reason, message);
    }

    pub(crate) fn warning<K: Resource<DynamicType = ()>>(&self, object: &K, reason: &'static str, message: String) {
        self.record(object, true, reason, message);
    }

    fn record<K: Resource<DynamicType = ()>>(&self, object: &K, warning: bool, reason: &'static str, message: String) {
        let mut about = object.object_ref(&());
        about.resource_version = None;
        let happening = Happening {
            component: self.component,
            warning,
            reason,
            message,
            uid: object.uid().unwrap_or_default(),
        };
        if self.queue.try_send(Entry { happening, about }).is_err() {
            tracing::warn!(component = self.component, reason, "event dropped: the queue is full");
        }
    }
}

struct Known {
    namespace: String,
    name: String,
    count: i32,
    last: Instant,
}

/// Writes events for ever.
pub(crate) async fn write(client: Client, mut inbox: Inbox) {
    let mut known: HashMap<Happening, Known> = HashMap::new();
    while let Some(entry) = inbox.recv().await {
        let reason = entry.happening.reason;
        match timeout(DEADLINE, write_one(&client, &mut known, entry)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, reason, "event not written"),
            Err(_) => tracing::debug!(reason, "event not written in time"),
        }
    }
}

async fn write_one(client: &Client, known: &mut HashMap<Happening, Known>, entry: Entry) -> Result<(), kube::Error> {
    let now = Time(Timestamp::now());
    if let Some(old) = known.get_mut(&entry.happening)
        && old.last.elapsed() < WINDOW
    {
        old.count += 1;
        old.last = Instant::now();
        let api: Api<Event> = Api::namespaced(client.clone(), &old.namespace);
        let patch = json!({"count": old.count, "lastTimestamp": now});
        match api
            .patch(&old.name, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            other => return other.map(|_| ()),
        }
    }
    let event = event(&entry, now);
    let (namespace, name) = (event.namespace().unwrap_or_default(), event.name_any());
    let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
    api.create(&PostParams::default(), &event).await?;
    remember(
        known,
        entry.happening,
        Known {
            namespace,
            name,
            count: 1,
            last: Instant::now(),
        },
    );
    Ok(())
}

fn remember(known: &mut HashMap<Happening, Known>, happening: Happening, entry: Known) {
    if known.len() >= REMEMBERED
        && let Some(oldest) = known
            .iter()
            .min_by_key(|(_, known)| known.last)
            .map(|(happening, _)| happening.clone())
    {
        known.remove(&oldest);
    }
    known.insert(happening, entry);
}

fn event(entry: &Entry, now: Time) -> Event {
    let about = &entry.about;
    let name = format!("{}.{:x}", about.name.clone().unwrap_or_default(), now.0.as_nanosecond());
    let kind = if entry.happening.warning { "Warning" } else { "Normal" };
    Event {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(about.namespace.clone().unwrap_or_else(|| "default".into())),
            ..ObjectMeta::default()
        },
        involved_object: about.clone(),
        reason: Some(entry.happening.reason.into()),
        message: Some(entry.happening.message.clone()),
        type_: Some(kind.into()),
        source: Some(EventSource {
            component: Some(entry.happening.component.into()),
            host: None,
        }),
        reporting_component: Some(entry.happening.component.into()),
        first_timestamp: Some(now.clone()),
        last_timestamp: Some(now),
        count: Some(1),
        ..Event::default()
    }
}
