//! The command: runs a scenario, makes a trace, or says whether this machine is quick enough.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use linkem::run::{Emulation, Report, Scenario, control, selftest};
use linkem::{Lte, units};
use nix::sys::signal::{SigSet, Signal};

/// Emulates bad links between network namespaces.
#[derive(Debug, Parser)]
#[command(version)]
struct Flags {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Emulates a scenario until its time is over, SIGTERM, or `stop`; prints `ready` when packets pass
    Run(Run),
    /// Prints an LTE-like trace in mahimahi's format
    Trace(Trace),
    /// Measures this machine; ends with 1 if it is too slow for figures
    Selftest,
}

#[derive(Debug, Args)]
struct Run {
    /// JSON or YAML
    scenario: PathBuf,
    /// Take commands from stdin, answer each on stdout, and end when stdin does
    #[arg(long)]
    commands: bool,
    /// Where the report goes, as JSON, in the place of stdout
    #[arg(long)]
    report: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Trace {
    #[arg(long, default_value_t = Lte::default().seed)]
    seed: u64,
    /// The rate over the whole length
    #[arg(long, default_value = "12Mbit", value_parser = units::rate)]
    mean: u64,
    #[arg(long, default_value = "120s", value_parser = units::duration)]
    length: u64,
    /// Deviation of the rate's logarithm
    #[arg(long, default_value_t = Lte::default().volatility)]
    volatility: f64,
    /// How many times a minute nothing is sent
    #[arg(long, default_value_t = Lte::default().outages)]
    outages: f64,
    /// The longest of these times
    #[arg(long, default_value = "900ms", value_parser = units::duration)]
    outage: u64,
}

fn main() -> Result<ExitCode> {
    match Flags::parse().command {
        Command::Run(flags) => run(&flags).map(|()| ExitCode::SUCCESS),
        Command::Trace(flags) => trace(&flags).map(|()| ExitCode::SUCCESS),
        Command::Selftest => test_machine(),
    }
}

fn run(flags: &Run) -> Result<()> {
    // Before any thread is made, so that all of them leave these signals to the one that waits for them.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?;
    let emulation = Arc::new(Emulation::start(Scenario::load(&flags.scenario)?)?);
    println!(
        "ready edge={} router={} hub={}",
        emulation.edge(),
        emulation.router(),
        emulation.hub()
    );
    io::stdout().flush()?;
    let for_signals = Arc::clone(&emulation);
    // Neither of these two threads can be woken: they end with the process.
    thread::spawn(move || {
        let _ = signals.wait();
        for_signals.end();
    });
    if flags.commands {
        let for_commands = Arc::clone(&emulation);
        thread::spawn(move || {
            // A reader that is gone, or a writer, ends the emulation as the end of the commands does.
            let _ = control::serve(&for_commands, io::stdin().lock(), io::stdout());
            for_commands.end();
        });
    }
    emulation.wait();
    let report = emulation.stop()?;
    write(&report, flags.report.as_ref())
}

fn write(report: &Report, file: Option<&PathBuf>) -> Result<()> {
    match file {
        None => println!("{}", serde_json::to_string(report)?),
        Some(path) => {
            let file = File::create(path).with_context(|| format!("{}", path.display()))?;
            let mut writer = BufWriter::new(file);
            serde_json::to_writer(&mut writer, report)?;
            writer.flush()?;
        }
    }
    for reason in &report.invalid {
        eprintln!("linkem: this run is invalid: {reason}");
    }
    Ok(())
}

fn trace(flags: &Trace) -> Result<()> {
    let Trace {
        seed,
        mean,
        length,
        volatility,
        outages,
        outage,
    } = *flags;
    let lte = Lte {
        seed,
        mean,
        length,
        volatility,
        outages,
        outage,
        ..Lte::default()
    };
    lte.validate()?;
    print!("{}", lte.trace());
    Ok(())
}

fn test_machine() -> Result<ExitCode> {
    let measures = selftest::measure()?;
    for measure in &measures {
        println!("{measure}");
    }
    if measures.iter().all(selftest::Measure::is_met) {
        println!("this machine is quick enough");
        return Ok(ExitCode::SUCCESS);
    }
    println!("this machine is too slow, or too busy: what is measured on it now is the machine");
    Ok(ExitCode::FAILURE)
}
