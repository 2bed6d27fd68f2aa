//! Starts a process a target, so that a stack overflow or an abort costs one target and leaves its input behind.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::hunt::{self, Failure, Hunt};

/// Exit code of a process that found a failure and has said so.
pub const FOUND: i32 = 1;

/// Hunts in a process of its own; whether nothing was found.
///
/// # Errors
/// When the process cannot be started, or ends in a way that says nothing.
pub fn run(hunt: &Hunt, progress: &Path) -> Result<bool> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["--child", hunt.target.name])
        .args(["--seed", &hunt.seed.to_string()])
        .args(["--seconds", &hunt.time.as_secs_f64().to_string()])
        .arg("--regressions")
        .arg(&hunt.regressions)
        .arg("--progress")
        .arg(progress);
    let status = command.status().context("start a process for a target")?;
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(true),
        (Some(FOUND), _) => Ok(false),
        (_, Some(signal)) => {
            let input = std::fs::read(progress).context("it died before its first input")?;
            let failure = Failure {
                kind: "death",
                what: format!("the process died of signal {signal}: a stack overflow, or an abort"),
            };
            report(hunt, &failure, &input)?;
            Ok(false)
        }
        _ => anyhow::bail!("the process of {} ended with {status}", hunt.target.name),
    }
}

/// Keeps the input and says what it did.
///
/// # Errors
/// When it cannot be written.
pub fn report(hunt: &Hunt, failure: &Failure, input: &[u8]) -> Result<()> {
    let path = hunt::keep(hunt, failure, input)?;
    let start: String = String::from_utf8_lossy(input).chars().take(300).collect();
    println!("{}: {}: {}", hunt.target.name, failure.kind, failure.what);
    println!("  {} bytes in {}: {start:?}", input.len(), path.display());
    Ok(())
}
