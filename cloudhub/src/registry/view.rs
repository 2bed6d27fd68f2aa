//! The view of one node that the registry publishes and the node's session sends down.
//!
//! A view is a whole: a session compares two successive ones and needs no history. It is published through
//! `tokio::sync::watch`, so a slow session skips intermediate views and memory stays bounded.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use relay::{Lineage, SourceObject, SourceView};

/// Identity of the API that objects come from: the uid of namespace `kube-system`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ApiIdentity(pub String);

impl fmt::Display for ApiIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The kinds that go down to an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// The edge's own Node.
    Node,
    /// RuntimeClasses that its pods name.
    RuntimeClass,
    /// Secrets that its pods reference.
    Secret,
    /// ConfigMaps that its pods reference.
    ConfigMap,
    /// Pods bound to it.
    Pod,
}

impl Kind {
    /// All kinds, in the order in which an edge wants them: what a pod needs comes before the pod.
    pub const ALL: [Kind; 5] = [Kind::Node, Kind::RuntimeClass, Kind::Secret, Kind::ConfigMap, Kind::Pod];

    /// The Kubernetes name of the kind.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Node => "Node",
            Kind::RuntimeClass => "RuntimeClass",
            Kind::Secret => "Secret",
            Kind::ConfigMap => "ConfigMap",
            Kind::Pod => "Pod",
        }
    }

    /// Whether one watch serves all nodes, so that one resourceVersion mark speaks for the whole kind. Secrets and
    /// ConfigMaps are watched by name: their mark is [`Desired::resource_version`].
    pub fn has_mark(self) -> bool {
        !matches!(self, Kind::Secret | Kind::ConfigMap)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        Kind::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| UnknownKind(text.to_owned()))
    }
}

/// A kind that Kedge does not relay.
#[derive(Debug, thiserror::Error)]
#[error("kind {0:?} is not relayed: want one of Node, RuntimeClass, Secret, ConfigMap, Pod")]
pub struct UnknownKind(pub String);

/// Name of an object within one API.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for cluster-scoped kinds.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}/{}",
            self.kind,
            if self.namespace.is_empty() {
                "-"
            } else {
                &self.namespace
            },
            self.name
        )
    }
}

/// One object as it goes down to an edge.
#[derive(Clone, PartialEq, Eq)]
pub struct Desired {
    /// Kind, namespace and name.
    pub key: ObjectKey,
    /// The same, as the relay has it.
    pub relay_key: Arc<relay::Key>,
    /// resourceVersion at which the hub saw it. It is not part of the version: status writes move it.
    pub resource_version: u64,
    /// JSON of the object without status, managedFields and resourceVersion, otherwise byte for byte as the API sent it; with its
    /// `metadata.uid` and the SHA-256 of the JSON.
    pub object: Arc<SourceObject>,
}

impl fmt::Debug for Desired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the bytes: they may be a Secret's.
        write!(
            f,
            "Desired({} uid={} rv={} {} bytes)",
            self.key,
            self.object.uid,
            self.resource_version,
            self.object.bytes.len()
        )
    }
}

/// Everything that one node should hold.
///
/// Between two views with the same [`NodeView::era`], both synced, an object that is missing in the later one is gone:
/// deleted in the API, or no longer bound to or referenced by this node. Across eras absence proves nothing, and the
/// session starts over with a snapshot for the edge to judge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeView {
    /// The API that all of this comes from; `None` until it is known.
    pub identity: Option<ApiIdentity>,
    /// Whether the view is complete: every kind listed, every referenced Secret and ConfigMap read or known to be absent.
    pub synced: bool,
    /// Grows when the API behind the hub changed its identity or went back in time (restored from a backup).
    pub era: u64,
    /// Per kind with [`Kind::has_mark`], the resourceVersion up to which the hub has seen everything.
    pub marks: BTreeMap<Kind, u64>,
    /// The highest resourceVersion that the hub has seen of anything: not below any object's here.
    pub revision: u64,
    /// The life of the API's database.
    pub lineage: Arc<Lineage>,
    /// How many lists of pods the hub had taken.
    pub pod_lists: u64,
    /// The objects by their keys, each once: what a pod needs before the pods.
    pub objects: Arc<[Arc<Desired>]>,
}

impl From<&NodeView> for SourceView {
    fn from(view: &NodeView) -> Self {
        let objects = view.objects.iter();
        Self {
            identity: view.identity.as_ref().map(|i| i.0.clone()).unwrap_or_default(),
            marks: view.marks.iter().map(|(kind, rv)| (kind.to_string(), *rv)).collect(),
            revision: view.revision,
            lineage: view.lineage.clone(),
            objects: objects.map(|d| (d.relay_key.clone(), d.object.clone())).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn kinds_round_trip_through_their_names() {
        for kind in Kind::ALL {
            assert_eq!(kind.as_str().parse::<Kind>().unwrap(), kind);
        }
        assert!("Deployment".parse::<Kind>().is_err());
    }

    #[test]
    fn what_a_pod_needs_sorts_before_the_pod() {
        let key = |kind| ObjectKey {
            kind,
            namespace: "z".into(),
            name: "z".into(),
        };
        assert!(key(Kind::Secret) < key(Kind::Pod) && key(Kind::ConfigMap) < key(Kind::Pod));
    }

    #[test]
    fn debug_output_never_shows_the_payload() {
        let key = ObjectKey {
            kind: Kind::Secret,
            namespace: "a".into(),
            name: "b".into(),
        };
        let secret = Desired {
            key,
            relay_key: Arc::default(),
            resource_version: 1,
            object: Arc::new(SourceObject {
                uid: "u".into(),
                version: [0; 32],
                bytes: Bytes::from_static(b"hunter2"),
            }),
        };
        assert!(!format!("{secret:?}").contains("hunter2"));
    }
}
