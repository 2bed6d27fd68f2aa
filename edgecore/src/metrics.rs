//! What the process says of itself in Prometheus' text format.

use std::sync::Arc;

/// What another part says of itself in the same format.
#[derive(Clone)]
pub struct Source(Arc<dyn Fn() -> String + Send + Sync>);

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").finish_non_exhaustive()
    }
}

impl Source {
    /// Asked at each scrape.
    pub fn new(read: impl Fn() -> String + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    /// The process's own and this part's.
    pub fn with_process(&self) -> String {
        process() + &(self.0)()
    }
}

/// The families that every Prometheus client library gives.
pub fn process() -> String {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let resident = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok())
        .unwrap_or(0);
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|p| u64::try_from(p).ok());
    let files = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).ok();
    let seconds = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
    let cpu = usage.map_or(0.0, |u| seconds(u.user_time()) + seconds(u.system_time()));
    let version = crate::node::report::KUBELET_VERSION;
    format!(
        "# HELP kedge_build_info The version that runs.\n# TYPE kedge_build_info gauge\nkedge_build_info{{version=\"{version}\"}} 1\n\
         # HELP process_resident_memory_bytes Resident memory size in bytes.\n# TYPE process_resident_memory_bytes gauge\n\
         process_resident_memory_bytes {}\n\
         # HELP process_cpu_seconds_total Total user and system CPU time spent in seconds.\n# TYPE process_cpu_seconds_total counter\n\
         process_cpu_seconds_total {cpu}\n\
         # HELP process_open_fds Number of open file descriptors.\n# TYPE process_open_fds gauge\nprocess_open_fds {files}\n",
        resident.saturating_mul(page.unwrap_or(4096)),
    )
}
