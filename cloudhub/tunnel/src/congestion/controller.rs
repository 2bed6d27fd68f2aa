//! [`Congestion`] behind quinn's trait: quinn's clock and callbacks in, the window out.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerFactory};
use quinn_proto::RttEstimator;

use super::{Ack, Congestion};

/// Whether the scheduler has more for a connection than it takes: quinn's own `app_limited` flips with every refill of its buffer.
/// Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Backlog(Arc<AtomicBool>);

impl Backlog {
    /// Told by the scheduler after each time it has filled the path.
    pub fn set(&self, backlogged: bool) {
        self.0.store(backlogged, Ordering::Relaxed);
    }
}

/// Makes the controller of ONE connection: a shared one would mix the backlogs (at the hub: `Incoming::accept_with`).
#[derive(Debug, Default)]
pub struct Factory(pub Backlog);

impl ControllerFactory for Factory {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Adapter {
            origin: now,
            congestion: Congestion::new(Duration::ZERO, current_mtu),
            backlog: self.0.clone(),
        })
    }
}

#[derive(Debug, Clone)]
struct Adapter {
    origin: Instant,
    congestion: Congestion,
    backlog: Backlog,
}

impl Controller for Adapter {
    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, _app_limited: bool, rtt: &RttEstimator) {
        self.congestion.on_ack(&Ack {
            now: now.saturating_duration_since(self.origin),
            sent_at: sent.saturating_duration_since(self.origin),
            bytes,
            rtt: rtt.get(),
            backlogged: self.backlog.0.load(Ordering::Relaxed),
        });
    }

    fn on_congestion_event(&mut self, _now: Instant, _sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        self.congestion.on_loss(lost_bytes, is_persistent_congestion);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.congestion.set_mtu(new_mtu);
    }

    fn window(&self) -> u64 {
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
