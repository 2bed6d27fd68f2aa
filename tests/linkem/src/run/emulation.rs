//! A running emulation, and what can be done to it.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};

use super::engine::{Engine, Handle, Order};
use super::report::Report;
use super::scenario::Scenario;
use super::topology::Topology;
use crate::Action;

/// What commands have made of a link.
#[derive(Debug, Clone, Copy, Default)]
struct State {
    hole_up: bool,
    hole_down: bool,
    largest: Option<u64>,
    down: bool,
    rebinds: u32,
    addresses: u32,
}

#[derive(Debug)]
struct Inner {
    scenario: Scenario,
    topology: Topology,
    handle: Handle,
    states: Mutex<Vec<State>>,
    /// Whether it shall end.
    ended: Mutex<bool>,
    woken: Condvar,
}

/// A running emulation; namespaces that it made go with it.
#[derive(Debug)]
pub struct Emulation {
    inner: Arc<Inner>,
    engine: Mutex<Option<JoinHandle<Result<Report>>>>,
    timeline: Mutex<Option<JoinHandle<Result<()>>>>,
}

impl Emulation {
    /// Makes the namespaces and devices, and begins.
    ///
    /// # Errors
    /// When the scenario is wrong, not root, or iproute2 or nft fail.
    pub fn start(scenario: Scenario) -> Result<Self> {
        scenario.validate()?;
        let (topology, pairs) = Topology::build(&scenario)?;
        let start = Instant::now();
        let (engine, handle) = Engine::new(&scenario, pairs, start)?;
        let engine = thread::Builder::new()
            .name("linkem".into())
            .spawn(move || engine.run())?;
        let states = Mutex::new(vec![State::default(); scenario.links.len()]);
        let inner = Arc::new(Inner {
            scenario,
            topology,
            handle,
            states,
            ended: Mutex::new(false),
            woken: Condvar::new(),
        });
        let for_timeline = Arc::clone(&inner);
        let timeline = thread::Builder::new()
            .name("timeline".into())
            .spawn(move || for_timeline.play(start))?;
        Ok(Self {
            inner,
            engine: Mutex::new(Some(engine)),
            timeline: Mutex::new(Some(timeline)),
        })
    }

    /// The edge's namespace.
    #[must_use]
    pub fn edge(&self) -> &str {
        &self.inner.topology.edge
    }

    /// The hub's namespace.
    #[must_use]
    pub fn hub(&self) -> &str {
        &self.inner.topology.hub
    }

    /// The hub's device behind which the router is.
    #[must_use]
    pub fn hub_device(&self) -> String {
        self.inner.topology.hub_device()
    }

    /// The router's namespace.
    #[must_use]
    pub fn router(&self) -> &str {
        &self.inner.topology.router
    }

    /// Does `action` to link `name` now. It does not end what the scenario's own events began.
    ///
    /// # Errors
    /// When there is no such link, or iproute2 or nft fail.
    pub fn apply(&self, name: &str, action: Action) -> Result<()> {
        let at = self.inner.scenario.links.iter().position(|link| link.name == name);
        let at = at.ok_or_else(|| anyhow!("no link '{name}'; there are {}", self.inner.names()))?;
        self.inner.apply(at, action)
    }

    /// The links' names, in the scenario's order.
    pub fn links(&self) -> impl Iterator<Item = &str> {
        self.inner.scenario.links.iter().map(|link| link.name.as_str())
    }

    /// What happened so far, without samples.
    ///
    /// # Errors
    /// When the emulator has ended.
    pub fn report(&self) -> Result<Report> {
        self.inner.finish(self.inner.handle.report()?)
    }

    /// Waits until the scenario's time is over or [`Emulation::end`] was called.
    pub fn wait(&self) {
        let mut ended = lock(&self.inner.ended);
        while !*ended {
            ended = self.inner.woken.wait(ended).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets [`Emulation::wait`] return.
    pub fn end(&self) {
        self.inner.end();
    }

    /// Ends it, removes the namespaces that it made, and says what happened.
    ///
    /// # Errors
    /// When the emulator or one of the scenario's events failed, or it was stopped before.
    pub fn stop(&self) -> Result<Report> {
        self.end();
        let timeline = lock(&self.timeline).take().map_or(Ok(Ok(())), JoinHandle::join);
        let Some(engine) = lock(&self.engine).take() else {
            bail!("it was stopped before")
        };
        // The devices go with the thread: first what they missed.
        let missed = self.inner.topology.missed();
        self.inner.handle.tell(Order::Stop)?;
        let report = engine.join();
        self.inner.topology.remove();
        let mut report = report.map_err(|_| anyhow!("the emulator's thread panicked"))??;
        fill_missed(&mut report, &missed?);
        report.judge();
        timeline.map_err(|_| anyhow!("the timeline's thread panicked"))??;
        Ok(report)
    }
}

impl Drop for Emulation {
    fn drop(&mut self) {
        // Stopped before is fine; what a test never asked for is no error of it.
        let _ = self.stop();
    }
}

impl Inner {
    fn names(&self) -> String {
        let names: Vec<_> = self.scenario.links.iter().map(|link| link.name.as_str()).collect();
        names.join(", ")
    }

    fn end(&self) {
        *lock(&self.ended) = true;
        self.woken.notify_all();
    }

    fn apply(&self, at: usize, action: Action) -> Result<()> {
        let mut states = lock(&self.states);
        let state = states.get_mut(at).context("no such link")?;
        match action {
            Action::BlackHole => (state.hole_up, state.hole_down) = (true, true),
            Action::BlackHoleUp => state.hole_up = true,
            Action::BlackHoleDown => state.hole_down = true,
            Action::Largest(largest) => state.largest = Some(largest),
            Action::Restore => (state.hole_up, state.hole_down, state.largest) = (false, false, None),
            Action::Down => {
                state.down = true;
                self.topology.lower(at)?;
            }
            Action::Up => {
                self.topology.raise(at)?;
                state.down = false;
            }
            Action::Rebind | Action::Readdress => self.change(at, action, state)?,
        }
        for (way, hole) in [(2 * at, state.hole_up), (2 * at + 1, state.hole_down)] {
            let silent = hole || state.down;
            self.handle.tell(Order::Silence { way, silent })?;
            let largest = state.largest;
            self.handle.tell(Order::Narrow { way, largest })?;
        }
        // The orders are obeyed when a later one is answered: what is done after this call meets the new state.
        self.handle.report().map(drop)
    }

    /// What is counted: a new mapping, a new address.
    fn change(&self, at: usize, action: Action, state: &mut State) -> Result<()> {
        if action == Action::Rebind {
            self.topology.rebind(at, state.rebinds + 1)?;
            state.rebinds += 1;
        } else {
            self.topology.readdress(at, state.addresses + 1)?;
            state.addresses += 1;
        }
        Ok(())
    }

    /// The part of a scenario's event that the model does not know: devices and mappings.
    fn happen(&self, at: usize, action: Action) -> Result<()> {
        match action {
            Action::Down => self.topology.lower(at),
            Action::Up => self.topology.raise(at),
            Action::Rebind | Action::Readdress => {
                let mut states = lock(&self.states);
                self.change(at, action, states.get_mut(at).context("no such link")?)
            }
            Action::BlackHole | Action::BlackHoleUp | Action::BlackHoleDown | Action::Largest(_) | Action::Restore => {
                Ok(())
            }
        }
    }

    /// Lets the scenario's events happen, until its time is over or it is ended.
    fn play(&self, start: Instant) -> Result<()> {
        let links = self.scenario.links.iter().enumerate();
        let mut events: Vec<_> = links
            .flat_map(|(at, link)| link.events.iter().map(move |event| (event.at, at, event.action)))
            .collect();
        events.sort_by_key(|(when, ..)| *when);
        for (when, at, action) in events {
            if self.sleep_until(start + Duration::from_nanos(when)) {
                return Ok(());
            }
            if let Err(error) = self.happen(at, action) {
                self.end();
                return Err(error.context(format!("{action:?} of {}", self.scenario.links[at].name)));
            }
        }
        if self.scenario.duration > 0 && !self.sleep_until(start + Duration::from_nanos(self.scenario.duration)) {
            self.end();
        }
        Ok(())
    }

    /// Waits until `when`; says whether it was ended before.
    fn sleep_until(&self, when: Instant) -> bool {
        let mut ended = lock(&self.ended);
        while !*ended {
            let left = when.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            ended = self
                .woken
                .wait_timeout(ended, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }

    fn finish(&self, mut report: Report) -> Result<Report> {
        fill_missed(&mut report, &self.topology.missed()?);
        report.judge();
        Ok(report)
    }
}

fn fill_missed(report: &mut Report, missed: &[[u64; 2]]) {
    for (link, [up, down]) in report.links.iter_mut().zip(missed) {
        (link.up.missed, link.down.missed) = (*up, *down);
    }
}

/// A thread that panicked while it held one of these left it whole: each is one value.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
