//! What pods ask of the Kubernetes API through the hub.

use async_trait::async_trait;
use serde_json::Value;
use tokio::sync::watch;
use tunnel::Session;

use crate::pods::NodeApi;
use crate::rotation::exchange;

/// Asks through the live session.
#[derive(Debug, Clone)]
pub struct HubApi {
    sessions: watch::Receiver<Option<Session>>,
}

impl HubApi {
    pub(super) fn new(sessions: watch::Receiver<Option<Session>>) -> Self {
        Self { sessions }
    }
}

#[async_trait]
impl NodeApi for HubApi {
    async fn token(&self, namespace: &str, service_account: &str, request: Value) -> Result<Value, String> {
        let session = self
            .sessions
            .borrow()
            .clone()
            .ok_or("there is no session with the hub")?;
        let stream = session.open_stream().await.map_err(|error| error.to_string())?;
        let path = format!("/v1/token?namespace={namespace}&serviceaccount={service_account}");
        let answer = exchange::post(stream, &path, "application/json", request.to_string()).await;
        serde_json::from_str(&answer.map_err(|error| error.to_string())?).map_err(|error| error.to_string())
    }
}
