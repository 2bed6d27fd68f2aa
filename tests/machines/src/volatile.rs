//! A disk with a volatile cache: what was written and not flushed is lost when the power goes.
//!
//! nbdkit's cache filter holds written blocks until the client flushes; killed with -9 it takes them along. A file would not do: the
//! host's page cache survives qemu's death, so a missing flush would never be seen.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use kit::process::{Daemon, run};
use kit::wait::State;
use kit::{Site, wait_for};
use nix::sys::signal::Signal;

const START: Duration = Duration::from_secs(60);

/// A raw disk behind nbdkit's cache filter.
#[derive(Debug)]
pub struct VolatileDisk {
    dir: PathBuf,
    name: String,
    nbdkit: Option<Daemon>,
}

impl VolatileDisk {
    /// Makes an empty ext4 of `mebibytes` and serves it.
    ///
    /// # Errors
    /// When it cannot be made, or nbdkit does not start.
    pub fn new(site: &Site, name: &str, mebibytes: u32) -> Result<Self> {
        let mut disk = Self {
            dir: site.dir().to_owned(),
            name: name.to_owned(),
            nbdkit: None,
        };
        let raw = disk.raw();
        let file = fs::File::create(&raw).with_context(|| format!("make {}", raw.display()))?;
        file.set_len(u64::from(mebibytes) * 1024 * 1024)?;
        run(Command::new("mke2fs").args(["-q", "-t", "ext4"]).arg(&raw))?;
        disk.power_on()?;
        Ok(disk)
    }

    fn raw(&self) -> PathBuf {
        self.dir.join(format!("{}.raw", self.name))
    }

    /// The socket that qemu reaches it at.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.join(format!("{}.nbd", self.name))
    }

    /// Serves it again, with an empty cache.
    ///
    /// # Errors
    /// When nbdkit does not start.
    pub fn power_on(&mut self) -> Result<()> {
        let socket = self.socket();
        // A dead one has left its socket.
        let _ = fs::remove_file(&socket);
        let mut command = Command::new("nbdkit");
        command
            .arg("--foreground")
            .arg("--unix")
            .arg(&socket)
            .args(["--filter=cache", "file"])
            .arg(self.raw())
            .args(["cache=writeback", "cache-min-block-size=4k"])
            // The cache is a file that has no name.
            .env("TMPDIR", &self.dir);
        let log = self.dir.join(format!("{}.log", self.name));
        let nbdkit = self.nbdkit.insert(Daemon::spawn("nbdkit", &mut command, &log)?);
        wait_for("nbdkit listens", START, || {
            if socket.exists() {
                State::Done(())
            } else {
                State::Not(nbdkit.tail())
            }
        })?;
        Ok(())
    }

    /// Holds it: nothing more is read or written.
    pub(crate) fn freeze(&self) {
        if let Some(nbdkit) = &self.nbdkit {
            nbdkit.signal(Signal::SIGSTOP);
        }
    }

    /// The power goes: what was not flushed is lost.
    pub(crate) fn power_off(&mut self) {
        self.nbdkit = None;
    }
}
