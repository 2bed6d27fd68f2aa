//! get, describe, explain, what is served, watching.

use std::fs;
use std::process::Stdio;

use kit::Site;
use serde_json::Value;

use crate::bench::Bench;

const THINGS: &str = "apiVersion: v1
kind: ConfigMap
metadata: {name: banana, labels: {app: fruit}}
data: {colour: yellow}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: apple, labels: {app: fruit}}
data: {colour: red}
---
apiVersion: v1
kind: Secret
metadata: {name: cherry}
stringData: {colour: dark}
---
apiVersion: v1
kind: Pod
metadata: {name: solo, labels: {app: solo}}
spec:
  containers:
  - {name: main, image: 'kedge.dev/demo:1', resources: {requests: {cpu: 100m}}}
";

#[test]
fn the_first_start_has_what_a_cluster_has() {
    let site = Site::new().expect("a site");
    let b = Bench::new(&site);
    for namespace in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        b.wait(&["serviceaccount", "default", "-n", namespace], |_| true);
        let ca = b.wait(&["configmap", "kube-root-ca.crt", "-n", namespace], |_| true);
        let pem = ca["data"]["ca.crt"].as_str().unwrap_or_default();
        assert!(pem.starts_with("-----BEGIN CERTIFICATE"), "{namespace}: {ca:#}");
    }
    let service = b.get(&["service", "kubernetes"]);
    assert_eq!(service["spec"]["clusterIP"], "10.96.0.1", "{service:#}");
    let slice = b.get(&["endpointslice", "kubernetes"]);
    assert_eq!(slice["endpoints"][0]["addresses"][0], kit::site::HUB, "{slice:#}");
    for class in ["system-cluster-critical", "system-node-critical"] {
        b.get(&["priorityclass", class]);
    }
    b.shows(
        &["get", "clusterroles"],
        &[
            "cluster-admin",
            "admin",
            "edit",
            "view",
            "system:discovery",
            "kedge:cloudhub",
        ],
    );
    b.shows(&["get", "clusterrolebindings"], &["cluster-admin", "kedge:cloudhub"]);
    b.shows(&["version"], &["Server Version: v1.36"]);
    b.shows(&["cluster-info"], &["https://127.0.0.1:6443"]);
    b.shows(&["get", "--raw", "/readyz"], &["ok"]);
}

#[test]
fn get_prints_in_every_form() {
    let site = Site::new().expect("a site");
    let b = Bench::new(&site);
    b.ok_with(&["apply", "-f", "-"], THINGS);
    b.shows(
        &["get", "cm", "apple", "banana"],
        &["NAME", "DATA", "AGE", "apple", "banana"],
    );
    b.shows(
        &["get", "pods", "-o", "wide"],
        &[
            "READY",
            "STATUS",
            "RESTARTS",
            "NODE",
            "NOMINATED NODE",
            "solo",
            "0/1",
            "Pending",
        ],
    );
    b.shows(
        &["get", "cm", "apple", "-o", "yaml"],
        &["apiVersion: v1", "kind: ConfigMap", "colour: red", "uid: "],
    );
    let list: Value = serde_json::from_str(&b.ok(&["get", "cm", "-o", "json", "-l", "app=fruit"])).expect("JSON");
    assert_eq!(
        (list["kind"].as_str(), list["items"].as_array().map(Vec::len)),
        (Some("List"), Some(2)),
        "{list:#}"
    );
    assert_eq!(b.ok(&["get", "cm", "apple", "-o", "jsonpath={.data.colour}"]), "red");
    let columns = b.ok(&[
        "get",
        "cm",
        "-l",
        "app=fruit",
        "-o",
        "custom-columns=N:.metadata.name,C:.data.colour",
        "--sort-by=.data.colour",
    ]);
    let words: Vec<&str> = columns.split_whitespace().collect();
    assert_eq!(words, ["N", "C", "apple", "red", "banana", "yellow"]);
    let sorted = b.ok(&["get", "cm", "-l", "app=fruit", "--sort-by=.metadata.name", "-o", "name"]);
    assert_eq!(sorted, "configmap/apple\nconfigmap/banana\n");
    assert_eq!(
        b.ok(&["get", "cm", "apple", "-o", "go-template={{.data.colour}}"]),
        "red"
    );
    b.shows(
        &["get", "pods,cm,secrets", "-A"],
        &["pod/solo", "configmap/apple", "kube-root-ca.crt", "secret/cherry"],
    );
    b.shows(&["get", "all"], &["pod/solo", "service/kubernetes"]);
    b.shows(&["get", "cm", "--show-labels", "-L", "app"], &["app=fruit", "APP"]);
    b.shows(
        &["get", "cm", "--chunk-size=1"],
        &["apple", "banana", "kube-root-ca.crt"],
    );
    selects(&b);
}

fn selects(b: &Bench<'_>) {
    let secret = b.get(&["secret", "cherry"]);
    assert_eq!(
        secret["data"]["colour"], "ZGFyaw==",
        "stringData became data: {secret:#}"
    );
    assert!(secret["stringData"].is_null(), "{secret:#}");
    let one = b.ok(&["get", "cm", "--field-selector=metadata.name=apple", "-o", "name"]);
    assert_eq!(one, "configmap/apple\n");
    let some = b.ok(&["get", "cm", "-l", "app in (fruit, other),app!=other", "-o", "name"]);
    assert_eq!(some.lines().count(), 2, "{some}");
    b.shows(
        &[
            "get",
            "pods",
            "--field-selector=status.phase=Pending,spec.nodeName=",
            "-o",
            "name",
        ],
        &["pod/solo"],
    );
    b.refuses(
        &["get", "cm", "--field-selector=data.colour=red"],
        &["\"data.colour\" is not a known field selector"],
    );
    b.refuses(
        &["get", "cm", "nothing"],
        &["Error from server (NotFound): configmaps \"nothing\" not found"],
    );
}

#[test]
fn describe_explain_and_discovery_answer() {
    let site = Site::new().expect("a site");
    let b = Bench::new(&site);
    b.ok_with(&["apply", "-f", "-"], THINGS);
    b.shows(
        &["describe", "pod", "solo"],
        &[
            "Name:",
            "solo",
            "kedge.dev/demo:1",
            "QoS Class:",
            "Burstable",
            "kube-api-access-",
            "node.kubernetes.io/not-ready:NoExecute",
        ],
    );
    b.shows(&["describe", "configmap", "apple"], &["colour", "red"]);
    b.shows(&["describe", "secret", "cherry"], &["4 bytes", "Opaque"]);
    b.shows(&["describe", "namespace", "default"], &["Active"]);
    b.shows(&["describe", "service", "kubernetes"], &["10.96.0.1", "Endpoints:"]);
    b.shows(&["describe", "serviceaccount", "default"], &["default"]);
    b.shows(
        &["describe", "clusterrole", "view"],
        &["configmaps", "[get list watch]"],
    );
    b.shows(&["describe", "priorityclass", "system-node-critical"], &["2000001000"]);
    b.shows(
        &["explain", "deployment.spec.replicas"],
        &["KIND:", "Deployment", "<integer>", "Number of desired pods"],
    );
    b.shows(&["explain", "pods", "--recursive"], &["containers", "livenessProbe"]);
    b.shows(&["explain", "pod.spec.containers"], &["<[]Container>", "-required-"]);
    b.shows(
        &["api-resources"],
        &[
            "deployments",
            "deploy",
            "apps/v1",
            "priorityclasses",
            "events.k8s.io/v1",
            "replicasets",
            "metrics.k8s.io/v1beta1",
        ],
    );
    let namespaced = b.ok(&["api-resources", "--namespaced=false", "--verbs=list", "-o", "name"]);
    assert!(
        namespaced.contains("nodes") && !namespaced.contains("pods\n"),
        "{namespaced}"
    );
    let versions = b.ok(&["api-versions"]);
    for version in [
        "v1",
        "apps/v1",
        "coordination.k8s.io/v1",
        "rbac.authorization.k8s.io/v1",
        "policy/v1",
        "events.k8s.io/v1",
    ] {
        assert!(versions.lines().any(|line| line == version), "{version} in {versions}");
    }
}

#[test]
fn watches_show_changes_as_they_come() {
    let site = Site::new().expect("a site");
    let b = Bench::new(&site);
    b.ok(&["create", "configmap", "early", "--from-literal=a=b"]);
    let file = site.dir().join("watched");
    let mut watch = b
        .hub
        .kubectl
        .command(&["get", "configmaps", "-w", "--output-watch-events"])
        .stdout(fs::File::create(&file).expect("a file"))
        .stderr(Stdio::null())
        .spawn()
        .expect("kubectl");
    let seen = || fs::read_to_string(&file).unwrap_or_default();
    b.wait_text("the watch", "early", seen);
    b.ok(&["create", "configmap", "late", "--from-literal=a=b"]);
    b.wait_text("the watch", "late", seen);
    b.ok(&["patch", "configmap", "late", "-p", r#"{"data":{"c":"d"}}"#]);
    b.wait_text("the watch", "MODIFIED", seen);
    b.ok(&["delete", "configmap", "late"]);
    b.wait_text("the watch", "DELETED", seen);
    let _ = watch.kill();
    let _ = watch.wait();
}
