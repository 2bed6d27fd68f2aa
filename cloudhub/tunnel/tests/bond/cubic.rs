//! CUBIC (RFC 9438) as a controller, with the kernel's HyStart by delay: a model of the neighbour and of TCP inside.

use std::time::Duration;

use tunnel::congestion::Ack;

use crate::ms;
use crate::transport::Controller;

const C: f64 = 0.4;
const BETA: f64 = 0.7;

pub(crate) struct Cubic {
    mtu: f64,
    window: f64,
    threshold: f64,
    before: f64,
    epoch: Option<(Duration, f64)>,
    reno: f64,
    recovered: Duration,
    least: Duration,
    round: Duration,
    round_least: Duration,
    samples: u32,
}

impl Cubic {
    pub(crate) fn new(mtu: u64) -> Self {
        Self {
            mtu: mtu as f64,
            window: 10.0,
            threshold: f64::INFINITY,
            before: 0.0,
            epoch: None,
            reno: 0.0,
            recovered: Duration::ZERO,
            least: Duration::MAX,
            round: Duration::ZERO,
            round_least: Duration::MAX,
            samples: 0,
        }
    }
}

impl Controller for Cubic {
    fn on_ack(&mut self, ack: &Ack) {
        let sample = ack.now - ack.sent_at;
        self.least = self.least.min(sample);
        let packets = ack.bytes as f64 / self.mtu;
        if self.window < self.threshold {
            self.window += packets;
            // HyStart: the least of a round, once eight samples are in.
            if ack.sent_at >= self.round {
                (self.round, self.round_least, self.samples) = (ack.now, Duration::MAX, 0);
            }
            self.round_least = self.round_least.min(sample);
            self.samples += 1;
            let risen = (self.least / 8).clamp(ms(4), ms(16));
            if self.window >= 16.0 && self.samples > 8 && self.round_least > self.least + risen {
                self.threshold = self.window;
            }
            return;
        }
        let (start, k) = *self.epoch.get_or_insert_with(|| {
            self.reno = self.window;
            let before = self.before.max(self.window);
            self.before = before;
            (ack.now, ((before - self.window) / C).cbrt())
        });
        let t = (ack.now - start + self.least).as_secs_f64();
        let target = C * (t - k).powi(3) + self.before;
        self.reno += packets * 3.0 * (1.0 - BETA) / (1.0 + BETA) / self.window;
        let grow = if target > self.window {
            (target - self.window) / self.window
        } else {
            0.01 / self.window
        };
        self.window += grow.min(0.5) * packets;
        self.window = self.window.max(self.reno);
    }

    fn on_loss(&mut self, now: Duration, sent_at: Duration, _bytes: u64, _outage: bool) {
        if sent_at < self.recovered {
            return;
        }
        self.recovered = now;
        let shrinking = self.window < self.before;
        self.before = if shrinking {
            self.window * (1.0 + BETA) / 2.0
        } else {
            self.window
        };
        self.window = (self.window * BETA).max(2.0);
        self.threshold = self.window;
        self.epoch = None;
    }

    fn on_timeout(&mut self) {
        self.threshold = (self.window * BETA).max(2.0);
        self.before = self.window;
        self.window = 1.0;
        self.epoch = None;
    }

    fn window(&self) -> u64 {
        ((self.window * self.mtu) as u64).max(self.mtu as u64)
    }
}
