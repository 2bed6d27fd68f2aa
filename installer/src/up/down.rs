//! `kedge up --down`: nothing of `kedge up` is left: no process, mount, netns, link, rule, cgroup or file.
//!
//! Services → pods through CRI (so that CNI gives addresses back) → containerd → what is left in the cgroup and of shims → mounts →
//! link and rules → cgroups → files. Each step works when an earlier one could not, and when `up` never got that far. Folders are removed
//! only when no mount is left below them: a hostPath volume must not be emptied.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cri::{CriRuntime, Runtime as _, SandboxFilter};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::timeout;

use crate::up::layout::{BRIDGE, CGROUP, Layout};
use crate::up::service::{ALL, Services};
use crate::up::{address, cluster, say};

/// All pods together: stopped without grace.
const PODS_WITHIN: Duration = Duration::from_secs(60);
/// Killed processes are gone when the kernel has freed their memory.
const GONE_WITHIN: Duration = Duration::from_secs(10);
const CGROUPS: &str = "/sys/fs/cgroup";

pub(super) async fn run(layout: &Layout) -> Result<()> {
    let services = Services::new(layout, false);
    let [edgecore, cloudhub, containerd] = ALL;
    say("stopping edgecore and the hub");
    services.remove(edgecore)?;
    services.remove(cloudhub)?;
    if cluster::containerd_version(layout).await.is_ok() {
        say("removing pods");
        if timeout(PODS_WITHIN, remove_pods(&layout.containerd_socket()))
            .await
            .is_err()
        {
            say("some pods did not end in time; their processes are killed");
        }
    }
    services.remove(containerd)?;
    let sockets = shim_sockets(&layout.run);
    kill_rest(layout)?;
    for socket in sockets {
        // A shim that ended in order took it along.
        let _ = fs::remove_file(socket);
    }
    unmount(&[&layout.run, &layout.state])?;
    remove_network();
    address::remove(layout);
    remove_cgroups(Path::new(CGROUPS))?;
    for folder in [&layout.run, &layout.state] {
        remove_folder(folder)?;
    }
    // containerd's shims have their sockets and runc its state here, whatever its configuration says. Only empty folders go.
    for folder in [
        "/run/containerd/runc/k8s.io",
        "/run/containerd/runc",
        "/run/containerd/s",
        "/run/containerd/fifo",
        "/run/containerd",
        "/var/lib/cni/results",
        "/var/lib/cni",
    ] {
        let _ = fs::remove_dir(folder);
    }
    say("all is removed");
    Ok(())
}

/// Removes every sandbox of the containerd that is ours alone.
async fn remove_pods(socket: &Path) {
    let (runtime, _pump) = CriRuntime::new(socket);
    let sandboxes = match runtime.list_sandboxes(&SandboxFilter::default()).await {
        Ok(sandboxes) => sandboxes,
        Err(error) => return say(&format!("list pods: {error}")),
    };
    for sandbox in sandboxes {
        for done in [
            runtime.stop_sandbox(&sandbox.id).await,
            runtime.remove_sandbox(&sandbox.id).await,
        ] {
            if let Err(error) = done {
                say(&format!("remove pod {}: {error}", sandbox.metadata.name));
            }
        }
    }
}

/// Kills what is in our cgroup, and shims of our containerd, until there is none.
fn kill_rest(layout: &Layout) -> Result<()> {
    let begun = Instant::now();
    loop {
        let mut pids = BTreeSet::new();
        for folder in cgroup_folders(Path::new(CGROUPS)) {
            let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            pids.extend(text.lines().filter_map(|pid| pid.parse::<i32>().ok()));
        }
        pids.extend(shims(&layout.containerd_socket()));
        if pids.is_empty() {
            return Ok(());
        }
        if begun.elapsed() > GONE_WITHIN {
            bail!("processes {pids:?} do not end");
        }
        for pid in pids {
            // It may end in between.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Shims that were started by the containerd with this socket.
fn shims(socket: &Path) -> Vec<i32> {
    let socket = socket.as_os_str().as_encoded_bytes();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = cmdline.split(|byte| *byte == 0);
        let program = words.next().unwrap_or_default();
        let name = program.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        name.starts_with(b"containerd-shim") && words.any(|word| word == socket)
    })
    .collect()
}

/// The sockets of shims, which lie outside our folders: each bundle says where.
fn shim_sockets(run: &Path) -> Vec<PathBuf> {
    let folders = |path: &Path| {
        fs::read_dir(path)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
    };
    let namespaces = folders(&run.join("containerd/io.containerd.runtime.v2.task"));
    let bundles = namespaces.flat_map(|namespace| folders(&namespace).collect::<Vec<_>>());
    bundles
        .filter_map(|bundle| fs::read_to_string(bundle.join("address")).ok())
        .filter_map(|address| address.trim().strip_prefix("unix://").map(PathBuf::from))
        .filter(|socket| socket.starts_with("/run/containerd/s"))
        .collect()
}

/// The mount points below `folder`, deepest last mounted first.
fn mounts_below(mountinfo: &str, folder: &Path) -> Vec<PathBuf> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    let mut below: Vec<PathBuf> = points.map(unescape).filter(|point| point.starts_with(folder)).collect();
    below.reverse();
    below
}

/// Octal escapes of proc(5): space, tab, newline, backslash.
fn unescape(text: &str) -> PathBuf {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    PathBuf::from(
        escapes
            .iter()
            .fold(text.to_owned(), |text, (from, to)| text.replace(from, to)),
    )
}

fn unmount(folders: &[&PathBuf]) -> Result<()> {
    for folder in folders {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
        for point in mounts_below(&mountinfo, folder) {
            umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
                .with_context(|| format!("unmount {}", point.display()))?;
        }
    }
    Ok(())
}

/// The pods' bridge and edgecore's rules; where they are not there, nothing happens.
fn remove_network() {
    let quiet = |program: &str, args: &[&str]| {
        // There may be none, nor the program.
        let _ = Command::new(program).args(args).output();
    };
    quiet("ip", &["link", "delete", BRIDGE]);
    for family in ["ip", "ip6"] {
        quiet("nft", &["delete", "table", family, "kedge_masquerade"]);
    }
}

/// Our cgroup in every hierarchy, with all below, deepest first.
fn cgroup_folders(root: &Path) -> Vec<PathBuf> {
    let hierarchies = fs::read_dir(root)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let mut folders: Vec<PathBuf> = hierarchies
        .filter(|path| path.file_name().is_some_and(|name| name != CGROUP))
        .chain([root.to_owned()])
        .map(|hierarchy| hierarchy.join(CGROUP))
        .filter(|folder| folder.is_dir())
        .collect();
    let mut next = 0;
    while next < folders.len() {
        let below = fs::read_dir(&folders[next]).into_iter().flatten().flatten();
        folders.extend(
            below
                .map(|entry| entry.path())
                .filter(|path| path.is_dir() && !path.is_symlink()),
        );
        next += 1;
    }
    folders.reverse();
    folders
}

fn remove_cgroups(root: &Path) -> Result<()> {
    for folder in cgroup_folders(root) {
        match fs::remove_dir(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove cgroup {}", folder.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

fn remove_folder(folder: &Path) -> Result<()> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    if let Some(point) = mounts_below(&mountinfo, folder).first() {
        bail!(
            "{} is still mounted: {} is not removed",
            point.display(),
            folder.display()
        );
    }
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_below_are_found_deepest_first_and_none_beside() {
        let info = "22 1 0:20 / / rw - ext4 a rw\n23 22 0:21 / /run/kedge-up rw - tmpfs a rw\n24 23 0:22 / /run/kedge-up/a\\040b rw - \
                    overlay a rw\n25 22 0:23 / /run/kedge-up2 rw - tmpfs a rw\n";
        let found = mounts_below(info, Path::new("/run/kedge-up"));
        assert_eq!(
            found,
            [PathBuf::from("/run/kedge-up/a b"), PathBuf::from("/run/kedge-up")]
        );
    }

    #[test]
    fn cgroups_are_found_in_both_versions_deepest_first() {
        let root = tempfile::tempdir().unwrap();
        for folder in ["cpu/kedge-up/kubepods/pod1", "memory/kedge-up", "kedge-up/kubepods"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        let folders = cgroup_folders(root.path());
        assert_eq!(folders.len(), 6, "{folders:?}");
        remove_cgroups(root.path()).unwrap();
        assert!(root.path().join("cpu").exists() && !root.path().join("cpu/kedge-up").exists());
        assert!(!root.path().join("kedge-up").exists());
    }
}
