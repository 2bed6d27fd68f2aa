//! metrics-server as a process beside the real control plane, in the hub's namespace: it scrapes the kubelet APIs of all nodes, verifying
//! their certificates, and kube-apiserver passes `metrics.k8s.io` on to it.

use std::fs;
use std::time::Duration;

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::paths;
use crate::pki::{Authority, write_pair};
use crate::plane::ControlPlane;
use crate::process::Daemon;
use crate::site::{HUB, Site};
use crate::wait::{State, wait_for};

/// Two scrapes of 10 s each, on a busy machine.
const START: Duration = Duration::from_secs(120);
/// Where it serves; not a port that the hub gives to a node.
const PORT: u16 = 4443;
/// Its account.
const USER: &str = "metrics-server";

/// A running metrics-server; killed on drop.
#[derive(Debug)]
pub struct MetricsServer {
    daemon: Daemon,
}

impl MetricsServer {
    /// Starts it and waits until the API that it serves is available.
    ///
    /// # Errors
    /// When it is not; the text holds the end of its log.
    pub fn start(site: &Site, plane: &ControlPlane) -> Result<Self> {
        let dir = site.dir().join("metrics-server");
        fs::create_dir_all(&dir)?;
        let ca = Authority::new("metrics-server-ca")?;
        write_pair(&dir, "serving", &ca.server(&["metrics-server.kube-system.svc"], &[])?)?;
        for object in objects(&ca.certificate) {
            plane.kubectl.apply(&object.to_string())?;
        }
        let kubeconfig = plane.kubeconfig_for(USER, &[])?.display().to_string();
        let mut command = site.command("hub", &paths::metrics_server());
        for flag in ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"] {
            command.arg(format!("--{flag}={kubeconfig}"));
        }
        command
            .arg(format!("--secure-port={PORT}"))
            .arg(format!("--tls-cert-file={}", dir.join("serving.crt").display()))
            .arg(format!("--tls-private-key-file={}", dir.join("serving.key").display()))
            .arg(format!(
                "--kubelet-certificate-authority={}",
                plane.dir().join("kubelet-ca.crt").display()
            ))
            .args([
                "--kubelet-use-node-status-port",
                "--metric-resolution=10s",
                "--kubelet-request-timeout=8s",
            ]);
        let daemon = Daemon::spawn("metrics-server", &mut command, &dir.join("metrics-server.log"))?;
        let server = Self { daemon };
        let api = ["apiservice", "v1beta1.metrics.k8s.io"];
        wait_for("metrics.k8s.io is available", START, || match plane.kubectl.get(&api) {
            Ok(Some(found)) if crate::kubectl::is_true(&found, "Available") => State::Done(()),
            Ok(found) => State::Not(format!("{found:?}\n{}", server.tail())),
            Err(error) => State::Not(format!("{error}\n{}", server.tail())),
        })?;
        Ok(server)
    }

    /// The end of its log.
    #[must_use]
    pub fn tail(&self) -> String {
        self.daemon.tail()
    }
}

/// What its own manifests hold but for the Deployment: rights, the Service with its endpoint, the APIService.
fn objects(ca: &str) -> Vec<Value> {
    let rbac = "rbac.authorization.k8s.io";
    let user = json!([{"apiGroup": rbac, "kind": "User", "name": USER}]);
    let role = |name: &str| json!({"apiGroup": rbac, "kind": "ClusterRole", "name": name});
    let bind = |name: &str, role: Value| json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name}, "roleRef": role, "subjects": user});
    let name = json!({"name": "metrics-server", "namespace": "kube-system"});
    vec![
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "system:metrics-server"},
            "rules": [
                {"apiGroups": [""], "resources": ["nodes/metrics"], "verbs": ["get"]},
                {"apiGroups": [""], "resources": ["pods", "nodes"], "verbs": ["get", "list", "watch"]},
            ],
        }),
        bind("system:metrics-server", role("system:metrics-server")),
        bind("metrics-server:system:auth-delegator", role("system:auth-delegator")),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": "metrics-server-auth-reader", "namespace": "kube-system"},
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "extension-apiserver-authentication-reader"}, "subjects": user,
        }),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": name,
            "spec": {"ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": PORT}]},
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "metrics-server", "namespace": "kube-system", "labels": {"kubernetes.io/service-name": "metrics-server"}},
            "endpoints": [{"addresses": [HUB], "conditions": {"ready": true}}],
            "ports": [{"name": "https", "port": PORT, "protocol": "TCP"}],
        }),
        json!({
            "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": "v1beta1.metrics.k8s.io"},
            "spec": {
                "group": "metrics.k8s.io", "version": "v1beta1", "groupPriorityMinimum": 100, "versionPriority": 100,
                "service": {"name": "metrics-server", "namespace": "kube-system"}, "caBundle": STANDARD.encode(ca),
            },
        }),
    ]
}
