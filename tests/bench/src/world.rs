//! What both suites stand on: the calling thread moves into the hub's network namespace, and its async runtime with it.
//!
//! Each suite runs on a thread of its own: a thread that has moved does not come back, and the kit's processes die with the
//! thread that started them.

use std::fs::File;
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use kit::Site;
use nix::sched::{CloneFlags, setns};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::runtime::Runtime;

/// Runs `suite` on a thread of its own.
///
/// # Errors
/// What `suite` says, or that it panicked.
pub(crate) fn on_own_thread<T: Send>(name: &str, suite: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let suite = scope.spawn(suite);
        suite
            .join()
            .map_err(|_| anyhow!("{name}: the measurement panicked; see above"))?
    })
}

/// Moves this thread into `site`'s hub namespace and gives a runtime whose threads are there too.
///
/// # Errors
/// When not root.
pub(crate) fn enter(site: &Site) -> Result<Runtime> {
    let path = format!("/run/netns/{}", site.namespace("hub"));
    let namespace = File::open(&path).with_context(|| format!("open {path}"))?;
    setns(&namespace, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {path}"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.context("start the async runtime")
}

/// A socket an edge here, a listener an edge at the hub, which inherits this limit.
///
/// # Errors
/// When the limit cannot be set.
pub(crate) fn raise_file_limit() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raise the limit of open files")
}
