//! Service account tokens: asked from the hub, renewed at 80 % of their life, kept in the store, used past their end while the hub is away.

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::api::{Pod, TokenProjection};
use super::events::Severity;
use super::registry::Shared;
use super::report::parse_time;
use super::volumes::Tokens;

/// kubelet's default life, and when it renews at the latest.
const DEFAULT_LIFE: i64 = 3600;
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// How soon a renewal that failed is tried again.
const RETRY: Duration = Duration::from_secs(30);
/// The hub answers within a round trip or not at all.
const DEADLINE: Duration = Duration::from_secs(10);

/// What the node asks from the API through the hub.
#[async_trait]
pub trait NodeApi: std::fmt::Debug + Send + Sync + 'static {
    /// Creates a token: the answer to a TokenRequest for a service account, as this node.
    ///
    /// # Errors
    /// The API's or the link's words.
    async fn token(&self, namespace: &str, service_account: &str, request: Value) -> Result<Value, String>;
}

#[derive(Debug, Serialize, Deserialize)]
struct Row {
    token: String,
    issued: u64,
    expires: u64,
}

impl Row {
    fn due(&self) -> Duration {
        let life = self.expires.saturating_sub(self.issued);
        let at = self.issued + (life * 4 / 5).min(MAX_AGE.as_secs());
        Duration::from_secs(at)
    }
}

/// All tokens that a pod's volumes need, and when (since 1970) the next one is due. What cannot be had is left out.
pub async fn ensure(shared: &Shared, pod: &Pod) -> (Tokens, Option<Duration>) {
    let mut tokens = Tokens::new();
    let mut next: Option<Duration> = None;
    for volume in &pod.spec.volumes {
        let Some(projected) = &volume.projected else { continue };
        for wanted in projected
            .sources
            .iter()
            .filter_map(|s| s.service_account_token.as_ref())
        {
            let (row, due) = one(shared, pod, wanted).await;
            next = Some(next.map_or(due, |n| n.min(due)));
            if let Some(row) = row {
                tokens.insert((volume.name.clone(), wanted.path.clone()), row.token);
            }
        }
    }
    (tokens, next)
}

async fn one(shared: &Shared, pod: &Pod, wanted: &TokenProjection) -> (Option<Row>, Duration) {
    let now = super::memory::Now::read().wall;
    let life = wanted.expiration_seconds.unwrap_or(DEFAULT_LIFE);
    let key = format!("local/v1/token/{}/{life}/{}", pod.metadata.uid, wanted.audience);
    let held: Option<Row> = shared
        .rows
        .get(&key)
        .ok()
        .flatten()
        .and_then(|b| serde_json::from_slice(&b).ok());
    if let Some(row) = held.as_ref().filter(|r| r.due() > now) {
        let due = row.due();
        return (held, due);
    }
    let asked = tokio::time::timeout(DEADLINE, request(shared, pod, wanted, life)).await;
    match asked.unwrap_or_else(|_| Err("the hub did not answer in time".to_owned())) {
        Ok(row) => {
            let due = row.due();
            if let Ok(text) = serde_json::to_vec(&row)
                && let Err(error) = shared.rows.commit(vec![(key, Some(text.into()))]).await
            {
                tracing::warn!(pod = pod.full_name(), %error, "the token is not kept for a restart");
            }
            (Some(row), due.max(now + RETRY))
        }
        Err(error) => {
            let past = held.as_ref().is_some_and(|r| r.expires <= now.as_secs());
            tracing::warn!(
                pod = pod.full_name(),
                error,
                past,
                "no new service account token; the last one stays"
            );
            if past {
                let message = format!("the token expired and cannot be renewed ({error}); the pod keeps the last one");
                shared.event((pod, None), Severity::Warning, "TokenExpired", &message);
            }
            (held, now + RETRY)
        }
    }
}

async fn request(shared: &Shared, pod: &Pod, wanted: &TokenProjection, life: i64) -> Result<Row, String> {
    let m = &pod.metadata;
    let audiences: Vec<&str> = if wanted.audience.is_empty() {
        Vec::new()
    } else {
        vec![&wanted.audience]
    };
    let body = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {
            "audiences": audiences, "expirationSeconds": life,
            "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": m.name, "uid": m.uid},
        },
    });
    let account = if pod.spec.service_account_name.is_empty() {
        "default"
    } else {
        &pod.spec.service_account_name
    };
    let answer = shared.api.token(&m.namespace, account, body).await?;
    let status = &answer["status"];
    let token = status["token"].as_str().ok_or("the answer has no token")?.to_owned();
    let expires = status["expirationTimestamp"]
        .as_str()
        .and_then(parse_time)
        .ok_or("the answer has no expiration")?;
    let issued = super::memory::Now::read().wall.as_secs();
    Ok(Row {
        token,
        issued,
        expires: expires.as_secs(),
    })
}
