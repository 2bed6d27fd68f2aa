//! `kedge join` as a process against a real join listener.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use cloudhub::identity::listener::JoinListener;
use cloudhub::identity::{Identity, SecretError, SecretStore, secrets, tokens};
use k8s_openapi::api::core::v1::Secret;
use serde_yaml_ng::Value;
use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::JoinSet;

const TOKEN: &str = "abc123.0123456789abcdef";

/// Secrets in memory.
#[derive(Default)]
struct Secrets(Mutex<BTreeMap<String, Secret>>);

#[async_trait]
impl SecretStore for Secrets {
    async fn get(&self, name: &str) -> Result<Option<Secret>, SecretError> {
        Ok(self.0.lock().unwrap().get(name).cloned())
    }
    async fn create(&self, secret: Secret) -> Result<Secret, SecretError> {
        self.replace(secret).await
    }
    async fn replace(&self, secret: Secret) -> Result<Secret, SecretError> {
        let name = secrets::name(&secret).to_owned();
        self.0.lock().unwrap().insert(name, secret.clone());
        Ok(secret)
    }
    async fn list(&self, selector: &str) -> Result<Vec<Secret>, SecretError> {
        let found = selector == tokens::selector(TOKEN);
        let token = self.0.lock().unwrap().get("join-robot-1").cloned();
        Ok(token.into_iter().filter(|_| found).collect())
    }
}

struct Site {
    identity: Arc<Identity>,
    hub: SocketAddr,
    folder: tempfile::TempDir,
    _tasks: JoinSet<()>,
    _stop: watch::Sender<bool>,
}

impl Site {
    async fn start() -> Self {
        let store = Arc::new(Secrets::default());
        let identity = Identity::load_from(store.clone()).await.unwrap();
        let values = [
            ("hash", tokens::hash(TOKEN).into_bytes()),
            ("expires", u64::MAX.to_string().into_bytes()),
        ];
        store.create(secrets::secret("join-robot-1", values)).await.unwrap();
        let certificate = identity.serving(&[]).unwrap();
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let tunnel = vec!["hub.example:6444".to_owned()];
        let bound = JoinListener::bind(any, identity.clone(), certificate, tunnel).await;
        let listener = bound.unwrap();
        let hub = listener.local_addr();
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(listener.run(stopped));
        Self {
            identity,
            hub,
            folder: tempfile::tempdir().unwrap(),
            _tasks: tasks,
            _stop: stop,
        }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    async fn join(&self, token: &str, hash: &str, more: &[&str]) -> Output {
        let output = Command::new(env!("CARGO_BIN_EXE_kedge"))
            .args([
                "join",
                "--hub",
                &self.hub.to_string(),
                "--token",
                token,
                "--ca-hash",
                hash,
            ])
            .arg("--config-dir")
            .arg(self.path("etc"))
            .arg("--state-dir")
            .arg(self.path("state"))
            .args(more)
            .output();
        output.await.unwrap()
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn a_machine_joins_and_has_what_edgecore_needs() {
    let site = Site::start().await;
    let hash = site.identity.serving_ca().ca_hash();
    let output = site.join(TOKEN, &hash, &[]).await;
    assert!(output.status.success(), "{}", stderr(&output));
    let pki = site.path("state/pki");
    assert_eq!(mode(&pki.join("client.key")), 0o600);
    let read = |name: &str| fs::read(pki.join(name)).unwrap();
    assert_eq!(read("serving-ca.crt"), site.identity.serving_ca().pem().as_bytes());
    assert_eq!(read("tunnel-ca.crt"), site.identity.tunnel_ca().pem().as_bytes());
    tunnel::tls::identity_from_pem(&read("client.crt"), &read("client.key")).unwrap();
    let config = fs::read(site.path("etc/edgecore.yaml")).unwrap();
    let config: Value = serde_yaml_ng::from_slice(&config).unwrap();
    assert_eq!(config["nodeName"], "robot-1");
    assert_eq!(config["kind"], "EdgecoreConfig");
    assert_eq!(config["hub"]["addresses"][0], "hub.example:6444");
    let again = site.join(TOKEN, &hash, &[]).await;
    assert!(stderr(&again).contains("joined already"), "{}", stderr(&again));
    let spent = site.join(TOKEN, &hash, &["--force"]).await;
    assert!(stderr(&spent).contains("TokenSpent"), "{}", stderr(&spent));
}

#[tokio::test]
async fn a_refused_join_says_why_and_leaves_nothing() {
    let site = Site::start().await;
    let hash = site.identity.serving_ca().ca_hash();
    let other_hash = site.identity.tunnel_ca().ca_hash();
    let cases = [
        (TOKEN, other_hash.as_str(), &[][..], "--ca-hash"),
        ("zzz999.0123456789abcdef", &hash, &[], "TokenUnknown"),
        (TOKEN, &hash, &["--node", "robot-2"], "TokenUnknown"),
        ("nonsense", &hash, &[], "TokenMalformed"),
        (TOKEN, "sha256:12", &[], "64 hexadecimal digits"),
        (TOKEN, &hash, &["--node", "Robot"], "DNS subdomain"),
    ];
    for (token, hash, more, why) in cases {
        let output = site.join(token, hash, more).await;
        assert!(!output.status.success());
        assert!(stderr(&output).contains(why), "{why}: {}", stderr(&output));
        assert!(!site.path("state").exists() && !site.path("etc").exists());
    }
}
