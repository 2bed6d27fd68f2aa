//! What the registry keeps of an object: a few fields, and the rest packed.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::Value;

use super::list_watch::version;
use super::references;
use super::view::{Desired, Kind, ObjectKey};
use crate::packed::Packed;

/// Label of the nodes that Kedge serves.
pub const EDGE_LABEL: &str = "kedge.dev/edge";
/// Label of pods that may be replaced when their node is away.
const FAILOVER_LABEL: &str = "kedge.dev/failover";

/// A pod as the API has it.
#[derive(Debug)]
pub struct Pod {
    /// metadata.uid.
    pub uid: String,
    /// metadata.resourceVersion.
    pub version: u64,
    /// The node that it is bound to.
    pub node: String,
    /// metadata, spec and status.
    pub object: Packed,
    /// It stays with its node for ever, or asks for failover by its label: its tolerations are as they should be.
    pub is_patient: bool,
    pub(super) desired: Arc<Desired>,
    pub(super) references: BTreeSet<ObjectKey>,
}

/// A node as the API has it.
#[derive(Debug)]
pub struct Node {
    /// metadata.resourceVersion.
    pub version: u64,
    /// The object.
    pub object: Packed,
    /// Kedge's: joined by a robot.
    pub is_edge: bool,
    /// Its condition EdgeConnected is True.
    pub is_connected: bool,
    /// Where its kubelet API was served last.
    pub kubelet_port: Option<u16>,
    pub(super) desired: Arc<Desired>,
}

impl Pod {
    /// Whether it has this namespace and name.
    pub(super) fn is(&self, namespace: &str, name: &str) -> bool {
        self.desired.key.name == name && self.desired.key.namespace == namespace
    }
}

impl From<&Value> for Pod {
    fn from(object: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Self {
            uid: text(&object["metadata"]["uid"]),
            version: version(object),
            node: text(&object["spec"]["nodeName"]),
            references: references::of_pod(object),
            desired: Arc::new(desired(Kind::Pod, object)),
            is_patient: is_patient(object),
            object: Packed::from(object),
        }
    }
}

impl From<&Value> for Node {
    fn from(object: &Value) -> Self {
        Self {
            version: version(object),
            is_edge: object["metadata"]["labels"][EDGE_LABEL] == "true",
            is_connected: is_connected(object),
            kubelet_port: object["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
                .as_u64()
                .and_then(|port| u16::try_from(port).ok()),
            desired: Arc::new(desired(Kind::Node, object)),
            object: Packed::from(object),
        }
    }
}

fn is_connected(node: &Value) -> bool {
    let mut conditions = node["status"]["conditions"].as_array().into_iter().flatten();
    conditions.any(|condition| condition["type"] == "EdgeConnected" && condition["status"] == "True")
}

fn is_patient(pod: &Value) -> bool {
    let limited = |toleration: &Value| !toleration["tolerationSeconds"].is_null();
    let tolerations = pod["spec"]["tolerations"].as_array();
    pod["metadata"]["labels"][FAILOVER_LABEL] == "true" || !tolerations.into_iter().flatten().any(limited)
}

/// An object as it goes down: without status, managedFields and resourceVersion.
pub(super) fn desired(kind: Kind, object: &Value) -> Desired {
    let mut object = object.clone();
    let resource_version = version(&object);
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    let (uid, namespace, name) = (text("uid"), text("namespace"), text("name"));
    if let Some(fields) = object.as_object_mut() {
        fields.shift_remove("status");
        // Items of a list carry neither; watch events do.
        fields.shift_remove("kind");
        fields.shift_remove("apiVersion");
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.shift_remove("managedFields");
        metadata.shift_remove("resourceVersion");
    }
    // Without what the text has grown too large by: it stays for as long as the object.
    let bytes = bytes::Bytes::from(object.to_string().into_bytes().into_boxed_slice());
    Desired {
        relay_key: Arc::new((kind.to_string(), namespace.clone(), name.clone())),
        key: ObjectKey { kind, namespace, name },
        resource_version,
        object: Arc::new(relay::SourceObject {
            uid,
            version: relay::object_version(&bytes),
            bytes,
        }),
    }
}
