//! Bytes that went over each uplink, as the network bills them: QUIC's packets with the headers of UDP and IP.
//!
//! - a path's task reads its counters each half second and at its end, and adds what is new ([`Traffic::add`])
//! - whoever keeps a budget reads the sums ([`Meter::read`]), which only grow while the process lives
//!
//! A handshake that leads to no path is not counted: nobody tells how much of it left.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes each way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Sent, bytes.
    pub sent: u64,
    /// Received, bytes.
    pub received: u64,
}

impl Carried {
    /// Both ways.
    #[must_use]
    pub fn total(self) -> u64 {
        self.sent.saturating_add(self.received)
    }

    /// What came since an earlier look.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            sent: self.sent.saturating_sub(earlier.sent),
            received: self.received.saturating_sub(earlier.received),
        }
    }
}

/// A sum that grows.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Traffic {
    pub(crate) fn add(&self, more: Carried) {
        self.sent.fetch_add(more.sent, Ordering::Relaxed);
        self.received.fetch_add(more.received, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Carried {
        Carried {
            sent: self.sent.load(Ordering::Relaxed),
            received: self.received.load(Ordering::Relaxed),
        }
    }
}

/// What each uplink of an edge has carried since the process began; clones are the same meter.
#[derive(Clone, Debug, Default)]
pub struct Meter(Arc<Mutex<BTreeMap<String, Arc<Traffic>>>>);

impl Meter {
    /// The sum of one uplink.
    pub(crate) fn of(&self, uplink: &str) -> Arc<Traffic> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(uplink.to_owned()).or_default().clone()
    }

    /// Every uplink that ever had a path.
    #[must_use]
    pub fn read(&self) -> BTreeMap<String, Carried> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter()
            .map(|(name, traffic)| (name.clone(), traffic.read()))
            .collect()
    }
}
