//! Hints from the runtime: *something* happened to this container or sandbox, read it again.
//!
//! A hint is never a state. Losing one costs at most a relist period; so a slow reader is told to relist, and after a reconnect everybody is.

use tokio::sync::broadcast;

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
