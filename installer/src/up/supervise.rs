//! `kedge supervise` (hidden): runs one service where there is no systemd, and starts it again when it ends.
//!
//! It records itself and its child by pid and start time. SIGTERM ends the child (SIGTERM, after 20 s SIGKILL) and then itself;
//! what the child started (containerd's shims) lives on.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use crate::up::service::{Process, Service};

/// What a drain of edgecore or the hub takes at most.
const STOP_WITHIN: Duration = Duration::from_secs(20);
/// A service that ran this long starts again at once.
const HEALTHY: Duration = Duration::from_secs(30);
/// Between two starts of one that does not stay up: doubled up to here.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to record this process; the child's record is beside it
    #[arg(long)]
    record: PathBuf,
    /// What to run, as JSON
    #[arg(long)]
    service: String,
}

pub(crate) async fn run(args: Args) -> Result<()> {
    // A session of its own: a closed terminal must not end it. It is no group's leader, so this cannot fail.
    nix::unistd::setsid().context("make a session")?;
    let service: Service = serde_json::from_str(&args.service).context("--service")?;
    let mut stop = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let me = Process::of(std::process::id().try_into()?).context("find this process in /proc")?;
    let mut backoff = Duration::from_secs(1);
    let mut recorded = false;
    loop {
        let begun = Instant::now();
        match start(&service) {
            Ok(mut child) => {
                record_child(&child, &args)?;
                if !recorded {
                    me.record(&args.record)?;
                    recorded = true;
                }
                tokio::select! {
                    biased;
                    _ = stop.recv() => return end(&mut child).await,
                    status = child.wait() => eprintln!("kedge supervise: {} ended: {}", service.name, describe(status)),
                }
            }
            Err(error) if recorded => eprintln!("kedge supervise: {error:#}"),
            Err(error) => return Err(error),
        }
        backoff = if begun.elapsed() > HEALTHY {
            Duration::from_secs(1)
        } else {
            backoff
        };
        tokio::select! {
            biased;
            _ = stop.recv() => return Ok(()),
            () = tokio::time::sleep(backoff) => {}
        }
        backoff = (backoff * 2).min(MAX_BACKOFF);
    }
}

fn describe(status: std::io::Result<std::process::ExitStatus>) -> String {
    status.map_or_else(|error| error.to_string(), |status| status.to_string())
}

fn start(service: &Service) -> Result<Child> {
    Command::new(&service.program)
        .args(&service.args)
        .env_clear()
        .envs(service.env.iter().cloned())
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("start {}", service.program.display()))
}

fn record_child(child: &Child, args: &Args) -> Result<()> {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    // One that ended already needs no record.
    match pid.and_then(Process::of) {
        Some(process) => process.record(&args.record.with_extension("child")),
        None => Ok(()),
    }
}

async fn end(child: &mut Child) -> Result<()> {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        // Not reaped yet, so the pid is the child's.
        let _ = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    if timeout(STOP_WITHIN, child.wait()).await.is_err() {
        child.kill().await.context("kill the service")?;
    }
    Ok(())
}
