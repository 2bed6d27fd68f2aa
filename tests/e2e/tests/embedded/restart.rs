//! The data folder outlives the process.

use std::os::unix::fs::PermissionsExt as _;

use kit::Site;
use serde_json::Value;

use crate::bench::Bench;

/// Objects without what the controllers write by themselves, and without the one that each start of the database writes.
fn snapshot(b: &Bench<'_>) -> Vec<(String, Value, Value)> {
    let all = b.get(&[
        "namespaces,configmaps,secrets,serviceaccounts,services,clusterroles,priorityclasses",
        "-A",
    ]);
    let mut found: Vec<(String, Value, Value)> = Vec::new();
    for object in all["items"].as_array().expect("items") {
        let meta = &object["metadata"];
        if meta["name"] == "lineage" {
            continue;
        }
        let name = format!("{} {}/{}", object["kind"], meta["namespace"], meta["name"]);
        found.push((name, meta["uid"].clone(), meta["resourceVersion"].clone()));
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

#[test]
fn objects_outlive_kill_9() {
    let site = Site::new().expect("a site");
    let mut b = Bench::new(&site);
    for namespace in ["kube-system", "kube-public", "kube-node-lease"] {
        b.wait(&["configmap", "kube-root-ca.crt", "-n", namespace], |_| true);
    }
    b.ok(&["create", "configmap", "kept", "--from-literal=a=b"]);
    b.ok(&["create", "configmap", "deleted", "--from-literal=a=b"]);
    b.ok(&["delete", "configmap", "deleted"]);
    b.ok(&["create", "serviceaccount", "robot"]);
    let token = b.ok(&["create", "token", "robot"]);
    let kubeconfig = &b.hub.kubeconfig;
    let mode = std::fs::metadata(kubeconfig)
        .expect("the kubeconfig")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600, "{} is for root alone", kubeconfig.display());
    let old_kubeconfig = std::fs::read_to_string(kubeconfig).expect("read");
    let before = snapshot(&b);
    let lineage = |b: &Bench<'_>| b.get(&["secret", "lineage", "-n", "kedge-system"]);
    let mut points = lineage(&b);
    for round in 0..3 {
        b.hub.kill();
        b.hub.restart().expect("the hub is back");
        let (after, more) = (snapshot(&b), lineage(&b));
        assert_eq!(more["metadata"]["uid"], points["metadata"]["uid"]);
        assert_ne!(more["data"], points["data"], "round {round}: each start leaves a point");
        points = more;
        for (was, is) in before.iter().zip(&after) {
            assert_eq!(was, is, "round {round}: name, uid and resourceVersion");
        }
        assert_eq!(before.len(), after.len(), "round {round}");
        b.is_gone(&["configmap", "deleted"]);
        let written = format!("round-{round}");
        b.ok(&["create", "configmap", &written, "-n", "default", "--dry-run=server"]);
    }
    let file = b.file("old.kubeconfig", &old_kubeconfig);
    b.ok(&["get", "configmap", "kept", "--kubeconfig", &file]);
    let bearer = format!("Authorization: Bearer {}", token.trim());
    let (code, body) = b.curl(&["-H", &bearer], "/apis");
    assert_eq!(code, 200, "a token of before is still good: {body}");
    let last = |b: &Bench<'_>| -> u64 {
        let kept = b.get(&["configmap", "kept"]);
        kept["metadata"]["resourceVersion"]
            .as_str()
            .and_then(|v| v.parse().ok())
            .unwrap_or_default()
    };
    let highest = before
        .iter()
        .filter_map(|(_, _, v)| v.as_str()?.parse::<u64>().ok())
        .max()
        .unwrap_or_default();
    b.ok(&["label", "configmap", "kept", "a=b"]);
    assert!(last(&b) > highest, "resourceVersions go on from where they were");
    b.hub.stop().expect("a clean stop");
    b.hub.restart().expect("the hub is back");
    assert_eq!(b.get(&["configmap", "kept"])["metadata"]["labels"]["a"], "b");
}
