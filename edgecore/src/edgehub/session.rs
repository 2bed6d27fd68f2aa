//! One session with the hub: the task that moves items between link and store.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::FutureExt as _;
use metastore::{Batch, Store};
use relay::{Effect, Event, Faults, Item, Link, Outgoing, Push, Replica};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tunnel::{CloseReason, Session};
use wire::proto::{Down, Up, up};
use wire::{ClassId, Now, Priority};

use super::outbox::{self, Outbox};
use super::rows;
use crate::kubelet_api::KubeletApi;
use crate::node::conditions::HubFlags;

/// Why a session is broken off.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error("the store cannot be read: {0}")]
    Read(#[from] metastore::ReadError),
    #[error("the store cannot be written: {0}")]
    Commit(#[from] metastore::CommitError),
    #[error("a message of the hub makes no sense: {0}")]
    Decode(#[from] wire::DecodeError),
}

/// Messages that go into one commit at most: a commit costs a flush, and what is held back is not acknowledged.
const AT_ONCE: usize = 256;
/// Streams of the hub at once; the tunnel allows fewer.
const STREAMS: usize = 64;

/// Runs until the session is over.
pub(super) async fn run(
    store: &Store,
    session: &Session,
    kubelet_api: &KubeletApi,
    (flags, complete): (&watch::Sender<HubFlags>, &watch::Sender<bool>),
) -> Result<CloseReason, SessionError> {
    let replica = Replica::new(rows::read_state(store)?, rows::read_held(store)?, Faults::default());
    let link = Link::new(Faults::default());
    let mut task = Task {
        store,
        session,
        flags,
        complete,
        link,
        outgoing: Outgoing::default(),
        replica,
        outbox: Outbox::default(),
        report: true,
    };
    tokio::select! {
        ended = task.drive() => ended,
        reason = streams(session, kubelet_api) => Ok(reason),
    }
}

/// Serves the kubelet API on the streams that the hub opens.
async fn streams(session: &Session, kubelet_api: &KubeletApi) -> CloseReason {
    let mut tasks = JoinSet::new();
    loop {
        if tasks.len() >= STREAMS {
            tasks.join_next().await;
        }
        match session.accept_stream().await {
            Ok(stream) => {
                let api = kubelet_api.clone();
                tasks.spawn(async move { api.serve(stream).await });
                while tasks.try_join_next().is_some() {}
            }
            Err(closed) => return closed.reason,
        }
    }
}

struct Task<'a> {
    store: &'a Store,
    session: &'a Session,
    flags: &'a watch::Sender<HubFlags>,
    complete: &'a watch::Sender<bool>,
    link: Link,
    outgoing: Outgoing,
    replica: Replica,
    outbox: Outbox,
    /// The rows to report may have changed, or there is room for more of them.
    report: bool,
}

impl Task<'_> {
    async fn drive(&mut self) -> Result<CloseReason, SessionError> {
        let mut watches = [outbox::STATUS, outbox::GONE, outbox::EVENT].map(|prefix| self.store.watch(prefix));
        let hello = self.replica.hello();
        self.control(up::Body::Hello(hello));
        loop {
            self.handle_events().await?;
            if std::mem::take(&mut self.report) {
                self.outbox.fill(self.store, &mut self.link, now())?;
            }
            let blocked = match self.transmit() {
                Ok(all) => !all,
                Err(reason) => return Ok(reason),
            };
            let timeout = self
                .outgoing
                .timeout(&self.link)
                .map_or(Duration::from_secs(60), |at| at.saturating_sub(now().boottime));
            let timeout = Instant::now() + timeout;
            let [status, gone, event] = &mut watches;
            tokio::select! {
                biased;
                message = self.session.recv() => match message {
                    Ok(message) => self.take(message)?,
                    Err(closed) => return Ok(closed.reason),
                },
                _ = status.changed() => self.report = true,
                _ = gone.changed() => self.report = true,
                _ = event.changed() => self.report = true,
                () = self.session.ready(), if blocked => {}
                () = tokio::time::sleep_until(timeout) => {}
            }
        }
    }

    /// Takes a message, and those that have arrived behind it.
    fn take(&mut self, message: Bytes) -> Result<(), SessionError> {
        self.link.handle_message(now(), message)?;
        for _ in 1..AT_ONCE {
            let Some(Ok(message)) = self.session.recv().now_or_never() else {
                break;
            };
            self.link.handle_message(now(), message)?;
        }
        Ok(())
    }

    /// Everything that has arrived, in one commit; then it is acknowledged.
    async fn handle_events(&mut self) -> Result<(), SessionError> {
        let mut batch = Batch::new();
        let mut last = None;
        while let Some(event) = self.link.poll_event() {
            match event {
                Event::Received {
                    class, seq, payload, ..
                } if matches!(class, ClassId::DESIRED | ClassId::CONTROL) => {
                    let body = wire::decode_down(payload)?;
                    let effect = self.replica.handle(Down { body });
                    tracing::debug!(class = class.0, seq, changes = effect.changes.len(), "from the hub");
                    self.answer(effect, &mut batch);
                    if class == ClassId::DESIRED {
                        last = Some(seq);
                    }
                }
                Event::Acked { token, .. } => {
                    self.report = true;
                    self.outbox.acked(token, &mut batch);
                }
                // A class that only a newer hub has use for.
                Event::Received { .. } | Event::Dropped { .. } => {}
            }
        }
        self.store.commit(batch).await?;
        if let Some(seq) = last {
            self.link.commit(ClassId::DESIRED, seq);
        }
        let synced = self.replica.state().synced;
        self.complete
            .send_if_modified(|complete| std::mem::replace(complete, synced) != synced);
        if !self.replica.has_judged() {
            return Ok(());
        }
        let suspicion = self.replica.suspicion().map(str::to_owned);
        self.flags.send_if_modified(|flags| {
            let changed = flags.desired_state_suspect != suspicion;
            flags.desired_state_suspect = suspicion;
            changed
        });
        Ok(())
    }

    fn answer(&mut self, effect: Effect, batch: &mut Batch) {
        rows::add_changes(batch, effect.changes);
        if let Some(suspect) = effect.suspect {
            tracing::error!(reason = suspect.reason, stops = ?suspect.stops, "DesiredStateSuspect: the hub's state is not believed; pods go on");
            self.control(up::Body::Suspect(suspect));
        }
        if let Some(hello) = effect.hello {
            self.control(up::Body::Hello(hello));
        }
    }

    fn control(&mut self, body: up::Body) {
        let payload = wire::encode(&Up { body: Some(body) });
        if let Err(error) = self.link.send(now(), Item::new(ClassId::CONTROL, payload)) {
            // The hub has not answered the last ones: the session is about to die, and the next begins with a Hello.
            tracing::warn!(%error, "a word of the session cannot be sent");
        }
    }

    /// Moves what the link has to send into the session; `Ok(false)` when something waits for room.
    fn transmit(&mut self) -> Result<bool, CloseReason> {
        self.outgoing.drain(&mut self.link, now(), |class, message| {
            match self.session.send(priority(class), message) {
                Ok(()) => Ok(Push::Taken),
                Err(tunnel::SendError::Busy) => Ok(Push::Busy),
                Err(tunnel::SendError::Closed(closed)) => Err(closed.reason),
                Err(error) => {
                    tracing::error!(%error, "a relay message is too large for the tunnel");
                    Ok(Push::Taken)
                }
            }
        })
    }
}

fn priority(priority: Priority) -> tunnel::Priority {
    match priority {
        Priority::Urgent => tunnel::Priority::Urgent,
        Priority::Interactive => tunnel::Priority::Interactive,
        Priority::Normal => tunnel::Priority::Normal,
        Priority::Bulk => tunnel::Priority::Bulk,
    }
}

fn now() -> Now {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now {
        boottime: crate::node::boottime(),
        wall,
        wall_trusted: true,
    }
}
