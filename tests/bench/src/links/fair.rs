//! One link of 20 Mbit/s and 40 ms that a flow of the kernel's CUBIC has already filled: what each gets of it then.

use anyhow::Result;

use super::contender::Contender;
use super::figures::{Figure, Figures, Target};
use super::plan::{Plan, reasons};
use super::sink::{Seen, Window};
use super::site::{Place, Run, after, measure, wait_until};
use super::talk::{Command, Load, now};
use super::world::{Air, Queueing, Way, World};

/// How long CUBIC is alone, seconds.
const ALONE: f64 = 5.0;
/// Until the two have met, seconds.
const RAMP: f64 = 10.0;
/// Of its half of the link, %, that each must get.
const LEAST: f64 = 25.0;
const RIVAL: Contender = Contender::Tcp {
    link: 0,
    congestion: "cubic",
};

/// What ours and CUBIC got of their halves, %.
fn halves(run: &mut Run, world: World, seconds: f64) -> Result<[f64; 2]> {
    let [mut hub, mut edge] = run.beside(Place::Links(world), RIVAL)?;
    let until = after(ALONE + RAMP + seconds);
    let load = Load::Datagrams;
    let flood = Command::Flood { load, until };
    edge.ask::<()>(flood)?;
    wait_until(after(ALONE));
    run.edge.ask::<()>(flood)?;
    wait_until(after(RAMP));
    let window = Window { from: now(), to: until };
    wait_until(until);
    let half = world.limit(Way::Up, (0, 1_000_000_000)) / 2.0;
    let share = |seen: Seen, who: Contender| seen.megabits(window.seconds()) / (half * who.payload().share()) * 100.0;
    Ok([
        share(run.hub.ask(Command::Seen(window))?, Contender::Kedge),
        share(hub.ask(Command::Seen(window))?, RIVAL),
    ])
}

/// Both, with a buffer of half, one and four products of rate and round trip.
pub(crate) fn shares(plan: &Plan, figures: &mut Figures) -> Result<()> {
    for queue in [Queueing::Half, Queueing::One, Queueing::Four] {
        let air = Air::Shared { queue };
        let (mut samples, mut reports) = ([Vec::new(), Vec::new()], Vec::new());
        for number in 0..plan.repetitions(Contender::Kedge) {
            let mut world = plan.world(air);
            world.seed += number as u64;
            let place = (Place::Links(world), Contender::Kedge);
            let measured = measure(place, plan.tries, |run| halves(run, world, plan.shared_seconds))?;
            for (samples, half) in samples.iter_mut().zip(measured.value) {
                samples.push(half);
            }
            reports.push(measured.report);
        }
        for (who, samples) in [Contender::Kedge, RIVAL].into_iter().zip(samples) {
            let figure = Figure::new("fair", air.name(), who.name(), "beside the other", "% of its half").more();
            let figure = figure.samples(samples).target(Some(Target::AtLeast(LEAST)));
            figures.push(figure.invalid(reasons(&reports)));
        }
    }
    Ok(())
}
