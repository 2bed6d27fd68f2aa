//! What the hub remembers of each node's identity: {generation, revoked, labels} in Secret node-NODE.
//!
//! [`NodeRecords`] is a copy in memory, fed by the watch of [`super::Identity::run`], and the tunnel's [`Admission`]. A higher
//! generation than recorded is taken at once and written down in the background, so that lower ones are refused from then on. A
//! node without a record is let in: its certificate is our CA's, and a hub with imported CAs and an empty database must know its
//! fleet.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use tokio::sync::mpsc;
use tunnel::{Admission, PeerCertificate};

use super::secrets::{self, SecretError, SecretStore};
use super::{NODE_RECORD_LABEL, tokens};

/// One node's record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeRecord {
    /// The highest generation of a certificate that counts; lower ones are refused.
    pub generation: u64,
    /// The node is not let in with any certificate made so far.
    pub revoked: bool,
    /// Labels given at join.
    pub labels: BTreeMap<String, String>,
}

impl NodeRecord {
    /// Reads Secret node-NODE; what is missing is zero.
    pub fn from_secret(secret: &Secret) -> Self {
        Self {
            generation: secrets::text(secret, "generation")
                .and_then(|text| text.parse().ok())
                .unwrap_or(0),
            revoked: secrets::text(secret, "revoked") == Some("true"),
            labels: tokens::labels(secret),
        }
    }

    /// Secret node-NODE.
    pub fn to_secret(&self, node: &str) -> Secret {
        let mut secret = secrets::secret(&secret_name(node), []);
        self.write_to(&mut secret);
        secret
    }

    fn write_to(&self, secret: &mut Secret) {
        let labels = secret.metadata.labels.get_or_insert_default();
        labels.insert(NODE_RECORD_LABEL.to_owned(), "true".to_owned());
        let data = secret.data.get_or_insert_default();
        let mut put = |key: &str, value: String| data.insert(key.to_owned(), ByteString(value.into_bytes()));
        put("generation", self.generation.to_string());
        put("revoked", self.revoked.to_string());
        put("labels", serde_json::to_string(&self.labels).unwrap_or_default());
    }
}

/// Name of the Secret of a node's record.
pub fn secret_name(node: &str) -> String {
    format!("node-{node}")
}

fn node_of(secret: &Secret) -> Option<&str> {
    secrets::name(secret).strip_prefix("node-")
}

/// All nodes' records.
#[derive(Debug)]
pub struct NodeRecords {
    records: Mutex<HashMap<String, NodeRecord>>,
    seen: mpsc::Sender<PeerCertificate>,
}

impl NodeRecords {
    /// Empty; certificates with a higher generation than recorded go to `seen`.
    pub fn new(seen: mpsc::Sender<PeerCertificate>) -> Self {
        Self {
            records: Mutex::default(),
            seen,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, NodeRecord>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a node.
    pub fn get(&self, node: &str) -> Option<NodeRecord> {
        self.lock().get(node).cloned()
    }

    /// All records, by node.
    pub fn all(&self) -> Vec<(String, NodeRecord)> {
        self.among(|_| true)
    }

    /// The records of the nodes that are `wanted`, which must not ask for records itself.
    pub fn among(&self, wanted: impl Fn(&str) -> bool) -> Vec<(String, NodeRecord)> {
        let records = self.lock();
        records
            .iter()
            .filter(|(node, _)| wanted(node))
            .map(|(node, record)| (node.clone(), record.clone()))
            .collect()
    }

    /// Takes a record from the API; gives the node's name when it is revoked.
    pub fn observe(&self, secret: &Secret) -> Option<String> {
        let node = node_of(secret)?.to_owned();
        let record = NodeRecord::from_secret(secret);
        let revoked = record.revoked;
        let mut records = self.lock();
        let known = records.entry(node.clone()).or_default();
        // What was seen at a handshake may be ahead of what is written down.
        let generation = known.generation.max(record.generation);
        *known = NodeRecord { generation, ..record };
        revoked.then_some(node)
    }

    /// The record was deleted.
    pub fn forget(&self, secret: &Secret) {
        if let Some(node) = node_of(secret) {
            self.lock().remove(node);
        }
    }
}

impl Admission for NodeRecords {
    fn admit(&self, certificate: &PeerCertificate, now: Duration) -> Result<(), String> {
        let node = &certificate.node;
        if certificate.not_after <= now {
            return Err(format!("the certificate of node {node} expired"));
        }
        let mut records = self.lock();
        let record = records.entry(node.clone()).or_default();
        if record.revoked {
            return Err(format!("node {node} is revoked"));
        }
        if certificate.generation < record.generation {
            return Err(format!(
                "the certificate of node {node} has generation {}, but {} is in use",
                certificate.generation, record.generation
            ));
        }
        if certificate.generation > record.generation {
            record.generation = certificate.generation;
            if self.seen.try_send(certificate.clone()).is_err() {
                tracing::warn!(
                    node,
                    "too many new certificates at once: this generation is not written down yet"
                );
            }
        }
        Ok(())
    }

    fn quarantined(&self, node: &str) {
        tracing::error!(node, "NodeQuarantined: two machines live with one identity");
    }
}

/// Changes a record, made if it is missing, whatever others write meanwhile.
///
/// # Errors
/// The store does not let us, or others are faster ten times.
pub(super) async fn update(
    store: &dyn SecretStore,
    node: &str,
    change: impl Fn(&mut NodeRecord) + Send + Sync,
) -> Result<NodeRecord, SecretError> {
    let name = secret_name(node);
    for _ in 0..10 {
        let found = store.get(&name).await?;
        let mut record = found.as_ref().map(NodeRecord::from_secret).unwrap_or_default();
        let unchanged = record.clone();
        change(&mut record);
        let written = match found {
            Some(_) if record == unchanged => return Ok(record),
            Some(mut secret) => {
                record.write_to(&mut secret);
                store.replace(secret).await
            }
            None => store.create(record.to_secret(node)).await,
        };
        match written {
            Err(SecretError::Conflict { .. }) => {}
            Err(error) => return Err(error),
            Ok(_) => return Ok(record),
        }
    }
    Err(SecretError::Conflict { name })
}

/// Writes down a generation; it never falls.
pub(super) async fn record_generation(
    store: &dyn SecretStore,
    node: &str,
    generation: u64,
) -> Result<NodeRecord, SecretError> {
    let raise = |record: &mut NodeRecord| record.generation = record.generation.max(generation);
    update(store, node, raise).await
}

#[cfg(test)]
mod tests {
    use super::super::secrets::fake::FakeSecrets;
    use super::*;

    fn certificate(generation: u64) -> PeerCertificate {
        PeerCertificate {
            der: rustls_pki_types::CertificateDer::from(vec![]),
            node: "a".to_owned(),
            generation,
            not_after: Duration::from_secs(100),
        }
    }

    fn records() -> (NodeRecords, mpsc::Receiver<PeerCertificate>) {
        let (seen, receiver) = mpsc::channel(4);
        (NodeRecords::new(seen), receiver)
    }

    const NOW: Duration = Duration::from_secs(10);

    #[test]
    fn a_rotated_certificate_shuts_out_the_ones_before() {
        let (records, mut seen) = records();
        assert_eq!(
            records.admit(&certificate(1), NOW),
            Ok(()),
            "unknown nodes of our CA come in"
        );
        assert_eq!(records.admit(&certificate(2), NOW), Ok(()));
        assert!(records.admit(&certificate(1), NOW).unwrap_err().contains("generation"));
        assert_eq!(seen.try_recv().unwrap().generation, 1);
        assert_eq!(seen.try_recv().unwrap().generation, 2);
    }

    #[test]
    fn expired_and_revoked_certificates_are_refused() {
        let (records, _seen) = records();
        let late = Duration::from_secs(100);
        assert!(records.admit(&certificate(1), late).unwrap_err().contains("expired"));
        let revoked = NodeRecord {
            generation: 1,
            revoked: true,
            labels: BTreeMap::new(),
        };
        assert_eq!(records.observe(&revoked.to_secret("a")), Some("a".to_owned()));
        assert!(records.admit(&certificate(9), NOW).unwrap_err().contains("revoked"));
        records.forget(&revoked.to_secret("a"));
        assert_eq!(records.admit(&certificate(9), NOW), Ok(()));
    }

    #[tokio::test]
    async fn generations_are_written_down_and_never_fall() {
        let store = FakeSecrets::default();
        record_generation(&store, "a", 3).await.unwrap();
        record_generation(&store, "a", 2).await.unwrap();
        let secret = store.get("node-a").await.unwrap().unwrap();
        assert_eq!(NodeRecord::from_secret(&secret).generation, 3);
    }
}
