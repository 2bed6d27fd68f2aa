//! The real kubelet on a machine of the kit's, below the real control plane: what edgecore is compared with.
//!
//! It runs in the machine's namespaces, above the machine's containerd, with a cgroup of its own. It would set kernel parameters of the
//! test machine: where it looks for them there are files that hold what it wants already.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::json;

use crate::edge::{EVICTION, Edge};
use crate::paths;
use crate::pki::{write_kubeconfig, write_pair};
use crate::plane::ControlPlane;
use crate::process::{Daemon, run};
use crate::site::HUB;
use crate::sweep;

/// What kubelet sets where it finds other values (pkg/util/sysctl), as name and wanted value.
const PARAMETERS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// A running kubelet; killed on drop.
#[derive(Debug)]
pub struct Kubelet {
    daemon: Daemon,
    /// Where it serves its API.
    pub address: String,
}

impl Kubelet {
    /// Starts it on `edge`, which has no edgecore, as node `edge.name`.
    ///
    /// # Errors
    /// When a folder or a file cannot be made.
    pub fn start(edge: &Edge, plane: &ControlPlane) -> Result<Self> {
        let (etc, address) = (edge.dir().join("etc"), edge.address());
        fs::copy(plane.dir().join("ca.crt"), etc.join("ca.crt"))?;
        write_pair(&etc, "kubelet", &plane.serving.server(&[&edge.name], &[&address])?)?;
        let user = plane.client(&format!("system:node:{}", edge.name), &["system:nodes"])?;
        let ca = fs::read_to_string(plane.dir().join("ca.crt"))?;
        let kubeconfig = write_kubeconfig(&etc, "kubelet", &format!("https://{HUB}:6443"), &ca, &user)?;
        for hierarchy in sweep::hierarchies() {
            fs::create_dir_all(hierarchy.join(edge.cgroup()))?;
        }
        hide_parameters(edge, &etc)?;
        fs::write(edge.dir().join("cni/10-test.conflist"), network(edge))?;
        let config = etc.join("kubelet.yaml");
        fs::write(&config, configuration(edge, &etc))?;
        let mut command = edge.command(&paths::kube("kubelet"));
        command
            .arg(format!("--kubeconfig={}", kubeconfig.display()))
            .arg(format!("--config={}", config.display()))
            .arg(format!("--root-dir={}", edge.dir().join("kubelet").display()))
            .arg(format!("--cert-dir={}", etc.display()))
            .arg(format!("--hostname-override={}", edge.name))
            .arg(format!("--node-ip={address}"));
        let daemon = Daemon::spawn("kubelet", &mut command, &edge.dir().join("kubelet.log"))?;
        Ok(Self {
            daemon,
            address: format!("{address}:10250"),
        })
    }

    /// The end of its log.
    #[must_use]
    pub fn tail(&self) -> String {
        self.daemon.tail()
    }
}

/// Mounts a file over each parameter that kubelet would set, in the machine's mount namespace only.
fn hide_parameters(edge: &Edge, etc: &Path) -> Result<()> {
    for (name, value) in PARAMETERS {
        let file: PathBuf = etc.join(name.replace('/', "."));
        fs::write(&file, format!("{value}\n"))?;
        run(edge
            .command(Path::new("mount"))
            .arg("--bind")
            .arg(&file)
            .arg(Path::new("/proc/sys").join(name)))?;
    }
    Ok(())
}

fn network(edge: &Edge) -> String {
    let leases = edge.dir().join("run/cni");
    json!({
        "cniVersion": "1.0.0", "name": "test",
        "plugins": [
            {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
                "ipam": {"type": "host-local", "dataDir": leases, "ranges": [[{"subnet": "10.245.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
    .to_string()
}

fn configuration(edge: &Edge, etc: &Path) -> String {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "authentication": {"x509": {"clientCAFile": etc.join("ca.crt")}, "webhook": {"enabled": true}, "anonymous": {"enabled": false}},
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": etc.join("kubelet.crt"), "tlsPrivateKeyFile": etc.join("kubelet.key"),
        "containerRuntimeEndpoint": format!("unix://{}", edge.socket().display()),
        "podLogsDir": edge.dir().join("pods"), "volumePluginDir": edge.dir().join("volume-plugins"),
        // The test machines have cgroup v1.
        "failCgroupV1": false, "cgroupDriver": "cgroupfs", "cgroupRoot": format!("/{}", edge.cgroup()),
        "enforceNodeAllocatable": ["none"], "protectKernelDefaults": true, "failSwapOn": false,
        // Without, each pod gets an event that says that there is none.
        "clusterDNS": ["10.96.0.10"], "clusterDomain": "cluster.local",
        // A test machine's disk may well be nearly full.
        "imageGCHighThresholdPercent": 100, "evictionHard": BTreeMap::from(EVICTION),
    })
    .to_string()
}
