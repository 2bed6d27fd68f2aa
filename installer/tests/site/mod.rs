//! A hub's identity and join listener on loopback.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Output;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use cloudhub::identity::listener::JoinListener;
use cloudhub::identity::{Identity, SecretError, SecretStore, secrets, tokens};
use k8s_openapi::api::core::v1::Secret;
use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::JoinSet;

pub(crate) const TOKEN: &str = "abc123.0123456789abcdef";

/// Secrets in memory.
#[derive(Default)]
pub(crate) struct Secrets(Mutex<BTreeMap<String, Secret>>);

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

pub(crate) struct Site {
    pub(crate) identity: Arc<Identity>,
    pub(crate) hub: SocketAddr,
    pub(crate) folder: tempfile::TempDir,
    _tasks: JoinSet<()>,
    _stop: watch::Sender<bool>,
}

impl Site {
    pub(crate) async fn start() -> Self {
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

    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) async fn join(&self, token: &str, hash: &str, more: &[&str]) -> Output {
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
