//! What anybody who reaches the hub may send: certificates, requests to join, reports of nodes.

use std::sync::{Arc, LazyLock, Mutex};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cloudhub::identity::{Identity, JoinRequest, RejoinRequest, SecretError, SecretStore, secrets, tokens};
use cloudhub::writer::{diff, node, report};
use futures::executor::block_on;
use k8s_openapi::api::core::v1::Secret;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SigningKey as _};
use serde_json::{Value, json};

use super::OBJECTS;

const TOKEN: &str = "abc123.0123456789abcdef";

/// Secrets in memory. A replaced one stays as it was, so that a token is never spent.
#[derive(Debug, Default)]
struct Secrets(Mutex<Vec<Secret>>);

impl Secrets {
    fn all(&self) -> Vec<Secret> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl SecretStore for Secrets {
    async fn get(&self, name: &str) -> Result<Option<Secret>, SecretError> {
        Ok(self.all().into_iter().find(|secret| secrets::name(secret) == name))
    }

    async fn create(&self, secret: Secret) -> Result<Secret, SecretError> {
        let mut all = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !all.iter().any(|other| secrets::name(other) == secrets::name(&secret)) {
            all.push(secret.clone());
        }
        Ok(secret)
    }

    async fn replace(&self, secret: Secret) -> Result<Secret, SecretError> {
        Ok(secret)
    }

    async fn list(&self, _selector: &str) -> Result<Vec<Secret>, SecretError> {
        let all = self.all().into_iter();
        Ok(all.filter(|secret| tokens::node_of(secret).is_some()).collect())
    }
}

static HUB: LazyLock<Arc<Identity>> = LazyLock::new(|| {
    let store = Secrets::default();
    let values = [
        ("hash", tokens::hash(TOKEN).into_bytes()),
        ("expires", u64::MAX.to_string().into_bytes()),
        ("labels", br#"{"zone":"dock"}"#.to_vec()),
    ];
    let secret = secrets::secret(&tokens::secret_name("robot-1"), values);
    block_on(store.create(secret)).expect("it is in memory");
    block_on(Identity::load_from(Arc::new(store))).expect("keys can be made")
});

fn request_of(key: &KeyPair, named: bool) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if named {
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params
            .distinguished_name
            .push(DnType::CommonName, "system:node:robot-1");
    }
    let request = params.serialize_request(key).and_then(|request| request.pem());
    request.expect("a request of a fresh key can be written")
}

fn written(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("a request is JSON")
}

fn joining(key: &KeyPair, node: Option<&str>) -> JoinRequest {
    JoinRequest {
        token: TOKEN.into(),
        node: node.map(str::to_owned),
        csr: request_of(key, node.is_some()),
        boot_id: "0b8a9f3c".into(),
    }
}

fn key() -> KeyPair {
    KeyPair::generate().expect("the system has randomness")
}

pub(super) fn joins() -> Vec<Vec<u8>> {
    vec![
        written(&joining(&key(), Some("robot-1"))),
        written(&joining(&key(), None)),
    ]
}

pub(super) fn join(input: &[u8]) -> Result<(), String> {
    let Ok(request) = serde_json::from_slice::<JoinRequest>(input) else {
        return Ok(());
    };
    match block_on(HUB.join(&request, &["hub:6444".to_owned()])) {
        Ok(answer) if answer.node != "robot-1" => Err(format!("a certificate for {:?}", answer.node)),
        _ => Ok(()),
    }
}

/// A node's key, and its certificate in PEM.
fn joined() -> (KeyPair, String) {
    let key = key();
    let answer = block_on(HUB.join(&joining(&key, Some("robot-1")), &[]));
    (key, answer.expect("the token is good").certificate)
}

pub(super) fn rejoins() -> Vec<Vec<u8>> {
    let (old, certificate) = joined();
    let csr = request_of(&key(), true);
    let signature = old.sign(csr.as_bytes()).expect("an own key signs");
    vec![written(&RejoinRequest {
        certificate,
        csr,
        signature: STANDARD.encode(signature),
    })]
}

pub(super) fn rejoin(input: &[u8]) -> Result<(), String> {
    if let Ok(request) = serde_json::from_slice::<RejoinRequest>(input) {
        // Refused or not: what counts is that it ends.
        let _ = HUB.rejoin(&request);
    }
    Ok(())
}

/// DER: a changed byte of PEM is only broken base64.
pub(super) fn csrs() -> Vec<Vec<u8>> {
    [true, false]
        .iter()
        .flat_map(|named| inside(&request_of(&key(), *named)))
        .collect()
}

pub(super) fn csr(input: &[u8]) -> Result<(), String> {
    let tag = "CERTIFICATE REQUEST";
    let pem = format!(
        "-----BEGIN {tag}-----\n{}\n-----END {tag}-----\n",
        STANDARD.encode(input)
    );
    // Refused or not: what counts is that it ends.
    let _ = HUB.renew("robot-1", &pem);
    Ok(())
}

/// The DER of each part of a PEM text.
fn inside(pem: &str) -> Vec<Vec<u8>> {
    let parts = pem.split("-----BEGIN").skip(1);
    let texts = parts.filter_map(|part| part.split("-----").nth(1));
    let texts = texts.map(|text| text.split_whitespace().collect::<String>());
    texts.filter_map(|text| STANDARD.decode(text).ok()).collect()
}

/// DER.
pub(super) fn certificates() -> Vec<Vec<u8>> {
    inside(&joined().1)
}

pub(super) fn certificate(input: &[u8]) -> Result<(), String> {
    let _ = tunnel::PeerCertificate::parse(input);
    Ok(())
}

/// What the API has, and a report, with a NUL between them.
pub(super) fn statuses() -> Vec<Vec<u8>> {
    let all = OBJECTS.iter().filter(|object| object["status"].is_object());
    all.map(|object| {
        format!(
            "{}\0{}",
            object["status"],
            json!({"metadata": object["metadata"], "status": object["status"]})
        )
        .into_bytes()
    })
    .collect()
}

/// A node's or a pod's report: what is made of it, and whether the API says it already.
pub(super) fn status(input: &[u8]) -> Result<(), String> {
    let mut parts = input.splitn(2, |byte| *byte == 0);
    let actual: Value = serde_json::from_slice(parts.next().unwrap_or_default()).unwrap_or_default();
    let Ok(reported) = report::parse(parts.next().unwrap_or_default()) else {
        return Ok(());
    };
    let made = node::fuzz(&reported, &actual);
    diff::says(&actual, &made);
    diff::pod_patch("0b8a", &reported["status"]);
    diff::patient_tolerations(&reported);
    Ok(())
}
