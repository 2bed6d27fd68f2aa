//! A session's paths: one over each uplink, dialled again when it ends, until the session does. Where QUIC does not work
//! [`fallback::keep`] has one over TCP beside it.
//!
//! While no path answers, the old connections are kept: their probes are the quickest way back ([`crate::bond`]). Beside them each uplink is
//! dialled ([`Keeper::redial`]), for the old ones may be of no use any more: the hub has other addresses, or was started again while its
//! stateless reset could not be heard. It answers a new path of a session that it does not know with StaleEpoch, which ends it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::dial::{AttemptError, Dialled, Dialler, Path, Ticket, Welcomed};
use super::{DRAIN_WITHIN, Uplink, fallback, now_or_default};
use crate::backoff::Backoff;
use crate::bond::PathId;
use crate::path::Transport;
use crate::session::Inner;
use crate::types::{CloseReason, Presence};

/// A path that lived so long starts the back-off over.
pub(super) const WORKED: Duration = Duration::from_secs(10);
/// While TCP carries an uplink, QUIC is tried again after so many times the back-off, up to 30 s: a try is three packets of 1200 B, 17 MB
/// a day.
const BESIDE_TCP: u32 = 6;
/// The same where each byte costs: up to 5 min, 2 MB a day.
const BESIDE_TCP_METERED: u32 = 60;
/// While no path answers, a metered uplink is dialled after so many times the back-off, up to 1 min: a try is three packets of 1350 B, and
/// probes of 80 B ask for the same link several times a second.
const DORMANT_METERED: u32 = 12;

pub(super) struct Keeper {
    pub(super) session: Arc<Inner>,
    pub(super) dialler: Dialler,
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
    let mut kept: HashMap<String, (watch::Sender<Uplink>, CancellationToken)> = HashMap::new();
    loop {
        let now = now_or_default(&uplinks.borrow_and_update());
        kept.retain(|_, (kept, gone)| {
            let same = now.iter().find(|uplink| uplink.is_same_link(&kept.borrow()));
            match same {
                // Its paths learn what they may carry from now on.
                Some(uplink) => {
                    kept.send_replace(uplink.clone());
                }
                None => gone.cancel(),
            }
            same.is_some()
        });
        for uplink in now {
            if !kept.contains_key(&uplink.name) {
                let gone = CancellationToken::new();
                let own = first.take_if(|first| first.info.uplink == uplink.name);
                let name = uplink.name.clone();
                let uplink = watch::Sender::new(uplink);
                let (tcp, quic) = match own {
                    Some(own) if matches!(own.path, Path::Tcp(_)) => (Some(own), None),
                    own => (None, own),
                };
                tasks.spawn(keeper.clone().keep_one(uplink.subscribe(), quic, gone.clone()));
                if tcp.is_some() || !keeper.dialler.config.fallback.ports.is_empty() {
                    tasks.spawn(fallback::keep::keep(
                        keeper.clone(),
                        uplink.subscribe(),
                        tcp,
                        gone.clone(),
                    ));
                }
                kept.insert(name, (uplink, gone));
            }
        }
        // The uplink that the session began over is gone already.
        if let Some(first) = first.take() {
            tasks.spawn(keeper.clone().run(first, None, CancellationToken::new()));
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
    async fn keep_one(
        self: Arc<Self>,
        kept: watch::Receiver<Uplink>,
        mut first: Option<Welcomed>,
        gone: CancellationToken,
    ) {
        let (mut backoff, mut turn) = (Backoff::default(), 0);
        loop {
            let uplink = kept.borrow().clone();
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
                    match self.run_or_redial(welcomed, &kept, &gone, &mut turn).await {
                        Ok(None) => {}
                        Ok(another) => {
                            first = another;
                            continue;
                        }
                        Err(epoch) => return self.is_over(&uplink, epoch),
                    }
                    if since.elapsed() >= WORKED {
                        backoff.reset();
                    }
                }
                Err(AttemptError::StaleEpoch(epoch)) => return self.is_over(&uplink, epoch),
                Err(error) => tracing::info!(uplink = uplink.name, %error, "no path"),
            }
            let pause = tokio::time::sleep(backoff.next(rand::random()) * self.patience(&uplink));
            tokio::select! {
                () = gone.cancelled() => return,
                () = self.session.ended() => return,
                () = self.changed.notified() => {}
                () = pause => {}
            }
        }
    }

    /// How many times the back-off an uplink waits.
    fn patience(&self, uplink: &Uplink) -> u32 {
        let over_tcp = self.session.is_carried(&uplink.name, |by| *by != Transport::Quic);
        match (over_tcp, uplink.policy.metered) {
            (true, true) => BESIDE_TCP_METERED,
            (true, false) => BESIDE_TCP,
            (false, true) if self.session.driver().is_away() => DORMANT_METERED,
            (false, _) => 1,
        }
    }

    /// Runs a path until it ends, or until another one over its uplink has come up for it while no path answered: that one is returned. The
    /// error is the epoch at which the hub knows of no such session.
    async fn run_or_redial(
        self: &Arc<Self>,
        welcomed: Welcomed,
        kept: &watch::Receiver<Uplink>,
        gone: &CancellationToken,
        turn: &mut usize,
    ) -> Result<Option<Welcomed>, u64> {
        let over = gone.child_token();
        let path = self.clone().run(welcomed, Some(kept.clone()), over.clone());
        tokio::pin!(path);
        let redialled = tokio::select! {
            biased;
            () = &mut path => return Ok(None),
            redialled = self.redial(kept, turn) => redialled,
        };
        over.cancel();
        path.await;
        redialled.map(Some)
    }

    /// Dials while no path answers, until there is a path.
    async fn redial(&self, kept: &watch::Receiver<Uplink>, turn: &mut usize) -> Result<Welcomed, u64> {
        let driver = self.session.driver();
        let mut backoff = Backoff::default();
        loop {
            driver.until(Presence::Away).await;
            let uplink = kept.borrow().clone();
            let dialled = tokio::select! {
                () = driver.until(Presence::Here) => {
                    backoff.reset();
                    continue;
                }
                dialled = self.dialler.dial(&uplink, *turn) => dialled,
            };
            // From here on the hub may count on the path: what was begun is brought to its end.
            let joined = match dialled {
                Ok(dialled) => self.admit(dialled).await,
                Err(error) => Err(error),
            };
            match joined {
                Ok(welcomed) => return Ok(welcomed),
                Err(AttemptError::StaleEpoch(epoch)) => return Err(epoch),
                Err(error) => tracing::debug!(uplink = uplink.name, %error, "no path beside the silent one"),
            }
            *turn += 1;
            let pause = backoff.next(rand::random()) * self.patience(&uplink);
            tokio::select! {
                () = driver.until(Presence::Here) => backoff.reset(),
                _ = timeout(pause, self.changed.notified()) => {}
            }
        }
    }

    /// The hub says that it has no such session any more.
    pub(super) fn is_over(&self, uplink: &Uplink, epoch: u64) {
        tracing::info!(uplink = uplink.name, epoch, "the hub's end of the session is over");
        self.session.close(CloseReason::Forgotten, false);
    }

    async fn join(&self, uplink: &Uplink, turn: usize) -> Result<Welcomed, AttemptError> {
        self.admit(self.dialler.dial(uplink, turn).await?).await
    }

    /// One more path for the session.
    pub(super) async fn admit(&self, dialled: Dialled) -> Result<Welcomed, AttemptError> {
        let ticket = Ticket {
            epoch: self.session.peer.epoch,
            path: PathId(self.numbers.fetch_add(1, Ordering::Relaxed)),
            joins: true,
        };
        let welcomed = self.dialler.attach(dialled, ticket).await?;
        if welcomed.welcome.hub_instance != self.session.welcome.hub_instance {
            welcomed.path.control().close(&CloseReason::Local);
            let _ = timeout(DRAIN_WITHIN, welcomed.path.drained()).await;
            return Err(AttemptError::Connection {
                remote: welcomed.peer.remote,
                why: "this is another instance of the hub than the session's".to_owned(),
            });
        }
        if !self.session.add_path(welcomed.info.clone(), welcomed.path.control()) {
            let _ = timeout(DRAIN_WITHIN, welcomed.path.drained()).await;
            return Err(AttemptError::Connection {
                remote: welcomed.peer.remote,
                why: "the session takes no more paths".to_owned(),
            });
        }
        Ok(welcomed)
    }

    /// Runs a path of the session until it ends or its uplink goes away.
    pub(super) async fn run(
        self: Arc<Self>,
        welcomed: Welcomed,
        kept: Option<watch::Receiver<Uplink>>,
        gone: CancellationToken,
    ) {
        let Welcomed { path, info, .. } = welcomed;
        let away = async {
            gone.cancelled().await;
            path.control().close(&CloseReason::LinkLost);
            std::future::pending::<()>().await;
        };
        let follow = async {
            if let Some(mut kept) = kept {
                loop {
                    self.session.set_policy(info.id, kept.borrow_and_update().policy);
                    if kept.changed().await.is_err() {
                        break;
                    }
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            _ = path.run(&self.session, info.id) => {}
            () = follow => {}
            () = away => {}
        }
        if matches!(path, Path::Quic(..)) {
            self.dialler
                .mtus
                .took(&info.uplink, path.control().facts().max_datagram);
        }
        if self.session.is_closed() || matches!(path, Path::Tcp(_)) {
            // The last packets of a goodbye; TCP says none by itself.
            let _ = timeout(DRAIN_WITHIN, path.drained()).await;
        }
    }
}
