//! S4 and S7: what is noticed of links that die, and how soon what comes back is used.

use anyhow::Result;
use linkem::Action;
use linkem::run::Report;

use super::contender::Contender;
use super::figures::{Figure, Figures, Target};
use super::plan::{Plan, reasons};
use super::sink::{Seen, Window, share};
use super::site::{Place, Run, after, measure, wait_until};
use super::talk::{Command, Load, now};
use super::world::{Air, LINKS, Way, World};

/// Until the load fills the links.
const RAMP: f64 = 5.0;
/// Outages of one run: what linkem calls invalid is not much to repeat.
const BATCH: usize = 5;

/// A way to die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Death {
    Silent,
    SilentUp,
    SilentDown,
    Down,
}

impl Death {
    fn actions(self) -> [Action; 2] {
        match self {
            Self::Silent => [Action::BlackHole, Action::Restore],
            Self::SilentUp => [Action::BlackHoleUp, Action::Restore],
            Self::SilentDown => [Action::BlackHoleDown, Action::Restore],
            Self::Down => [Action::Down, Action::Up],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::SilentUp => "up silent",
            Self::SilentDown => "down silent",
            Self::Down => "device down",
        }
    }
}

/// What one death did.
#[derive(Debug, Clone, Copy)]
struct Noticed {
    stall: f64,
    /// Of what the others could carry, %, from one second on.
    during: f64,
    /// Of what all can, from one second after the return on.
    back: f64,
}

/// Several deaths of a link under one load.
#[derive(Debug, Clone, Copy)]
struct Batch {
    world: World,
    contender: Contender,
    load: Load,
    death: Death,
    link: usize,
    count: usize,
    /// How long it is dead, and as long watched after its return.
    dead: f64,
}

/// Deaths, and packets that were missing or late in all of their run.
type Outcome = (Vec<Noticed>, u64);

impl Batch {
    fn run(self, run: &mut Run) -> Result<Outcome> {
        let load = self.load;
        let until = after(RAMP + 2.0 * self.dead * self.count as f64);
        let begun = now();
        run.edge.ask::<()>(Command::Flood { load, until })?;
        wait_until(begun + (RAMP * 1e9) as u64);
        let mut deaths = Vec::new();
        for _ in 0..self.count {
            let [kill, revive] = self.death.actions();
            let died = now();
            run.apply(self.link, kill)?;
            wait_until(died + (self.dead * 1e9) as u64);
            let back = now();
            run.apply(self.link, revive)?;
            wait_until(died + (2.0 * self.dead * 1e9) as u64);
            deaths.push((died, back));
        }
        let mut noticed = Vec::new();
        for (died, back) in deaths {
            noticed.push(self.look(run, died, back)?);
        }
        let all: Seen = run.hub.ask(Command::Seen(Window { from: begun, to: until }))?;
        Ok((noticed, all.missing + all.late))
    }

    fn look(self, run: &mut Run, died: u64, back: u64) -> Result<Noticed> {
        let whole = Window {
            from: died,
            to: back + ((self.dead - 0.1) * 1e9) as u64,
        };
        let (during, later) = (
            whole.part(1.0, self.dead),
            Window { from: back, to: back }.part(1.0, self.dead - 0.1),
        );
        let mut seen = |window| run.hub.ask::<Seen>(Command::Seen(window));
        let rates = [
            seen(during)?.megabits(during.seconds()),
            seen(later)?.megabits(later.seconds()),
        ];
        let all = self.world.limit(Way::Up, (0, 1));
        let left = all - self.world.link_limit(self.link, Way::Up, (0, 1));
        let payload = self.contender.payload().share();
        Ok(Noticed {
            stall: seen(whole)?.gap,
            during: rates[0] / (left * payload) * 100.0,
            back: rates[1] / (all * payload) * 100.0,
        })
    }
}

/// All deaths of one kind under one load: so many of each link.
fn deaths(plan: &Plan, batch: Batch, links: &[usize], each: usize) -> Result<(Outcome, Vec<Report>)> {
    let (mut noticed, mut visible, mut reports) = (Vec::new(), 0, Vec::new());
    for link in links {
        let mut left = each;
        while left > 0 {
            let count = left.min(BATCH);
            let batch = Batch {
                link: *link,
                count,
                ..batch
            };
            let measured = measure((Place::Links(batch.world), batch.contender), plan.tries, |run| {
                batch.run(run)
            })?;
            noticed.extend(measured.value.0);
            visible += measured.value.1;
            reports.push(measured.report);
            left -= count;
        }
    }
    Ok(((noticed, visible), reports))
}

/// S4.
pub(crate) fn deaths_of_links(plan: &Plan, figures: &mut Figures) -> Result<()> {
    let batch = Batch {
        world: plan.world(Air::Clean),
        contender: Contender::Kedge,
        load: Load::Realtime,
        death: Death::Silent,
        link: 0,
        count: 0,
        dead: plan.dead_seconds,
    };
    for load in plan.loads.iter().copied() {
        let batch = Batch { load, ..batch };
        let silent = match load {
            Load::Ordered => plan.black_holes,
            Load::Realtime | Load::Datagrams => plan.black_holes.div_ceil(2),
        };
        one_kind(plan, figures, batch, (&[0, 1, 2], silent))?;
        for (at, death) in [Death::SilentUp, Death::SilentDown, Death::Down]
            .into_iter()
            .enumerate()
        {
            if plan.other_deaths > 0 {
                one_kind(plan, figures, Batch { death, ..batch }, (&[at], plan.other_deaths))?;
            }
        }
    }
    let mut others = Vec::new();
    if plan.inner {
        others.push(Contender::Inner { congestion: "cubic" });
    }
    if plan.baselines {
        others.push(Contender::Mptcp { congestion: "bbr" });
    }
    for contender in others {
        let batch = Batch { contender, ..batch };
        one_kind(plan, figures, batch, (&[0, 1, 2], plan.black_holes.div_ceil(4)))?;
    }
    Ok(())
}

fn one_kind(plan: &Plan, figures: &mut Figures, batch: Batch, (links, each): (&[usize], usize)) -> Result<()> {
    let ((noticed, visible), reports) = deaths(plan, batch, links, each)?;
    let kind = match (batch.contender, batch.load) {
        (Contender::Kedge, Load::Ordered) => "in order",
        (Contender::Kedge, _) => "datagrams",
        _ => "one flow",
    };
    let is_ordered = kind != "datagrams";
    let what = |what: &str| format!("{}, {kind}: {what}", batch.death.name());
    let figure = |text: &str, unit| {
        let figure = Figure::new("S4", batch.world.air.name(), batch.contender.name(), &what(text), unit);
        figure.invalid(reasons(&reports))
    };
    let ours = |target| batch.contender.is_kedge().then_some(target);
    let mut stalls: Vec<f64> = noticed.iter().map(|one| one.stall).collect();
    stalls.sort_by(f64::total_cmp);
    let (most, most95) = if is_ordered { (300.0, 200.0) } else { (100.0, 60.0) };
    let p95 = share(&stalls, 0.95);
    figures.push(figure("stall", "ms").samples(stalls).target(ours(Target::AtMost(most))));
    let p95 = figure("stall p95", "ms").samples(vec![p95]);
    figures.push(p95.target(ours(Target::AtMost(most95))));
    let during = noticed.iter().map(|one| one.during).collect();
    let figure_during = figure("rate while it is dead", "% of the rest").more().samples(during);
    figures.push(figure_during.target(ours(Target::AtLeast(95.0))));
    let back = noticed.iter().map(|one| one.back).collect();
    figures.push(
        figure("rate from 1 s after its return", "% of limit")
            .more()
            .samples(back)
            .target(ours(Target::AtLeast(95.0))),
    );
    if kind == "in order" {
        let visible = figure("missing or late inside", "packets").samples(vec![visible as f64]);
        figures.push(visible.target(ours(Target::AtMost(0.0))));
    }
    Ok(())
}

/// S7: all links dead for so many seconds, then one returns.
pub(crate) fn return_of_links(plan: &Plan, figures: &mut Figures) -> Result<()> {
    let world = plan.world(Air::Clean);
    for (outage, links) in &plan.outages {
        let (mut first, mut reports, mut same) = (Vec::new(), Vec::new(), true);
        let mut most = 0.0_f64;
        for link in links {
            let measured = measure((Place::Links(world), Contender::Kedge), plan.tries, |run| {
                return_of(run, *outage, *link)
            })?;
            first.push(measured.value.0);
            same &= measured.value.1;
            reports.push(measured.report);
            most = most.max(4.0 * LINKS[*link].2 as f64 + 200.0);
        }
        let what = format!("all dead for {outage:.0} s, then one is back: first message");
        let figure = Figure::new("S7", world.air.name(), "kedge".to_owned(), &what, "ms").samples(first);
        let note = if same { "the same session" } else { "another session" };
        figures.push(
            figure
                .target(Some(Target::AtMost(most)))
                .note(note)
                .invalid(reasons(&reports)),
        );
    }
    two_of_three(plan, figures, world)
}

/// How long after the return the first message arrived, ms, and whether the session is the same.
fn return_of(run: &mut Run, outage: f64, link: usize) -> Result<(f64, bool)> {
    // Longer than a lost session's back-off.
    const LATEST: f64 = 40.0;
    let epoch =
        |run: &mut Run| Ok::<_, anyhow::Error>(run.edge.ask::<serde_json::Value>(Command::Stats)?["epoch"].clone());
    let before = epoch(run)?;
    let until = after(2.0 + outage + LATEST);
    run.edge.ask::<()>(Command::Beat { until })?;
    wait_until(after(2.0));
    for each in 0..LINKS.len() {
        run.apply(each, Action::BlackHole)?;
    }
    wait_until(after(outage));
    let back = now();
    run.apply(link, Action::Restore)?;
    loop {
        wait_until(after(0.5));
        let heard: Seen = run.hub.ask(Command::Heard(Window { from: back, to: until }))?;
        if heard.first > 0 {
            return Ok(((heard.first - back) as f64 / 1e6, epoch(run)? == before));
        }
        if now() > until {
            return Ok((f64::INFINITY, false));
        }
    }
}

fn two_of_three(plan: &Plan, figures: &mut Figures, world: World) -> Result<()> {
    let measured = measure((Place::Links(world), Contender::Kedge), plan.tries, |run| {
        let until = after(10.0);
        let begun = now();
        run.edge.ask::<()>(Command::Beat { until })?;
        wait_until(after(2.0));
        for link in [0, 2] {
            run.apply(link, Action::BlackHole)?;
        }
        wait_until(until);
        let window = Window { from: begun, to: until }.part(0.5, 9.5);
        Ok(run.hub.ask::<Seen>(Command::Heard(window))?.gap)
    })?;
    let what = "g5 and wifi dead: longest time without a message";
    let figure = Figure::new("S7", world.air.name(), "kedge".to_owned(), what, "ms").samples(vec![measured.value]);
    figures.push(
        figure
            .target(Some(Target::AtMost(320.0)))
            .invalid(reasons(&[measured.report])),
    );
    Ok(())
}
