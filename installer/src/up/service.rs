//! Services in the background: systemd units where systemd runs, else `kedge supervise`.
//!
//! What a service should be is written down (unit or JSON) with the fingerprint of its program; `ensure` starts it, restarts it when that
//! changed, and leaves it alone otherwise. A process is known by pid *and* start time, so that a reused pid is never signalled.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::files;
use crate::up::layout::Layout;

/// In the order in which they are stopped.
pub(super) const ALL: [&str; 3] = ["edgecore", "cloudhub", "containerd"];
/// The supervisor gives its service 20 s.
const STOP_WITHIN: Duration = Duration::from_secs(30);
const UNITS: &str = "/etc/systemd/system";

/// A process that should run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Service {
    pub(super) name: String,
    pub(super) program: PathBuf,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<(String, String)>,
    pub(super) log: PathBuf,
    /// An address that must be on the loopback before it starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) address: Option<String>,
}

/// A process, by pid and start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pid: i32,
    started: u64,
}

impl Process {
    /// The running process with this pid.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let rest = stat.rsplit_once(')')?.1;
        let mut fields = rest.split_whitespace();
        if fields.next()? == "Z" {
            return None;
        }
        // Field 22 of proc(5); the state was field 3.
        let started = fields.nth(18)?.parse().ok()?;
        Some(Self { pid, started })
    }

    /// The process that `file` recorded, when it still runs.
    pub(crate) fn recorded(file: &Path) -> Option<Self> {
        let recorded: Self = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
        (Self::of(recorded.pid) == Some(recorded)).then_some(recorded)
    }

    pub(crate) fn record(self, file: &Path) -> Result<()> {
        files::write(file, &serde_json::to_vec(&self)?, 0o600)
    }

    fn runs(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// SIGTERM, and SIGKILL after `within`.
    pub(super) fn end(self, within: Duration) {
        for (signal, within) in [(Signal::SIGTERM, within), (Signal::SIGKILL, Duration::from_secs(10))] {
            if !self.runs() {
                return;
            }
            // It may end in between.
            let _ = kill(Pid::from_raw(self.pid), signal);
            let begun = Instant::now();
            while self.runs() && begun.elapsed() < within {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// The services of one layout.
#[derive(Debug)]
pub(super) struct Services<'a> {
    layout: &'a Layout,
    systemd: bool,
}

impl<'a> Services<'a> {
    pub(super) fn new(layout: &'a Layout, no_systemd: bool) -> Self {
        Self {
            layout,
            systemd: !no_systemd && Path::new("/run/systemd/system").exists(),
        }
    }

    fn unit(&self, name: &str) -> String {
        let prefix = self
            .layout
            .state
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        format!("{prefix}-{name}.service")
    }

    fn description(&self, name: &str) -> PathBuf {
        self.layout.services().join(format!("{name}.json"))
    }

    /// Where the supervisor of `name` is recorded.
    pub(super) fn record(&self, name: &str) -> PathBuf {
        self.layout.run.join(format!("{name}.pid"))
    }

    pub(super) fn runs(&self, name: &str) -> bool {
        if self.systemd {
            return systemctl(&["is-active", "--quiet", &self.unit(name)]).is_ok();
        }
        Process::recorded(&self.record(name)).is_some()
    }

    /// Makes `service` run as described.
    pub(super) fn ensure(&self, service: &Service) -> Result<()> {
        let wanted = format!(
            "{}\n",
            serde_json::json!({"service": service, "program": fingerprint(&service.program)?})
        );
        let file = self.description(&service.name);
        let same = fs::read_to_string(&file).is_ok_and(|is| is == wanted);
        if same && self.runs(&service.name) {
            return Ok(());
        }
        if self.systemd {
            let unit = self.unit(&service.name);
            let text = unit_file(service, &self.layout.run);
            files::write(&Path::new(UNITS).join(&unit), text.as_bytes(), 0o644)?;
            systemctl(&["daemon-reload"])?;
            systemctl(&["enable", "--quiet", &unit])?;
            systemctl(&["restart", &unit])?;
        } else {
            self.stop(&service.name);
            self.supervise(service)?;
        }
        files::write(&file, wanted.as_bytes(), 0o600)
    }

    /// Starts a supervisor, which makes a session of its own.
    fn supervise(&self, service: &Service) -> Result<()> {
        let record = self.record(&service.name);
        let log = fs::OpenOptions::new().create(true).append(true).open(&service.log);
        let log = log.with_context(|| format!("open {}", service.log.display()))?;
        let mut child = Command::new(std::env::current_exe()?)
            .arg("supervise")
            .arg("--record")
            .arg(&record)
            .arg("--service")
            .arg(serde_json::to_string(service)?)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start the supervisor")?;
        let begun = Instant::now();
        while Process::recorded(&record).is_none() {
            if let Some(status) = child.try_wait()? {
                bail!(
                    "{} ended at once ({status}); see {}",
                    service.name,
                    service.log.display()
                );
            }
            if begun.elapsed() > Duration::from_secs(10) {
                bail!(
                    "the supervisor of {} does not come up; see {}",
                    service.name,
                    service.log.display()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Stops a service; nothing where it does not run.
    pub(super) fn stop(&self, name: &str) {
        let record = self.record(name);
        if let Some(process) = Process::recorded(&record) {
            process.end(STOP_WITHIN);
        }
        // A supervisor that was killed left its service.
        if let Some(process) = Process::recorded(&record.with_extension("child")) {
            process.end(STOP_WITHIN);
        }
    }

    /// Stops a service and forgets its unit.
    pub(super) fn remove(&self, name: &str) -> Result<()> {
        self.stop(name);
        let unit = self.unit(name);
        let path = Path::new(UNITS).join(&unit);
        if path.exists() {
            if self.systemd {
                systemctl(&["disable", "--quiet", "--now", &unit])?;
            }
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
            if self.systemd {
                systemctl(&["daemon-reload"])?;
                // Not known to have failed: fine.
                let _ = systemctl(&["reset-failed", &unit]);
            }
        }
        Ok(())
    }
}

/// Changes when the program's file does.
fn fingerprint(program: &Path) -> Result<String> {
    let meta = fs::metadata(program).with_context(|| format!("look at {}", program.display()))?;
    Ok(format!("{}-{}.{}", meta.len(), meta.mtime(), meta.mtime_nsec()))
}

fn systemctl(args: &[&str]) -> Result<()> {
    let done = Command::new("systemctl").args(args).output().context("run systemctl")?;
    if !done.status.success() {
        bail!(
            "systemctl {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&done.stderr).trim()
        );
    }
    Ok(())
}

/// Containers are in the unit's cgroup or their own: only the service's main process is ended with it.
fn unit_file(service: &Service, run: &Path) -> String {
    let mut unit = format!(
        "# Written by kedge up.\n[Unit]\nDescription=Kedge up: {}\nAfter=network.target\nStartLimitIntervalSec=0\n\n[Service]\n\
         ExecStartPre=/bin/mkdir -p -m 0700 {}\n",
        service.name,
        run.display(),
    );
    if let Some(address) = &service.address {
        // After a reboot it is not there any more.
        let _ = writeln!(unit, "ExecStartPre=-/sbin/ip address replace {address}/32 dev lo");
    }
    let _ = write!(unit, "ExecStart={}", service.program.display());
    for arg in &service.args {
        let _ = write!(unit, " {arg}");
    }
    for (name, value) in &service.env {
        let _ = write!(unit, "\nEnvironment={name}={value}");
    }
    let _ = write!(
        unit,
        "\nStandardOutput=append:{log}\nStandardError=append:{log}\nRestart=always\nRestartSec=1\nKillMode=process\nDelegate=yes\n\
         LimitNOFILE=1048576\nTasksMax=infinity\n\n[Install]\nWantedBy=multi-user.target\n",
        log = service.log.display()
    );
    unit
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(log: &Path) -> Service {
        Service {
            name: "sleeper".to_owned(),
            program: "/bin/sleep".into(),
            args: vec!["1000".to_owned()],
            env: vec![("A".to_owned(), "b".to_owned())],
            log: log.to_owned(),
            address: Some("10.96.0.1".to_owned()),
        }
    }

    #[test]
    fn a_process_is_known_by_pid_and_start_time() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("p.pid");
        let mut child = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        let process = Process::of(i32::try_from(child.id()).unwrap()).unwrap();
        process.record(&file).unwrap();
        assert_eq!(Process::recorded(&file), Some(process));
        let other = Process {
            started: process.started + 1,
            ..process
        };
        other.record(&file).unwrap();
        assert_eq!(Process::recorded(&file), None, "a pid that another process has now");
        other.end(Duration::ZERO);
        assert!(child.try_wait().unwrap().is_none(), "it was not signalled");
        process.end(Duration::from_secs(5));
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn a_unit_says_what_to_run_and_ends_only_that() {
        let unit = unit_file(&service(Path::new("/l/s.log")), Path::new("/run/kedge-up"));
        for line in [
            "ExecStart=/bin/sleep 1000\n",
            "Environment=A=b\n",
            "KillMode=process\n",
            "ExecStartPre=-/sbin/ip address replace 10.96.0.1/32 dev lo\nExecStart=",
            "append:/l/s.log\n",
        ] {
            assert!(unit.contains(line), "{line} in {unit}");
        }
    }
}
