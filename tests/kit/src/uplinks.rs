//! Edges behind emulated links (`tests/linkem`) in the place of their wire: several uplinks of one machine to the hub's one address, through a NAT.
//!
//! ```text
//! site.uplinks().give(1, scenario); let edge = Edge::new(&site, 1, "robot-1")?; edge.uplinks().apply("lte", Action::BlackHole)?;
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use linkem::Action;
use linkem::run::{Emulation, Namespaces, Scenario};

use crate::site::{HUB, Site};

/// One edge's links: what they are, and while its machine is on, the emulation.
#[derive(Debug)]
struct Given {
    scenario: Scenario,
    running: Option<Arc<Emulation>>,
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
        };
        self.lock().insert(number, given);
    }

    /// The emulation of edge `number` while its machine is on.
    #[must_use]
    pub fn running(&self, number: u8) -> Option<Arc<Emulation>> {
        self.lock().get(&number)?.running.clone()
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
        let Some(emulation) = self.running(number) else {
            return Ok(false);
        };
        let action = if up { Action::Restore } else { Action::BlackHole };
        emulation.links().try_for_each(|link| emulation.apply(link, action))?;
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

fn end(given: &mut Given) {
    if let Some(emulation) = given.running.take() {
        // A test that wanted the report has asked for it, and one that holds the emulation must not keep it alive.
        let _ = emulation.stop();
    }
}
