//! The API's Service address on this machine's loopback, so that pods reach the embedded API where every client looks for it.
//!
//! Only an address that `up` has added is removed by `--down`: a note beside the services says so.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::files;
use crate::up::layout::{API_ADDRESS, Layout};

fn note(layout: &Layout) -> PathBuf {
    layout.services().join("address")
}

fn ip(args: &[&str]) -> Result<String> {
    let done = Command::new("ip").args(args).output().context("run ip")?;
    if !done.status.success() {
        bail!(
            "ip {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&done.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// Adds the address unless it is there.
pub(super) fn ensure(layout: &Layout) -> Result<()> {
    if ip(&["-o", "address", "show", "to", API_ADDRESS])?.is_empty() {
        files::write(&note(layout), API_ADDRESS.as_bytes(), 0o600)?;
        ip(&["address", "add", &format!("{API_ADDRESS}/32"), "dev", "lo"])?;
    }
    Ok(())
}

/// Removes the address if [`ensure`] has added it.
pub(super) fn remove(layout: &Layout) {
    if note(layout).exists() {
        // It may be gone after a reboot.
        let _ = ip(&["address", "del", &format!("{API_ADDRESS}/32"), "dev", "lo"]);
    }
}
