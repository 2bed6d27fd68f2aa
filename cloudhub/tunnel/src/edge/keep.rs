//! A session's paths: one over each uplink, dialled again when it ends, until the session does.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::dial::{AttemptError, Dialler, Ticket, Welcomed};
use super::{DRAIN_WITHIN, Uplink, now_or_default};
use crate::backoff::Backoff;
use crate::bond::PathId;
use crate::path::PathControl;
use crate::session::Inner;
use crate::types::CloseReason;

/// A path that lived so long starts the back-off over.
const WORKED: Duration = Duration::from_secs(10);

struct Keeper {
    session: Arc<Inner>,
    dialler: Dialler,
    /// Numbers that were given to paths.
    numbers: AtomicU8,
    /// The uplinks have changed: whoever waits tries at once.
    changed: Notify,
}

/// Keeps one path over each uplink until the session is over; `first` has been added to it.
pub(super) async fn keep(
    session: Arc<Inner>,
    dialler: Dialler,
    first: Welcomed,
    mut uplinks: watch::Receiver<Vec<Uplink>>,
) {
    let keeper = Arc::new(Keeper {
        session,
        dialler,
        numbers: AtomicU8::new(first.info.id.0 + 1),
        changed: Notify::new(),
    });
    let mut first = Some(first);
    let mut tasks = JoinSet::new();
    let mut kept: HashMap<String, (Uplink, CancellationToken)> = HashMap::new();
    loop {
        let now = now_or_default(&uplinks.borrow_and_update());
        kept.retain(|_, (uplink, gone)| {
            let stays = now.contains(uplink);
            if !stays {
                gone.cancel();
            }
            stays
        });
        for uplink in now {
            if !kept.contains_key(&uplink.name) {
                let gone = CancellationToken::new();
                let own = first.take_if(|first| first.info.uplink == uplink.name);
                tasks.spawn(keeper.clone().keep_one(uplink.clone(), own, gone.clone()));
                kept.insert(uplink.name.clone(), (uplink, gone));
            }
        }
        // The uplink that the session began over is gone already.
        if let Some(first) = first.take() {
            tasks.spawn(keeper.clone().run(first, CancellationToken::new()));
        }
        keeper.changed.notify_waiters();
        tokio::select! {
            () = keeper.session.ended() => break,
            changed = uplinks.changed() => if changed.is_err() {
                // They never change.
                keeper.session.ended().await;
                break;
            },
        }
    }
    // The goodbye's last packets.
    let _ = timeout(DRAIN_WITHIN, async { while tasks.join_next().await.is_some() {} }).await;
}

impl Keeper {
    /// One uplink, from one path to the next.
    async fn keep_one(self: Arc<Self>, uplink: Uplink, mut first: Option<Welcomed>, gone: CancellationToken) {
        let (mut backoff, mut turn) = (Backoff::default(), 0);
        loop {
            let joined = match first.take() {
                Some(first) => Ok(first),
                None => tokio::select! {
                    () = gone.cancelled() => return,
                    () = self.session.ended() => return,
                    joined = self.join(&uplink, turn) => joined,
                },
            };
            turn += 1;
            match joined {
                Ok(welcomed) => {
                    let since = Instant::now();
                    self.clone().run(welcomed, gone.clone()).await;
                    if since.elapsed() >= WORKED {
                        backoff.reset();
                    }
                }
                Err(AttemptError::StaleEpoch(epoch)) => {
                    tracing::info!(uplink = uplink.name, epoch, "the hub's end of the session is over");
                    return self.session.close(CloseReason::LinkLost, false);
                }
                Err(error) => tracing::info!(uplink = uplink.name, %error, "no path"),
            }
            let pause = tokio::time::sleep(backoff.next(rand::random()));
            tokio::select! {
                () = gone.cancelled() => return,
                () = self.session.ended() => return,
                () = self.changed.notified() => {}
                () = pause => {}
            }
        }
    }

    /// One more path for the session.
    async fn join(&self, uplink: &Uplink, turn: usize) -> Result<Welcomed, AttemptError> {
        let dialled = self.dialler.dial(uplink, turn).await?;
        let ticket = Ticket {
            epoch: self.session.peer.epoch,
            path: PathId(self.numbers.fetch_add(1, Ordering::Relaxed)),
            joins: true,
        };
        let welcomed = self.dialler.attach(dialled, ticket).await?;
        if welcomed.welcome.hub_instance != self.session.welcome.hub_instance {
            welcomed.path.close(&CloseReason::Local);
            return Err(AttemptError::Connection {
                remote: welcomed.peer.remote,
                why: "this is another instance of the hub than the session's".to_owned(),
            });
        }
        if !self.session.add_path(welcomed.info.clone(), welcomed.path.clone()) {
            return Err(AttemptError::Connection {
                remote: welcomed.peer.remote,
                why: "the session takes no more paths".to_owned(),
            });
        }
        Ok(welcomed)
    }

    /// Runs a path of the session until it ends or its uplink goes away.
    async fn run(self: Arc<Self>, welcomed: Welcomed, gone: CancellationToken) {
        let Welcomed {
            endpoint, path, info, ..
        } = welcomed;
        let id = info.id;
        let away = async {
            gone.cancelled().await;
            path.close(&CloseReason::LinkLost);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            _ = self.session.run_path(id, path.as_ref()) => {}
            () = away => {}
        }
        self.dialler.mtus.took(&info.uplink, path.facts().max_datagram);
        if self.session.is_closed() {
            // The last packets of a goodbye.
            let _ = timeout(DRAIN_WITHIN, endpoint.wait_idle()).await;
        }
    }
}
