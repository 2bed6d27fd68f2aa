//! The answer to a join request. The token is spent before anything is signed: of two hubs or machines only one gets through.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use serde::{Deserialize, Serialize};

use super::authority::{Authority, AuthorityError};
use super::nodes::{self, NodeRecord};
use super::secrets::{SecretError, SecretStore};
use super::tokens::{self, TokenError};

/// `POST /v1/join`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JoinRequest {
    /// The join token.
    pub token: String,
    /// The node's name; without one, the token's.
    #[serde(default)]
    pub node: Option<String>,
    /// Certificate request for the node's own key, PEM; its subject is the node's or empty.
    pub csr: String,
    /// The machine's boot id.
    #[serde(default)]
    pub boot_id: String,
}

/// `POST /v1/rejoin`: a node whose certificate ran out while it was away proves that it has that certificate's key.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RejoinRequest {
    /// The old certificate, PEM.
    pub certificate: String,
    /// Certificate request for a new key, PEM.
    pub csr: String,
    /// Base64 of the old key's ECDSA P-256 SHA-256 signature (ASN.1) over `csr`.
    pub signature: String,
}

/// The answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinAnswer {
    /// The node's name.
    pub node: String,
    /// The node's certificate chain, PEM.
    pub certificate: String,
    /// CA of the hub's certificates, PEM.
    #[serde(rename = "servingCA")]
    pub serving_ca: String,
    /// CA of node certificates, PEM.
    #[serde(rename = "tunnelCA")]
    pub tunnel_ca: String,
    /// CA of API clients, PEM.
    #[serde(rename = "clientCA")]
    pub client_ca: String,
    /// SPIFFE trust domain.
    pub trust_domain: String,
    /// Where the tunnel is reached, `host:port` each.
    pub tunnel_addresses: Vec<String>,
    /// The name in the hub's tunnel certificate.
    pub server_name: String,
    /// Labels for the Node.
    pub labels: BTreeMap<String, String>,
}

/// Why a node cannot join or renew.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The node's name.
    #[error("node name {0:?} must be a DNS subdomain: lower case letters, digits, '-' and '.', at most 63 characters")]
    NodeName(String),
    /// The certificate request.
    #[error(transparent)]
    Csr(#[from] AuthorityError),
    /// The node is revoked.
    #[error("node {node} is revoked")]
    Revoked {
        /// Its name.
        node: String,
    },
    /// The old certificate does not prove who this is.
    #[error("the old certificate is not taken: {0}")]
    Proof(String),
    /// The API is not there.
    #[error("the hub's API cannot be asked")]
    Store(#[from] SecretError),
}

impl JoinError {
    /// The CamelCase word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Token(error) => error.reason(),
            Self::NodeName(_) => "InvalidNodeName",
            Self::Csr(_) => "InvalidCertificateRequest",
            Self::Revoked { .. } => "NodeRevoked",
            Self::Proof(_) => "ProofRefused",
            Self::Store(_) => "HubUnavailable",
        }
    }

    /// HTTP status.
    pub fn status(&self) -> u16 {
        match self {
            Self::Token(TokenError::Malformed) | Self::NodeName(_) | Self::Csr(_) => 400,
            Self::Token(_) | Self::Proof(_) => 401,
            Self::Revoked { .. } => 403,
            Self::Store(_) => 503,
        }
    }
}

/// What a join needs.
pub(super) struct Join<'a> {
    pub(super) secrets: &'a dyn SecretStore,
    pub(super) serving: &'a Authority,
    pub(super) client: &'a Authority,
    pub(super) tunnel: &'a Authority,
    pub(super) tunnel_addresses: &'a [String],
}

/// Whether this can be a Node's name (and a part of a Secret's).
pub fn is_node_name(name: &str) -> bool {
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !label.is_empty() && !label.starts_with('-') && !label.ends_with('-') && label.bytes().all(inner)
    };
    name.len() <= 63 && name.split('.').all(label)
}

impl Join<'_> {
    pub(super) async fn handle(&self, request: &JoinRequest, now: Duration) -> Result<JoinAnswer, JoinError> {
        if !tokens::is_well_formed(&request.token) {
            return Err(TokenError::Malformed.into());
        }
        let (node, secret) = self.find(request).await?;
        let node = &node;
        tokens::judge(&request.token, node, secret.as_ref(), now)?;
        // Before it is spent: a request that cannot be signed must not cost the token.
        self.tunnel.sign_node(node, 0, &request.csr, now)?;
        let secret = secret.ok_or_else(|| TokenError::Unknown { node: node.clone() })?;
        let labels = tokens::labels(&secret);
        match self.secrets.replace(tokens::spend(secret, now)).await {
            Err(SecretError::Conflict { .. }) => return Err(TokenError::Spent { node: node.clone() }.into()),
            spent => spent?,
        };
        let record = self.next_record(node, &labels).await?;
        let certificate = self.tunnel.sign_node(node, record.generation, &request.csr, now)?;
        tracing::info!(node, generation = record.generation, "a node joined");
        Ok(JoinAnswer {
            node: node.clone(),
            certificate,
            serving_ca: self.serving.pem().to_owned(),
            tunnel_ca: self.tunnel.pem().to_owned(),
            client_ca: self.client.pem().to_owned(),
            trust_domain: tunnel::TRUST_DOMAIN.to_owned(),
            tunnel_addresses: self.tunnel_addresses.to_vec(),
            server_name: tunnel::SERVER_NAME.to_owned(),
            labels,
        })
    }

    /// The node that wants to join, and its token's Secret.
    async fn find(&self, request: &JoinRequest) -> Result<(String, Option<Secret>), JoinError> {
        if let Some(node) = &request.node {
            if !is_node_name(node) {
                return Err(JoinError::NodeName(node.chars().take(80).collect()));
            }
            let secret = self.secrets.get(&tokens::secret_name(node)).await?;
            return Ok((node.clone(), secret));
        }
        let found = self.secrets.list(&tokens::selector(&request.token)).await?;
        let named = found
            .into_iter()
            .find_map(|secret| Some((tokens::node_of(&secret)?.to_owned(), secret)));
        match named {
            Some((node, secret)) if is_node_name(&node) => Ok((node, Some(secret))),
            _ => Err(TokenError::Nobodys.into()),
        }
    }

    /// One generation up: certificates made before are refused from now on, and a revoked node is let in again with this one.
    async fn next_record(&self, node: &str, labels: &BTreeMap<String, String>) -> Result<NodeRecord, SecretError> {
        nodes::update(self.secrets, node, |record| {
            record.generation = record.generation.saturating_add(1);
            record.revoked = false;
            record.labels = labels.clone();
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::super::authority::tests::{csr, empty_csr};
    use super::super::secrets::fake::FakeSecrets;
    use super::super::tokens::tests::{TOKEN, token_secret};
    use super::*;

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    struct Fixture {
        store: FakeSecrets,
        authority: Authority,
    }

    impl Fixture {
        async fn new() -> Self {
            let store = FakeSecrets::default();
            store.create(token_secret("a", NOW.as_secs() + 3600)).await.unwrap();
            Self {
                store,
                authority: Authority::generate("t", NOW).unwrap(),
            }
        }

        async fn join(&self, token: &str, node: &str, csr: &str) -> Result<JoinAnswer, JoinError> {
            let request = JoinRequest {
                token: token.to_owned(),
                node: Some(node).filter(|node| !node.is_empty()).map(str::to_owned),
                csr: csr.to_owned(),
                boot_id: String::new(),
            };
            let join = Join {
                secrets: &self.store,
                serving: &self.authority,
                client: &self.authority,
                tunnel: &self.authority,
                tunnel_addresses: &["hub:6444".to_owned()],
            };
            join.handle(&request, NOW).await
        }
    }

    #[tokio::test]
    async fn a_token_lets_one_node_in_once() {
        let fixture = Fixture::new().await;
        let answer = fixture.join(TOKEN, "a", &csr("a")).await.unwrap();
        assert_eq!(answer.labels["zone"], "dock");
        assert_eq!(answer.tunnel_addresses, ["hub:6444"]);
        let again = fixture.join(TOKEN, "a", &csr("a")).await.unwrap_err();
        assert_eq!((again.reason(), again.status()), ("TokenSpent", 401));
    }

    #[tokio::test]
    async fn a_machine_that_does_not_know_its_name_gets_the_tokens() {
        let fixture = Fixture::new().await;
        let error = fixture
            .join("zzz999.0123456789abcdef", "", &csr("a"))
            .await
            .unwrap_err();
        assert_eq!(error.reason(), "TokenUnknown");
        let error = fixture.join(TOKEN, "", &csr("b")).await.unwrap_err();
        assert_eq!(error.reason(), "InvalidCertificateRequest");
        let answer = fixture.join(TOKEN, "", &empty_csr()).await.unwrap();
        assert_eq!(answer.node, "a");
    }

    #[tokio::test]
    async fn a_bad_request_is_refused_with_its_reason_and_does_not_spend_the_token() {
        let fixture = Fixture::new().await;
        for (token, node, csr, reason) in [
            (TOKEN, "b", csr("b"), "TokenUnknown"),
            (TOKEN, "../a", csr("a"), "InvalidNodeName"),
            ("nonsense", "a", csr("a"), "TokenMalformed"),
            ("abc123.0123456789abcdeg", "a", csr("a"), "TokenForOtherNode"),
            (TOKEN, "a", csr("b"), "InvalidCertificateRequest"),
            (TOKEN, "a", String::new(), "InvalidCertificateRequest"),
        ] {
            let error = fixture.join(token, node, &csr).await.unwrap_err();
            assert_eq!(error.reason(), reason);
        }
        fixture.join(TOKEN, "a", &csr("a")).await.unwrap();
    }

    #[tokio::test]
    async fn joining_again_raises_the_generation_and_reinstates_a_revoked_node() {
        let fixture = Fixture::new().await;
        fixture.join(TOKEN, "a", &csr("a")).await.unwrap();
        nodes::update(&fixture.store, "a", |record| record.revoked = true)
            .await
            .unwrap();
        let mut fresh = token_secret("a", NOW.as_secs() + 3600);
        fresh.metadata.resource_version = None;
        fixture.store.replace(fresh).await.unwrap();
        fixture.join(TOKEN, "a", &csr("a")).await.unwrap();
        let secret = fixture.store.get("node-a").await.unwrap().unwrap();
        let record = NodeRecord::from_secret(&secret);
        assert_eq!((record.generation, record.revoked), (2, false));
    }
}
