//! How large the first packets over each uplink are.
//!
//! A connection begins at [`RAISED`], so that a pod's packet of 1280 bytes crosses it from the start; QUIC's own discovery goes on from
//! there. Over a link that silently drops what is larger than it takes, the handshake, whose last flight has the node's certificate, never
//! ends. Two such in a row, and the uplink is dialled at [`LEAST`]; discovery raises that too where the hub was merely away, and then
//! the next connection begins at [`RAISED`] again. The hub begins at [`LEAST`] always: it cannot know which links an edge has.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// UDP payload. With IPv6's and UDP's headers 1398 bytes: what LTE and 5G cores let through.
pub(super) const RAISED: u16 = 1350;
/// What every path must carry (RFC 9000 §14).
pub(super) const LEAST: u16 = 1200;
/// Handshakes that may fail at [`RAISED`]: one may be lost for another reason.
const TRIES: u8 = 2;
/// Of a packet, what is not a datagram's: more than quinn's 38 bytes.
const HEADERS: usize = 50;

/// What is known of the uplinks, by name. Handles share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Mtus(Arc<Mutex<HashMap<String, u8>>>);

impl Mtus {
    fn with<T>(&self, work: impl FnOnce(&mut HashMap<String, u8>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// For the next connection.
    pub(super) fn initial(&self, uplink: &str) -> u16 {
        let failed = self.with(|failed| failed.get(uplink).copied().unwrap_or(0));
        if failed < TRIES { RAISED } else { LEAST }
    }

    /// Nobody answered what was sent, or what was sent after the handshake.
    pub(super) fn unanswered(&self, uplink: &str) {
        self.with(|failed| {
            let failed = failed.entry(uplink.to_owned()).or_default();
            *failed = failed.saturating_add(1);
        });
    }

    /// The uplink's connection has ended, which took datagrams of this size.
    pub(super) fn took(&self, uplink: &str, max_datagram: usize) {
        if max_datagram + HEADERS >= usize::from(RAISED) {
            self.with(|failed| failed.remove(uplink));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_failures_bring_an_uplink_down_and_a_large_path_brings_it_up() {
        let mtus = Mtus::default();
        assert_eq!(mtus.initial("lte"), RAISED);
        mtus.unanswered("lte");
        assert_eq!(mtus.initial("lte"), RAISED);
        mtus.unanswered("lte");
        assert_eq!((mtus.initial("lte"), mtus.initial("wifi")), (LEAST, RAISED));
        mtus.took("lte", 1162);
        assert_eq!(mtus.initial("lte"), LEAST, "it was not larger");
        mtus.took("lte", 1414);
        assert_eq!(mtus.initial("lte"), RAISED);
    }
}
