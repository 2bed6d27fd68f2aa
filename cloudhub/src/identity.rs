//! Who is who: the hub's CAs, join tokens, node certificates and their revocation.
//!
//! State lives in Secrets of namespace `kedge-system` ([`secrets`]), so that any hub of this API knows the same identities:
//!
//! - `ca-serving`, `ca-client`, `ca-tunnel`: three CAs, so that a tunnel certificate is no API credential ([`authority`])
//! - `quic-keys`: what lets a restarted hub tell edges at once that their connections are gone
//! - `join-NODE`: a join token, hashed, spent by an update with its resourceVersion ([`tokens`])
//! - `node-NODE`: {generation, revoked, labels} ([`nodes`]); [`Identity::run`] watches them and cuts who is revoked
//!
//! Data path of a join: [`listener`] (HTTPS, no client certificate) → [`join`] → token judged and spent → certificate signed.
//! On failure: a Secret that cannot be read stops the start of the hub; a lost watch is retried, and until it is back the hub
//! judges by what it last saw.

pub mod authority;
pub mod join;
pub mod listener;
pub mod nodes;
pub mod rejoin;
pub mod secrets;
pub mod tokens;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::sync::watch;
use tunnel::{PeerCertificate, QuicKeys};

pub use authority::{Authority, AuthorityError, Serving};
pub use join::{JoinAnswer, JoinError, JoinRequest, RejoinRequest};
pub use nodes::{NodeRecord, NodeRecords};
pub use secrets::{KubeSecrets, SecretError, SecretStore};

/// Where identities are kept.
pub const NAMESPACE: &str = "kedge-system";
/// Label of the node-NODE records, so that a watch sees nothing else.
pub const NODE_RECORD_LABEL: &str = "kedge.dev/node-record";
/// How many seen generations wait to be recorded.
const RECORD_QUEUE: usize = 1024;

/// What the hub needs to identify itself and others.
pub struct Identity {
    secrets: Arc<dyn SecretStore>,
    serving: Authority,
    client: Authority,
    tunnel: Authority,
    quic_keys: QuicKeys,
    nodes: Arc<NodeRecords>,
    seen: tokio::sync::Mutex<tokio::sync::mpsc::Receiver<PeerCertificate>>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

/// The identities could not be loaded or made.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A Secret.
    #[error("read or create the Secrets of {NAMESPACE}")]
    Secret(#[from] SecretError),
    /// A CA.
    #[error("use the CA of Secret {secret}")]
    Authority {
        /// The Secret's name.
        secret: String,
        /// Cause.
        #[source]
        source: AuthorityError,
    },
    /// The QUIC keys.
    #[error("Secret quic-keys: data.keys must have {} bytes", QuicKeys::LEN)]
    QuicKeys,
}

/// Resolves when `stop` says so, or its owner is gone.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Wall clock since 1970.
pub(crate) fn wall_now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

impl Identity {
    /// Reads the CAs, keys and node records from the API; what is missing is made. Two hubs that start at once end with the same.
    ///
    /// # Errors
    /// The API does not let us, or a Secret holds something unusable.
    pub async fn load(client: kube::Client) -> Result<Arc<Self>, IdentityError> {
        secrets::ensure_namespace(&client).await?;
        Self::load_from(Arc::new(KubeSecrets::new(client))).await
    }

    /// Like [`Identity::load`], from any store.
    ///
    /// # Errors
    /// As [`Identity::load`].
    pub async fn load_from(secrets: Arc<dyn SecretStore>) -> Result<Arc<Self>, IdentityError> {
        let serving = load_authority(secrets.as_ref(), "serving").await?;
        let client = load_authority(secrets.as_ref(), "client").await?;
        let tunnel = load_authority(secrets.as_ref(), "tunnel").await?;
        let quic_keys = load_quic_keys(secrets.as_ref()).await?;
        let (record, seen) = tokio::sync::mpsc::channel(RECORD_QUEUE);
        let nodes = Arc::new(NodeRecords::new(record));
        let selector = format!("{NODE_RECORD_LABEL}=true");
        for secret in secrets.list(&selector).await? {
            nodes.observe(&secret);
        }
        Ok(Arc::new(Self {
            secrets,
            serving,
            client,
            tunnel,
            quic_keys,
            nodes,
            seen: tokio::sync::Mutex::new(seen),
        }))
    }

    /// The CA of everything that the hub serves: tunnel, join listener, kubelet APIs.
    pub fn serving_ca(&self) -> &Authority {
        &self.serving
    }

    /// The CA of API clients.
    pub fn client_ca(&self) -> &Authority {
        &self.client
    }

    /// The CA of node certificates in the tunnel.
    pub fn tunnel_ca(&self) -> &Authority {
        &self.tunnel
    }

    /// A serving certificate for the tunnel's name and these others (DNS names or IP addresses), renewed by itself.
    ///
    /// # Errors
    /// A name is neither.
    pub fn serving(self: &Arc<Self>, names: &[String]) -> Result<Arc<Serving>, AuthorityError> {
        Serving::new(self.serving.clone(), names)
    }

    /// Keys for [`tunnel::HubConfig`].
    pub fn quic_keys(&self) -> &QuicKeys {
        &self.quic_keys
    }

    /// The node records; they are the tunnel's [`tunnel::Admission`].
    pub fn nodes(&self) -> &Arc<NodeRecords> {
        &self.nodes
    }

    /// The labels that a node was given at join.
    pub fn labels(&self, node: &str) -> BTreeMap<String, String> {
        self.nodes.get(node).map(|record| record.labels).unwrap_or_default()
    }

    /// Answers a join request: judges and spends the token, then signs.
    ///
    /// # Errors
    /// The reason, which the node is told.
    pub async fn join(&self, request: &JoinRequest, tunnel_addresses: &[String]) -> Result<JoinAnswer, JoinError> {
        let join = join::Join {
            secrets: self.secrets.as_ref(),
            serving: &self.serving,
            client: &self.client,
            tunnel: &self.tunnel,
            tunnel_addresses,
        };
        join.handle(request, wall_now()).await
    }

    /// Signs the next certificate of a node that is in a session (`POST /v1/certificate`): CSR in, chain out, both PEM.
    ///
    /// # Errors
    /// The CSR is not for this node, or the node is revoked.
    pub fn renew(&self, node: &str, csr: &str) -> Result<String, JoinError> {
        let record = self.nodes.get(node).unwrap_or_default();
        if record.revoked {
            return Err(JoinError::Revoked { node: node.to_owned() });
        }
        let generation = record.generation.saturating_add(1);
        let chain = self.tunnel.sign_node(node, generation, csr, wall_now())?;
        tracing::info!(node, generation, "renewed a node certificate");
        Ok(chain)
    }

    /// Signs the next certificate of a node whose last one ran out, proven by its key. Chain as PEM.
    ///
    /// # Errors
    /// The proof does not hold, or the node is revoked.
    pub fn rejoin(&self, request: &RejoinRequest) -> Result<String, JoinError> {
        let proven = rejoin::prove(request, &self.tunnel, wall_now())?;
        rejoin::judge(&proven, &self.nodes.get(&proven.node).unwrap_or_default())?;
        tracing::info!(node = proven.node, "a node joined again with its old key");
        self.renew(&proven.node, &request.csr)
    }

    /// Watches the node records until `stop`, and calls `revoked` for each node that is; also writes down generations seen.
    pub async fn run(
        self: Arc<Self>,
        client: kube::Client,
        revoked: impl Fn(&str) + Send + Sync,
        mut stop: watch::Receiver<bool>,
    ) {
        tokio::select! {
            biased;
            () = stopped(&mut stop) => {}
            () = self.watch_records(client, revoked) => {}
            () = self.record_generations() => {}
        }
    }

    async fn watch_records(&self, client: kube::Client, revoked: impl Fn(&str)) {
        let config = watcher::Config::default().labels(&format!("{NODE_RECORD_LABEL}=true"));
        let api = kube::Api::<Secret>::namespaced(client, NAMESPACE);
        let events = watcher(api, config).default_backoff();
        futures::pin_mut!(events);
        loop {
            match events.try_next().await {
                Ok(Some(watcher::Event::Apply(secret) | watcher::Event::InitApply(secret))) => {
                    if let Some(node) = self.nodes.observe(&secret) {
                        revoked(&node);
                    }
                }
                Ok(Some(watcher::Event::Delete(secret))) => self.nodes.forget(&secret),
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(error) => tracing::warn!(%error, "the watch on node records broke; trying again"),
            }
        }
    }

    /// A certificate with a higher generation than recorded was seen: from now on lower ones are refused, by every hub.
    async fn record_generations(&self) {
        let mut seen = self.seen.lock().await;
        while let Some(certificate) = seen.recv().await {
            let update = nodes::record_generation(self.secrets.as_ref(), &certificate.node, certificate.generation);
            if let Err(error) = update.await {
                tracing::warn!(node = certificate.node, %error, "could not record a certificate's generation");
            }
        }
    }
}

async fn load_authority(secrets: &dyn SecretStore, purpose: &str) -> Result<Authority, IdentityError> {
    let name = format!("ca-{purpose}");
    let fail = |source| IdentityError::Authority {
        secret: name.clone(),
        source,
    };
    if let Some(secret) = secrets.get(&name).await? {
        return Authority::from_secret(&secret).map_err(fail);
    }
    let fresh = Authority::generate(&format!("kedge {purpose} CA"), wall_now()).map_err(fail)?;
    let secret = secrets.ensure(fresh.to_secret(&name)).await?;
    Authority::from_secret(&secret).map_err(fail)
}

async fn load_quic_keys(secrets: &dyn SecretStore) -> Result<QuicKeys, IdentityError> {
    let name = "quic-keys";
    let secret = match secrets.get(name).await? {
        Some(secret) => secret,
        None => {
            let keys = QuicKeys::generate().to_bytes();
            secrets.ensure(secrets::secret(name, [("keys", keys)])).await?
        }
    };
    secrets::value(&secret, "keys")
        .and_then(QuicKeys::from_bytes)
        .ok_or(IdentityError::QuicKeys)
}

#[cfg(test)]
mod tests {
    use super::secrets::fake::FakeSecrets;
    use super::*;

    #[tokio::test]
    async fn two_hubs_that_start_on_one_store_have_the_same_identity() {
        let store = Arc::new(FakeSecrets::default());
        let first = Identity::load_from(store.clone()).await.unwrap();
        let second = Identity::load_from(store).await.unwrap();
        assert_eq!(first.serving_ca().ca_hash(), second.serving_ca().ca_hash());
        assert_eq!(first.tunnel_ca().pem(), second.tunnel_ca().pem());
        assert_eq!(first.quic_keys(), second.quic_keys());
        assert_ne!(first.serving_ca().ca_hash(), first.tunnel_ca().ca_hash());
    }

    #[tokio::test]
    async fn a_revoked_node_gets_no_next_certificate_and_another_ones_csr_is_refused() {
        let store = Arc::new(FakeSecrets::default());
        let identity = Identity::load_from(store.clone()).await.unwrap();
        let csr = authority::tests::csr("a");
        let chain = identity.renew("a", &csr).unwrap();
        assert!(chain.contains("BEGIN CERTIFICATE"));
        assert!(matches!(identity.renew("b", &csr), Err(JoinError::Csr(_))));
        let record = NodeRecord {
            revoked: true,
            ..NodeRecord::default()
        };
        identity.nodes().observe(&record.to_secret("a"));
        assert!(matches!(identity.renew("a", &csr), Err(JoinError::Revoked { .. })));
    }
}
