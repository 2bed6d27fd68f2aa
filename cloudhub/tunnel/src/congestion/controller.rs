//! [`Congestion`] behind quinn's trait: quinn's clock and callbacks in, the window out.
//!
//! [`Told`] goes both ways: the path learns here whether there is room in the window. quinn sends no acknowledgement while datagrams wait for its
//! window (0.11: ACKs go in the packets that the window stops), so two ends that both have more to send than fits would wait for each other
//! until a probe timeout, again and again. So a path gives quinn a datagram only when the window has room for it.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerFactory};
use quinn_proto::RttEstimator;
use tokio::sync::Notify;

use super::{Ack, Congestion};
use crate::path::Hint;
use crate::transport::DATAGRAM_SEND_BUFFER;

/// What quinn adds before it compares with the window: the largest packet.
const MARGIN: u64 = 1500;
/// Smaller packets are taken for acknowledgements, which the window does not count. With small datagrams among them there seems to be more room
/// than there is, which lasts until the next acknowledgement.
const SMALL: u64 = 256;
/// However full the window seems, a datagram goes after so long: the last resort of a count that is wrong.
const PATIENCE: Duration = Duration::from_secs(1);
/// What quinn adds to a datagram, at most.
const HEADERS: u64 = 64;

/// What the scheduler and the controller of ONE connection tell each other; clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Told(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// quinn's own `app_limited` flips with every refill of its buffer.
    backlogged: AtomicBool,
    /// While nothing is acknowledged the window would stay full, and no probe could ask whether the path is back.
    probing: AtomicBool,
    /// Bytes that are not acknowledged, headers included: what quinn counts, and what it has sent since it said so.
    in_flight: AtomicU64,
    /// Bytes of datagrams that quinn was given, with headers.
    given: AtomicU64,
    /// No more than this is in flight beyond what is given: acknowledgements of ours may be counted among what was sent.
    before: AtomicU64,
    window: AtomicU64,
    room: Notify,
}

impl Told {
    /// Takes what the scheduler says; true when probing has just begun.
    pub fn tell(&self, hint: Hint) -> bool {
        self.0.backlogged.store(hint.backlogged, Ordering::Relaxed);
        let before = self.0.probing.swap(hint.probing, Ordering::Relaxed);
        let begins = hint.probing && !before;
        if begins {
            self.0.room.notify_one();
        }
        begins
    }

    /// Returns when the window has room for a datagram of so many bytes, which is given to quinn then, beside the `queued` bytes that quinn
    /// has and has not sent. For one task.
    pub async fn room(&self, bytes: usize, queued: impl Fn() -> usize) {
        let bytes = bytes as u64 + HEADERS;
        while !self.has_room(bytes + queued() as u64) {
            if tokio::time::timeout(PATIENCE, self.0.room.notified()).await.is_err() {
                break;
            }
        }
        self.0.given.fetch_add(bytes, Ordering::Relaxed);
    }

    fn has_room(&self, bytes: u64) -> bool {
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let most = read(&self.0.given).saturating_sub(read(&self.0.before));
        let in_flight = read(&self.0.in_flight).min(most);
        self.is_probing() || in_flight + bytes + MARGIN < read(&self.0.window)
    }

    fn is_backlogged(&self) -> bool {
        self.0.backlogged.load(Ordering::Relaxed)
    }

    fn is_probing(&self) -> bool {
        self.0.probing.load(Ordering::Relaxed)
    }
}

/// Makes the controller of ONE connection: a shared one would mix what is told (at the hub: `Incoming::accept_with`).
#[derive(Debug, Default)]
pub struct Factory(pub Told);

impl ControllerFactory for Factory {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let congestion = Congestion::new(Duration::ZERO, current_mtu);
        self.0.0.window.store(congestion.window(), Ordering::Relaxed);
        Box::new(Adapter {
            origin: now,
            congestion,
            told: self.0.clone(),
        })
    }
}

#[derive(Debug, Clone)]
struct Adapter {
    origin: Instant,
    congestion: Congestion,
    told: Told,
}

impl Adapter {
    fn tell(&self, in_flight: u64) {
        let told = &self.told.0;
        told.in_flight.store(in_flight, Ordering::Relaxed);
        // What quinn holds and has not sent may be all that was given lately.
        let most = in_flight + DATAGRAM_SEND_BUFFER as u64;
        let given = told.given.load(Ordering::Relaxed);
        told.before.store(given.saturating_sub(most), Ordering::Relaxed);
        told.window.store(self.congestion.window(), Ordering::Relaxed);
        told.room.notify_one();
    }
}

impl Controller for Adapter {
    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, _app_limited: bool, rtt: &RttEstimator) {
        self.congestion.on_ack(&Ack {
            now: now.saturating_duration_since(self.origin),
            sent_at: sent.saturating_duration_since(self.origin),
            bytes,
            rtt: rtt.get(),
            backlogged: self.told.is_backlogged(),
        });
    }

    fn on_sent(&mut self, _now: Instant, bytes: u64, _last_packet_number: u64) {
        if bytes >= SMALL {
            self.told.0.in_flight.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn on_end_acks(&mut self, _now: Instant, in_flight: u64, _app_limited: bool, _largest: Option<u64>) {
        self.tell(in_flight);
    }

    fn on_congestion_event(&mut self, _now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        let sent_at = sent.saturating_duration_since(self.origin);
        self.congestion.on_loss(lost_bytes, sent_at, is_persistent_congestion);
        let in_flight = self.told.0.in_flight.load(Ordering::Relaxed);
        self.tell(in_flight.saturating_sub(lost_bytes));
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.congestion.set_mtu(new_mtu);
    }

    fn window(&self) -> u64 {
        if self.told.is_probing() {
            // Without limit and, beyond u32, without pacing: the bond sends a probe each 50 ms or less.
            return u64::MAX / 2;
        }
        self.congestion.window()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.congestion.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
