//! One run: the links between two namespaces, an end in each, and whether linkem lets its figures count.

use std::net::SocketAddr;
use std::process::Command as Program;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use kit::process::run;
use linkem::run::{Emulation, Report};

use super::child::Child;
use super::keys;
use super::talk::{Carrier, Command, Role, Setup, now};
use super::world::{LINKS, Payload, World};

/// The hub's one address.
const HUB: ([u8; 4], u16) = ([203, 0, 113, 1], 7000);

/// Who carries the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contender {
    Kedge,
    /// The same with metered uplinks.
    Metered,
    /// Quinn as it is, over one link.
    Quinn { link: usize, congestion: &'static str },
    /// The kernel's TCP, over one link.
    Tcp { link: usize, congestion: &'static str },
    /// The kernel's MPTCP over all.
    Mptcp { congestion: &'static str },
}

impl Contender {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Kedge => "kedge".to_owned(),
            Self::Metered => "kedge, metered".to_owned(),
            Self::Quinn { link, congestion } => format!("quinn {congestion} over {}", LINKS[link].0),
            Self::Tcp { link, congestion } => format!("TCP {congestion} over {}", LINKS[link].0),
            Self::Mptcp { congestion } => format!("MPTCP {congestion}"),
        }
    }

    pub(crate) fn is_kedge(self) -> bool {
        matches!(self, Self::Kedge | Self::Metered)
    }

    /// Of what it sends.
    pub(crate) fn payload(self) -> Payload {
        match self {
            Self::Kedge | Self::Metered | Self::Quinn { .. } => Payload::Datagram,
            Self::Tcp { .. } => Payload::Tcp { multipath: false },
            Self::Mptcp { .. } => Payload::Tcp { multipath: true },
        }
    }

    /// Hub and edge.
    fn roles(self) -> Result<[Role; 2]> {
        let hub = SocketAddr::from(HUB);
        let keys = keys::make(1)?;
        let (carrier, device) = match self {
            Self::Kedge | Self::Metered => {
                let uplinks = LINKS.iter().map(|(name, ..)| (*name).to_owned()).collect();
                let (metered, listen) = (self == Self::Metered, hub);
                let edge = Role::TunnelEdge {
                    keys: keys.clone(),
                    hub,
                    uplinks,
                    metered,
                };
                return Ok([Role::TunnelHub { keys, listen }, edge]);
            }
            Self::Quinn { link, congestion } => {
                let congestion = congestion.to_owned();
                (Carrier::Quinn { keys, congestion }, Some(link))
            }
            Self::Tcp { link, congestion } => {
                let congestion = congestion.to_owned();
                let multipath = false;
                (Carrier::Tcp { congestion, multipath }, Some(link))
            }
            Self::Mptcp { congestion } => {
                let congestion = congestion.to_owned();
                let multipath = true;
                (Carrier::Tcp { congestion, multipath }, None)
            }
        };
        let at_hub = Role::Hub {
            listen: hub,
            carrier: carrier.clone(),
        };
        let device = device.map(|link: usize| LINKS[link].0.to_owned());
        Ok([at_hub, Role::Edge { hub, carrier, device }])
    }
}

/// Links with an end at each side, connected.
pub(crate) struct Run {
    pub(crate) emulation: Emulation,
    pub(crate) hub: Child,
    pub(crate) edge: Child,
    /// When the scenario began.
    pub(crate) begun: u64,
}

impl Run {
    /// Builds all of it and waits until all paths are there.
    ///
    /// # Errors
    /// When not root, or something does not come up.
    pub(crate) fn start(world: &World, contender: Contender) -> Result<Self> {
        let emulation = Emulation::start(world.scenario())?;
        let begun = now();
        prepare_tcp(&emulation, contender)?;
        let [hub, edge] = contender.roles()?;
        let setup = |namespace: &str, role| Setup {
            namespace: namespace.to_owned(),
            role,
        };
        let mut hub = Child::start("hub", &setup(emulation.hub(), hub))?;
        let mut edge = Child::start("edge", &setup(emulation.edge(), edge))?;
        let paths = LINKS.len();
        hub.tell(Command::Connect { paths })?;
        edge.tell(Command::Connect { paths })?;
        let connected = edge.answer::<()>();
        hub.answer::<()>().and(connected).with_context(|| contender.name())?;
        Ok(Self {
            emulation,
            hub,
            edge,
            begun,
        })
    }

    /// Ends it.
    ///
    /// # Errors
    /// When the emulator failed.
    pub(crate) fn finish(self) -> Result<Report> {
        drop((self.hub, self.edge));
        self.emulation.stop()
    }
}

/// Buffers that hold what three links have on their way, and MPTCP's subflows over the edge's other uplinks.
fn prepare_tcp(emulation: &Emulation, contender: Contender) -> Result<()> {
    let (is_tcp, is_multipath) = match contender {
        Contender::Tcp { .. } => (true, false),
        Contender::Mptcp { .. } => (true, true),
        _ => (false, false),
    };
    let inside = |namespace: &str, words: &[&str]| {
        run(Program::new("ip").args(["netns", "exec", namespace]).args(words)).map(drop)
    };
    for namespace in [emulation.hub(), emulation.edge()] {
        if is_tcp {
            for name in ["rmem", "wmem"] {
                let setting = format!("net.ipv4.tcp_{name}=4096 131072 67108864");
                inside(namespace, &["sysctl", "-qw", &setting])?;
            }
        }
        if is_multipath {
            inside(namespace, &["sysctl", "-qw", "net.mptcp.enabled=1"])?;
            inside(namespace, &["ip", "mptcp", "limits", "set", "subflows", "4", "add_addr_accepted", "4"])?;
        }
    }
    if is_multipath {
        for (at, (device, ..)) in LINKS.iter().enumerate().skip(1) {
            let address = format!("10.90.{}.2", at + 1);
            inside(emulation.edge(), &["ip", "mptcp", "endpoint", "add", &address, "dev", device, "subflow"])?;
        }
    }
    Ok(())
}

/// What a run brought, and why it must not count, if so.
#[derive(Debug)]
pub(crate) struct Measured<T> {
    pub(crate) value: T,
    pub(crate) report: Report,
}

/// Measures on runs of `world`, again while linkem calls the run invalid, up to so many times.
///
/// # Errors
/// When a run breaks; an invalid one does not.
pub(crate) fn measure<T>(
    (world, contender): (&World, Contender),
    tries: usize,
    mut work: impl FnMut(&mut Run) -> Result<T>,
) -> Result<Measured<T>> {
    for left in (0..tries).rev() {
        let mut run = Run::start(world, contender)?;
        let value = work(&mut run)?;
        let report = run.finish()?;
        if report.is_valid() || left == 0 {
            return Ok(Measured { value, report });
        }
        eprintln!("  {}: again, for {}", contender.name(), report.invalid.join("; "));
    }
    anyhow::bail!("no try was allowed")
}

/// Waits until that moment.
pub(crate) fn wait_until(at: u64) {
    thread::sleep(Duration::from_nanos(at.saturating_sub(now())));
}

/// That many seconds from now.
pub(crate) fn after(seconds: f64) -> u64 {
    now() + (seconds * 1e9) as u64
}
