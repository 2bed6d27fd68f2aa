//! S8: how fast one tunnel is, and what it costs, where nothing but the CPU limits it.

use std::fs;

use anyhow::{Context as _, Result};

use super::contender::Contender;
use super::figures::{Figure, Figures, Target};
use super::plan::Plan;
use super::sink::{Seen, Window};
use super::site::{Place, Run, after, measure, wait_until};
use super::talk::{Command, Load, now};
use super::wireguard;

/// Until TCP has opened its window, seconds.
const RAMP: f64 = 1.0;

/// Above this share of CPU time before a run begins, others' work would be counted as its own.
const BUSY: f64 = 0.1;

/// Why what is measured now would not count, if so.
fn is_busy() -> Result<Option<String>> {
    let (before, from) = (busy()?, now());
    wait_until(after(1.0));
    let seconds = Window { from, to: now() }.seconds();
    let share = (busy()? - before) / seconds / std::thread::available_parallelism()?.get() as f64;
    Ok((share > BUSY).then(|| format!("{:.0} % of the CPU time were others' before it began", share * 100.0)))
}

/// Gbit/s, and core-s/Gbit of the whole machine, on which nothing else runs: what the kernel does for others' packets is nobody's time.
fn speed_of(run: &mut Run, seconds: f64) -> Result<(f64, f64)> {
    let (begun, until) = (now(), after(RAMP + seconds));
    let load = Load::Datagrams;
    run.edge.ask::<()>(Command::Flood { load, until })?;
    wait_until(begun + (RAMP * 1e9) as u64);
    let (from, before) = (now(), busy()?);
    wait_until(until);
    let cores = busy()? - before;
    let window = Window { from, to: until };
    let seen: Seen = run.hub.ask(Command::Seen(window))?;
    let gigabits = seen.megabits(window.seconds()) / 1000.0;
    Ok((gigabits, cores / (gigabits * window.seconds())))
}

/// Seconds of all CPUs that were not idle.
fn busy() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("/proc/stat's first line")?;
    let ticks: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .take(8)
        .filter_map(|word| word.parse().ok())
        .collect();
    let all: u64 = ticks.iter().sum();
    let idle = ticks
        .get(3)
        .zip(ticks.get(4))
        .map(|(idle, wait)| idle + wait)
        .context("idle ticks")?;
    let hertz = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("ticks a second")?;
    Ok((all - idle) as f64 / hertz as f64)
}

/// S8.
pub(crate) fn speed(plan: &Plan, figures: &mut Figures) -> Result<()> {
    let mut contenders = vec![
        (Contender::Kedge, "packets of the bench"),
        (Contender::Inner { congestion: "cubic" }, "one flow"),
        (
            Contender::Quinn {
                link: 0,
                congestion: "bbr",
            },
            "datagrams",
        ),
        (
            Contender::Quinn {
                link: 0,
                congestion: "cubic",
            },
            "datagrams",
        ),
    ];
    contenders.retain(|(contender, _)| plan.inner || !matches!(contender, Contender::Inner { .. }));
    match wireguard::program().exists() {
        true => contenders.push((Contender::WireGuard { congestion: "cubic" }, "one flow")),
        false => eprintln!(
            "  S8 without boringtun: {} is not there",
            wireguard::program().display()
        ),
    }
    for (contender, what) in contenders {
        let (mut runs, mut invalid) = (Vec::new(), Vec::new());
        for _ in 0..plan.repetitions(contender) {
            invalid.extend(is_busy()?);
            let measured = measure((Place::Cable, contender), 1, |run| speed_of(run, plan.cable_seconds))?;
            runs.push(measured.value);
        }
        let name = match contender {
            Contender::Quinn { congestion, .. } => format!("quinn {congestion}"),
            other => other.name(),
        };
        let figure = |what: &str, unit| Figure::new("S8", "a cable", name.clone(), what, unit).invalid(invalid.clone());
        let ours = |target| contender.is_kedge().then_some(target);
        let rates = figure(what, "Gbit/s")
            .more()
            .samples(runs.iter().map(|run| run.0).collect());
        figures.push(rates.target(ours(Target::AtLeast(1.2))));
        let cores = figure(&format!("{what}: CPU"), "core-s/Gbit").samples(runs.iter().map(|run| run.1).collect());
        figures.push(cores.target(ours(Target::AtMost(0.9))).note("of the whole machine"));
    }
    Ok(())
}
