//! A session's IP packets, for one owner: the IP tunnel (`ip`), or whoever brings packets of its own.
//!
//! - owner's task → [`PacketSender`] → the bond's queues by flow and priority → paths
//! - paths → the bond, in the order of each flow → a bounded queue → [`PacketReceiver`] → owner's task
//!
//! Packets are whole IPv4 or IPv6 packets. They may get lost, as on any link: later than 400 ms nobody repairs them. On failure: the session's end
//! is told by both; dropping both gives the packets back, for another owner.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use crate::bond;
use crate::session::{Inner, Session};
use crate::types::{Closed, SendError};

/// Who owns the packets. The last half that is dropped gives them back.
#[derive(Debug)]
struct Owner(Arc<Inner>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.driver().disown_packets();
    }
}

impl Session {
    /// The session's IP packets, for one owner; `None` while somebody has them. What the peer sends while nobody has them is dropped.
    pub fn packets(&self) -> Option<(PacketSender, PacketReceiver)> {
        let inner = self.inner();
        inner.driver().own_packets().then(|| {
            let owner = Arc::new(Owner(inner.clone()));
            (PacketSender(owner.clone()), PacketReceiver(owner))
        })
    }
}

/// Takes IP packets for the peer; for one task.
#[derive(Debug)]
pub struct PacketSender(Arc<Owner>);

impl PacketSender {
    /// Queues one packet. Never blocks.
    ///
    /// # Errors
    /// [`SendError::Busy`]: wait for [`Self::ready`]. [`SendError::NotIp`], [`SendError::PacketTooLarge`]: the packet will never go.
    /// [`SendError::Closed`].
    pub fn send(&self, packet: Bytes) -> Result<(), SendError> {
        self.send_batch(&mut VecDeque::from([packet]))
    }

    /// Queues packets under one lock, from the front until one is not taken, which stays at the front. Never blocks.
    ///
    /// # Errors
    /// As [`Self::send`], of the packet that is at the front now.
    pub fn send_batch(&self, packets: &mut VecDeque<Bytes>) -> Result<(), SendError> {
        let inner = &self.0.0;
        if inner.is_closed() {
            return Err(inner.closed_now().into());
        }
        inner.driver().send_packets(packets).map_err(|error| match error {
            bond::SendError::TooLarge { size, limit } => SendError::PacketTooLarge { size, limit },
            bond::SendError::NotIp => SendError::NotIp,
            bond::SendError::Busy | bond::SendError::StreamOver => SendError::Busy,
        })
    }

    /// Queues all of them as a router would: what finds the queue full is dropped and counted. Returns how many are no packets for it.
    pub(crate) fn route_batch(&self, packets: &mut VecDeque<Bytes>) -> u64 {
        self.0.0.driver().route_packets(packets)
    }

    /// Returns when there is room for a batch of packets again, or the session is over. Cancel-safe.
    pub async fn ready(&self) {
        self.0.0.driver().packets_ready().await;
    }
}

/// Brings the peer's IP packets: each once, in the order of its flow within a bound.
#[derive(Debug)]
pub struct PacketReceiver(Arc<Owner>);

impl PacketReceiver {
    /// Adds packets that have arrived, at least one and at most a batch. What overflows the bounded queue behind it is dropped and counted
    /// ([`crate::bond::SessionStats::packets_dropped`]). Cancel-safe.
    ///
    /// # Errors
    /// The session is over.
    pub async fn recv(&mut self, into: &mut Vec<Bytes>) -> Result<(), Closed> {
        let inner = &self.0.0;
        if inner.driver().take_packets(into).await {
            inner.set_answered();
            return Ok(());
        }
        inner.ended().await;
        Err(inner.closed_now())
    }
}
