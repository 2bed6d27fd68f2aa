//! Moves packets between a device and one session after another.
//!
//! - device → reads, cut → [`PacketSender::route_batch`], which never waits: the bond's queue is the only one, and drops as a router's
//! - [`PacketReceiver`] → a batch → joined → writes
//!
//! While there is no session, what the device brings is dropped, so that nothing stale waits for the next one.

use std::collections::VecDeque;

use tokio::sync::watch;

use super::coalesce::Plan;
use super::tun::{Tun, TunError};
use crate::packets::{PacketReceiver, PacketSender};
use crate::session::Session;

/// Carries packets between a device and whichever session there is, until the sender of sessions is dropped. Cancel-safe: packets in hand
/// are lost.
///
/// # Errors
/// [`TunError::Read`]: the device is gone.
pub async fn run(tun: &Tun, mut sessions: watch::Receiver<Option<Session>>) -> Result<(), TunError> {
    loop {
        let session = sessions.borrow_and_update().clone();
        tokio::select! {
            biased;
            changed = sessions.changed() => if changed.is_err() {
                return Ok(());
            },
            error = carry(tun, session) => return Err(error),
        }
    }
}

async fn carry(tun: &Tun, session: Option<Session>) -> TunError {
    let packets = session.as_ref().and_then(Session::packets);
    if let Some((sender, receiver)) = packets {
        tokio::select! {
            error = outgoing(tun, &sender) => return error,
            () = incoming(tun, receiver) => {}
        }
    } else if let Some(session) = session {
        tracing::error!(
            node = session.peer().node,
            device = tun.name(),
            "somebody else has the session's packets"
        );
    }
    drain(tun).await
}

async fn outgoing(tun: &Tun, sender: &PacketSender) -> TunError {
    let mut packets = VecDeque::new();
    loop {
        if let Err(error) = tun.read(&mut packets).await {
            return error;
        }
        tun.count_malformed(sender.route_batch(&mut packets));
    }
}

/// Returns when the session is over.
async fn incoming(tun: &Tun, mut receiver: PacketReceiver) {
    let (mut plan, mut packets) = (Plan::default(), Vec::new());
    while receiver.recv(&mut packets).await.is_ok() {
        tun.write(&mut plan, &packets);
        packets.clear();
    }
}

async fn drain(tun: &Tun) -> TunError {
    let mut packets = VecDeque::new();
    loop {
        if let Err(error) = tun.read(&mut packets).await {
            return error;
        }
        tun.count_unroutable(packets.len());
        packets.clear();
    }
}
