//! S9: what a session costs that has nothing to say: bytes, the edge's memory, the hub's a robot.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use linkem::run::Report;

use super::child::Child;
use super::contender::{Contender, HUB};
use super::figures::{Figure, Figures, Target};
use super::keys;
use super::plan::{Plan, reasons};
use super::site::{Place, Run, after, measure, wait_until};
use super::talk::{Command, Role, Setup, now};
use super::world::{Air, LINKS};
use crate::proc::Memory;
use crate::table::megabytes_a_day;

/// Until a session has said what it has to say at its begin, seconds.
const SETTLE: f64 = 15.0;
/// Robots of which one is computed.
const ROBOTS: usize = 50;

/// Bytes a link, both ways.
fn bytes(report: &Report) -> Vec<u64> {
    let both = |link: &linkem::run::LinkReport| link.up.model.offered_bytes + link.down.model.offered_bytes;
    report.links.iter().map(both).collect()
}

/// What the links carried meanwhile, the edge's memory, and the links' names.
fn idle(run: &mut Run, seconds: f64) -> Result<(Vec<u64>, Memory)> {
    wait_until(after(SETTLE));
    let before = bytes(&run.so_far()?);
    wait_until(after(seconds));
    let now = bytes(&run.so_far()?);
    let grown = now.iter().zip(&before).map(|(now, before)| now - before).collect();
    Ok((grown, Memory::of(run.edge.pid())?))
}

/// S9.
pub(crate) fn cost(plan: &Plan, figures: &mut Figures) -> Result<()> {
    let world = plan.world(Air::Clean);
    // Nothing happens in either: both at once.
    let contenders = [Contender::Kedge, Contender::Metered];
    let measured = std::thread::scope(|scope| {
        let one = |contender| {
            move || {
                measure((Place::Links(world), contender), plan.tries, |run| {
                    idle(run, plan.idle_seconds)
                })
            }
        };
        contenders
            .map(|contender| scope.spawn(one(contender)))
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    for (contender, measured) in contenders.into_iter().zip(measured) {
        let measured = measured?;
        let (bytes, memory) = measured.value;
        let days = bytes
            .iter()
            .map(|bytes| megabytes_a_day(*bytes, plan.idle_seconds))
            .collect();
        let figure = |what, unit| Figure::new("S9", "idle", contender.name(), what, unit);
        let note = format!("n = uplinks; of {:.0} s; IP packets, both ways", plan.idle_seconds);
        let traffic = figure("a day and uplink", "MB").samples(days).note(note);
        figures.push(
            traffic
                .target(Some(Target::AtMost(2.0)))
                .invalid(reasons(&[measured.report])),
        );
        if contender == Contender::Kedge {
            let own = Memory::of(bare()?.pid())?;
            let megabytes = |kilobytes: f64| kilobytes * 1024.0 / 1e6;
            let grown = figure("edge's RSS, the tunnel's part", "MB");
            let grown = grown.samples(vec![megabytes(memory.rss as f64 - own.rss as f64)]);
            let note = format!(
                "of {:.1}: above the same program without a tunnel",
                megabytes(memory.rss as f64)
            );
            figures.push(grown.target(Some(Target::AtMost(8.0))).note(note));
        }
    }
    robots(plan, figures)
}

/// The same program with nothing but its command loop.
fn bare() -> Result<Child> {
    let emulation = linkem::run::Emulation::start(super::world::World::new(Air::Clean, 1).scenario())?;
    let role = Role::Edge {
        hub: SocketAddr::from(HUB),
        carrier: super::talk::Carrier::Tcp {
            congestion: "cubic".to_owned(),
            multipath: false,
        },
        device: None,
    };
    let namespace = emulation.edge().to_owned();
    Child::start("bare edge", &Setup { namespace, role })
}

/// The hub's memory: with so many robots of three uplinks each, less what it has before they come.
fn robots(plan: &Plan, figures: &mut Figures) -> Result<()> {
    let emulation = linkem::run::Emulation::start(plan.world(Air::Clean).scenario())?;
    let hub = SocketAddr::from(HUB);
    let keys = keys::make(ROBOTS)?;
    let setup = |namespace: &str, role| Setup {
        namespace: namespace.to_owned(),
        role,
    };
    let listens = Role::TunnelHub {
        keys: keys.clone(),
        listen: hub,
        inner: None,
    };
    let child = Child::start("hub", &setup(emulation.hub(), listens))?;
    let before = Memory::of(child.pid())?;
    let uplinks = LINKS.iter().map(|(name, ..)| (*name).to_owned()).collect();
    let dials = Role::TunnelEdge {
        keys,
        hub,
        uplinks,
        metered: false,
        inner: None,
    };
    let mut edges = Child::start("edges", &setup(emulation.edge(), dials))?;
    let given_up = after(2.0 * SETTLE);
    loop {
        wait_until(after(0.5));
        let stats: serde_json::Value = edges.ask(Command::Stats)?;
        let paths = stats["allPaths"].as_u64().unwrap_or_default();
        if paths == (ROBOTS * LINKS.len()) as u64 {
            break;
        }
        ensure!(now() < given_up, "{paths} paths of {ROBOTS} robots");
    }
    wait_until(after(SETTLE));
    let grown = Memory::of(child.pid())?.rss.saturating_sub(before.rss) as f64 / ROBOTS as f64;
    drop(edges);
    drop(child);
    let report = emulation.stop()?;
    let figure = Figure::new(
        "S9",
        "idle",
        "kedge".to_owned(),
        "hub's RSS a robot of 3 uplinks",
        "KiB",
    )
    .samples(vec![grown]);
    let note = format!("growth with {ROBOTS} robots, divided; the tunnel alone");
    figures.push(
        figure
            .target(Some(Target::AtMost(130.0)))
            .note(note)
            .invalid(reasons(&[report])),
    );
    Ok(())
}
