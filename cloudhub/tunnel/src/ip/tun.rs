//! The device: a TUN with offload, read and written in batches.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use nix::errno::Errno;
use tokio::io::unix::AsyncFd;

use super::coalesce::{Head, Joins, Plan};
use super::header::VNET;
use super::split::split;
use super::{INNER_MTU, MAX_INNER_MTU, sys};

/// Super-packets that wait in the kernel: ten times what a wake-up reads. The device has no other queue, and drops at its end.
const QUEUE: usize = 1000;
/// Reads of one wake-up: whoever else runs in the task waits meanwhile.
const READS: usize = 16;
/// Packets of one wake-up, after which no more is read.
const ENOUGH: usize = 128;
/// The largest read: a header and an IP packet.
const READ: usize = VNET + 65_535;

/// What a device is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunConfig {
    /// Its name, at most 15 bytes.
    pub name: String,
    /// The largest IP packet, bytes: [`INNER_MTU`] unless both ends agree on another one, at most [`MAX_INNER_MTU`].
    pub mtu: usize,
    /// Super-packets that may wait in the kernel for us to read them.
    pub queue: usize,
}

impl TunConfig {
    /// A device with the usual sizes.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            mtu: INNER_MTU,
            queue: QUEUE,
        }
    }
}

/// Why there is no device, or no more.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The inner MTU is not possible.
    #[error("mtu {mtu}: it must be 1280 (the least of IPv6) to {MAX_INNER_MTU}")]
    Mtu {
        /// What was asked for.
        mtu: usize,
    },
    /// The kernel gives no such device.
    #[error("TUN device {name} cannot be made")]
    Open {
        /// Its name.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// It cannot be read any more.
    #[error("TUN device {name} cannot be read")]
    Read {
        /// Its name.
        name: String,
        /// Why.
        source: io::Error,
    },
}

/// What a device has carried and dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunStats {
    /// Packets that it gave, super-packets cut.
    pub read_packets: u64,
    /// Reads that brought them.
    pub reads: u64,
    /// Packets that it was given.
    pub written_packets: u64,
    /// Writes that gave them.
    pub writes: u64,
    /// Packets that came while there was no session.
    pub unroutable: u64,
    /// Reads that were no packet, and packets that the session does not take at all.
    pub malformed: u64,
    /// Writes that the kernel refused: the device is down, or the packet is none.
    pub refused: u64,
}

#[derive(Debug, Default)]
struct Counters {
    read_packets: AtomicU64,
    reads: AtomicU64,
    written_packets: AtomicU64,
    writes: AtomicU64,
    unroutable: AtomicU64,
    malformed: AtomicU64,
    refused: AtomicU64,
}

/// A TUN device in the network namespace of the thread that opened it; gone when dropped.
#[derive(Debug)]
pub struct Tun {
    name: String,
    mtu: usize,
    joins: Joins,
    file: AsyncFd<OwnedFd>,
    buffer: Mutex<Vec<u8>>,
    counters: Counters,
}

impl Tun {
    /// Makes the device and brings it up; addresses and routes are its owner's business. Within a tokio runtime.
    ///
    /// # Errors
    /// [`TunError::Mtu`], [`TunError::Open`].
    pub fn open(config: TunConfig) -> Result<Self, TunError> {
        let TunConfig { name, mtu, queue } = config;
        if !(INNER_MTU..=MAX_INNER_MTU).contains(&mtu) {
            return Err(TunError::Mtu { mtu });
        }
        let open = || {
            let (file, joins) = sys::open(&name)?;
            sys::configure(&name, mtu, queue)?;
            Ok((sys::watch(file)?, joins))
        };
        match open() {
            Ok((file, joins)) => Ok(Self {
                mtu,
                joins,
                file,
                buffer: Mutex::new(vec![0; READ]),
                counters: Counters::default(),
                name,
            }),
            Err(source) => Err(TunError::Open { name, source }),
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it has carried and dropped.
    #[must_use]
    pub fn stats(&self) -> TunStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        TunStats {
            read_packets: read(&counters.read_packets),
            reads: read(&counters.reads),
            written_packets: read(&counters.written_packets),
            writes: read(&counters.writes),
            unroutable: read(&counters.unroutable),
            malformed: read(&counters.malformed),
            refused: read(&counters.refused),
        }
    }

    /// Adds what the device has, a batch at most; waits for the first packet. For one task; cancel-safe.
    pub(super) async fn read(&self, into: &mut VecDeque<Bytes>) -> Result<(), TunError> {
        let failed = |source| TunError::Read {
            name: self.name.clone(),
            source,
        };
        loop {
            let mut ready = self.file.readable().await.map_err(failed)?;
            match ready.try_io(|_| self.read_batch(into)) {
                Ok(Err(error)) => return Err(failed(error)),
                _ if !into.is_empty() => return Ok(()),
                _ => {}
            }
        }
    }

    /// WouldBlock when there is no more, whatever was added.
    fn read_batch(&self, into: &mut VecDeque<Bytes>) -> io::Result<()> {
        let mut buffer = self.buffer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for _ in 0..READS {
            let length = nix::unistd::read(self.file.get_ref(), &mut buffer)?;
            add(&self.counters.reads, 1);
            match split(&mut buffer[..length], self.mtu, into) {
                Ok(count) => add(&self.counters.read_packets, count as u64),
                Err(error) => {
                    add(&self.counters.malformed, 1);
                    tracing::debug!(device = self.name, %error, "a read is dropped");
                }
            }
            if into.len() >= ENOUGH {
                break;
            }
        }
        Ok(())
    }

    /// Gives the device a batch, joined where that is possible. What the kernel refuses is dropped and counted.
    pub(super) fn write(&self, plan: &mut Plan, packets: &[Bytes]) {
        plan.make(packets, self.joins);
        for at in 0..plan.len() {
            let mut head = Head::new();
            let slices = plan.write(at, packets, &mut head);
            match nix::sys::uio::writev(self.file.get_ref(), &slices) {
                Ok(_) => {}
                Err(Errno::EINTR) => {
                    // A signal: the kernel has taken nothing.
                    let _ = nix::sys::uio::writev(self.file.get_ref(), &slices);
                }
                Err(error) => {
                    add(&self.counters.refused, 1);
                    tracing::debug!(device = self.name, %error, "a write is refused");
                }
            }
        }
        add(&self.counters.written_packets, packets.len() as u64);
        add(&self.counters.writes, plan.len() as u64);
    }

    pub(super) fn count_unroutable(&self, packets: usize) {
        add(&self.counters.unroutable, packets as u64);
    }

    pub(super) fn count_malformed(&self, packets: u64) {
        add(&self.counters.malformed, packets);
    }
}

fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}
