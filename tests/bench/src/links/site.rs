//! One run: the links between two namespaces, an end in each, and whether linkem lets its figures count.

use std::process::Command as Program;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kit::process::{cpu_seconds, run};
use linkem::Action;
use linkem::run::{Emulation, Report};

use super::child::Child;
use super::contender::{Contender, INNER_EDGE, INNER_HUB};
use super::talk::{Command, Role, Setup, now};
use super::veth::{self, Veth};
use super::wireguard::WireGuard;
use super::world::{LINKS, World};

/// What is between the two namespaces.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Place {
    Links(World),
    /// Nothing that slows down.
    Cable,
}

impl Place {
    /// The edge's devices that lead to the hub.
    pub(crate) fn devices(self) -> Vec<&'static str> {
        match self {
            Self::Links(world) => world.air.links().iter().map(|(name, ..)| *name).collect(),
            Self::Cable => vec![veth::DEVICE],
        }
    }
}

#[derive(Debug)]
enum Ground {
    Links(Box<Emulation>),
    Cable(Veth),
}

impl Ground {
    fn build(place: Place) -> Result<Self> {
        Ok(match place {
            Place::Links(world) => Self::Links(Box::new(Emulation::start(world.scenario())?)),
            Place::Cable => Self::Cable(Veth::new()?),
        })
    }

    fn hub(&self) -> &str {
        match self {
            Self::Links(emulation) => emulation.hub(),
            Self::Cable(veth) => &veth.hub,
        }
    }

    fn edge(&self) -> &str {
        match self {
            Self::Links(emulation) => emulation.edge(),
            Self::Cable(veth) => &veth.edge,
        }
    }
}

/// Links with an end at each side, connected.
#[derive(Debug)]
pub(crate) struct Run {
    /// Who sends and receives.
    pub(crate) hub: Child,
    pub(crate) edge: Child,
    /// Edge and hub of the tunnel, where those are ends of a TCP inside it.
    under: Option<[Child; 2]>,
    wireguard: Option<[WireGuard; 2]>,
    ground: Ground,
    /// When the scenario began.
    pub(crate) begun: u64,
}

impl Run {
    /// Builds all of it and waits until all paths are there.
    ///
    /// # Errors
    /// When not root, or something does not come up.
    pub(crate) fn start(place: Place, contender: Contender) -> Result<Self> {
        let ground = Ground::build(place)?;
        let begun = now();
        let devices = place.devices();
        prepare_tcp(&ground, contender, &devices)?;
        let (mut under, mut wireguard) = (None, None);
        if let Some(roles) = contender.under(&devices)? {
            let [hub, edge] = connected(&ground, roles, devices.len()).with_context(|| contender.name())?;
            under = Some([edge, hub]);
        }
        if matches!(contender, Contender::WireGuard { .. }) {
            let inner = [INNER_HUB, INNER_EDGE].map(|address| format!("{address}/24"));
            wireguard = Some(WireGuard::pair((ground.hub(), &inner[0]), (ground.edge(), &inner[1]))?);
        }
        let paths = if contender.is_over_tunnel() { 1 } else { devices.len() };
        let ends = connected(&ground, contender.roles(&devices)?, paths);
        let [hub, edge] = ends.with_context(|| contender.name())?;
        Ok(Self {
            hub,
            edge,
            under,
            wireguard,
            ground,
            begun,
        })
    }

    /// Hub and edge of somebody else on the same links, connected.
    ///
    /// # Errors
    /// When they do not come up.
    pub(crate) fn beside(&self, place: Place, contender: Contender) -> Result<[Child; 2]> {
        connected(&self.ground, contender.roles(&place.devices())?, 1).with_context(|| contender.name())
    }

    /// Does something to a link.
    ///
    /// # Errors
    /// When there is none, or iproute2 fails.
    pub(crate) fn apply(&self, link: usize, action: Action) -> Result<()> {
        match &self.ground {
            Ground::Links(emulation) => emulation.apply(LINKS[link].0, action),
            Ground::Cable(_) => bail!("a cable has no links"),
        }
    }

    /// What the links have done so far.
    ///
    /// # Errors
    /// When the emulator has ended.
    pub(crate) fn so_far(&self) -> Result<Report> {
        match &self.ground {
            Ground::Links(emulation) => emulation.report(),
            Ground::Cable(_) => Ok(Report::default()),
        }
    }

    /// CPU time of all its processes, seconds.
    ///
    /// # Errors
    /// When one is gone.
    pub(crate) fn cpu(&self) -> Result<f64> {
        let own = [&self.hub, &self.edge].map(Child::pid);
        let under = self.under.iter().flatten().map(Child::pid);
        let wireguard = self.wireguard.iter().flatten().map(WireGuard::pid);
        own.into_iter().chain(under).chain(wireguard).map(cpu_seconds).sum()
    }

    /// The edge of the tunnel's own counts; null of what is none.
    ///
    /// # Errors
    /// When it is gone.
    pub(crate) fn edge_stats(&mut self) -> Result<serde_json::Value> {
        let edge = self.under.as_mut().map_or(&mut self.edge, |[edge, _]| edge);
        edge.ask(Command::Stats)
    }

    /// Ends it.
    ///
    /// # Errors
    /// When the emulator failed.
    pub(crate) fn finish(self) -> Result<Report> {
        drop((self.hub, self.edge, self.under, self.wireguard));
        match self.ground {
            Ground::Links(emulation) => emulation.stop(),
            Ground::Cable(_) => Ok(Report::default()),
        }
    }
}

/// Hub and edge, once each is connected.
fn connected(ground: &Ground, [hub, edge]: [Role; 2], paths: usize) -> Result<[Child; 2]> {
    let setup = |namespace: &str, role| Setup {
        namespace: namespace.to_owned(),
        role,
    };
    let mut hub = Child::start("hub", &setup(ground.hub(), hub))?;
    let mut edge = Child::start("edge", &setup(ground.edge(), edge))?;
    hub.tell(Command::Connect { paths })?;
    edge.tell(Command::Connect { paths })?;
    let connected = edge.answer::<()>();
    hub.answer::<()>().and(connected)?;
    Ok([hub, edge])
}

/// Buffers that hold what three links have on their way, and MPTCP's subflows over the edge's other uplinks.
fn prepare_tcp(ground: &Ground, contender: Contender, devices: &[&str]) -> Result<()> {
    let inside = |namespace: &str, words: &[&str]| {
        run(Program::new("ip").args(["netns", "exec", namespace]).args(words)).map(drop)
    };
    let is_multipath = matches!(contender, Contender::Mptcp { .. });
    for namespace in [ground.hub(), ground.edge()] {
        for name in ["rmem", "wmem"] {
            let setting = format!("net.ipv4.tcp_{name}=4096 131072 67108864");
            inside(namespace, &["sysctl", "-qw", &setting])?;
        }
        if is_multipath {
            inside(namespace, &["sysctl", "-qw", "net.mptcp.enabled=1"])?;
            let limits = [
                "ip",
                "mptcp",
                "limits",
                "set",
                "subflows",
                "4",
                "add_addr_accepted",
                "4",
            ];
            inside(namespace, &limits)?;
        }
    }
    for (at, device) in devices.iter().enumerate().skip(1).filter(|_| is_multipath) {
        let address = format!("10.90.{}.2", at + 1);
        let add = ["ip", "mptcp", "endpoint", "add", &address, "dev", device, "subflow"];
        inside(ground.edge(), &add)?;
    }
    Ok(())
}

/// What a run brought, and why it must not count, if so.
#[derive(Debug)]
pub(crate) struct Measured<T> {
    pub(crate) value: T,
    pub(crate) report: Report,
}

/// Measures on runs, again while linkem calls the run invalid, up to so many times.
///
/// # Errors
/// When a run breaks; an invalid one does not.
pub(crate) fn measure<T>(
    (place, contender): (Place, Contender),
    tries: usize,
    mut work: impl FnMut(&mut Run) -> Result<T>,
) -> Result<Measured<T>> {
    for left in (0..tries).rev() {
        let mut run = Run::start(place, contender)?;
        let value = work(&mut run)?;
        let report = run.finish()?;
        if report.is_valid() || left == 0 {
            return Ok(Measured { value, report });
        }
        eprintln!("  {}: again, for {}", contender.name(), report.invalid.join("; "));
    }
    bail!("no try was allowed")
}

/// Waits until that moment.
pub(crate) fn wait_until(at: u64) {
    thread::sleep(Duration::from_nanos(at.saturating_sub(now())));
}

/// That many seconds from now.
pub(crate) fn after(seconds: f64) -> u64 {
    now() + (seconds * 1e9) as u64
}
