//! The one place with `unsafe`: a child that dies with the thread that made it.
#![expect(
    unsafe_code,
    reason = "pre_exec runs in the forked child; only prctl is called there"
)]

use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::prctl;
use nix::sys::signal::Signal;

/// Makes `command`'s process get SIGKILL when the calling thread ends, so that a crashed test leaves nothing running.
pub(crate) fn die_with_parent(command: &mut Command) -> &mut Command {
    // SAFETY: prctl(PR_SET_PDEATHSIG) is async-signal-safe and touches no memory of the parent.
    unsafe {
        command.pre_exec(|| {
            prctl::set_pdeathsig(Signal::SIGKILL).map_err(std::io::Error::from)?;
            Ok(())
        })
    }
}
