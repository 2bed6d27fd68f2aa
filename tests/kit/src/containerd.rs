//! The containerds that nodes run on: Debian 12's 1.6, unpacked, and 2.x, built from its own module (`tests/kube/containerd`).
//!
//! [`Version`] says where the programs are and what their configuration looks like. [`Private`] is one of a test's own, with no machine
//! around it: its containers are this machine's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::paths;
use crate::process::{Daemon, run};
use crate::wait::{State, wait_for};

/// It answers within a second on an idle machine.
const START: Duration = Duration::from_secs(60);

/// Which containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Debian 12's, 1.6.20.
    Debian,
    /// 2.x, as `tests/kube/containerd/go.mod` pins it.
    Two,
}

impl Version {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Debian, Self::Two];

    /// Its program `name`: `containerd` or `ctr`.
    #[must_use]
    pub fn program(self, name: &str) -> PathBuf {
        match self {
            Self::Debian => paths::debian().join("usr/bin").join(name),
            Self::Two => paths::containerd_two().join(name),
        }
    }

    /// The PATH that it runs with: its own shim first. runc is Debian's under both.
    #[must_use]
    pub fn path(self) -> String {
        let debian = paths::debian().join("usr");
        let own = self.program("containerd");
        format!(
            "{}:{1}/bin:{1}/sbin:/usr/sbin:/usr/bin:/sbin:/bin",
            own.parent().unwrap_or(&own).display(),
            debian.display()
        )
    }

    /// Where it listens, of all that is below `dir`.
    #[must_use]
    pub fn socket(dir: &Path) -> PathBuf {
        dir.join("run/containerd.sock")
    }

    /// Its configuration: images and snapshots in `dir/containerd`, sockets and tasks in `dir/run`, CNI configuration in `dir/cni`, how
    /// registries are reached in `dir/certs.d`. Nothing is outside but the shims' sockets, whose place it does not let one choose.
    #[must_use]
    pub fn config(self, dir: &Path, sandbox_image: &str) -> String {
        let (dir, plugins) = (dir.display(), paths::cni_plugins());
        let bin = plugins.display();
        // The other snapshotters would look for their file systems and complain; opt makes /opt/containerd.
        let common = format!(
            "root = \"{dir}/containerd\"\nstate = \"{dir}/run/containerd\"\n\
             disabled_plugins = [\"io.containerd.snapshotter.v1.btrfs\", \"io.containerd.snapshotter.v1.zfs\", \
             \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.internal.v1.opt\"]\n\
             [grpc]\naddress = \"{dir}/run/containerd.sock\"\n"
        );
        // No test machine has CAP_SYS_RESOURCE, without which nobody lowers an oom_score_adj.
        match self {
            Self::Debian => format!(
                "version = 2\n{common}[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"{sandbox_image}\"\n\
                 restrict_oom_score_adj = true\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"{bin}\"\nconf_dir = \"{dir}/cni\"\n\
                 [plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"{dir}/certs.d\"\n"
            ),
            // NRI listens on one socket a machine.
            Self::Two => format!(
                "version = 3\n{common}[plugins.\"io.containerd.cri.v1.runtime\"]\nrestrict_oom_score_adj = true\n\
                 [plugins.\"io.containerd.cri.v1.runtime\".cni]\nbin_dir = \"{bin}\"\nconf_dir = \"{dir}/cni\"\n\
                 [plugins.\"io.containerd.cri.v1.images\".pinned_images]\nsandbox = \"{sandbox_image}\"\n\
                 [plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"{dir}/certs.d\"\n\
                 [plugins.\"io.containerd.nri.v1.nri\"]\ndisable = true\n"
            ),
        }
    }
}

/// A containerd of a test's own; killed when dropped, unlike what it runs.
#[derive(Debug)]
pub struct Private {
    version: Version,
    dir: PathBuf,
    daemon: Daemon,
}

impl Private {
    /// Starts it with everything below `dir`, and waits until it answers.
    ///
    /// # Errors
    /// When it does not; the text holds the end of its log.
    pub fn start(version: Version, dir: &Path, sandbox_image: &str) -> Result<Self> {
        for folder in ["cni", "run"] {
            fs::create_dir_all(dir.join(folder))?;
        }
        let config = dir.join("containerd.toml");
        fs::write(&config, version.config(dir, sandbox_image))?;
        let mut command = Command::new(version.program("containerd"));
        command.arg("--config").arg(&config).env("PATH", version.path());
        let private = Self {
            version,
            dir: dir.to_owned(),
            daemon: Daemon::spawn("containerd", &mut command, &dir.join("containerd.log"))?,
        };
        wait_for("containerd answers", START, || match private.ctr(&["version"]) {
            Ok(_) => State::Done(()),
            Err(error) => State::Not(format!("{error}\n{}", private.daemon.tail())),
        })?;
        Ok(private)
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        Version::socket(&self.dir)
    }

    /// Runs `ctr` in the CRI namespace.
    ///
    /// # Errors
    /// When it fails.
    pub fn ctr(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(self.version.program("ctr"));
        command.arg("--address").arg(self.socket());
        run(command.args(["--namespace", "k8s.io", "--timeout", "10s"]).args(args))
    }
}
