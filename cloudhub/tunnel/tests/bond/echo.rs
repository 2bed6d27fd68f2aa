//! Control traffic: 50 requests a second of 256 bytes that the hub echoes, and each second a pod spec of 64 KiB from the hub; with or without
//! bulk that takes all there is.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use bytes::Bytes;
use tunnel::Priority;
use tunnel::bond::{Bond, Event};

use crate::inner::Flood;
use crate::ms;
use crate::world::Owner;

pub(crate) struct Echo {
    next: Duration,
    number: u64,
    sent: HashMap<u64, Duration>,
    heard: BTreeSet<u64>,
    /// Round trips of requests, ms.
    pub(crate) times: Vec<f64>,
    /// When requests arrived at the hub.
    pub(crate) arrivals: Vec<Duration>,
    spec_sent: HashMap<u64, Duration>,
    /// Times of pod specs, ms.
    pub(crate) specs: Vec<f64>,
    bulk: Option<Flood>,
    /// Pod specs beside the requests.
    pub(crate) with_specs: bool,
}

impl Echo {
    pub(crate) fn new(bulk: bool) -> Self {
        Self {
            next: Duration::from_secs(2),
            number: 0,
            sent: HashMap::new(),
            heard: BTreeSet::new(),
            times: Vec::new(),
            arrivals: Vec::new(),
            spec_sent: HashMap::new(),
            specs: Vec::new(),
            bulk: bulk.then(|| Flood::new(17, 0)),
            with_specs: true,
        }
    }
}

fn message(number: u64, size: usize) -> Bytes {
    let mut message = vec![0; size];
    message[..8].copy_from_slice(&number.to_be_bytes());
    Bytes::from(message)
}

fn number(message: &Bytes) -> u64 {
    u64::from_be_bytes(message[..8].try_into().expect("eight bytes"))
}

impl Owner for Echo {
    fn act(&mut self, now: Duration, [edge, hub]: [&mut Bond; 2]) -> Option<Duration> {
        while self.next <= now {
            self.number += 1;
            // In an outage the queue fills, and that is said.
            if edge
                .send_message(now, Priority::Urgent, 1, message(self.number, 256))
                .is_ok()
            {
                self.sent.insert(self.number, now);
            }
            if self.with_specs
                && self.number.is_multiple_of(50)
                && hub
                    .send_message(now, Priority::Normal, 1, message(self.number, 65_536))
                    .is_ok()
            {
                self.spec_sent.insert(self.number, now);
            }
            self.next += ms(20);
        }
        if let Some(bulk) = &mut self.bulk {
            bulk.act(now, [edge, hub]);
        }
        Some(self.next)
    }

    fn event(&mut self, now: Duration, end: usize, bond: &mut Bond, event: Event) {
        let Event::Message { payload, .. } = event else {
            return;
        };
        let number = number(&payload);
        if payload.len() > 256 {
            if let Some(at) = self.spec_sent.remove(&number) {
                self.specs.push((now - at).as_secs_f64() * 1000.0);
            }
        } else if end == 1 {
            assert!(self.heard.insert(number), "{number} twice");
            self.arrivals.push(now);
            let _ = bond.send_message(now, Priority::Urgent, 1, payload);
        } else if let Some(at) = self.sent.remove(&number) {
            self.times.push((now - at).as_secs_f64() * 1000.0);
        }
    }
}
