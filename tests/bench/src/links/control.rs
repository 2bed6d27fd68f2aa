//! S5: 50 requests a second of 256 bytes and a pod spec of 64 KiB a second, with and without bulk beside them.

use anyhow::Result;
use serde_json::Value;

use super::contender::Contender;
use super::figures::{Figure, Figures, Target};
use super::plan::{Plan, reasons};
use super::sink::share;
use super::site::{Place, Run, after, measure, wait_until};
use super::talk::{Asked, Command, Load};
use super::world::{Air, BEST_RTT, World};

/// Until the paths know their links, seconds.
const SETTLE: f64 = 2.0;

/// One condition.
#[derive(Debug, Clone, Copy)]
struct Condition {
    world: World,
    bulk: bool,
    /// Pod specs beside, on the same stream where there is one.
    specs: bool,
    seconds: f64,
}

/// Echoes, and copies a message.
type Outcome = (Asked, Option<f64>);

impl Condition {
    fn run(self, run: &mut Run) -> Result<Outcome> {
        let until = after(SETTLE + self.seconds);
        if self.bulk {
            let load = Load::Datagrams;
            run.edge.ask::<()>(Command::Flood { load, until })?;
        }
        wait_until(after(SETTLE));
        let before: Value = run.edge.ask(Command::Stats)?;
        if self.specs {
            run.hub.ask::<()>(Command::Specs { until })?;
        }
        let asked: Asked = run.edge.ask(Command::Ask { until })?;
        let stats: Value = run.edge.ask(Command::Stats)?;
        let grown = |field: &str| Some((stats[field].as_u64()? - before[field].as_u64()?) as f64);
        let copies = grown("copies")
            .zip(grown("messages"))
            .map(|(copies, messages)| copies / messages);
        Ok((asked, copies))
    }
}

/// All conditions.
pub(crate) fn conditions(plan: &Plan, figures: &mut Figures) -> Result<()> {
    let condition = |air, bulk, specs| Condition {
        world: plan.world(air),
        bulk,
        specs,
        seconds: plan.control_seconds,
    };
    for (air, bulk) in &plan.conditions {
        one(plan, figures, condition(*air, *bulk, true), Contender::Kedge)?;
    }
    for air in &plan.compared {
        let link = 0;
        let mut contenders = vec![Contender::Tcp {
            link,
            congestion: "cubic",
        }];
        if plan.baselines {
            contenders.push(Contender::Quinn {
                link,
                congestion: "cubic",
            });
            contenders.push(Contender::Mptcp { congestion: "bbr" });
        }
        // Without pod specs: on their one stream requests would wait for them.
        for contender in contenders {
            let condition = Condition {
                seconds: plan.compared_seconds,
                ..condition(*air, false, false)
            };
            one(plan, figures, condition, contender)?;
        }
    }
    Ok(())
}

fn one(plan: &Plan, figures: &mut Figures, condition: Condition, contender: Contender) -> Result<()> {
    let (air, bulk) = (condition.world.air, condition.bulk);
    let measured = measure((Place::Links(condition.world), contender), plan.tries, |run| {
        condition.run(run)
    })?;
    let (asked, copies) = measured.value;
    let beside = match (bulk, condition.specs) {
        (true, _) => ", beside bulk and specs",
        (false, true) => ", beside specs",
        (false, false) => "",
    };
    let figure = |what: String, unit| {
        let figure = Figure::new("S5", air.name(), contender.name(), &what, unit);
        figure.invalid(reasons(std::slice::from_ref(&measured.report)))
    };
    let p99 = share(&asked.times, 0.99);
    let [p50, p90, p999] = [0.5, 0.9, 0.999].map(|q| share(&asked.times, q));
    let note = format!(
        "of {} echoes; p50 {p50:.1}, p90 {p90:.1}, p99.9 {p999:.1} ms; {} lost",
        asked.times.len(),
        asked.lost
    );
    // 2.1 round trips of the best link; 35 in S2; 15 more beside bulk.
    let most = if air == Air::Lossy { 35.0 } else { 2.1 * BEST_RTT } + if bulk { 15.0 } else { 0.0 };
    let target = contender.is_kedge().then_some(Target::AtMost(most));
    figures.push(
        figure(format!("echo p99{beside}"), "ms")
            .samples(vec![p99])
            .target(target)
            .note(note),
    );
    if condition.specs {
        let name = if bulk {
            "64 KiB spec p99, beside bulk"
        } else {
            "64 KiB spec p99"
        };
        let specs = figure(name.to_owned(), "ms").samples(vec![share(&asked.specs, 0.99)]);
        figures.push(specs.note(format!("of {}, one way", asked.specs.len())));
    }
    if let Some(copies) = copies {
        figures.push(figure(format!("copies a message{beside}"), "").samples(vec![copies]));
    }
    Ok(())
}
