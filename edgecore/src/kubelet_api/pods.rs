//! The pods that the kubelet API speaks of, read from the store: the object as the hub sent it, the status as the pod workers last wrote it.

use metastore::Store;
use serde_json::{Value, json};

/// One pod.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PodEntry {
    /// The object without its status.
    pub object: Value,
    /// Its status; Null before the first.
    pub status: Value,
}

impl PodEntry {
    /// A string of its metadata.
    pub fn metadata(&self, field: &str) -> &str {
        self.object["metadata"][field].as_str().unwrap_or_default()
    }

    /// Whether its spec names this container, of any kind.
    pub fn has_container(&self, name: &str) -> bool {
        let kinds = ["containers", "initContainers", "ephemeralContainers"];
        let lists = kinds.iter().filter_map(|kind| self.object["spec"][kind].as_array());
        lists.flatten().any(|c| c["name"] == name)
    }

    /// The status of one container, of any kind.
    pub fn container_status(&self, name: &str) -> Option<&Value> {
        self.container_statuses().find(|status| status["name"] == name)
    }

    /// All containers' statuses.
    pub fn container_statuses(&self) -> impl Iterator<Item = &Value> {
        let kinds = [
            "containerStatuses",
            "initContainerStatuses",
            "ephemeralContainerStatuses",
        ];
        kinds
            .into_iter()
            .filter_map(|kind| self.status[kind].as_array())
            .flatten()
    }

    /// The whole Pod, for /pods.
    pub fn whole(&self) -> Value {
        let mut pod = self.object.clone();
        if !self.status.is_null() {
            pod["status"] = self.status.clone();
        }
        pod
    }
}

/// Where pods come from.
pub trait PodSource: std::fmt::Debug + Send + Sync {
    /// All pods of this node.
    fn pods(&self) -> Vec<PodEntry>;
    /// One of them.
    fn pod(&self, namespace: &str, name: &str) -> Option<PodEntry>;
}

impl PodSource for Store {
    fn pods(&self) -> Vec<PodEntry> {
        let rows = self
            .scan("object/v1/Pod/")
            .inspect_err(|error| tracing::warn!(%error, "cannot read the pods"));
        let objects = rows
            .unwrap_or_default()
            .into_iter()
            .filter_map(|(_, bytes)| serde_json::from_slice(&bytes).ok());
        objects.map(|object| with_status(self, object)).collect()
    }

    fn pod(&self, namespace: &str, name: &str) -> Option<PodEntry> {
        let bytes = self.get(&format!("object/v1/Pod/{namespace}/{name}"));
        let bytes = bytes
            .inspect_err(|error| tracing::warn!(%error, namespace, pod = name, "cannot read a pod"))
            .ok()??;
        Some(with_status(self, serde_json::from_slice(&bytes).ok()?))
    }
}

fn with_status(store: &Store, object: Value) -> PodEntry {
    let mut entry = PodEntry {
        object,
        status: Value::Null,
    };
    let key = format!(
        "status/v1/Pod/{}/{}/{}",
        entry.metadata("namespace"),
        entry.metadata("name"),
        entry.metadata("uid")
    );
    let row = store.get(&key).ok().flatten();
    if let Some(mut row) = row.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok()) {
        entry.status = row["status"].take();
    }
    entry
}

/// v1.PodList.
pub fn list(pods: impl IntoIterator<Item = Value>) -> Value {
    let items: Vec<Value> = pods.into_iter().collect();
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
}

/// Which container's log a request means, by the rules of kubelet's validateContainerLogStatus.
///
/// # Errors
/// kubelet's sentence why there is none.
pub fn log_container(pod: &PodEntry, container: &str, previous: bool) -> Result<String, String> {
    let name = pod.metadata("name");
    let Some(status) = pod.container_status(container) else {
        return Err(format!("container {container:?} in pod {name:?} is not available"));
    };
    // An id is "containerd://…"; the runtime wants what is behind.
    let bare = |value: &Value| {
        value
            .as_str()
            .and_then(|id| id.split_once("://"))
            .map(|(_, id)| id.to_owned())
            .filter(|id| !id.is_empty())
    };
    let last = bare(&status["lastState"]["terminated"]["containerID"]);
    let terminated = format!("container {container:?} in pod {name:?} is terminated");
    let state = &status["state"];
    if previous {
        return last.ok_or_else(|| format!("previous terminated container {container:?} in pod {name:?} not found"));
    }
    if state["running"].is_object() {
        return bare(&status["containerID"]).ok_or(terminated);
    }
    if state["terminated"].is_object() {
        return bare(&state["terminated"]["containerID"]).or(last).ok_or(terminated);
    }
    if status["lastState"]["terminated"].is_object() {
        return last.ok_or(terminated);
    }
    let waiting = format!("container {container:?} in pod {name:?} is waiting to start");
    Err(match state["waiting"]["reason"].as_str() {
        Some("ErrImagePull") => format!("{waiting}: image can't be pulled"),
        Some("ImagePullBackOff") => format!("{waiting}: trying and failing to pull image"),
        Some(reason) => format!("{waiting}: {reason}"),
        None => format!("{waiting} - no logs yet"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(status: Value) -> PodEntry {
        PodEntry {
            object: json!({"metadata": {"name": "web"}}),
            status: json!({"containerStatuses": [status]}),
        }
    }

    #[test]
    fn the_log_of_the_right_container_is_shown() {
        let running = pod(
            json!({"name": "c", "containerID": "containerd://now", "state": {"running": {}}, "lastState": {"terminated": {"containerID": "containerd://old"}}}),
        );
        assert_eq!(log_container(&running, "c", false).unwrap(), "now");
        assert_eq!(log_container(&running, "c", true).unwrap(), "old");
        let crashed = pod(
            json!({"name": "c", "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": {"containerID": "containerd://old"}}}),
        );
        assert_eq!(log_container(&crashed, "c", false).unwrap(), "old");
        let ended = pod(json!({"name": "c", "state": {"terminated": {"containerID": "containerd://end"}}}));
        assert_eq!(log_container(&ended, "c", false).unwrap(), "end");
    }

    #[test]
    fn why_there_is_no_log_is_said_in_kubelets_words() {
        let waiting = pod(json!({"name": "c", "state": {"waiting": {"reason": "ImagePullBackOff"}}}));
        let said = log_container(&waiting, "c", false).unwrap_err();
        assert_eq!(
            said,
            "container \"c\" in pod \"web\" is waiting to start: trying and failing to pull image"
        );
        assert_eq!(
            log_container(&waiting, "c", true).unwrap_err(),
            "previous terminated container \"c\" in pod \"web\" not found"
        );
        assert_eq!(
            log_container(&waiting, "d", false).unwrap_err(),
            "container \"d\" in pod \"web\" is not available"
        );
    }
}
