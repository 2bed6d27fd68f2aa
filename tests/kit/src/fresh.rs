//! A fresh Debian root, as a person has it after an installation: what `installer/up` is tried in.
//!
//! The root is a copy of what `tests/run` bootstrapped into the cache. Its first process keeps a mount and a pid namespace; when it
//! dies, everything that was started in it dies too, and its mounts go. The network is this machine's, because `installer/up` gets
//! packages.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::paths;
use crate::process::{Daemon, run};
use crate::site::Site;
use crate::sweep;
use crate::wait::{State, wait_for};

/// What a person's shell starts with.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A running fresh Debian.
#[derive(Debug)]
pub struct Fresh {
    root: PathBuf,
    first: Daemon,
    init: u32,
}

impl Fresh {
    /// Copies the root into `site`'s folder and starts its first process. `shared` folders are seen inside at the same path, read-only.
    ///
    /// # Errors
    /// When there is no bootstrapped root, or a mount fails.
    pub fn start(site: &Site, shared: &[&Path]) -> Result<Self> {
        let root = site.dir().join("fresh");
        let source = paths::cache().join("fresh");
        run(Command::new("cp").arg("-a").arg(&source).arg(&root))
            .context("copy the fresh Debian: tests/run makes it")?;
        fs::copy("/etc/resolv.conf", root.join("etc/resolv.conf"))?;
        // Debian's installer writes it; debootstrap alone does not.
        fs::write(root.join("etc/hosts"), "127.0.0.1 localhost\n")?;
        let mut script = String::from(
            "set -e\nmount --make-rprivate /\nmount --bind \"$1\" \"$1\"\ncd \"$1\"\n\
             for d in dev sys; do mount --rbind /$d $d; done\nmount -t proc proc proc\nmount -t tmpfs tmpfs run\nmount -t tmpfs tmpfs tmp\n",
        );
        for folder in shared {
            let inside = root.join(folder.strip_prefix("/").unwrap_or(folder));
            let (from, to) = (folder.display(), inside.display());
            script.push_str(&format!(
                "mkdir -p '{to}'\nmount --bind '{from}' '{to}'\nmount -o remount,bind,ro '{to}'\n"
            ));
        }
        script.push_str("pivot_root . mnt\ncd /\numount -l /mnt\nexec sleep infinity\n");
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", &script, "sh"])
            .arg(&root);
        let mut first = Daemon::spawn("fresh", &mut command, &site.dir().join("fresh.log"))?;
        let parent = first.pid();
        let (init, _) = wait_for("the fresh Debian is up", Duration::from_secs(30), || {
            if !first.is_running() {
                return State::Not(first.tail());
            }
            match child_of(parent).filter(|pid| is_sleep(*pid)) {
                Some(pid) => State::Done(pid),
                None => State::Not(first.tail()),
            }
        })?;
        Ok(Self { root, first, init })
    }

    /// Its root folder, seen from outside.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A command inside, with nothing of this machine's environment.
    #[must_use]
    pub fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args([
            "--mount",
            "--pid",
            "--root",
            "--target",
            &self.init.to_string(),
            "--",
            "/bin/sh",
            "-c",
            "cd / && exec \"$0\" \"$@\"",
            program,
        ]);
        command
            .args(args)
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", "/root")
            .env("LANG", "C.UTF-8");
        command.stdin(Stdio::null());
        command
    }

    /// Every process inside but the first, and but ended ones, which nobody reaps here: pid outside, command line.
    #[must_use]
    pub fn processes(&self) -> Vec<(u32, String)> {
        let namespace = fs::read_link(format!("/proc/{}/ns/pid", self.init)).ok();
        let inside = |pid: &u32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok() == namespace;
        let line = |pid: u32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let text = |pid: u32| String::from_utf8_lossy(&line(pid)).replace('\0', " ");
        let ended = |pid: u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(')')
                .is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
        };
        let all = sweep::pids()
            .into_iter()
            .filter(|pid| *pid != self.init && !ended(*pid));
        all.filter(inside).map(|pid| (pid, text(pid))).collect()
    }

    /// The mounts inside, as /proc/PID/mountinfo has them.
    ///
    /// # Errors
    /// When the first process is gone.
    pub fn mounts(&self) -> Result<String> {
        Ok(fs::read_to_string(format!("/proc/{}/mountinfo", self.init))?)
    }

    /// The log of the first process.
    #[must_use]
    pub fn tail(&self) -> String {
        self.first.tail()
    }
}

fn child_of(parent: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

fn is_sleep(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sleep")
}
