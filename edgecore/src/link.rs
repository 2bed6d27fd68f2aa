//! What the rest of the node sees of the link to the hub, and what it is when there is none.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;
use tokio::sync::watch;

use crate::node::conditions::HubFlags;
use crate::pods::NodeApi;

/// The link's side of the rest of the node.
#[derive(Debug, Clone)]
pub struct LinkView {
    /// What the Node object tells of the link.
    pub flags: watch::Receiver<HubFlags>,
    /// True once the store holds all that the hub wants of this node: only then is a container without an object an orphan.
    pub complete: watch::Receiver<bool>,
    /// The API through the hub.
    pub api: Arc<dyn NodeApi>,
}

impl LinkView {
    /// The view of a node that has no hub: the store is all there is. `complete` is false where it was set aside.
    pub fn alone(complete: bool) -> Self {
        // The senders are dropped: a receiver keeps its last value.
        Self {
            flags: watch::channel(HubFlags::default()).1,
            complete: watch::channel(complete).1,
            api: Arc::new(Alone),
        }
    }
}

/// No hub, no tokens.
#[derive(Debug)]
struct Alone;

#[async_trait]
impl NodeApi for Alone {
    async fn token(&self, _namespace: &str, _service_account: &str, _request: Value) -> Result<Value, String> {
        Err("this node has no hub".to_owned())
    }
}
