//! `pause`: the process that keeps a pod's sandbox, and with it the pod's namespaces.
//!
//! It reaps what is left to it as process 1 of a shared process namespace, and ends on SIGTERM or SIGINT. It does nothing else.

use std::process::ExitCode;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("-v") {
        println!("pause (Kedge) {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    // Blocked signals stay pending, also for a process 1, where unblocked ones without a handler are dropped by the kernel.
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD].into_iter().collect();
    if let Err(error) = signals.thread_block() {
        eprintln!("pause: block signals: {error}");
        return ExitCode::FAILURE;
    }
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => reap(),
            Ok(_) => return ExitCode::SUCCESS,
            Err(Errno::EINTR) => {}
            Err(error) => {
                eprintln!("pause: wait for a signal: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
}

/// Takes the status of every child that ended: one SIGCHLD may stand for many.
fn reap() {
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            return;
        }
    }
}
