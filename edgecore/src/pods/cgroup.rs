//! The pods' cgroups: `<root>/kubepods[/burstable|/besteffort]/pod<uid>`, v1 and v2, under cgroupfs or named as systemd slices.
//!
//! The runtime makes the containers' own cgroups below. What the kernel refuses (no rights, no controller) is logged, never fatal: a pod
//! without its outer limit is better than none. Under systemd the runtime lets systemd make the slices; only their limits are written here.

use std::io;
use std::path::{Path, PathBuf};

use cri::{CgroupDriver, Resources};

use super::api::Pod;
use super::resources::{self, Qos};

/// Where pods' cgroups are.
#[derive(Debug, Clone)]
pub struct Cgroups {
    mount: PathBuf,
    base: String,
    driver: CgroupDriver,
}

impl Cgroups {
    /// `mount` is /sys/fs/cgroup; `root` the cgroup under which `kubepods` is made, empty for the top.
    pub fn new(mount: &Path, root: &str, driver: CgroupDriver) -> Self {
        let root = root.trim_matches('/');
        let base = if root == "kubepods" || root.ends_with("/kubepods") {
            root.to_owned()
        } else if root.is_empty() {
            "kubepods".to_owned()
        } else {
            format!("{root}/kubepods")
        };
        Self {
            mount: mount.to_owned(),
            base,
            driver,
        }
    }

    /// The parent that the runtime gets.
    pub fn parent(&self, pod: &Pod) -> String {
        match self.driver {
            CgroupDriver::Cgroupfs => format!("/{}", self.path(pod)),
            CgroupDriver::Systemd => {
                let path = self.path(pod);
                path.rsplit('/').next().unwrap_or_default().to_owned()
            }
        }
    }

    /// The pod's cgroup below a hierarchy's mount.
    fn path(&self, pod: &Pod) -> String {
        let uid = &pod.metadata.uid;
        let class = match resources::qos(pod) {
            Qos::Guaranteed => None,
            Qos::Burstable => Some("burstable"),
            Qos::BestEffort => Some("besteffort"),
        };
        if self.driver == CgroupDriver::Cgroupfs {
            return match class {
                Some(class) => format!("{}/{class}/pod{uid}", self.base),
                None => format!("{}/pod{uid}", self.base),
            };
        }
        // a-b.slice is inside a.slice.
        let top = self.base.replace('-', "_").replace('/', "-");
        let uid = uid.replace('-', "_");
        match class {
            Some(class) => format!("{top}.slice/{top}-{class}.slice/{top}-{class}-pod{uid}.slice"),
            None => format!("{top}.slice/{top}-pod{uid}.slice"),
        }
    }

    fn is_v2(&self) -> bool {
        self.mount.join("cgroup.controllers").exists()
    }

    /// Makes the pod's cgroup and sets its limits.
    pub fn ensure(&self, pod: &Pod) {
        let limits = resources::pod_resources(pod);
        let path = self.path(pod);
        let result = if self.is_v2() {
            self.ensure_v2(&path, &limits)
        } else {
            self.ensure_v1(&path, &limits)
        };
        if let Err(error) = result {
            tracing::warn!(pod = pod.full_name(), %error, "the pod's cgroup has no limits of its own");
        }
    }

    fn ensure_v1(&self, path: &str, limits: &Resources) -> io::Result<()> {
        let folder = |controller: &str| self.mount.join(controller).join(path);
        for controller in ["cpu", "memory", "pids"] {
            if self.mount.join(controller).is_dir() {
                std::fs::create_dir_all(folder(controller))?;
            }
        }
        let cpu = folder("cpu");
        write(&cpu.join("cpu.shares"), limits.cpu_shares)?;
        if limits.cpu_quota > 0 {
            write(&cpu.join("cpu.cfs_period_us"), limits.cpu_period)?;
            write(&cpu.join("cpu.cfs_quota_us"), limits.cpu_quota)?;
        }
        if limits.memory_limit > 0 {
            write(&folder("memory").join("memory.limit_in_bytes"), limits.memory_limit)?;
        }
        Ok(())
    }

    fn ensure_v2(&self, path: &str, limits: &Resources) -> io::Result<()> {
        let folder = self.mount.join(path);
        std::fs::create_dir_all(&folder)?;
        let mut at = self.mount.clone();
        for part in Path::new(path) {
            for controller in ["cpu", "memory", "pids"] {
                // A controller that is not there is no reason to do without the others.
                let _ = std::fs::write(at.join("cgroup.subtree_control"), format!("+{controller}"));
            }
            at.push(part);
        }
        write(&folder.join("cpu.weight"), resources::weight(limits.cpu_shares))?;
        if limits.cpu_quota > 0 {
            std::fs::write(
                folder.join("cpu.max"),
                format!("{} {}", limits.cpu_quota, limits.cpu_period),
            )?;
        }
        if limits.memory_limit > 0 {
            write(&folder.join("memory.max"), limits.memory_limit)?;
        }
        Ok(())
    }

    /// Removes the pod's cgroup in every hierarchy; its processes are gone.
    pub fn remove(&self, pod: &Pod) {
        let path = self.path(pod);
        let mut hierarchies = vec![self.mount.clone()];
        if !self.is_v2()
            && let Ok(entries) = std::fs::read_dir(&self.mount)
        {
            hierarchies.extend(entries.flatten().map(|e| e.path()));
        }
        for hierarchy in hierarchies {
            remove_tree(&hierarchy.join(&path));
        }
    }
}

/// rmdir from the leaves up; what is busy stays (and is tried again at the pod's next clean-up).
fn remove_tree(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    if let Err(error) = std::fs::remove_dir(folder)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::debug!(path = %folder.display(), %error, "cgroup not removed");
    }
}

fn write(path: &Path, value: i64) -> io::Result<()> {
    std::fs::write(path, value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(limits: serde_json::Value) -> Pod {
        serde_json::from_value(
            json!({"metadata": {"uid": "a-b"}, "spec": {"containers": [{"resources": {"limits": limits}}]}}),
        )
        .expect("pod")
    }

    #[test]
    fn parents_by_class_and_driver() {
        let files = Cgroups::new(Path::new("/x"), "", CgroupDriver::Cgroupfs);
        assert_eq!(files.parent(&pod(json!({}))), "/kubepods/besteffort/poda-b");
        assert_eq!(
            files.parent(&pod(json!({"cpu": "1", "memory": "1Gi"}))),
            "/kubepods/poda-b"
        );
        let test = Cgroups::new(Path::new("/x"), "kedge-up", CgroupDriver::Cgroupfs);
        assert_eq!(
            test.parent(&pod(json!({"cpu": "1"}))),
            "/kedge-up/kubepods/burstable/poda-b"
        );
        let systemd = Cgroups::new(Path::new("/x"), "", CgroupDriver::Systemd);
        assert_eq!(
            systemd.parent(&pod(json!({"cpu": "1"}))),
            "kubepods-burstable-poda_b.slice"
        );
    }

    #[test]
    fn writes_v1_and_v2_files() {
        let dir = tempfile::tempdir().expect("dir");
        for controller in ["cpu", "memory"] {
            std::fs::create_dir(dir.path().join(controller)).expect("mkdir");
        }
        let cgroups = Cgroups::new(dir.path(), "", CgroupDriver::Cgroupfs);
        let p = pod(json!({"cpu": "500m", "memory": "64Mi"}));
        cgroups.ensure(&p);
        let read = |path: &str| std::fs::read_to_string(dir.path().join(path)).expect(path);
        assert_eq!(read("cpu/kubepods/poda-b/cpu.cfs_quota_us"), "50000");
        assert_eq!(read("memory/kubepods/poda-b/memory.limit_in_bytes"), "67108864");
        std::fs::write(dir.path().join("cgroup.controllers"), "cpu memory").expect("write");
        cgroups.ensure(&p);
        assert_eq!(read("kubepods/poda-b/cpu.max"), "50000 100000");
        assert_eq!(read("kubepods/poda-b/cpu.weight"), "20");
    }
}
