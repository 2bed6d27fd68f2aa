//! Whether the other end is there, by what its paths hear.
//!
//! - [`Driver::watch`], in the task of each path: the path's counters → [`Liveness`] → the bond, and what the session is ([`Driver::judge`])
//! - [`Presence`], on a `watch`: away when no path has answered for about 10 s, here as soon as the bond carries traffic over one again
//!
//! A path that is silent while others carry is given up and dialled again. While the session is away all are kept: whichever answers first
//! is the way back.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::{Driver, PathInfo, Slot, State};
use crate::bond::{PathId, PathState};
use crate::clock::boottime;
use crate::liveness::{Liveness, PING_INTERVAL, TICK, Verdict};
use crate::path::{PathControl, PathTransport, Transport};
use crate::types::{CloseReason, Presence};

/// A path over which the peer is heard, and whose questions are not answered, is as good as silent after being suspect for so long: one way
/// is dead. With the two seconds that the last path of a session has before it is suspect, the 10 s of a silent one.
const UNANSWERED_FOR: Duration = PING_INTERVAL;
/// A silent path is given up after so long beside others that carry: a minute with the 10 s before it.
const USELESS_FOR: Duration = Duration::from_secs(50);

impl State {
    /// Whether a path carries, or has not been without an answer for long.
    fn is_there(&self, now: Duration) -> bool {
        let answers = |slot: &Slot| {
            let suspect_since = self.bond.suspect_since(slot.info.id);
            let unanswered = suspect_since.is_some_and(|since| now.saturating_sub(since) >= UNANSWERED_FOR);
            self.bond.path_state(slot.info.id).is_some() && !slot.silent && !unanswered
        };
        self.paths.iter().any(answers)
    }

    /// Takes suspect paths out that a new connection over the same uplink stands for: at an edge, which dials beside an old one only then.
    /// Its word closes the hub's end; the hub does so by itself only for want of room, for it would race with its Welcome.
    pub(super) fn replace_paths(&mut self, now: Duration, info: &PathInfo, by: &dyn PathControl) {
        let is_quic = |control: &dyn PathControl| control.transport() == Transport::Quic;
        let replaced = self.paths.iter().filter(|slot| {
            slot.info.uplink == info.uplink
                && is_quic(&*slot.control) == is_quic(by)
                && self.bond.path_state(slot.info.id) == Some(PathState::Suspect)
        });
        let replaced: Vec<_> = replaced.map(|slot| (slot.info.id, slot.control.clone())).collect();
        for (id, control) in replaced {
            self.bond.remove_path(now, id);
            control.close(&CloseReason::LinkLost);
        }
    }
}

impl Driver {
    /// Says what the session is now, where that has changed.
    pub(super) fn judge(&self, state: &State) {
        let now = match state.is_there(boottime()) {
            true => Presence::Here,
            false => Presence::Away,
        };
        self.presence
            .send_if_modified(|presence| std::mem::replace(presence, now) != now);
    }

    /// Whether the other end is there.
    pub(crate) fn presence(&self) -> watch::Receiver<Presence> {
        self.presence.subscribe()
    }

    /// Whether no path answers.
    pub(crate) fn is_away(&self) -> bool {
        *self.presence.borrow() == Presence::Away
    }

    /// Returns when the session is what is wanted.
    pub(crate) async fn until(&self, wanted: Presence) {
        // The sender lives as long as this does.
        let _ = self.presence().wait_for(|presence| *presence == wanted).await;
    }

    /// Notices that nothing is heard on this path, and what that means for the session.
    pub(super) async fn watch(&self, id: PathId, path: &impl PathTransport) -> CloseReason {
        let interval = self.peek().slot(id).map(|slot| slot.info.ping_interval);
        let mut liveness = Liveness::new(interval.unwrap_or_default(), path.counters());
        let mut received = path.counters().received;
        let mut useless = Duration::ZERO;
        loop {
            let before = Instant::now();
            tokio::time::sleep(TICK).await;
            let (counters, elapsed) = (path.counters(), before.elapsed());
            let verdict = liveness.observe(elapsed, counters);
            let now = boottime();
            let mut state = self.change();
            self.count(&mut state, id, counters.carried);
            if verdict != Verdict::Alive {
                state.bond.suspect_path(now, id);
            }
            let Some(slot) = state.slot_mut(id) else {
                return CloseReason::LinkLost;
            };
            if verdict == Verdict::Silent && !slot.silent {
                tracing::info!(uplink = slot.info.uplink, path = id.0, rtt = ?counters.rtt, "nothing is heard");
            }
            slot.silent = verdict == Verdict::Silent;
            if received != counters.received {
                (slot.heard, received) = (now, counters.received);
            }
            self.judge(&state);
            useless = match verdict {
                Verdict::Silent if !self.is_away() => useless + elapsed.min(2 * TICK),
                _ => Duration::ZERO,
            };
            if useless >= USELESS_FOR {
                return CloseReason::LinkLost;
            }
        }
    }
}
