//! A wall clock of edgecore's own (`clock.c`, put before the C library): the test machine's is not touched, and monotonic clocks go on as
//! they do. It can be set while edgecore runs, as an NTP daemon does it. Only the wall clock is another one; the times that the kernel
//! and containerd write are the test machine's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;

use crate::edge::Edge;
use crate::process::run;

/// What the clock says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// That it is the first minute of 1970, as on a machine without a battery that has just booted.
    Starts1970,
    /// The right time.
    Right,
}

/// A machine takes this long from its boot to edgecore's start.
const BOOTED: Duration = Duration::from_secs(20);

fn folder(edge: &Edge) -> PathBuf {
    edge.dir().join("etc")
}

/// Sets it; makes the library before the first time.
pub(crate) fn set(edge: &Edge, clock: Clock) -> Result<()> {
    let (etc, now) = (folder(edge), SystemTime::now().duration_since(UNIX_EPOCH)?);
    let library = etc.join("clock.so");
    if !library.exists() {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/clock.c");
        run(Command::new("cc")
            .args(["-shared", "-fPIC", "-O2", "-Wall", "-o"])
            .arg(library)
            .arg(source))?;
    }
    let behind = match clock {
        Clock::Starts1970 => now.saturating_sub(BOOTED).as_secs(),
        Clock::Right => 0,
    };
    // Renamed into place: it may be looked at at any moment.
    let next = etc.join("clock.next");
    fs::write(&next, format!("-{behind}\n"))?;
    Ok(fs::rename(next, etc.join("clock"))?)
}

/// `program` on the machine `edge`, with the clock that was set.
pub(crate) fn faked(edge: &Edge, program: &Path) -> Command {
    let at = |name: &str| folder(edge).join(name).display().to_string();
    let mut command = edge.command(Path::new("env"));
    command
        .arg(format!("LD_PRELOAD={}", at("clock.so")))
        .arg(format!("KEDGE_CLOCK={}", at("clock")))
        .arg(program);
    command
}
