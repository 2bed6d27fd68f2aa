//! What `kedge links`, /debug/paths and the metrics show.

use std::time::Duration;

use super::Bond;
use super::path::{PathId, PathState};
use super::policy::{Carries, Policy};
use crate::types::Priority;

/// One path.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PathStats {
    /// Which.
    pub id: PathId,
    /// Whether it carries traffic.
    pub state: PathState,
    /// How long it has been suspect.
    pub suspect_for: Option<Duration>,
    /// This path's way there and the best path's way back: smoothed, and the least of the last 10 to 20 s.
    pub rtt: Duration,
    /// The least of the last 10 to 20 s.
    pub least_rtt: Duration,
    /// Lost packets among those of the last minute, 0 to 1.
    pub loss: f64,
    /// Bytes a second that the peer acknowledged lately.
    pub rate: u64,
    /// Packets sent.
    pub sent_packets: u64,
    /// Bytes sent, without QUIC's and IP's headers.
    pub sent_bytes: u64,
    /// Bytes that the peer acknowledged.
    pub acked_bytes: u64,
    /// Packets that were lost.
    pub lost_packets: u64,
    /// Packets received.
    pub received_packets: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// How often it became suspect.
    pub suspicions: u64,
    /// When the peer was last heard on it.
    pub heard: Option<Duration>,
    /// What it may carry and costs.
    pub policy: Policy,
    /// What that comes to now.
    pub carries: Carries,
}

/// The session over all paths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SessionStats {
    /// Messages that left.
    pub messages_sent: u64,
    /// Their copies, repetitions included.
    pub message_copies: u64,
    /// Messages delivered.
    pub messages_delivered: u64,
    /// Packets of the tunnel delivered.
    pub packets_delivered: u64,
    /// Packets and pieces of streams that were lost and sent again.
    pub repaired: u64,
    /// Packets, messages and pieces that went elsewhere because their path did not answer.
    pub reinjected: u64,
    /// Packets and messages that arrived more than once; delivered once.
    pub duplicated: u64,
    /// Packets that their flow went on without.
    pub skipped: u64,
    /// Packets that came after their flow had gone on; delivered out of order.
    pub late: u64,
    /// Packets whose time was over before the peer had them.
    pub expired: u64,
    /// Packets of the peer that found no room and were not acknowledged.
    pub refused: u64,
    /// Packets and messages dropped because the driver does not take them.
    pub overrun: u64,
    /// IP packets of a device that found the queue full.
    pub packets_overflowed: u64,
    /// IP packets of a device dropped before the queue was full, so that their senders slow down.
    pub packets_dropped_early: u64,
    /// The same, marked instead (RFC 3168).
    pub packets_marked: u64,
    /// IP packets that arrived and were dropped because their owner was behind; counted by the session, not by the bond.
    pub packets_dropped: u64,
    /// Bytes that wait for a path.
    pub queued_bytes: usize,
    /// Bytes of packets kept until they are acknowledged.
    pub kept_bytes: usize,
    /// Bytes that wait for what comes before them: packets, streams, messages.
    pub held_bytes: usize,
    /// Inner flows known to the sender.
    pub flows: usize,
    /// Streams that are not over.
    pub streams: usize,
}

impl Bond {
    /// All paths, in the order of their numbers.
    #[must_use]
    pub fn path_stats(&self) -> Vec<PathStats> {
        let now = self.now;
        let mut all: Vec<PathStats> = self
            .paths
            .iter()
            .enumerate()
            .map(|(at, path)| PathStats {
                id: path.id,
                state: path.state(),
                suspect_for: path.suspect_since().map(|since| now.saturating_sub(since)),
                rtt: path.rtt.smoothed,
                least_rtt: path.rtt.least(),
                loss: path.loss(),
                rate: path.rate(),
                sent_packets: path.sent_packets,
                sent_bytes: path.sent_bytes,
                acked_bytes: path.acked_bytes,
                lost_packets: path.lost_packets,
                received_packets: path.received.packets,
                received_bytes: path.received.bytes,
                suspicions: path.suspicions,
                heard: path.received.heard,
                policy: path.policy,
                carries: self.carries(at),
            })
            .collect();
        all.sort_by_key(|path| path.id);
        all
    }

    /// The session.
    #[must_use]
    pub fn stats(&self) -> SessionStats {
        SessionStats {
            messages_sent: self.outbox.sent,
            message_copies: self.outbox.copies,
            messages_delivered: self.inbox.delivered,
            packets_delivered: self.reorder.delivered,
            repaired: self.datagrams.repaired + self.stream_repairs,
            reinjected: self.reinjected,
            duplicated: self.reorder.duplicates + self.inbox.duplicates,
            skipped: self.reorder.skipped,
            late: self.reorder.late,
            expired: self.datagrams.expired,
            refused: self.refused,
            overrun: self.reorder.overrun + self.inbox.overrun,
            packets_overflowed: self.datagrams.overflowed,
            packets_dropped_early: self.datagrams.flows.dropped,
            packets_marked: self.datagrams.flows.marked,
            packets_dropped: 0,
            queued_bytes: self.datagrams.flows.total(),
            kept_bytes: self.datagrams.kept(),
            held_bytes: self.reorder.bytes() + self.inbox.bytes() + self.streams.received_bytes(),
            flows: self.datagrams.flows.len(),
            streams: self.streams.len(),
        }
    }

    /// Whether a path would be given more than it takes: for the congestion controller, which must not learn from a path that had
    /// nothing to send.
    #[must_use]
    pub fn is_backlogged(&self, id: PathId) -> bool {
        let Some(at) = self.index(id) else {
            return false;
        };
        let carries = self.carries(at);
        // What waits for the rate that its owner set says nothing of the path.
        self.paths[at].is_live()
            && !self.paths[at].bucket.awaited
            && (self.datagrams.next_repair(carries).is_some()
                || self.streams.repair_since(carries).is_some()
                || Priority::ALL.into_iter().any(|priority| {
                    carries.has(priority)
                        && (self.outbox.wants(priority)
                            || self.streams.backlog(priority).is_some()
                            || (self.datagrams.flows.bytes(priority) > 0 && self.datagrams.may_start()))
                }))
    }
}
