//! Says in TCP's SYN how much fits into a packet of the tunnel (RFC 9293 §3.7.1), so that no connection depends on path MTU discovery. Pure.

use super::checksum::Sum;
use super::header::{TCP, TCP_CHECKSUM, be16, flag, ip_header, is_v6, protocol, pseudo, put16};

const END: u8 = 0;
const NOTHING: u8 = 1;
const MSS: u8 = 2;

/// Lowers the MSS of a SYN to what an inner MTU leaves. Anything else stays as it is: fragments, IPv6 with extension headers, what is cut off,
/// and a SYN without the option, which means 536 bytes (1220 over IPv6).
pub(crate) fn clamp(packet: &mut [u8], mtu: usize) {
    let Some(tcp) = tcp_of_syn(packet) else { return };
    let headers = if is_v6(packet) { 60 } else { 40 };
    let most = u16::try_from(mtu.saturating_sub(headers)).unwrap_or(u16::MAX);
    let end = tcp + usize::from(packet[tcp + 12] >> 4) * 4;
    if end < tcp + TCP || end > packet.len() {
        return;
    }
    let mut at = tcp + TCP;
    while at < end {
        match packet[at] {
            END => return,
            NOTHING => at += 1,
            MSS if at + 4 <= end && packet[at + 1] == 4 => {
                if be16(packet, at + 2) > most {
                    put16(packet, at + 2, most);
                    correct(packet, tcp);
                }
                return;
            }
            _ => match packet.get(at + 1) {
                Some(length) if *length >= 2 => at += usize::from(*length),
                _ => return,
            },
        }
    }
}

/// Where TCP's header begins in a SYN.
fn tcp_of_syn(packet: &[u8]) -> Option<usize> {
    let tcp = ip_header(packet)?;
    let (next, fragment) = if is_v6(packet) {
        (packet[6], false)
    } else {
        (packet[9], be16(packet, 6) & 0x3fff != 0)
    };
    let flags = packet.get(tcp + 13)?;
    (next == protocol::TCP && !fragment && flags & flag::SYN != 0 && packet.len() >= tcp + TCP).then_some(tcp)
}

/// A SYN is short, and the option may begin at an odd place: the whole sum is made anew.
fn correct(packet: &mut [u8], tcp: usize) {
    let at = tcp + TCP_CHECKSUM;
    packet[at..at + 2].fill(0);
    let length = packet.len() - tcp;
    let sum: Sum = pseudo(packet, protocol::TCP, length).bytes(&packet[tcp..]);
    packet[at..at + 2].copy_from_slice(&sum.checksum());
}

#[cfg(test)]
mod tests {
    use super::super::examples::{Tcp, is_right};
    use super::*;

    fn syn(v6: bool, options: &[u8]) -> Vec<u8> {
        let example = Tcp {
            v6,
            flags: flag::SYN,
            options: options.to_vec(),
            ..Tcp::default()
        };
        example.packet()
    }

    #[test]
    fn a_syn_says_what_fits() {
        for (v6, fits) in [(false, 1240), (true, 1220)] {
            for options in [
                vec![2, 4, 5, 0xb4],
                vec![1, 1, 2, 4, 5, 0xb4, 1, 0],
                vec![3, 3, 7, 2, 4, 0xff, 0xff, 0],
            ] {
                let mut packet = syn(v6, &options);
                clamp(&mut packet, 1280);
                assert!(is_right(&packet));
                let at = packet.len() - options.len() + options.windows(2).position(|two| two == [2, 4]).unwrap();
                assert_eq!(be16(&packet, at + 2), fits, "{options:?}");
            }
        }
    }

    #[test]
    fn what_is_small_or_no_syn_or_broken_stays_as_it_is() {
        let mut not = syn(false, &[2, 4, 5, 0xb4]);
        not[33] = flag::ACK;
        let mut cut = syn(true, &[2, 4, 5, 0xb4]);
        cut.truncate(62);
        for packet in [
            syn(false, &[2, 4, 2, 0x18]),
            syn(true, &[]),
            syn(false, &[0, 2, 4, 0xff]),
            syn(false, &[9, 0, 2, 4, 0xff, 0xff, 0, 0]),
            syn(false, &[2, 3, 9, 9]),
            syn(false, &[1, 1, 1, 2]),
            not,
            cut,
            vec![0x45; 20],
        ] {
            let mut same = packet.clone();
            clamp(&mut same, 1280);
            assert_eq!(same, packet);
        }
    }
}
