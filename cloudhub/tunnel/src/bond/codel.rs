//! When a flow's queue tells its sender to slow down: CoDel's measure (RFC 8289 §3), a state per flow as in FQ-CoDel (RFC 8290).
//!
//! A sender behind a device neither sees the queue nor waits for it: TCP goes on until something is dropped. What is dropped at the end of a full
//! queue it misses only after all that waited before it, and repeats behind as much again. So a packet at the head is dropped, or marked
//! where the flow understands that ([`mark`]), when none has waited less than [`TARGET`] for an [`INTERVAL`].
//!
//! Unlike CoDel, no more often than once in an interval: each flow has its own queue, and one answer a round trip is all that TCP gives. A flow that
//! does not answer (BBR, plain UDP) would lose more and more without use; the queue's end is its bound.

use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::ip::checksum::Sum;

/// What a window shrinks by must have waited here, or the paths run dry: CUBIC's 0.3 of a window, at round trips of 150 ms.
const TARGET: Duration = Duration::from_millis(65);
/// In so long a sender has answered.
const INTERVAL: Duration = Duration::from_millis(150);

/// The state of one flow's queue.
#[derive(Debug, Default)]
pub(crate) struct Codel {
    /// When it will have been above the target for an interval, since it last was not, or told so.
    due: Option<Duration>,
}

impl Codel {
    /// Whether the sender is to be told, now that a packet leaves that has waited so long.
    pub(crate) fn is_due(&mut self, now: Duration, waited: Duration) -> bool {
        if waited < TARGET {
            self.due = None;
            return false;
        }
        let is_due = now >= *self.due.get_or_insert(now + INTERVAL);
        if is_due {
            self.due = Some(now + INTERVAL);
        }
        is_due
    }
}

/// Congestion Experienced.
const CE: u8 = 3;

/// The packet with Congestion Experienced (RFC 3168 §5), if its sender understands that.
pub(crate) fn mark(packet: &Bytes) -> Option<Bytes> {
    match (packet.first()? >> 4, packet.len()) {
        (4, 20..) if packet[1] & CE != 0 => {
            let mut marked = BytesMut::from(&packet[..]);
            marked[1] |= CE;
            // RFC 1624 §3, eqn. 3: of the old sum and the one word that changes.
            let words = [!packet[10], !packet[11], !packet[0], !packet[1], marked[0], marked[1]];
            marked[10..12].copy_from_slice(&Sum::default().bytes(&words).checksum());
            Some(marked.freeze())
        }
        (6, 40..) if packet[1] >> 4 & CE != 0 => {
            let mut marked = BytesMut::from(&packet[..]);
            marked[1] |= CE << 4;
            Some(marked.freeze())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_stands_tells_so_once_in_an_interval_and_one_that_empties_does_not() {
        let ms = Duration::from_millis;
        let told = |waited: fn(u64) -> u64| -> Vec<u64> {
            let mut codel = Codel::default();
            let moments = (0..1000).filter(|now| codel.is_due(ms(*now), ms(waited(*now))));
            moments.collect()
        };
        assert_eq!(told(|_| 65), [150, 300, 450, 600, 750, 900]);
        assert_eq!(told(|_| 64), [0; 0]);
        // Long, but short once in each interval.
        assert_eq!(told(|now| if now % 150 == 149 { 1 } else { 300 }), [0; 0]);
        // It was told, it answered, and it is told again.
        assert_eq!(
            told(|now| if (200..500).contains(&now) { 10 } else { 90 }),
            [150, 650, 800, 950]
        );
    }

    #[test]
    fn a_packet_is_marked_where_its_sender_understands_it_and_nothing_else_of_it_changes() {
        let ipv4 = |tos: u8, id: u16| {
            let mut packet = vec![
                0x45, tos, 0, 24, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 1, 2, 3, 4,
            ];
            packet[4..6].copy_from_slice(&id.to_be_bytes());
            let sum = Sum::default().bytes(&packet[..20]).checksum();
            packet[10..12].copy_from_slice(&sum);
            Bytes::from(packet)
        };
        for id in 0..=u16::MAX {
            for ect in [1, 2, 3] {
                let marked = mark(&ipv4(0xb8 | ect, id)).unwrap();
                assert!(Sum::default().bytes(&marked[..20]).is_right(), "{id}");
                assert_eq!(marked[1], 0xbb);
                assert_eq!(
                    (&marked[2..10], &marked[12..]),
                    (&ipv4(0, id)[2..10], &ipv4(0, id)[12..])
                );
            }
        }
        assert_eq!(mark(&ipv4(0xb8, 7)), None);
        let ipv6 = |class: u8| {
            let mut packet = vec![7; 48];
            packet[..4].copy_from_slice(&(0x6000_1234 | u32::from(class) << 20).to_be_bytes());
            Bytes::from(packet)
        };
        assert_eq!(mark(&ipv6(0xba)).unwrap(), ipv6(0xbb));
        assert_eq!(mark(&ipv6(0xb8)), None);
        for broken in [&[][..], &[0x45, 3], &[0x65, 0xff], &[0x25; 60]] {
            assert_eq!(mark(&Bytes::copy_from_slice(broken)), None);
        }
    }
}
