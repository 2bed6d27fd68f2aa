//! etcd and kube-apiserver, nothing else.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::paths;
use crate::pki::{Authority, write_kubeconfig, write_pair};
use crate::process::{self, Daemon};
use crate::wait::{State, wait_for};

/// A start takes 6 s on an idle machine; this leaves room for a busy one.
const START: Duration = Duration::from_secs(90);

/// A running API server; killed on drop.
#[derive(Debug)]
pub struct Real {
    dir: tempfile::TempDir,
    _etcd: Daemon,
    _api: Daemon,
    /// The admin's kubeconfig.
    pub kubeconfig: PathBuf,
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Real {
    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// When a part does not start.
    pub fn start() -> Result<Self> {
        let temp = tempfile::tempdir()?;
        let dir = temp.path();
        let ports = [free_port()?, free_port()?, free_port()?];
        let ca = Authority::new("kubernetes-ca")?;
        fs::write(dir.join("ca.crt"), &ca.certificate)?;
        write_pair(
            dir,
            "apiserver",
            &ca.server(&["localhost"], &["127.0.0.1", "10.96.0.1"])?,
        )?;
        let accounts = rcgen::KeyPair::generate()?;
        fs::write(dir.join("sa.key"), accounts.serialize_pem())?;
        fs::write(dir.join("sa.pub"), accounts.public_key_pem())?;
        let url = format!("https://127.0.0.1:{}", ports[2]);
        let admin = ca.client("admin", &["system:masters"])?;
        let kubeconfig = write_kubeconfig(dir, "admin", &url, &ca.certificate, &admin)?;
        let etcd = start(dir, "etcd", &etcd_args(dir, &ports))?;
        let api = start(dir, "kube-apiserver", &api_args(dir, &ports))?;
        wait_for("kube-apiserver is ready", START, || {
            let mut kubectl = Command::new(paths::kube("kubectl"));
            kubectl.env("HOME", dir).arg("--kubeconfig").arg(&kubeconfig);
            match process::run(kubectl.args(["get", "--raw", "/readyz"])) {
                Ok(_) => State::Done(()),
                Err(error) => State::Not(format!("{error}\n{}", api.tail())),
            }
        })?;
        Ok(Self {
            kubeconfig,
            _etcd: etcd,
            _api: api,
            dir: temp,
        })
    }

    /// A folder of its own; gone when this is dropped.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

fn start(dir: &Path, name: &str, args: &[String]) -> Result<Daemon> {
    let mut command = Command::new(paths::kube(name));
    Daemon::spawn(name, command.args(args), &dir.join(format!("{name}.log")))
}

fn etcd_args(dir: &Path, ports: &[u16; 3]) -> Vec<String> {
    vec![
        format!("--data-dir={}", dir.join("etcd").display()),
        format!("--listen-client-urls=http://127.0.0.1:{}", ports[0]),
        format!("--advertise-client-urls=http://127.0.0.1:{}", ports[0]),
        format!("--listen-peer-urls=http://127.0.0.1:{}", ports[1]),
        "--unsafe-no-fsync".into(),
        "--log-level=warn".into(),
    ]
}

fn api_args(dir: &Path, ports: &[u16; 3]) -> Vec<String> {
    let at = |name: &str| dir.join(name).display().to_string();
    vec![
        format!("--etcd-servers=http://127.0.0.1:{}", ports[0]),
        "--bind-address=127.0.0.1".into(),
        format!("--secure-port={}", ports[2]),
        "--authorization-mode=Node,RBAC".into(),
        "--allow-privileged=true".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        "--service-cluster-ip-range=10.96.0.0/16".into(),
        format!("--client-ca-file={}", at("ca.crt")),
        format!("--tls-cert-file={}", at("apiserver.crt")),
        format!("--tls-private-key-file={}", at("apiserver.key")),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--service-account-key-file={}", at("sa.pub")),
        format!("--service-account-signing-key-file={}", at("sa.key")),
    ]
}
