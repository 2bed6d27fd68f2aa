//! S1, S2, S3: what one load gets of three links, from the edge or to it.

use anyhow::Result;
use linkem::run::{Report, Sample};

use super::child::Child;
use super::contender::Contender;
use super::figures::{Figure, Figures, Target};
use super::packet::MTU;
use super::plan::{Plan, reasons};
use super::sink::{Seen, Window, share};
use super::site::{Measured, Place, Run, after, measure, wait_until};
use super::talk::{Command, Load};
use super::world::{Air, Way, World};

/// What came out of a run.
#[derive(Debug, Clone)]
struct Bulk {
    megabits: f64,
    /// Of the limit.
    share: f64,
    /// Of what the edge's paths sent, what did not become a packet that arrived; and what of it was lost on the air.
    wasted: Option<(f64, f64)>,
    /// CPU time of both ends.
    cores: f64,
    seen: Seen,
    /// Where a flow inside stood at its end; null of others.
    inner: serde_json::Value,
}

/// One load over three links.
#[derive(Debug, Clone, Copy)]
struct Task {
    world: World,
    contender: Contender,
    load: Load,
    way: Way,
    seconds: f64,
}

impl Task {
    fn measure(self, tries: usize) -> Result<Measured<Bulk>> {
        measure((Place::Links(self.world), self.contender), tries, |run| self.run(run))
    }

    fn run(self, run: &mut Run) -> Result<Bulk> {
        let before = run.cpu()?;
        let until = after(self.seconds);
        let window = Window {
            from: super::talk::now(),
            to: until,
        };
        let load = self.load;
        let flood = Command::Flood { load, until };
        match self.way {
            Way::Up => run.edge.ask::<()>(flood)?,
            Way::Down => run.hub.ask::<()>(flood)?,
        }
        wait_until(until);
        let inner = match self.contender {
            Contender::Inner { .. } => run.edge.ask(Command::Stats)?,
            _ => serde_json::Value::Null,
        };
        let seen = |receiver: &mut Child| receiver.ask::<Seen>(Command::Seen(window));
        let cores = (run.cpu()? - before) / window.seconds();
        let seen = match self.way {
            Way::Up => seen(&mut run.hub)?,
            Way::Down => seen(&mut run.edge)?,
        };
        // Of what the edge sends, and of packets that are counted one by one.
        let is_counted = self.way == Way::Up && !self.contender.is_over_tunnel();
        let stats = if is_counted {
            run.edge_stats()?
        } else {
            serde_json::Value::Null
        };
        let since = |at: u64| at.saturating_sub(run.begun);
        let limit = self.world.limit(self.way, (since(window.from), since(window.to)));
        let megabits = seen.megabits(window.seconds());
        Ok(Bulk {
            megabits,
            share: megabits / (limit * self.contender.payload().share()) * 100.0,
            wasted: wasted(&stats, seen),
            cores,
            seen,
            inner,
        })
    }
}

/// By the sender's own counts: all bytes that it sent, less those that arrived as packets.
fn wasted(stats: &serde_json::Value, seen: Seen) -> Option<(f64, f64)> {
    let sum = |field: &str| {
        let paths = stats["paths"].as_array()?;
        Some(paths.iter().filter_map(|path| path[field].as_u64()).sum::<u64>() as f64)
    };
    let (sent, lost) = (sum("sent")?, sum("lostPackets")? / sum("sentPackets")?);
    let arrived = seen.packets as f64 * (MTU + 16) as f64;
    Some(((1.0 - arrived / sent) * 100.0, lost * 100.0))
}

/// All runs of one task, a figure's worth.
struct Runs {
    bulks: Vec<Bulk>,
    reports: Vec<Report>,
}

fn runs(plan: &Plan, task: Task) -> Result<Runs> {
    let count = plan.repetitions(task.contender);
    let mut runs = Runs {
        bulks: Vec::new(),
        reports: Vec::new(),
    };
    for number in 0..count {
        let mut task = task;
        task.world.seed += number as u64;
        let measured = task.measure(plan.tries)?;
        runs.bulks.push(measured.value);
        runs.reports.push(measured.report);
    }
    Ok(runs)
}

impl Runs {
    fn samples(&self, of: impl Fn(&Bulk) -> f64) -> Vec<f64> {
        self.bulks.iter().map(of).collect()
    }

    fn median(&self, of: impl Fn(&Bulk) -> f64) -> f64 {
        share(&sorted(self.samples(of)), 0.5)
    }

    fn note(&self) -> String {
        let (megabits, cores) = (self.median(|bulk| bulk.megabits), self.median(|bulk| bulk.cores));
        let idle = self.reports.iter().map(|report| report.cpu_idle).fold(1.0, f64::min) * 100.0;
        let each = cores / megabits * 1000.0;
        let inner = |field: &str| self.median(|bulk| bulk.inner[field].as_f64().unwrap_or_default());
        let flow = match self.bulks.first() {
            Some(bulk) if bulk.inner["error"].is_string() => format!(", inside: {}", bulk.inner["error"]),
            Some(bulk) if !bulk.inner.is_null() => format!(
                ", inside {:.0} ms (least {:.0}), window {:.0} kB, {:.0} repeats",
                inner("rttMs"),
                inner("leastMs"),
                inner("windowKb"),
                inner("repeats")
            ),
            _ => String::new(),
        };
        format!("{megabits:.1} Mbit/s, {each:.2} core-s/Gbit, CPU idle {idle:.0} %{flow}")
    }
}

fn sorted(mut samples: Vec<f64>) -> Vec<f64> {
    samples.sort_by(f64::total_cmp);
    samples
}

/// The baselines of aggregation: quinn over the best link, MPTCP over all.
const BASELINES: [Contender; 4] = [
    Contender::Quinn {
        link: 0,
        congestion: "cubic",
    },
    Contender::Quinn {
        link: 0,
        congestion: "bbr",
    },
    Contender::Mptcp { congestion: "bbr" },
    Contender::Mptcp { congestion: "cubic" },
];

/// S1 and S2: `air` and its target, % of the limit, of plain datagrams.
pub(crate) fn aggregate(plan: &Plan, figures: &mut Figures, (air, target): (Air, f64)) -> Result<()> {
    let scenario = if air == Air::Clean { "S1" } else { "S2" };
    let world = plan.world(air);
    let task = |contender, load| Task {
        world,
        contender,
        load,
        way: Way::Up,
        seconds: plan.bulk_seconds,
    };
    let figure = |who: &str, what: &str| Figure::new(scenario, air.name(), who.to_owned(), what, "% of limit").more();
    for (load, what) in [(Load::Datagrams, "datagrams"), (Load::Ordered, "packets in order")] {
        if !plan.plain {
            continue;
        }
        let runs = runs(plan, task(Contender::Kedge, load))?;
        let shares = figure("kedge", what)
            .samples(runs.samples(|bulk| bulk.share))
            .note(runs.note());
        figures.push(
            shares
                .target(Some(Target::AtLeast(target)))
                .invalid(reasons(&runs.reports)),
        );
        waste(figures, (scenario, air), what, &runs);
    }
    for (congestion, target) in [("cubic", if air == Air::Clean { 92.0 } else { 88.0 }), ("bbr", 80.0)] {
        let contender = Contender::Inner { congestion };
        if !plan.inner {
            continue;
        }
        let runs = runs(plan, task(contender, Load::Datagrams))?;
        let shares = figure(&contender.name(), "one flow").samples(runs.samples(|bulk| bulk.share));
        let shares = shares.target(Some(Target::AtLeast(target))).note(runs.note());
        figures.push(shares.invalid(reasons(&runs.reports)));
    }
    if !plan.baselines || air == Air::Bursts {
        return Ok(());
    }
    for contender in BASELINES {
        let runs = runs(plan, task(contender, Load::Datagrams))?;
        let shares = figure(&contender.name(), "bulk").samples(runs.samples(|bulk| bulk.share));
        figures.push(shares.note(runs.note()).invalid(reasons(&runs.reports)));
    }
    Ok(())
}

/// What was sent for nothing, and what was seen of losses inside.
fn waste(figures: &mut Figures, (scenario, air): (&'static str, Air), what: &str, runs: &Runs) {
    let figure = |what: &str, unit| Figure::new(scenario, air.name(), "kedge".to_owned(), what, unit);
    let wasted: Vec<(f64, f64)> = runs.bulks.iter().filter_map(|bulk| bulk.wasted).collect();
    let lost = wasted.iter().map(|(_, lost)| *lost).fold(0.0, f64::max);
    let figure_of_waste = figure(&format!("{what}: bytes wasted"), "%")
        .samples(wasted.iter().map(|(wasted, _)| *wasted).collect())
        .target(Some(Target::AtMost(lost + 3.0)))
        .note("what is on its way at the end counts as wasted");
    figures.push(figure_of_waste.invalid(reasons(&runs.reports)));
    let missing = figure(&format!("{what}: missing or late inside"), "packets")
        .samples(runs.samples(|bulk| bulk.seen.missing as f64 + bulk.seen.late as f64));
    let note = format!("{:.0} of them missing", runs.median(|bulk| bulk.seen.missing as f64));
    figures.push(missing.note(note).invalid(reasons(&runs.reports)));
}

/// S3: one trace, uplink or downlink.
pub(crate) fn trace(plan: &Plan, figures: &mut Figures, number: u64, way: Way) -> Result<()> {
    let air = Air::Lte {
        trace: number,
        lossy: false,
    };
    let name = match way {
        Way::Up => "uplink",
        Way::Down => "downlink",
    };
    let contenders = [Contender::Kedge].into_iter().chain(BASELINES);
    for contender in contenders.take(if plan.baselines { 5 } else { 1 }) {
        let task = Task {
            world: plan.world(air),
            contender,
            load: Load::Datagrams,
            way,
            seconds: plan.trace_seconds,
        };
        let runs = runs(plan, task)?;
        let ours = |target| contender.is_kedge().then_some(target);
        let figure = |what: String, unit| Figure::new("S3", air.name(), contender.name(), &what, unit);
        let shares = figure(format!("{name}, trace {number}"), "% of limit").more();
        let shares = shares.samples(runs.samples(|bulk| bulk.share)).note(runs.note());
        figures.push(
            shares
                .target(ours(Target::AtLeast(88.0)))
                .invalid(reasons(&runs.reports)),
        );
        let delays = figure(format!("{name}, trace {number}: added delay p95"), "ms");
        let delays = delays.samples(runs.reports.iter().map(|report| queue_p95(report, way)).collect());
        let note = "of the medians of 100 ms of each link";
        figures.push(
            delays
                .target(ours(Target::AtMost(150.0)))
                .note(note)
                .invalid(reasons(&runs.reports)),
        );
    }
    Ok(())
}

/// The p95 of the waits in the links' queues, by packets.
fn queue_p95(report: &Report, way: Way) -> f64 {
    let side = |sample: &Sample| {
        let side = usize::from(way == Way::Down);
        let links = sample.links.iter().map(move |link| link[side]);
        links
            .flat_map(|link| std::iter::repeat_n(link.queue.p50_us / 1000.0, link.arrived as usize))
            .collect::<Vec<_>>()
    };
    share(&sorted(report.samples.iter().flat_map(side).collect()), 0.95)
}
