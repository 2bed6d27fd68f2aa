//! The emulator's one thread: TUN to wire to TUN, both ways of every link.

use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::errno::Errno;

use super::cpu::Ticks;
use super::histogram::Histogram;
use super::report::{LinkReport, Report, Sample, WayReport, WaySample};
use super::scenario::Scenario;
use super::sys::{self, Waited};
use super::topology::Pair;
use crate::{Counters, MS, SECOND, Wire};

/// Packets read from one device before others have their turn.
const BATCH: usize = 64;
/// Packets on the way in one direction: 400 ms of full ones at 1 Gbit/s.
const IN_TRANSIT: usize = 32_768;
/// How often what happened is written down.
const SAMPLE: u64 = 100 * MS;
/// An hour.
const MOST_SAMPLES: usize = 36_000;
/// The largest packet that a device can give.
const LARGEST: usize = 65_536;
/// Orders that wait for the thread.
const ORDERS: usize = 64;

/// What the thread is told.
#[derive(Debug)]
pub(crate) enum Order {
    /// Way 2 × link (up) or 2 × link + 1 (down) is silent, or no longer.
    Silence { way: usize, silent: bool },
    /// The same way lets no larger packets pass, or all again.
    Narrow { way: usize, largest: Option<u64> },
    /// What happened so far.
    Report(SyncSender<Report>),
    /// Ends the thread.
    Stop,
}

/// How others speak to the thread.
#[derive(Debug)]
pub(crate) struct Handle {
    orders: SyncSender<Order>,
    waker: PipeWriter,
}

impl Handle {
    /// Tells the thread, and wakes it.
    ///
    /// # Errors
    /// When it has ended, or does not listen.
    pub(crate) fn tell(&self, order: Order) -> Result<()> {
        match self.orders.try_send(order) {
            Ok(()) => (&self.waker).write_all(&[1]).context("wake the emulator"),
            Err(TrySendError::Full(_)) => bail!("the emulator has {ORDERS} orders to obey"),
            Err(TrySendError::Disconnected(_)) => bail!("the emulator has ended"),
        }
    }

    /// What happened so far, with or without the samples in it.
    ///
    /// # Errors
    /// When the thread has ended or does not answer in 10 s.
    pub(crate) fn report(&self) -> Result<Report> {
        let (answer, report) = sync_channel(1);
        self.tell(Order::Report(answer))?;
        report
            .recv_timeout(Duration::from_secs(10))
            .map_err(|_| anyhow!("the emulator does not answer"))
    }
}

/// One direction with its devices.
#[derive(Debug)]
struct Way {
    wire: Wire<Vec<u8>>,
    /// Indices of the devices that it reads and writes.
    input: usize,
    output: usize,
    report: WayReport,
    /// When packets leave the queue, less when they came: of the sample, of all.
    queue: [Histogram; 2],
    /// As they were when the last sample was taken.
    before: (Counters, WayReport),
}

impl Way {
    fn new(direction: crate::Direction, input: usize, output: usize) -> Self {
        Self {
            wire: Wire::new(direction, IN_TRANSIT),
            input,
            output,
            report: WayReport::default(),
            queue: [Histogram::new(), Histogram::new()],
            before: Default::default(),
        }
    }

    fn offer(&mut self, now: u64, packet: &[u8]) {
        if self.wire.send(now, packet.len(), packet.to_vec()).is_none() {
            let waited = self.wire.direction().left_at().saturating_sub(now);
            self.queue.iter_mut().for_each(|histogram| histogram.add(waited));
        }
    }

    fn sample(&mut self) -> WaySample {
        let (model, report) = (*self.wire.stats(), self.report);
        let (model_before, before) = std::mem::replace(&mut self.before, (model, report));
        let sample = WaySample {
            offered: model.offered - model_before.offered,
            arrived: report.arrived - before.arrived,
            arrived_bytes: report.arrived_bytes - before.arrived_bytes,
            dropped_queue: model.dropped_queue - model_before.dropped_queue,
            dropped_loss: model.dropped_loss - model_before.dropped_loss,
            dropped_blackout: model.dropped_blackout - model_before.dropped_blackout,
            queue: self.queue[0].quantiles(),
        };
        self.queue[0].clear();
        sample
    }

    fn whole(&self) -> WayReport {
        WayReport {
            model: *self.wire.stats(),
            queue: self.queue[1].quantiles(),
            ..self.report
        }
    }
}

/// The thread's state.
#[derive(Debug)]
pub(crate) struct Engine {
    start: Instant,
    ticks: Ticks,
    realtime: bool,
    header: Report,
    names: Vec<String>,
    devices: Vec<std::os::fd::OwnedFd>,
    /// The devices, then the waker.
    waited: Vec<Waited>,
    ways: Vec<Way>,
    orders: Receiver<Order>,
    waker: PipeReader,
    /// Of the sample, of all.
    lateness: [Histogram; 2],
    samples: Vec<Sample>,
    next_sample: u64,
    buffer: Vec<u8>,
}

impl Engine {
    /// The thread's state and the handle to it; the scenario's clock begins at `start`.
    ///
    /// # Errors
    /// When a pipe cannot be made.
    pub(crate) fn new(scenario: &Scenario, pairs: Vec<Pair>, start: Instant) -> Result<(Self, Handle)> {
        let (waker, wake) = io::pipe()?;
        let (sender, orders) = sync_channel(ORDERS);
        let ways = (0..scenario.links.len()).flat_map(|link| {
            let ((up, down), edge, router) = (scenario.directions(link), 2 * link, 2 * link + 1);
            [Way::new(up, edge, router), Way::new(down, router, edge)]
        });
        let devices: Vec<_> = pairs.into_iter().flat_map(|pair| [pair.edge, pair.router]).collect();
        let mut waited: Vec<_> = devices.iter().map(|device| Waited::new(device.as_raw_fd())).collect();
        waited.push(Waited::new(waker.as_raw_fd()));
        let engine = Self {
            start,
            ticks: Ticks::now()?,
            realtime: false,
            header: Report {
                scenario: scenario.name.clone(),
                seed: scenario.seed,
                ..Report::default()
            },
            names: scenario.links.iter().map(|link| link.name.clone()).collect(),
            devices,
            waited,
            ways: ways.collect(),
            orders,
            waker,
            lateness: [Histogram::new(), Histogram::new()],
            samples: Vec::new(),
            next_sample: SAMPLE,
            buffer: vec![0; LARGEST],
        };
        Ok((
            engine,
            Handle {
                orders: sender,
                waker: wake,
            },
        ))
    }

    /// Runs until it is told to stop, and says what happened.
    ///
    /// # Errors
    /// When waiting fails.
    pub(crate) fn run(mut self) -> Result<Report> {
        // Both are better than what else there is, and the report says how late it was without.
        self.realtime = sys::become_realtime();
        let _ = nix::sys::prctl::set_timerslack(1);
        loop {
            self.deliver();
            let now = self.now();
            if now >= self.next_sample {
                self.sample();
            }
            let due = self.ways.iter().filter_map(|way| way.wire.next_due()).min();
            let until = due.unwrap_or(u64::MAX).min(self.next_sample);
            let timeout = Duration::from_nanos(until.saturating_sub(self.now()));
            sys::wait(&mut self.waited, timeout)?;
            self.deliver();
            for device in 0..self.devices.len() {
                if self.waited[device].is_ready() {
                    self.read(device);
                }
            }
            if self.waited[self.devices.len()].is_ready() && self.obey()? {
                self.sample();
                return Ok(Report {
                    samples: std::mem::take(&mut self.samples),
                    ..self.report()
                });
            }
        }
    }

    fn now(&self) -> u64 {
        since(self.start)
    }

    /// Hands on all that is due.
    fn deliver(&mut self) {
        for way in &mut self.ways {
            if way.wire.next_due().is_none() {
                continue;
            }
            let mut now = since(self.start);
            while let Some(mut arrival) = way.wire.poll(now) {
                if arrival.corrupt {
                    flip_a_bit(&mut arrival.packet, arrival.due);
                }
                let written = nix::unistd::write(&self.devices[way.output], &arrival.packet);
                now = since(self.start);
                let late = now.saturating_sub(arrival.due);
                self.lateness.iter_mut().for_each(|histogram| histogram.add(late));
                // A device that is down, gone or full refuses: the report says how many.
                if written.is_ok() {
                    way.report.arrived += 1;
                    way.report.arrived_bytes += arrival.packet.len() as u64;
                } else {
                    way.report.refused += 1;
                }
            }
        }
    }

    /// Reads a batch from `device` into the direction that begins there.
    fn read(&mut self, device: usize) {
        let Some(way) = self.ways.iter_mut().find(|way| way.input == device) else {
            return;
        };
        for _ in 0..BATCH {
            match nix::unistd::read(self.devices[device].as_fd(), &mut self.buffer) {
                Ok(length) => {
                    let now = since(self.start);
                    way.offer(now, &self.buffer[..length]);
                }
                Err(Errno::EAGAIN | Errno::EINTR) => return,
                // The device is gone with its namespace.
                Err(_) => return self.waited[device].forget(),
            }
        }
    }

    /// Does what it is told; says whether that is to stop.
    fn obey(&mut self) -> Result<bool> {
        let mut bytes = [0; ORDERS];
        if self.waker.read(&mut bytes)? == 0 {
            return Ok(true);
        }
        let now = self.now();
        while let Ok(order) = self.orders.try_recv() {
            match order {
                Order::Silence { way, silent } => {
                    if let Some(way) = self.ways.get_mut(way) {
                        way.wire.direction().silence(now, silent);
                    }
                }
                Order::Narrow { way, largest } => {
                    if let Some(way) = self.ways.get_mut(way) {
                        way.wire.direction().narrow(largest);
                    }
                }
                // Whoever asked may be gone.
                Order::Report(answer) => _ = answer.try_send(self.report()),
                Order::Stop => return Ok(true),
            }
        }
        Ok(false)
    }

    fn sample(&mut self) {
        let now = self.now();
        self.next_sample = now - now % SAMPLE + SAMPLE;
        let ways: Vec<WaySample> = self.ways.iter_mut().map(Way::sample).collect();
        let sample = Sample {
            at: now / MS,
            lateness: self.lateness[0].quantiles(),
            links: ways.chunks_exact(2).map(|pair| [pair[0], pair[1]]).collect(),
        };
        self.lateness[0].clear();
        if self.samples.len() < MOST_SAMPLES {
            self.samples.push(sample);
        }
    }

    fn report(&self) -> Report {
        let links = self
            .names
            .iter()
            .zip(self.ways.chunks_exact(2))
            .map(|(name, pair)| LinkReport {
                name: name.clone(),
                up: pair[0].whole(),
                down: pair[1].whole(),
            });
        Report {
            seconds: self.now() as f64 / SECOND as f64,
            lateness: self.lateness[1].quantiles(),
            // A machine that no longer says how busy it is counts as busy.
            cpu_idle: Ticks::now().map_or(0.0, |ticks| ticks.idle_since(self.ticks)),
            realtime: self.realtime,
            links: links.collect(),
            ..self.header.clone()
        }
    }
}

/// Nanoseconds since `start`: of five centuries at most.
fn since(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Flips one bit behind the IP header, where a checksum of the packet's own finds it.
fn flip_a_bit(packet: &mut [u8], random: u64) {
    let random = crate::draw::mix(random);
    let body = packet.get_mut(40..).unwrap_or_default();
    if !body.is_empty() {
        let at = random as usize % body.len();
        body[at] ^= 1 << (random >> 61);
    }
}
