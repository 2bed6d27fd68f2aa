//! The command: hunts in all targets, or in those that are named.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Parser;
use fuzz::hunt::{self, Hunt};
use fuzz::{Target, parent, targets};

/// Feeds Kedge's decoders with mangled bytes.
#[derive(Debug, Parser)]
struct Flags {
    /// Names the sequence of inputs.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long, all targets together.
    #[arg(long, default_value_t = 15.0)]
    seconds: f64,
    /// Only targets whose names begin so.
    #[arg(long)]
    target: Vec<String>,
    /// Folder of failing inputs, replayed first.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/regressions"))]
    regressions: PathBuf,
    /// Hunt in this target in this process.
    #[arg(long, hide = true)]
    child: Option<String>,
    /// Where the child leaves the input that it runs.
    #[arg(long, hide = true)]
    progress: Option<PathBuf>,
}

impl Flags {
    fn hunt(&self, target: &'static Target, share: f64) -> Hunt {
        Hunt {
            target,
            seed: self.seed,
            time: Duration::from_secs_f64(share),
            regressions: self.regressions.clone(),
        }
    }
}

fn main() -> Result<ExitCode> {
    let flags = Flags::parse();
    match &flags.child {
        Some(name) => child(&flags, name),
        None => all(&flags),
    }
}

fn all(flags: &Flags) -> Result<ExitCode> {
    let wanted = |target: &&Target| {
        flags.target.is_empty() || flags.target.iter().any(|name| target.name.starts_with(name.as_str()))
    };
    let mut chosen: Vec<&'static Target> = targets::ALL.iter().filter(wanted).collect();
    if chosen.is_empty() {
        chosen = flags.target.iter().filter_map(|name| Target::find(name)).collect();
    }
    anyhow::ensure!(!chosen.is_empty(), "there is no target {:?}", flags.target);
    let progress = std::env::temp_dir().join(format!("kedge-fuzz-{}", std::process::id()));
    let share = flags.seconds / chosen.len() as f64;
    let mut found = 0;
    for target in chosen {
        if !parent::run(&flags.hunt(target, share), &progress)? {
            found += 1;
        }
    }
    // It is there unless no target began.
    let _ = std::fs::remove_file(&progress);
    if found == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "{found} targets failed; their inputs are in {}",
        flags.regressions.display()
    );
    Ok(ExitCode::FAILURE)
}

fn child(flags: &Flags, name: &str) -> Result<ExitCode> {
    let target = Target::find(name).with_context(|| format!("there is no target {name}"))?;
    let hunt = flags.hunt(target, flags.seconds);
    let start = Instant::now();
    let (tally, found) = hunt::run(&hunt, flags.progress.as_deref())?;
    if let Some((failure, input)) = found {
        parent::report(&hunt, &failure, &input)?;
        // The worker may never end.
        std::process::exit(parent::FOUND);
    }
    println!(
        "{name:24} {:8} inputs {:6.0}/s  at most {:9} bytes held, {:4} a byte (of {})",
        tally.cases,
        tally.cases as f64 / start.elapsed().as_secs_f64(),
        tally.peak,
        tally.per_byte,
        target.per_byte,
    );
    Ok(ExitCode::SUCCESS)
}
