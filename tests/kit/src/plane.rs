//! The real control plane: etcd, kube-apiserver, kube-controller-manager, kube-scheduler, in the hub's namespace.
//!
//! All on loopback, which inside the namespace is the hub's own; so the ports are fixed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use crate::kubectl::Kubectl;
use crate::paths;
use crate::pki::{Authority, write_kubeconfig, write_pair};
use crate::process::Daemon;
use crate::site::{HUB, Site};
use crate::wait::{State, wait_for};

/// A start takes 6 s on an idle machine (kubernetes.md); this leaves room for a busy one.
const START: Duration = Duration::from_secs(90);

/// Who asked for what, one line a request.
const AUDIT: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived, ResponseStarted]\nrules:\n- level: Metadata\n";

/// How the control plane is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// node-monitor-grace-period of the controller manager, seconds.
    pub grace_seconds: u32,
    /// Default tolerations for not-ready and unreachable, seconds.
    pub toleration_seconds: u32,
    /// Whether kube-apiserver writes down each request (see [`ControlPlane::audit`]).
    pub audit: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            grace_seconds: 50,
            toleration_seconds: 300,
            audit: false,
        }
    }
}

/// A running control plane.
#[derive(Debug)]
pub struct ControlPlane {
    dir: PathBuf,
    /// The CA of the kubelet APIs' serving certificates, which the API server trusts and the hub imports.
    pub serving: Authority,
    client_ca: Authority,
    api: Daemon,
    _others: Vec<Daemon>,
    /// kubectl as the admin.
    pub kubectl: Kubectl,
    /// The admin's kubeconfig.
    pub kubeconfig: PathBuf,
}

impl ControlPlane {
    /// Starts it in `site`'s hub namespace and waits until it is ready.
    ///
    /// # Errors
    /// When a part does not start; the text holds the end of its log.
    pub fn start(site: &Site, options: &Options) -> Result<Self> {
        let dir = site.dir().join("plane");
        fs::create_dir_all(&dir)?;
        let (client_ca, serving) = (Authority::new("kubernetes-ca")?, Authority::new("kedge-serving-ca")?);
        Self::write_pki(&dir, &client_ca, &serving)?;
        fs::write(dir.join("audit.yaml"), AUDIT)?;
        let url = "https://127.0.0.1:6443";
        let kubeconfig = write_kubeconfig(
            &dir,
            "admin",
            url,
            &client_ca.certificate,
            &client_ca.client("admin", &["system:masters"])?,
        )?;
        for user in ["kube-controller-manager", "kube-scheduler"] {
            write_kubeconfig(
                &dir,
                user,
                url,
                &client_ca.certificate,
                &client_ca.client(&format!("system:{user}"), &[])?,
            )?;
        }
        let etcd = start(site, &dir, "etcd", &etcd_args(&dir))?;
        let api = start(site, &dir, "kube-apiserver", &api_args(&dir, options))?;
        let kubectl = Kubectl::new(site, &kubeconfig);
        wait_for("kube-apiserver is ready", START, || {
            match kubectl.run(&["get", "--raw", "/readyz"]) {
                Ok(_) => State::Done(()),
                Err(error) => State::Not(format!("{error}\n{}", api.tail())),
            }
        })?;
        let controllers = start(site, &dir, "kube-controller-manager", &controller_args(&dir, options))?;
        let scheduler = start(site, &dir, "kube-scheduler", &scheduler_args(&dir))?;
        let plane = Self {
            dir,
            serving,
            client_ca,
            api,
            _others: vec![etcd, controllers, scheduler],
            kubectl,
            kubeconfig,
        };
        plane.wait_default_account()?;
        Ok(plane)
    }

    fn write_pki(dir: &Path, client_ca: &Authority, serving: &Authority) -> Result<()> {
        fs::write(dir.join("ca.crt"), &client_ca.certificate)?;
        fs::write(dir.join("kubelet-ca.crt"), &serving.certificate)?;
        let names = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "localhost",
        ];
        write_pair(
            dir,
            "apiserver",
            &client_ca.server(&names, &["127.0.0.1", "10.96.0.1", HUB])?,
        )?;
        // What extension API servers know kube-apiserver by.
        let front_proxy = Authority::new("front-proxy-ca")?;
        fs::write(dir.join("front-proxy-ca.crt"), &front_proxy.certificate)?;
        write_pair(dir, "front-proxy", &front_proxy.client("front-proxy-client", &[])?)?;
        write_pair(
            dir,
            "kubelet-client",
            &client_ca.client("kube-apiserver-kubelet-client", &["system:masters"])?,
        )?;
        let accounts = rcgen::KeyPair::generate()?;
        fs::write(dir.join("sa.key"), accounts.serialize_pem())?;
        fs::write(dir.join("sa.pub"), accounts.public_key_pem())?;
        Ok(())
    }

    fn wait_default_account(&self) -> Result<()> {
        wait_for("the default ServiceAccount is made", START, || {
            match self.kubectl.get(&["serviceaccount", "default"]) {
                Ok(Some(_)) => State::Done(()),
                Ok(None) => State::Not("not yet".into()),
                Err(error) => State::Not(error.to_string()),
            }
        })?;
        Ok(())
    }

    /// The folder of its certificates and logs.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A kubeconfig for user `name` of `groups`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig_for(&self, name: &str, groups: &[&str]) -> Result<PathBuf> {
        let pair = self.client(name, groups)?;
        write_kubeconfig(
            &self.dir,
            name,
            "https://127.0.0.1:6443",
            &self.client_ca.certificate,
            &pair,
        )
    }

    /// A client certificate for user `name` of `groups`: (chain, key), PEM.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn client(&self, name: &str, groups: &[&str]) -> Result<(String, String)> {
        self.client_ca.client(name, groups)
    }

    /// The audit events so far: one a request that is answered, metadata only.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn audit(&self) -> Result<Vec<Value>> {
        let text = fs::read_to_string(self.dir.join("audit.log"))?;
        // The last line may be half written.
        Ok(text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect())
    }

    /// The end of the API server's log.
    #[must_use]
    pub fn tail(&self) -> String {
        self.api.tail()
    }
}

fn start(site: &Site, dir: &Path, name: &str, args: &[String]) -> Result<Daemon> {
    let mut command = site.command("hub", &paths::kube(name));
    Daemon::spawn(name, command.args(args), &dir.join(format!("{name}.log")))
}

fn etcd_args(dir: &Path) -> Vec<String> {
    vec![
        format!("--data-dir={}", dir.join("etcd").display()),
        "--listen-client-urls=http://127.0.0.1:2379".into(),
        "--advertise-client-urls=http://127.0.0.1:2379".into(),
        "--listen-peer-urls=http://127.0.0.1:2380".into(),
        "--unsafe-no-fsync".into(),
        "--log-level=warn".into(),
    ]
}

fn api_args(dir: &Path, options: &Options) -> Vec<String> {
    let at = |name: &str| dir.join(name).display().to_string();
    let audit = [
        format!("--audit-policy-file={}", at("audit.yaml")),
        format!("--audit-log-path={}", at("audit.log")),
    ];
    let mut args = vec![
        "--etcd-servers=http://127.0.0.1:2379".into(),
        "--bind-address=0.0.0.0".into(),
        format!("--advertise-address={HUB}"),
        "--secure-port=6443".into(),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        "--service-cluster-ip-range=10.96.0.0/16".into(),
        format!("--client-ca-file={}", at("ca.crt")),
        format!("--tls-cert-file={}", at("apiserver.crt")),
        format!("--tls-private-key-file={}", at("apiserver.key")),
        format!("--kubelet-client-certificate={}", at("kubelet-client.crt")),
        format!("--kubelet-client-key={}", at("kubelet-client.key")),
        format!("--kubelet-certificate-authority={}", at("kubelet-ca.crt")),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--service-account-key-file={}", at("sa.pub")),
        format!("--service-account-signing-key-file={}", at("sa.key")),
        format!("--requestheader-client-ca-file={}", at("front-proxy-ca.crt")),
        "--requestheader-allowed-names=front-proxy-client".into(),
        "--requestheader-username-headers=X-Remote-User".into(),
        "--requestheader-group-headers=X-Remote-Group".into(),
        "--requestheader-extra-headers-prefix=X-Remote-Extra-".into(),
        format!("--proxy-client-cert-file={}", at("front-proxy.crt")),
        format!("--proxy-client-key-file={}", at("front-proxy.key")),
        // No Service is routed in this namespace: an APIService's address is its endpoint's.
        "--enable-aggregator-routing=true".into(),
        format!("--default-not-ready-toleration-seconds={}", options.toleration_seconds),
        format!(
            "--default-unreachable-toleration-seconds={}",
            options.toleration_seconds
        ),
    ];
    args.extend(audit.into_iter().filter(|_| options.audit));
    args
}

fn controller_args(dir: &Path, options: &Options) -> Vec<String> {
    let at = |name: &str| dir.join(name).display().to_string();
    vec![
        format!("--kubeconfig={}", at("kube-controller-manager.kubeconfig")),
        "--bind-address=127.0.0.1".into(),
        "--leader-elect=false".into(),
        "--use-service-account-credentials=true".into(),
        "--allocate-node-cidrs=true".into(),
        "--cluster-cidr=10.244.0.0/16".into(),
        format!("--root-ca-file={}", at("ca.crt")),
        format!("--service-account-private-key-file={}", at("sa.key")),
        format!("--node-monitor-grace-period={}s", options.grace_seconds),
        "--node-monitor-period=1s".into(),
    ]
}

fn scheduler_args(dir: &Path) -> Vec<String> {
    vec![
        format!("--kubeconfig={}", dir.join("kube-scheduler.kubeconfig").display()),
        "--bind-address=127.0.0.1".into(),
        "--leader-elect=false".into(),
    ]
}
