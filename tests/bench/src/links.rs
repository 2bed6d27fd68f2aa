//! Several bad uplinks as one: bonding.md §8 on sockets, side by side with what else there is.
//!
//! * [`world`]: the links (`tests/linkem`) and their limits; [`contender`]: who carries the load; [`site`]: one run, repeated where linkem calls it invalid; [`plan`]: how much
//! * [`bulk`] S1 to S3, [`fair`] beside the kernel's CUBIC, [`outage`] S4 and S7, [`control`] S5, [`cable`] S8 ([`veth`], [`wireguard`]), [`idle`] S9
//! * [`end`]: a process an end, in its namespace: [`through`] is the tunnel ([`inner`]: its TUN device), [`baseline`] everything else; [`child`], [`talk`]: how it is told what to do
//! * [`sink`]: what arrived; [`packet`], [`keys`]: what it is made of; [`figures`]: the table

mod baseline;
mod bulk;
mod cable;
mod child;
mod contender;
mod control;
pub(crate) mod end;
mod fair;
mod figures;
mod idle;
mod inner;
mod keys;
mod outage;
mod packet;
pub(crate) mod plan;
mod sink;
mod site;
mod talk;
mod through;
mod veth;
mod wireguard;
mod world;

use std::time::Instant;

use anyhow::Result;
use clap::ValueEnum;

use self::figures::Figures;
use self::plan::Plan;
use self::world::{Air, Way};

/// A scenario of bonding.md §8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// One load over three clean links
    S1,
    /// The same with losses
    S2,
    /// LTE traces
    S3,
    /// Links that die
    S4,
    /// Control traffic
    S5,
    /// All links die, one returns
    S7,
    /// How fast a tunnel can be
    S8,
    /// What idling costs
    S9,
    /// One link beside the kernel's CUBIC (of the issue, not of bonding.md §8)
    Fair,
}

/// The figures of those scenarios, or of all.
pub(crate) fn run(plan: &Plan, only: &[Scenario], figures: &mut Figures) -> Result<()> {
    let all = Scenario::value_variants();
    for scenario in all.iter().filter(|scenario| only.is_empty() || only.contains(scenario)) {
        let begun = Instant::now();
        match scenario {
            Scenario::S1 => bulk::aggregate(plan, figures, (Air::Clean, 97.0))?,
            Scenario::S2 => {
                bulk::aggregate(plan, figures, (Air::Lossy, 95.0))?;
                if plan.bursts {
                    bulk::aggregate(plan, figures, (Air::Bursts, 95.0))?;
                }
            }
            Scenario::S3 => {
                bulk::trace(&plan.of_traces(), figures, 1, Way::Up)?;
                bulk::trace(&plan.of_traces(), figures, 2, Way::Down)?;
            }
            Scenario::S4 => outage::deaths_of_links(plan, figures)?,
            Scenario::S5 => control::conditions(plan, figures)?,
            Scenario::S7 => outage::return_of_links(plan, figures)?,
            Scenario::S8 => cable::speed(plan, figures)?,
            Scenario::S9 => idle::cost(plan, figures)?,
            Scenario::Fair => fair::shares(&plan.of_traces(), figures)?,
        }
        eprintln!("  {scenario:?} took {:.0} s", begun.elapsed().as_secs_f64());
    }
    Ok(())
}

/// Runs the plan, prints the table, and gives it for machines too.
///
/// # Errors
/// When a run breaks. Missed targets and invalid runs are told by the table.
pub(crate) fn report(plan: &Plan, only: &[Scenario], about: &serde_json::Value) -> Result<serde_json::Value> {
    let mut figures = Figures::default();
    let ran = run(plan, only, &mut figures);
    println!("{}", about["text"].as_str().unwrap_or_default());
    print!("{}", figures.render());
    ran.map(|()| figures.json(about))
}
