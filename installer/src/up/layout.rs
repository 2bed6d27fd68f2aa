//! Where everything of `kedge up` is, and what its configuration files say.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::files;
use crate::up::service::Service;

/// The bridge of the pods, not the one of a node that was installed for good.
pub(super) const BRIDGE: &str = "kedge-up0";
/// The API's Service address: pods reach the embedded API there, on the machine's own loopback.
pub(super) const API_ADDRESS: &str = "10.96.0.1";
/// The cgroup that holds every container.
pub(super) const CGROUP: &str = "kedge-up";
/// CAP_SYS_RESOURCE, as in linux/capability.h.
const CAP_SYS_RESOURCE: u64 = 24;
const MAX_FILE: u64 = 1024 * 1024;

/// What is to be started.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) node: String,
    pub(super) port: u16,
    pub(super) path: Vec<PathBuf>,
    pub(super) cni: PathBuf,
    /// Kubeconfig of the cluster above the hub; none: the hub's own API.
    pub(super) cluster: Option<PathBuf>,
}

impl Plan {
    /// Where edges reach the hub: to join, and for the tunnel.
    pub(super) fn edges(&self) -> String {
        format!("127.0.0.1:{}", self.port + 1)
    }
}

/// The two folders.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) state: PathBuf,
    pub(super) run: PathBuf,
}

impl Layout {
    /// The folders must be absolute and Kedge's own: `--down` removes them whole.
    pub(super) fn new(state: &Path, run: &Path) -> Result<Self> {
        for folder in [state, run] {
            let named = folder
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("kedge-up"));
            if !folder.is_absolute() || !named {
                bail!(
                    "{} must be absolute and its last part must begin with kedge-up",
                    folder.display()
                );
            }
        }
        Ok(Self {
            state: state.to_owned(),
            run: run.to_owned(),
        })
    }

    pub(super) fn make(&self) -> Result<()> {
        for folder in ["bin", "etc", "cni", "hub", "edge", "logs", "services"] {
            files::make_dir(&self.state.join(folder))?;
        }
        // kubelet's folders are entered by containers of other users.
        for folder in ["kubelet", "pods"] {
            std::fs::create_dir_all(self.state.join(folder))
                .with_context(|| format!("make {}", self.state.join(folder).display()))?;
        }
        open_to_containers(&self.state)?;
        files::make_dir(&self.run)
    }

    pub(super) fn bin(&self) -> PathBuf {
        self.state.join("bin")
    }

    pub(super) fn etc(&self) -> PathBuf {
        self.state.join("etc")
    }

    pub(super) fn edge(&self) -> PathBuf {
        self.state.join("edge")
    }

    pub(super) fn images(&self) -> PathBuf {
        self.state.join("images")
    }

    pub(super) fn logs(&self) -> PathBuf {
        self.state.join("logs")
    }

    pub(super) fn log(&self, service: &str) -> PathBuf {
        self.logs().join(format!("{service}.log"))
    }

    pub(super) fn services(&self) -> PathBuf {
        self.state.join("services")
    }

    pub(super) fn kubeconfig(&self, plan: &Plan) -> PathBuf {
        let embedded = || self.state.join("hub/admin.kubeconfig");
        plan.cluster.clone().unwrap_or_else(embedded)
    }

    pub(super) fn containerd_socket(&self) -> PathBuf {
        self.run.join("containerd.sock")
    }

    pub(super) fn hub_socket(&self) -> PathBuf {
        self.run.join("cloudhub.sock")
    }

    /// One of our own binaries: what `installer/up` put into STATE/bin, else what lies beside this one.
    pub(super) fn binary(&self, name: &str) -> Result<PathBuf> {
        let ours = self.bin().join(name);
        let beside = std::env::current_exe()?.with_file_name(name);
        let found = [ours, beside].into_iter().find(|path| path.exists());
        found.with_context(|| format!("there is no {name} in {}: run installer/up", self.bin().display()))
    }

    pub(super) fn write_containerd(&self, plan: &Plan) -> Result<()> {
        let config = containerd_config(self, plan, !has_capability(CAP_SYS_RESOURCE));
        files::write(&self.etc().join("containerd.toml"), config.as_bytes(), 0o644)
    }

    /// Writes what `kedge join` does not know; it keeps these fields and adds its own.
    pub(super) fn write_edgecore(&self, plan: &Plan) -> Result<()> {
        let path = self.etc().join("edgecore.yaml");
        let mut config: serde_yaml_ng::Mapping = if path.exists() {
            serde_yaml_ng::from_slice(&files::read(&path, MAX_FILE)?)?
        } else {
            serde_yaml_ng::Mapping::new()
        };
        let wanted = edgecore_config(self, plan);
        for (key, value) in wanted.as_object().into_iter().flatten() {
            config.insert(key.as_str().into(), serde_yaml_ng::to_value(value)?);
        }
        files::write(&path, serde_yaml_ng::to_string(&config)?.as_bytes(), 0o644)
    }

    fn service(&self, name: &str, program: PathBuf, plan: &Plan) -> Service {
        let mut path = String::new();
        for folder in &plan.path {
            let _ = write!(path, "{}:", folder.display());
        }
        path.push_str("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        Service {
            name: name.to_owned(),
            program,
            args: Vec::new(),
            env: [("PATH", path.as_str()), ("RUST_LOG", "info"), ("NO_COLOR", "1")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            log: self.log(name),
            address: None,
        }
    }

    pub(super) fn containerd_service(&self, plan: &Plan) -> Result<Service> {
        let folders = plan
            .path
            .iter()
            .cloned()
            .chain(["/usr/local/bin", "/usr/bin"].map(PathBuf::from));
        let found = folders
            .map(|folder| folder.join("containerd"))
            .find(|path| path.exists());
        let program = found.context("there is no containerd: run installer/up, or give its folder with --path")?;
        let mut service = self.service("containerd", program, plan);
        service.args = vec![
            "--config".to_owned(),
            self.etc().join("containerd.toml").display().to_string(),
        ];
        Ok(service)
    }

    pub(super) fn cloudhub_service(&self, plan: &Plan) -> Result<Service> {
        let mut service = self.service("cloudhub", self.binary("cloudhub")?, plan);
        let edges = plan.edges();
        let socket = self.hub_socket().display().to_string();
        let mut args = [
            "--join-listen",
            &edges,
            "--tunnel-listen",
            &edges,
            "--advertise",
            "127.0.0.1",
            "--admin-socket",
            &socket,
        ]
        .map(str::to_owned)
        .to_vec();
        let kubeconfig = self.kubeconfig(plan).display().to_string();
        let data = self.state.join("hub").display().to_string();
        // All addresses: people use 127.0.0.1, pods API_ADDRESS. Callers are known by certificate or token on each.
        let api = format!("0.0.0.0:{}", plan.port);
        let above: &[&str] = match plan.cluster {
            Some(_) => &["--kubeconfig", &kubeconfig],
            None => &["--embedded", "--data", &data, "--listen", &api],
        };
        args.extend(above.iter().map(|arg| (*arg).to_owned()));
        service.args = args;
        service.address = plan.cluster.is_none().then(|| API_ADDRESS.to_owned());
        Ok(service)
    }

    pub(super) fn edgecore_service(&self, plan: &Plan) -> Result<Service> {
        let mut service = self.service("edgecore", self.binary("edgecore")?, plan);
        service.args = vec![
            "--config".to_owned(),
            self.etc().join("edgecore.yaml").display().to_string(),
        ];
        Ok(service)
    }
}

/// The folder above the containers' root file systems may be entered by all, its parts say who may read.
fn open_to_containers(folder: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o711))
        .with_context(|| format!("open {} to containers", folder.display()))
}

/// Version 2 of containerd's configuration, which 2.x takes too.
fn containerd_config(layout: &Layout, plan: &Plan, restrict_oom_score: bool) -> String {
    let (state, run) = (layout.state.display(), layout.run.display());
    format!(
        r#"# Written by kedge up.
version = 2
root = "{state}/containerd"
state = "{run}/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs", "io.containerd.internal.v1.opt"]
[grpc]
  address = "{run}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "kedge.dev/pause:1"
  restrict_oom_score_adj = {restrict_oom_score}
  netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{cni}"
  conf_dir = "{state}/cni"
"#,
        cni = plan.cni.display(),
    )
}

fn edgecore_config(layout: &Layout, plan: &Plan) -> serde_json::Value {
    let state = |name: &str| layout.state.join(name).display().to_string();
    let mut config = json!({
        "apiVersion": "kedge.dev/v1alpha1",
        "kind": "EdgecoreConfig",
        "nodeName": plan.node,
        "stateDir": state("edge"),
        "runDir": layout.run.display().to_string(),
        "containerd": {"socket": layout.containerd_socket().display().to_string()},
        "kubelet": {
            "rootDir": state("kubelet"),
            "podLogsDir": state("pods"),
            "cgroupRoot": CGROUP,
        },
        "network": {
            "cniConfDir": state("cni"),
            "cniBinDir": plan.cni.display().to_string(),
            "bridge": BRIDGE,
        },
    });
    if plan.cluster.is_none() {
        config["apiServer"] = json!({"host": API_ADDRESS, "port": plan.port});
    }
    config
}

/// Whether this process has capability number `number`.
fn has_capability(number: u64) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << number) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            node: "robot".to_owned(),
            port: 16443,
            path: vec!["/d/usr/bin".into()],
            cni: "/d/usr/lib/cni".into(),
            cluster: None,
        }
    }

    #[test]
    fn only_folders_of_its_own_are_taken() {
        let new = |state: &str, run: &str| Layout::new(Path::new(state), Path::new(run));
        new("/var/lib/kedge-up", "/run/kedge-up").unwrap();
        for bad in ["/", "/var/lib", "kedge-up", "/home/kedge-up/.."] {
            new(bad, "/run/kedge-up").unwrap_err();
            new("/var/lib/kedge-up", bad).unwrap_err();
        }
    }

    #[test]
    fn containerd_is_configured_for_this_machine() {
        let layout = Layout::new(Path::new("/x/kedge-up"), Path::new("/y/kedge-up")).unwrap();
        let config = containerd_config(&layout, &plan(), true);
        for line in [
            "root = \"/x/kedge-up/containerd\"",
            "address = \"/y/kedge-up/containerd.sock\"",
            "restrict_oom_score_adj = true",
            "bin_dir = \"/d/usr/lib/cni\"",
        ] {
            assert!(config.contains(line), "{line} in {config}");
        }
    }

    #[test]
    fn the_hub_is_above_its_own_api_or_a_cluster() {
        let layout = Layout::new(Path::new("/x/kedge-up"), Path::new("/y/kedge-up")).unwrap();
        let cluster = Plan {
            cluster: Some("/k.yaml".into()),
            ..plan()
        };
        assert_eq!(
            layout.kubeconfig(&plan()),
            Path::new("/x/kedge-up/hub/admin.kubeconfig")
        );
        assert_eq!(layout.kubeconfig(&cluster), Path::new("/k.yaml"));
    }

    #[test]
    fn what_join_wrote_into_edgecores_configuration_stays() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("kedge-up");
        let layout = Layout::new(&state, Path::new("/run/kedge-up-test")).unwrap();
        files::make_dir(&layout.etc()).unwrap();
        let path = layout.etc().join("edgecore.yaml");
        files::write(&path, b"hub: {addresses: ['h:1']}\nnodeName: old\n", 0o644).unwrap();
        layout.write_edgecore(&plan()).unwrap();
        let config: serde_yaml_ng::Value = serde_yaml_ng::from_slice(&files::read(&path, MAX_FILE).unwrap()).unwrap();
        assert_eq!(config["hub"]["addresses"][0], "h:1");
        assert_eq!(config["nodeName"], "robot");
        assert_eq!(config["kubelet"]["cgroupRoot"], CGROUP);
        assert_eq!(config["apiServer"]["host"], API_ADDRESS);
    }
}
