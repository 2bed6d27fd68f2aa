//! The hub's QUIC keys. Persisted (Secret quic-keys), so that edges notice a restarted hub at once.
//!
//! - the reset key lets the new process answer packets of the old one's connections by a stateless reset. For that the endpoint
//!   must not drop them as strangers: our connection ids are random and all pass, where quinn's default signs them with a key
//!   that dies with the process
//! - the token key keeps address validation tokens valid

use std::sync::Arc;
use std::time::Duration;

use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig};
use rand::RngCore;

/// Length of our connection ids: unguessable, and enough for any number of connections.
const CONNECTION_ID: usize = 8;
/// Resets at most every so often: 10 000 edges of a restarted hub hear of it within a second. A reset is smaller than the packet
/// that it answers, so it amplifies nothing.
const RESET_INTERVAL: Duration = Duration::from_micros(100);

struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&rand::random::<[u8; CONNECTION_ID]>())
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// Keys of one hub (all its replicas).
#[derive(Clone, PartialEq, Eq)]
pub struct QuicKeys {
    /// Key of the stateless reset tokens.
    pub reset: [u8; 64],
    /// Master key of the address validation tokens.
    pub token: [u8; 32],
}

impl std::fmt::Debug for QuicKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QuicKeys").finish_non_exhaustive()
    }
}

impl QuicKeys {
    /// How many bytes [`QuicKeys::to_bytes`] gives.
    pub const LEN: usize = 64 + 32;

    /// Random keys.
    pub fn generate() -> Self {
        let mut bytes = [0; Self::LEN];
        rand::rng().fill_bytes(&mut bytes);
        Self::from_array(&bytes)
    }

    /// All keys in a row: reset, then token.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::LEN);
        bytes.extend_from_slice(&self.reset);
        bytes.extend_from_slice(&self.token);
        bytes
    }

    /// Reads [`QuicKeys::to_bytes`]; `None` when the length is another.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self::from_array)
    }

    fn from_array(bytes: &[u8; Self::LEN]) -> Self {
        let mut keys = Self {
            reset: [0; 64],
            token: [0; 32],
        };
        keys.reset.copy_from_slice(&bytes[..64]);
        keys.token.copy_from_slice(&bytes[64..]);
        keys
    }

    pub(crate) fn endpoint_config(&self) -> EndpointConfig {
        let reset = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &self.reset);
        let mut config = EndpointConfig::new(Arc::new(reset));
        config
            .cid_generator(|| Box::new(RandomIds))
            .min_reset_interval(RESET_INTERVAL);
        config
    }

    pub(crate) fn token_key(&self) -> Arc<ring::hkdf::Prk> {
        let salt = ring::hkdf::Salt::new(ring::hkdf::HKDF_SHA256, &[]);
        Arc::new(salt.extract(&self.token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_a_round_trip_and_other_lengths_are_refused() {
        let keys = QuicKeys::generate();
        let bytes = keys.to_bytes();
        assert_eq!(QuicKeys::from_bytes(&bytes), Some(keys));
        assert_eq!(QuicKeys::from_bytes(&bytes[1..]), None);
    }
}
