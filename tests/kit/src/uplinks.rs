//! Edges behind emulated links (`tests/linkem`) in the place of their wire: several uplinks of one machine to the hub's one address, through a NAT.
//!
//! ```text
//! site.uplinks().give(1, lossy()); let edge = Edge::new(&site, 1, "robot-1")?; edge.uplinks().apply("lte", Action::BlackHole)?;
//! site.uplinks().dying(1, || …)      each link in turn is dead for 3 s, all the while
//! site.uplinks().carried(1)          what each link has carried, over all boots of the machine
//! ```
//!
//! One lock holds all of it: a link that is killed and a machine that is cut off or goes off do not meet.

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use linkem::Action;
use linkem::run::{Emulation, LinkReport, Namespaces, Report, Scenario};

use crate::site::{HUB, Site};

/// The links of [`lossy`].
pub const NAMES: [&str; 3] = ["g5", "lte", "wifi"];

/// Rates, delays and losses of bonding.md §3.2, of a machine whose owner gave each uplink its rule.
const LOSSY: &str = r"
name: three uplinks with loss
seed: 8
edge: {sourceRules: true}
links:
- name: g5
  up: {rate: {fixed: 50Mbit}, queue: {time: 100ms}, delay: 15ms, loss: {iid: 0.05}}
  down: {rate: {fixed: 50Mbit}, queue: {time: 100ms}, delay: 15ms, loss: {iid: 0.05}}
- name: lte
  up: {rate: {fixed: 30Mbit}, queue: {time: 100ms}, delay: 30ms, loss: {iid: 0.02}}
  down: {rate: {fixed: 30Mbit}, queue: {time: 100ms}, delay: 30ms, loss: {iid: 0.02}}
- name: wifi
  up: {rate: {fixed: 20Mbit}, queue: {time: 100ms}, delay: 8ms, loss: {iid: 0.08}}
  down: {rate: {fixed: 20Mbit}, queue: {time: 100ms}, delay: 8ms, loss: {iid: 0.08}}
";

/// How long all links of [`Uplinks::dying`] live between two deaths: some round trips of the slowest, so that the one that was dead is used again.
const ALIVE: Duration = Duration::from_secs(1);
/// How long one is dead: far longer than it takes to see that.
const DEAD: Duration = Duration::from_secs(3);

/// Three uplinks of 50, 30 and 20 Mbit/s that lose 5, 2 and 8 %.
///
/// # Panics
/// Never: the scenario is this file's.
#[must_use]
pub fn lossy() -> Scenario {
    Scenario::parse(LOSSY, Path::new(".")).expect("it is a scenario")
}

/// What one link has carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Carried {
    /// Bytes that arrived at the hub.
    pub up: u64,
    /// Bytes that arrived at the edge.
    pub down: u64,
    /// Packets that were lost on the air.
    pub lost: u64,
    /// Packets that a black hole swallowed.
    pub swallowed: u64,
}

impl Carried {
    fn add(&mut self, link: &LinkReport) {
        self.up += link.up.arrived_bytes;
        self.down += link.down.arrived_bytes;
        for way in [&link.up, &link.down] {
            self.lost += way.model.dropped_loss;
            self.swallowed += way.model.dropped_blackout;
        }
    }
}

/// One edge's links: what they are, and while its machine is on, the emulation.
#[derive(Debug)]
struct Given {
    scenario: Scenario,
    running: Option<Arc<Emulation>>,
    /// All are cut.
    cut: bool,
    /// Of the boots that are over.
    carried: BTreeMap<String, Carried>,
}

/// The emulated links of a site's edges, by the edge's number.
#[derive(Debug, Default)]
pub struct Uplinks(Mutex<BTreeMap<u8, Given>>);

impl Uplinks {
    /// Gives edge `number` the links of `scenario` from its next boot on; which namespaces and which hub the site says itself.
    pub fn give(&self, number: u8, scenario: Scenario) {
        let given = Given {
            scenario,
            running: None,
            cut: false,
            carried: BTreeMap::new(),
        };
        self.lock().insert(number, given);
    }

    /// The emulation of edge `number` while its machine is on.
    #[must_use]
    pub fn running(&self, number: u8) -> Option<Arc<Emulation>> {
        self.lock().get(&number)?.running.clone()
    }

    /// What each link of edge `number` has carried until now.
    ///
    /// # Errors
    /// When the emulator has ended.
    pub fn carried(&self, number: u8) -> Result<BTreeMap<String, Carried>> {
        let all = self.lock();
        let given = all.get(&number).context("it has no emulated links")?;
        let mut carried = given.carried.clone();
        if let Some(emulation) = &given.running {
            count(&mut carried, &emulation.report()?);
        }
        Ok(carried)
    }

    /// Does `work` while the links of edge `number` die in turn, without a sign, each for 3 s; says also how many have died. While all
    /// are cut, or the machine is off, none does.
    ///
    /// # Panics
    /// With what `work` panics with, and when the emulator fails.
    pub fn dying<T>(&self, number: u8, work: impl FnOnce() -> T) -> (T, usize) {
        thread::scope(|scope| {
            // Dropped when `work` has ended, however it does.
            let (works, over) = channel::<()>();
            let killer = scope.spawn(move || self.kill_in_turn(number, &over));
            let worked = work();
            drop(works);
            let deaths = killer.join();
            (worked, deaths.unwrap_or_else(|panic| resume_unwind(panic)))
        })
    }

    fn kill_in_turn(&self, number: u8, over: &Receiver<()>) -> usize {
        let is_over = |after| over.recv_timeout(after) != Err(RecvTimeoutError::Timeout);
        let set = |turn, up| self.set_one(number, turn, up).expect("the emulator runs");
        let mut deaths = 0;
        for turn in 0.. {
            if is_over(ALIVE) {
                break;
            }
            deaths += usize::from(set(turn, false));
            let is_over = is_over(DEAD);
            set(turn, true);
            if is_over {
                break;
            }
        }
        deaths
    }

    /// A black hole in one link of edge `number`, or its end; says whether it could be.
    fn set_one(&self, number: u8, turn: usize, up: bool) -> Result<bool> {
        let all = self.lock();
        let given = all.get(&number).filter(|given| !given.cut);
        let Some(emulation) = given.and_then(|given| given.running.as_ref()) else {
            return Ok(false);
        };
        let names: Vec<_> = emulation.links().collect();
        emulation.apply(names[turn % names.len()], action(up))?;
        Ok(true)
    }

    /// Starts the links of edge `number`, if it was given some, anew; says the hub's device.
    pub(crate) fn start(&self, site: &Site, role: &str, number: u8) -> Result<Option<String>> {
        let mut all = self.lock();
        let Some(given) = all.get_mut(&number) else {
            return Ok(None);
        };
        end(given);
        let mut scenario = given.scenario.clone();
        scenario.hub.address = HUB.parse().context("the hub's address")?;
        scenario.namespaces = Namespaces {
            // The sweep of the site's namespaces finds the router by it.
            prefix: Some(site.namespace(role)),
            edge: Some(site.namespace(role)),
            hub: Some(site.namespace("hub")),
            number,
        };
        let emulation = Emulation::start(scenario).with_context(|| format!("emulated links of {role}"))?;
        let device = emulation.hub_device();
        given.running = Some(Arc::new(emulation));
        Ok(Some(device))
    }

    /// Black holes in all links of edge `number`, or their end; says whether it has some.
    pub(crate) fn set_all(&self, number: u8, up: bool) -> Result<bool> {
        let mut all = self.lock();
        let Some(given) = all.get_mut(&number) else {
            return Ok(false);
        };
        let Some(emulation) = &given.running else {
            return Ok(false);
        };
        emulation
            .links()
            .try_for_each(|link| emulation.apply(link, action(up)))?;
        given.cut = !up;
        Ok(true)
    }

    /// Ends the links of edge `number`: its machine goes off.
    pub(crate) fn stop(&self, number: u8) {
        self.lock().get_mut(&number).into_iter().for_each(end);
    }

    /// Ends all links.
    pub(crate) fn stop_all(&self) {
        self.lock().values_mut().for_each(end);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u8, Given>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn action(up: bool) -> Action {
    if up { Action::Restore } else { Action::BlackHole }
}

fn count(carried: &mut BTreeMap<String, Carried>, report: &Report) {
    for link in &report.links {
        carried.entry(link.name.clone()).or_default().add(link);
    }
}

fn end(given: &mut Given) {
    given.cut = false;
    if let Some(emulation) = given.running.take() {
        // A test that holds the emulation must not keep it alive; of one that failed there is no report.
        if let Ok(report) = emulation.stop() {
            count(&mut given.carried, &report);
        }
    }
}
