//! [`Congestion`] behind quinn's trait: quinn's clock and callbacks in, the window out.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerFactory};
use quinn_proto::RttEstimator;

use super::{Ack, Congestion};
use crate::path::Hint;

/// What the scheduler has told of ONE connection; clones are the same.
///
/// - `backlogged`: quinn's own `app_limited` flips with every refill of its buffer
/// - `probing`: while nothing is acknowledged the window would stay full, and no probe could ask whether the path is back
#[derive(Debug, Clone, Default)]
pub struct Told(Arc<(AtomicBool, AtomicBool)>);

impl Told {
    /// Takes what the scheduler says; true when probing has just begun.
    pub fn tell(&self, hint: Hint) -> bool {
        self.0.0.store(hint.backlogged, Ordering::Relaxed);
        let before = self.0.1.swap(hint.probing, Ordering::Relaxed);
        hint.probing && !before
    }

    fn is_backlogged(&self) -> bool {
        self.0.0.load(Ordering::Relaxed)
    }

    fn is_probing(&self) -> bool {
        self.0.1.load(Ordering::Relaxed)
    }
}

/// Makes the controller of ONE connection: a shared one would mix what is told (at the hub: `Incoming::accept_with`).
#[derive(Debug, Default)]
pub struct Factory(pub Told);

impl ControllerFactory for Factory {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Adapter {
            origin: now,
            congestion: Congestion::new(Duration::ZERO, current_mtu),
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

    fn on_congestion_event(&mut self, _now: Instant, _sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        self.congestion.on_loss(lost_bytes, is_persistent_congestion);
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
