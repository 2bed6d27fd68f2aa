//! Measures the budgets of design.md §4 on this machine: real programs, a real containerd, real Kubernetes.
//!
//! * [`node`]: one edge machine, above both APIs
//! * [`scale`]: many simulated edges below one hub
//! * [`links`]: several bad uplinks, beside what else bonds them
//! * [`table`]: rows, their arithmetic, the table, the JSON; [`proc`], [`traffic`], [`elf`]: what is read where
//!
//! `tests/bench/run` builds what is measured and says where it is (`KEDGE_BIN`).

mod api;
mod elf;
mod links;
mod node;
mod proc;
mod raw;
mod scale;
mod table;
mod traffic;
mod world;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Measures Kedge's budgets.
#[derive(Debug, Parser)]
#[command(version)]
struct Flags {
    #[command(subcommand)]
    suite: Suite,
    /// Less of everything: to try the measurements, not to quote them
    #[arg(long, global = true)]
    quick: bool,
    /// Where the figures go, as JSON
    #[arg(long, global = true)]
    json: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Suite {
    /// One edge machine, above kube-apiserver and above the embedded API
    Node {
        /// Above this API alone
        #[arg(long)]
        above: Option<scale::Above>,
    },
    /// Simulated edges (real protocol code, store in memory) below one hub: 1 000 above kube-apiserver and above the embedded API
    Scale {
        /// And 10 000 above a recorded watch feed
        #[arg(long, conflicts_with = "quick")]
        full: bool,
        /// Above this alone
        #[arg(long)]
        above: Option<scale::Above>,
        /// So many edges, in the place of 1 000, or of 10 000 above the feed (200 with --quick)
        #[arg(long)]
        edges: Option<usize>,
        /// Only what edges cost the hub in memory
        #[arg(long)]
        memory: bool,
    },
    /// Several bad uplinks as one, beside quinn over one of them and the kernel's MPTCP
    Links {
        /// What is quoted, which takes an hour and a half; without --quick it is the same
        #[arg(long, conflicts_with = "quick")]
        full: bool,
        /// Only these
        #[arg(long, value_delimiter = ',')]
        only: Vec<links::Scenario>,
        /// How long each run of S1 and S2 is, seconds
        #[arg(long)]
        seconds: Option<f64>,
        /// Of S1, S2 and S4 only the kernel's TCP inside
        #[arg(long)]
        inner: bool,
        /// What tests/run asks for, at low rates
        #[arg(long, hide = true)]
        gate: bool,
    },
    /// One end of a measurement of links
    #[command(hide = true)]
    End,
}

fn main() -> Result<ExitCode> {
    let flags = Flags::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "error".into()))
        .with_writer(std::io::stderr)
        .init();
    // One provider for all TLS here; an error says that it is set already.
    let _ = tunnel::tls::provider().as_ref().clone().install_default();
    world::raise_file_limit()?;
    let rows = match flags.suite {
        Suite::End => return links::end::run().map(|()| ExitCode::SUCCESS),
        Suite::Links {
            ref only,
            seconds,
            inner,
            gate,
            ..
        } => {
            let mut plan = match (gate, flags.quick) {
                (true, _) => links::plan::Plan::gate(),
                (_, true) => links::plan::Plan::quick(),
                _ => links::plan::Plan::full(),
            };
            if inner {
                plan = plan.only_inner();
            }
            plan.bulk_seconds = seconds.unwrap_or(plan.bulk_seconds);
            write(&flags, &links::report(&plan, only, &about(&flags)?)?)?;
            return Ok(ExitCode::SUCCESS);
        }
        Suite::Node { above } => node::run(node::Extent::new(flags.quick), above)?,
        Suite::Scale {
            full,
            above,
            edges,
            memory,
        } => scale::run(scale::Plan {
            quick: flags.quick,
            full,
            only: above,
            edges,
            memory,
        })?,
    };
    let about = about(&flags)?;
    println!("{}", about["text"].as_str().unwrap_or_default());
    print!("{}", table::render(&rows));
    write(&flags, &table::to_json(&about, &rows))?;
    let missed = !flags.quick && rows.iter().any(|row| row.is_met() == Some(false));
    Ok(if missed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Writes the figures where they are wanted.
fn write(flags: &Flags, figures: &Value) -> Result<()> {
    match &flags.json {
        Some(path) => fs::write(path, format!("{figures:#}\n")).with_context(|| format!("write {}", path.display())),
        None => Ok(()),
    }
}

/// When, where, and of what.
fn about(flags: &Flags) -> Result<Value> {
    let date = OffsetDateTime::now_utc().format(&Rfc3339)?;
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find(|line| line.starts_with("model name"));
    let model = model
        .and_then(|line| line.split_once(": "))
        .map_or("", |(_, name)| name);
    let cores = std::thread::available_parallelism()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let (kernel, load) = (kernel.trim(), fs::read_to_string("/proc/loadavg").unwrap_or_default());
    let bin = std::env::var("KEDGE_BIN").unwrap_or_default();
    let quick = if flags.quick { ", --quick" } else { "" };
    let text = format!("{date}, {cores} cores of {model}, Linux {kernel}, programs of {bin}{quick}");
    Ok(json!({
        "text": text, "date": date, "cores": cores.get(), "cpu": model, "kernel": kernel, "bin": bin,
        "quick": flags.quick, "suite": format!("{:?}", flags.suite), "load": load.trim(),
    }))
}
