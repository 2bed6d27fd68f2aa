//! What this machine gets wrong: rate, delay and loss of packets through a real emulation, and how late the emulator is under load.

use std::fmt;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::socket::{setsockopt, sockopt};

use super::report::{IDLE, LATE};
use super::{Emulation, Report, Scenario, inside};
use crate::{DirectionSpec, LinkSpec, Loss, MS, Queue, Rate};

/// The IP and UDP headers of a packet.
const HEADERS: usize = 28;
/// Number and time of a packet, at its begin.
const STAMP: usize = 16;
const STEADY: u64 = 50_000_000;
const FAST: u64 = 200_000_000;
const DELAY: u64 = 15 * MS;
const LOSS: f64 = 0.05;
const LOSSY_PACKETS: u64 = 10_000;
/// Until the last packet has come.
const PATIENCE: Duration = Duration::from_secs(2);

/// One figure and what it may be at most.
#[derive(Debug, Clone, PartialEq)]
pub struct Measure {
    /// What was measured, with its unit.
    pub what: &'static str,
    /// The figure.
    pub value: f64,
    /// Above this the machine is too slow.
    pub limit: f64,
}

impl Measure {
    /// Whether the machine is good enough in this.
    #[must_use]
    pub fn is_met(&self) -> bool {
        self.value <= self.limit
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.is_met() { "ok" } else { "TOO MUCH" };
        write!(
            to,
            "{:<48} {:>9.3}   at most {:>8.3}   {verdict}",
            self.what, self.value, self.limit
        )
    }
}

/// A packet that came: its number, and how long it took in nanoseconds.
#[derive(Debug, Clone, Copy)]
struct Got {
    number: u64,
    took: u64,
    at: u64,
}

/// Measures this machine; it takes some 10 s, and root.
///
/// # Errors
/// When the emulation or a socket fails.
pub fn measure() -> Result<Vec<Measure>> {
    let emulation = Emulation::start(scenario()).context("emulate")?;
    let start = Instant::now();
    let slow = Flow {
        device: "steady",
        bytes: 100,
        rate: 400_000,
        packets: 1000,
    };
    let delays = slow.run(&emulation, start)?;
    let full = Flow {
        device: "steady",
        bytes: 1400,
        rate: STEADY + STEADY / 5,
        packets: 10_000,
    };
    let rate = full.run(&emulation, start)?;
    let thin = Flow {
        device: "lossy",
        bytes: 100,
        rate: 8_000_000,
        packets: LOSSY_PACKETS,
    };
    let kept = thin.run(&emulation, start)?;
    let heavy = Flow {
        device: "fast",
        bytes: 1400,
        rate: FAST,
        packets: 50_000,
    };
    heavy.run(&emulation, start)?;
    let report = emulation.stop()?;
    Ok(judge(&delays, &rate, &kept, &report))
}

fn judge(delays: &[Got], rate: &[Got], kept: &[Got], report: &Report) -> Vec<Measure> {
    let on_the_wire = (100 + HEADERS as u64) * 8 * crate::SECOND / STEADY + DELAY;
    let mut errors: Vec<u64> = delays.iter().map(|got| got.took.abs_diff(on_the_wire)).collect();
    errors.sort_unstable();
    let p99 = errors
        .get(errors.len() * 99 / 100)
        .map_or(f64::INFINITY, |error| *error as f64 / MS as f64);
    let lost = LOSSY_PACKETS as f64 - kept.len() as f64;
    let sigma = (LOSSY_PACKETS as f64 * LOSS * (1.0 - LOSS)).sqrt();
    vec![
        Measure {
            what: "rate error at 50 Mbit/s, %",
            value: rate_error(rate) * 100.0,
            limit: 1.0,
        },
        Measure {
            what: "delay error at 500 packets/s, p99, ms",
            value: p99,
            limit: 0.5,
        },
        Measure {
            what: "loss error at 5 %, sigma",
            value: (lost - LOSSY_PACKETS as f64 * LOSS).abs() / sigma,
            limit: 3.0,
        },
        Measure {
            what: "lateness up to 200 Mbit/s, p99, ms",
            value: report.lateness.p99_us / 1000.0,
            limit: LATE / 1000.0,
        },
        Measure {
            what: "CPU busy, %",
            value: (1.0 - report.cpu_idle) * 100.0,
            limit: (1.0 - IDLE) * 100.0,
        },
        Measure {
            what: "packets that the emulator did not read",
            value: missed(report) as f64,
            limit: 0.0,
        },
    ]
}

fn missed(report: &Report) -> u64 {
    report.links.iter().map(|link| link.up.missed + link.down.missed).sum()
}

/// How far the rate of what came is from the link's; without packets, all the way.
fn rate_error(got: &[Got]) -> f64 {
    let (Some(first), Some(last)) = (got.first(), got.last()) else {
        return 1.0;
    };
    // By number and not by count: what the receiver's own buffer dropped used the link all the same. What the queue dropped did not.
    let bits = (got.len() - 1) as f64 * ((1400 + HEADERS) * 8) as f64;
    let time = last.at.saturating_sub(first.at).max(1) as f64 / crate::SECOND as f64;
    (bits / time / STEADY as f64 - 1.0).abs()
}

fn scenario() -> Scenario {
    let link = |name: &str, up| LinkSpec {
        name: name.into(),
        up,
        ..LinkSpec::default()
    };
    let fixed = |rate| DirectionSpec {
        rate: Rate::Fixed(rate),
        queue: Queue::Time(100 * MS),
        delay: DELAY,
        ..DirectionSpec::default()
    };
    let lossy = DirectionSpec {
        loss: Loss::Iid(LOSS),
        delay: MS,
        ..DirectionSpec::default()
    };
    Scenario {
        name: "selftest".into(),
        seed: 1,
        links: vec![
            link("steady", fixed(STEADY)),
            link("lossy", lossy),
            link("fast", fixed(FAST)),
        ],
        ..Scenario::default()
    }
}

/// Packets of one size at one rate, from the edge to the hub.
#[derive(Debug)]
struct Flow {
    device: &'static str,
    /// Of UDP payload.
    bytes: usize,
    /// Bits a second on the wire.
    rate: u64,
    packets: u64,
}

impl Flow {
    /// What came of it, in the order of arrival.
    fn run(&self, emulation: &Emulation, start: Instant) -> Result<Vec<Got>> {
        let hub = inside(emulation.hub(), || socket("0.0.0.0:0", None))??;
        let address = SocketAddr::new(Scenario::default().hub.address.into(), hub.local_addr()?.port());
        let edge = inside(emulation.edge(), || socket("0.0.0.0:0", Some(self.device)))??;
        let sent = AtomicBool::new(false);
        thread::scope(|scope| {
            let receiver = scope.spawn(|| receive(&hub, start, &sent, self.packets));
            let result = self.send(&edge, address, start);
            sent.store(true, Ordering::Release);
            let got = receiver.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            result?;
            got
        })
    }

    fn send(&self, socket: &UdpSocket, to: SocketAddr, start: Instant) -> Result<()> {
        let mut packet = vec![0; self.bytes];
        let gap = (self.bytes + HEADERS) as u64 * 8 * crate::SECOND / self.rate;
        let begin = Instant::now();
        for number in 0..self.packets {
            let due = Duration::from_nanos(gap * number);
            while begin.elapsed() < due {
                thread::sleep(due.saturating_sub(begin.elapsed()));
            }
            packet[..8].copy_from_slice(&number.to_be_bytes());
            packet[8..STAMP].copy_from_slice(&nanoseconds(start).to_be_bytes());
            socket.send_to(&packet, to).context("send through the emulated link")?;
        }
        Ok(())
    }
}

/// Receives until nothing more comes, or all has come.
fn receive(socket: &UdpSocket, start: Instant, sent: &AtomicBool, packets: u64) -> Result<Vec<Got>> {
    let mut got = Vec::new();
    let mut buffer = [0; 2048];
    let mut last = Instant::now();
    while (got.len() as u64) < packets {
        match socket.recv(&mut buffer) {
            Ok(length) if length >= STAMP => {
                let (number, stamp) = (number(&buffer[..8]), number(&buffer[8..STAMP]));
                let at = nanoseconds(start);
                got.push(Got {
                    number,
                    took: at.saturating_sub(stamp),
                    at,
                });
                last = Instant::now();
            }
            Ok(length) => anyhow::bail!("a packet of {length} bytes that nobody sent"),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) =>
            {
                if sent.load(Ordering::Acquire) && last.elapsed() > PATIENCE {
                    break;
                }
            }
            Err(error) => return Err(error).context("receive from the emulated link"),
        }
    }
    anyhow::ensure!(
        got.is_sorted_by_key(|got| got.number),
        "a link without jitter changed the order of packets"
    );
    Ok(got)
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn nanoseconds(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn socket(address: &str, device: Option<&str>) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    // Root's way past net.core.rmem_max.
    setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20))?;
    setsockopt(&socket, sockopt::SndBufForce, &(8 << 20))?;
    if let Some(device) = device {
        setsockopt(&socket, sockopt::BindToDevice, &device.into())?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{LinkReport, Quantiles};

    /// Packets as a perfect machine would deliver them, `slower` times as slow and `late` ns late.
    fn came(count: u64, slower: f64, late: u64) -> Vec<Got> {
        let gap = (1428.0 * 8.0 / STEADY as f64 * 1e9 * slower) as u64;
        let took = 128 * 8 * crate::SECOND / STEADY + DELAY + late;
        (0..count)
            .map(|number| Got {
                number,
                took,
                at: number * gap,
            })
            .collect()
    }

    #[test]
    fn a_slow_machine_is_refused_by_what_is_slow() {
        let report = |p99_us, cpu_idle, missed| {
            let mut link = LinkReport::default();
            link.up.missed = missed;
            Report {
                cpu_idle,
                lateness: Quantiles {
                    p99_us,
                    ..Quantiles::default()
                },
                links: vec![link],
                ..Report::default()
            }
        };
        let fine = report(300.0, 0.5, 0);
        let unmet = |measures: Vec<Measure>| -> Vec<&str> {
            measures
                .iter()
                .filter(|measure| !measure.is_met())
                .map(|measure| measure.what)
                .collect()
        };
        let (good, kept) = (came(1000, 1.0, 100_000), came(9500, 1.0, 0));
        assert_eq!(unmet(judge(&good, &good, &kept, &fine)), [""; 0]);
        for (measures, what) in [
            (judge(&good, &came(1000, 1.02, 0), &kept, &fine), "rate"),
            (judge(&came(1000, 1.0, 600_000), &good, &kept, &fine), "delay"),
            (judge(&good, &good, &came(9400, 1.0, 0), &fine), "loss"),
            (judge(&good, &good, &kept, &report(1100.0, 0.5, 0)), "lateness"),
            (judge(&good, &good, &kept, &report(300.0, 0.05, 0)), "CPU"),
            (judge(&good, &good, &kept, &report(300.0, 0.5, 1)), "packets"),
        ] {
            let unmet = unmet(measures);
            assert!(unmet.len() == 1 && unmet[0].starts_with(what), "{unmet:?} for {what}");
        }
        assert!(unmet(judge(&[], &[], &kept, &fine)).len() == 2);
    }
}
