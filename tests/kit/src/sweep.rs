//! Removes what a site made: processes by namespace and cgroup, mounts with their namespaces, cgroups, netns, folders.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use crate::site::PREFIX;

/// Removes the sites of tests whose process is gone.
pub fn sweep() {
    let Ok(entries) = fs::read_dir("/tmp") else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if owner(&name).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            remove_site(&name, None);
        }
    }
}

/// The process id in a site's name.
fn owner(site: &str) -> Option<u32> {
    site.strip_prefix(PREFIX)?.split_once('-').and_then(|(pid, number)| {
        number.parse::<u32>().ok()?;
        pid.parse().ok()
    })
}

/// Kills and removes everything of `site`; its logs are moved to `keep` when given.
pub fn remove_site(site: &str, keep: Option<&Path>) {
    let dir = PathBuf::from("/tmp").join(site);
    if let Some(keep) = keep {
        save_logs(&dir, keep);
    }
    // A process may fork while it is looked for: look until nothing is found.
    for _ in 0..50 {
        if kill_users(site, &dir) == 0 {
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
    for cgroup in cgroups(site) {
        remove_cgroup(&cgroup);
    }
    remove_namespaces(site);
    let _ = fs::remove_dir_all(&dir);
}

fn save_logs(dir: &Path, keep: &Path) {
    let _ = fs::create_dir_all(keep);
    for folder in [dir.to_owned(), dir.join("hub"), dir.join("plane")]
        .into_iter()
        .chain(subfolders(dir))
    {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|e| e == "log" || e == "yaml") {
                let parent = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let _ = fs::copy(
                    &path,
                    keep.join(format!("{parent}-{}", entry.file_name().to_string_lossy())),
                );
            }
        }
    }
}

fn subfolders(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.is_dir())
        .collect()
}

/// Kills every process whose command line, executable or cgroup belongs to the site; returns how many.
fn kill_users(site: &str, dir: &Path) -> usize {
    let folder = format!("{}/", dir.display());
    let mut killed = 0;
    for pid in pids() {
        if pid == std::process::id() {
            continue;
        }
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let command = fs::read(proc.join("cmdline")).unwrap_or_default();
        let cgroup = fs::read_to_string(proc.join("cgroup")).unwrap_or_default();
        let exe = fs::read_link(proc.join("exe")).unwrap_or_default();
        let ours = String::from_utf8_lossy(&command).contains(&folder)
            || cgroup.contains(&format!("/{site}"))
            || exe.starts_with(dir);
        if ours {
            let _ = signal::kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
            killed += 1;
        }
    }
    killed
}

pub(crate) fn pids() -> Vec<u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .collect()
}

/// The roots of all cgroup hierarchies (v1, hybrid or v2).
pub(crate) fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_owned()];
    }
    subfolders(root)
}

/// The site's cgroups in every hierarchy.
pub(crate) fn cgroups(site: &str) -> Vec<PathBuf> {
    hierarchies()
        .iter()
        .flat_map(|h| subfolders(h))
        .filter(|p| {
            let name = p.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name == site || name.starts_with(&format!("{site}-"))
        })
        .collect()
}

/// How many cgroups there are in `cgroup`, itself too.
pub(crate) fn count(cgroup: &Path) -> usize {
    1 + subfolders(cgroup).iter().map(|c| count(c)).sum::<usize>()
}

/// Kills what runs in `cgroup` and removes it, children first.
pub(crate) fn remove_cgroup(cgroup: &Path) {
    for child in subfolders(cgroup) {
        remove_cgroup(&child);
    }
    for _ in 0..50 {
        for pid in fs::read_to_string(cgroup.join("cgroup.procs"))
            .unwrap_or_default()
            .lines()
            .filter_map(|l| l.parse().ok())
        {
            let _ = signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        if fs::remove_dir(cgroup).is_ok() || !cgroup.exists() {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn remove_namespaces(site: &str) {
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(&format!("{site}-")) {
            let _ = std::process::Command::new("ip").args(["netns", "del", &name]).output();
        }
    }
}
