//! Hints from the runtime: *something* happened to this container or sandbox, read it again.
//!
//! A hint is never a state. Losing one costs at most a relist period; so a slow reader is told to relist, and after a reconnect everybody is.

use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::services::v1::SubscribeRequest;
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::types::Envelope;
use prost::Message;
use tokio::sync::broadcast;
use tonic::transport::Channel;

/// How many hints wait for a slow reader before it has to relist: 50 pods starting at once make some 300.
pub const HINT_BACKLOG: usize = 512;

/// What to read again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodHint {
    /// This container or sandbox (containerd's events do not tell which).
    Id(String),
    /// All: events were lost.
    Relist,
}

/// A subscription to hints.
#[derive(Debug)]
pub struct Hints(broadcast::Receiver<PodHint>);

impl Hints {
    /// The next hint. Waits for ever when the source has ended. Cancel safe.
    pub async fn next(&mut self) -> PodHint {
        match self.0.recv().await {
            Ok(hint) => hint,
            Err(broadcast::error::RecvError::Lagged(_)) => PodHint::Relist,
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// Where hints come from; cloneable.
#[derive(Debug, Clone)]
pub struct HintSource(broadcast::Sender<PodHint>);

impl Default for HintSource {
    fn default() -> Self {
        Self(broadcast::channel(HINT_BACKLOG).0)
    }
}

impl HintSource {
    /// A new subscription.
    pub fn subscribe(&self) -> Hints {
        Hints(self.0.subscribe())
    }

    /// Tells all subscribers; with none, nothing happens.
    pub fn send(&self, hint: PodHint) {
        // An error only says that nobody listens now; they list when they start.
        let _ = self.0.send(hint);
    }
}

/// The containerd namespace that CRI uses.
const NAMESPACE: &str = "k8s.io";
/// What tells us something. Exec probes make many other task events, which are left out at the source.
const FILTERS: [&str; 5] = [
    r#"namespace=="k8s.io",topic=="/tasks/start""#,
    r#"namespace=="k8s.io",topic=="/tasks/exit""#,
    r#"namespace=="k8s.io",topic=="/tasks/oom""#,
    r#"namespace=="k8s.io",topic=="/tasks/delete""#,
    r#"namespace=="k8s.io",topic=="/containers/delete""#,
];
/// The first wait after a broken stream, and the longest: a runtime that restarts takes a second or two.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What all of the subscribed events share: field 1 is the container.
#[derive(Clone, PartialEq, prost::Message)]
struct Event {
    #[prost(string, tag = "1")]
    container_id: String,
}

/// `TaskExit` names the process too: an exec's end says nothing about its container.
#[derive(Clone, PartialEq, prost::Message)]
struct TaskExit {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(string, tag = "2")]
    id: String,
}

/// Turns containerd's event stream into hints; its owner runs it as a task.
#[derive(Debug)]
pub struct EventPump {
    socket: PathBuf,
    hints: HintSource,
}

impl EventPump {
    /// A pump from the containerd at `socket`.
    pub fn new(socket: &Path, hints: HintSource) -> Self {
        Self {
            socket: socket.to_owned(),
            hints,
        }
    }

    /// Runs until dropped: subscribes, passes hints on, and after a break subscribes again with back-off. After each break
    /// everybody is told to relist: what happened in between was lost.
    pub async fn run(self) -> std::convert::Infallible {
        let mut client = EventsClient::new(crate::client::channel(&self.socket));
        let mut wait = BACKOFF.0;
        loop {
            match self.pump(&mut client, &mut wait).await {
                Ok(()) => tracing::info!("containerd's event stream ended"),
                Err(status) => {
                    tracing::debug!(error = %status.message(), "containerd's event stream failed")
                }
            }
            self.hints.send(PodHint::Relist);
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(BACKOFF.1);
        }
    }

    /// One stream from subscription to its end.
    async fn pump(&self, client: &mut EventsClient<Channel>, wait: &mut Duration) -> Result<(), tonic::Status> {
        let mut request = tonic::Request::new(SubscribeRequest {
            filters: FILTERS.iter().map(|&f| f.to_owned()).collect(),
        });
        request.metadata_mut().insert(
            "containerd-namespace",
            tonic::metadata::MetadataValue::from_static(NAMESPACE),
        );
        // grpc-go sends its headers with the first event: this waits until something happens, which is why the pump is a task of its own.
        let mut events = client.subscribe(request).await?.into_inner();
        while let Some(envelope) = events.message().await? {
            *wait = BACKOFF.0;
            if let Some(hint) = hint_of(&envelope) {
                self.hints.send(hint);
            }
        }
        Ok(())
    }
}

/// What an event says; None for the end of an exec'd process.
fn hint_of(envelope: &Envelope) -> Option<PodHint> {
    let any = envelope.event.as_ref()?;
    if envelope.topic == "/tasks/exit" {
        let exit = TaskExit::decode(any.value.as_slice()).ok()?;
        let of_exec = !exit.id.is_empty() && exit.id != exit.container_id;
        return (!of_exec).then_some(PodHint::Id(exit.container_id));
    }
    // Undecodable is a containerd we do not know: read everything rather than nothing.
    Some(Event::decode(any.value.as_slice()).map_or(PodHint::Relist, |event| PodHint::Id(event.container_id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(topic: &str, value: Vec<u8>) -> Envelope {
        let mut envelope = Envelope {
            topic: topic.to_owned(),
            namespace: NAMESPACE.to_owned(),
            ..Envelope::default()
        };
        envelope.event.get_or_insert_default().value = value;
        envelope
    }

    #[test]
    fn an_execs_end_is_no_hint() {
        let exec = TaskExit {
            container_id: "c".into(),
            id: "probe".into(),
        }
        .encode_to_vec();
        assert_eq!(hint_of(&envelope("/tasks/exit", exec)), None);
        let own = TaskExit {
            container_id: "c".into(),
            id: "c".into(),
        }
        .encode_to_vec();
        assert_eq!(hint_of(&envelope("/tasks/exit", own)), Some(PodHint::Id("c".into())));
    }

    #[test]
    fn an_unknown_event_asks_for_a_relist() {
        assert_eq!(hint_of(&envelope("/tasks/start", vec![0xff; 7])), Some(PodHint::Relist));
    }

    #[tokio::test]
    async fn a_slow_reader_is_told_to_relist() {
        let source = HintSource::default();
        let mut hints = source.subscribe();
        for n in 0..HINT_BACKLOG + 1 {
            source.send(PodHint::Id(n.to_string()));
        }
        assert_eq!(hints.next().await, PodHint::Relist);
        assert_eq!(hints.next().await, PodHint::Id("1".into()));
    }
}
