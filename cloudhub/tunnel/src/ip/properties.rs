//! Properties of cutting and joining, over many packets made from seeds: nothing is lost, changed or out of order in its flow.

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::examples::{self, Tcp};
use super::fuzzing::{check, check_packets, corpus, joined};
use super::header::flag;

/// A connection that sends.
struct Sender {
    tcp: Tcp,
    udp: bool,
    segment: usize,
}

impl Sender {
    fn new(random: &mut StdRng, number: u16) -> Self {
        let options = [vec![], vec![1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 8]];
        Self {
            tcp: Tcp {
                v6: random.random(),
                port: 1000 + number,
                id: random.random(),
                sequence: random.random(),
                options: options[random.random_range(0..2)].clone(),
                ..Tcp::default()
            },
            udp: random.random_ratio(1, 3),
            segment: random.random_range(1..1300),
        }
    }

    /// Its next packet, which is mostly what the one before it promises.
    fn next(&mut self, random: &mut StdRng) -> Bytes {
        let length = match random.random_range(0..10) {
            0 => random.random_range(0..=self.segment),
            _ => self.segment,
        };
        self.tcp.payload = vec![0; length];
        random.fill(&mut self.tcp.payload[..]);
        self.tcp.flags = match random.random_range(0..12) {
            0 => flag::ACK | flag::PSH,
            1 => flag::ACK | flag::FIN,
            2 => flag::ACK | flag::CWR,
            3 => flag::ACK | flag::ECE,
            _ => flag::ACK,
        };
        let Tcp { v6, port, id, .. } = self.tcp;
        let mut packet = if self.udp {
            examples::udp(v6, port, id, &self.tcp.payload)
        } else {
            self.tcp.packet()
        };
        match random.random_range(0..20) {
            0 => self.tcp.sequence = random.random(),
            1 => self.tcp.id = random.random(),
            2 => {
                // Anything, with right checksums again.
                let at = random.random_range(0..packet.len());
                packet[at] ^= 1 << random.random_range(0..8);
                if matches!(packet[0], 0x45 | 0x60) {
                    examples::correct(&mut packet);
                }
            }
            3 => {
                let at = random.random_range(0..packet.len());
                packet[at] ^= 1 << random.random_range(0..8);
            }
            _ => {}
        }
        self.tcp.sequence = self.tcp.sequence.wrapping_add(length as u32);
        self.tcp.id = self.tcp.id.wrapping_add(1);
        packet.into()
    }
}

#[test]
fn joining_and_cutting_gives_each_flow_what_it_had() {
    for seed in 0..300 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut senders: Vec<_> = (0..random.random_range(1..5))
            .map(|number| Sender::new(&mut random, number))
            .collect();
        let mut packets = Vec::new();
        for _ in 0..random.random_range(1..150) {
            let sender = random.random_range(0..senders.len());
            for _ in 0..random.random_range(1..20) {
                packets.push(senders[sender].next(&mut random));
            }
        }
        if let Err(error) = check_packets(&packets) {
            panic!("seed {seed}: {error}");
        }
    }
}

#[test]
fn what_the_kernel_cut_is_joined_to_what_it_was() {
    for seed in 0..50 {
        let mut random = StdRng::seed_from_u64(seed);
        for udp in [false, true] {
            let mut sender = Sender::new(&mut random, 1);
            sender.udp = udp;
            let packets: Vec<Bytes> = (0..40)
                .map(|number| {
                    sender.tcp.payload = vec![number; sender.segment];
                    let Tcp { v6, port, id, .. } = sender.tcp;
                    let packet = if udp {
                        examples::udp(v6, port, id, &sender.tcp.payload)
                    } else {
                        sender.tcp.packet()
                    };
                    sender.tcp.sequence = sender.tcp.sequence.wrapping_add(sender.segment as u32);
                    sender.tcp.id = sender.tcp.id.wrapping_add(1);
                    packet.into()
                })
                .collect();
            let (writes, again) = joined(&packets).unwrap();
            assert_eq!(writes, 1, "seed {seed}");
            assert_eq!(again, packets, "seed {seed}");
        }
    }
}

#[test]
fn mangled_packets_do_not_panic_and_come_back() {
    let corpus = corpus();
    for seed in 0..20_000 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut bytes = corpus[random.random_range(0..corpus.len())].clone();
        for _ in 0..random.random_range(0..4) {
            let at = random.random_range(0..bytes.len());
            match random.random_range(0..3) {
                0 => bytes[at] = random.random(),
                1 => bytes[at] ^= 1 << random.random_range(0..8),
                _ => bytes.truncate(at.max(1)),
            }
        }
        if let Err(error) = check(&bytes) {
            panic!("seed {seed}: {error}");
        }
    }
}
