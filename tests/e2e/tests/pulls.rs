//! Suite `pulls`: images come from a registry that wants TLS by a CA of its own and a password, by the pods' pull policies and pull secrets.
//! What is said meanwhile is what kubelet says.

use kit::registry::{HOST, PASSWORD, Registry, pull_secret};
use kit::suite::{START, embedded, robot};
use kit::wait::State;
use kit::{Edge, Hub, Site, wait_for};
use serde_json::{Value, json};

/// A pod with the pull secret that runs on.
fn pod(name: &str, image: &str, policy: &str) -> String {
    let command = [
        "sh",
        "-c",
        "trap 'exit 0' TERM; echo started; while true; do sleep 1; done",
    ];
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "nodeName": "robot-1", "terminationGracePeriodSeconds": 1, "imagePullSecrets": [{"name": "registry"}],
            "containers": [{"name": "main", "image": image, "imagePullPolicy": policy, "command": command}],
        },
    })
    .to_string()
}

fn ready(hub: &Hub, edge: &Edge, pod: &str) -> Value {
    let (pod, _) = hub
        .kubectl
        .wait_ready(pod, START)
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", edge.tail(), hub.tail()));
    pod
}

/// Waits until the pod's container waits for `reason`, and gives the message.
fn waits(hub: &Hub, edge: &Edge, pod: &str, reason: &str) -> String {
    let waiting = |p: &Value| p["status"]["containerStatuses"][0]["state"]["waiting"].clone();
    let (pod, _) = hub
        .kubectl
        .wait(&["pod", pod], START, |p| waiting(p)["reason"] == reason)
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", edge.tail(), hub.tail()));
    assert_eq!(pod["status"]["phase"], "Pending");
    waiting(&pod)["message"].as_str().unwrap_or_default().to_owned()
}

/// Waits for an event of the pod with this reason whose message has `words`, and gives the message.
fn event(hub: &Hub, pod: &str, reason: &str, words: &str) -> String {
    let selector = format!("involvedObject.name={pod},reason={reason}");
    let (message, _) = wait_for(&format!("{pod}: event {reason}: {words}"), START, || {
        let list = hub.kubectl.get(&["events", "--field-selector", &selector]);
        let events = list.ok().flatten().unwrap_or_default();
        let all = events["items"].as_array().into_iter().flatten();
        match all.filter_map(|e| e["message"].as_str()).find(|m| m.contains(words)) {
            Some(message) => State::Done(message.to_owned()),
            None => State::Not(events.to_string()),
        }
    })
    .unwrap_or_else(|e| panic!("{e}\n{}", hub.tail()));
    message
}

fn apply(hub: &Hub, object: &str) {
    hub.kubectl
        .apply(object)
        .unwrap_or_else(|e| panic!("{e}\n{}", hub.tail()));
}

#[test]
fn wrong_password_is_told_in_kubelets_words_and_a_right_one_cures_it() {
    let site = Site::new().expect("a site");
    let hub = embedded(&site);
    let edge = robot(&site, &hub);
    let registry = Registry::start(&edge).expect("a registry");
    let image = registry.push(&edge, "kedge.dev/demo:1", "demo:1").expect("push");

    apply(&hub, &pull_secret("registry", "wrong").to_string());
    apply(&hub, &pod("private", &image, "IfNotPresent"));
    let said = event(&hub, "private", "Failed", "Failed to pull image");
    let cause = format!("failed to pull and unpack image \"{image}\": failed to resolve reference \"{image}\":");
    assert!(
        said.starts_with(&format!("Failed to pull image \"{image}\": {cause}")),
        "{said}"
    );
    assert!(said.contains("401 Unauthorized"), "{said}");
    event(&hub, "private", "Failed", "Error: ErrImagePull");
    event(
        &hub,
        "private",
        "BackOff",
        &format!("Back-off pulling image \"{image}\""),
    );
    event(&hub, "private", "Failed", "Error: ImagePullBackOff");
    let said = waits(&hub, &edge, "private", "ImagePullBackOff");
    assert!(
        said.starts_with(&format!("Back-off pulling image \"{image}\": ErrImagePull: {cause}")),
        "{said}"
    );

    apply(&hub, &pull_secret("registry", PASSWORD).to_string());
    let cured = ready(&hub, &edge, "private");
    assert_eq!(cured["status"]["containerStatuses"][0]["restartCount"], 0);
    let id = cured["status"]["containerStatuses"][0]["imageID"]
        .as_str()
        .unwrap_or_default();
    assert!(id.starts_with(&format!("{HOST}/demo@sha256:")), "{id}");
    let said = event(&hub, "private", "Pulled", "Successfully pulled image");
    assert!(
        said.contains(" including waiting). Image size: ") && said.ends_with(" bytes."),
        "{said}"
    );
}

#[test]
fn pull_policies_are_kubelets() {
    let site = Site::new().expect("a site");
    let hub = embedded(&site);
    let edge = robot(&site, &hub);
    let registry = Registry::start(&edge).expect("a registry");
    let image = registry.push(&edge, "kedge.dev/demo:1", "demo:1").expect("push");
    let other = registry.push(&edge, "kedge.dev/demo:1", "other:1").expect("push");
    apply(&hub, &pull_secret("registry", PASSWORD).to_string());

    apply(&hub, &pod("never", &image, "Never"));
    let said = waits(&hub, &edge, "never", "ErrImageNeverPull");
    let words = format!("Container image \"{image}\" is not present with pull policy of Never");
    assert_eq!(said, words);
    event(&hub, "never", "ErrImageNeverPull", &words);

    apply(&hub, &pod("always", &image, "Always"));
    ready(&hub, &edge, "always");
    event(&hub, "always", "Pulling", &format!("Pulling image \"{image}\""));
    event(&hub, "always", "Pulled", "Successfully pulled image");
    // The image is here now.
    ready(&hub, &edge, "never");
    event(&hub, "never", "Pulled", "already present on machine");

    drop(registry);
    apply(&hub, &pod("present", &image, "IfNotPresent"));
    ready(&hub, &edge, "present");
    event(&hub, "present", "Pulled", "already present on machine");
    // A new pod asks the registry, although the image is here; so does one whose image is not.
    apply(&hub, &pod("again", &image, "Always"));
    apply(&hub, &pod("absent", &other, "IfNotPresent"));
    for pod in ["again", "absent"] {
        let said = event(&hub, pod, "Failed", "Failed to pull image");
        assert!(said.contains("connection refused"), "{said}");
        waits(&hub, &edge, pod, "ImagePullBackOff");
    }
    let _registry = Registry::start(&edge).expect("the registry is back");
    for pod in ["again", "absent"] {
        ready(&hub, &edge, pod);
    }
}
