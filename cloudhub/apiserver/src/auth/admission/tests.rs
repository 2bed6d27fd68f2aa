use serde_json::json;

use super::super::rbac::GROUP;
use super::super::testing::{Fixture, node, row, user};
use super::*;

/// What is asked of admission in these tests.
struct Write {
    operation: Operation,
    kind: (&'static str, &'static str),
    subresource: &'static str,
    namespace: &'static str,
    name: &'static str,
}

fn create(group: &'static str, plural: &'static str, namespace: &'static str) -> Write {
    Write {
        operation: Operation::Create,
        kind: (group, plural),
        subresource: "",
        namespace,
        name: "",
    }
}

fn update(group: &'static str, plural: &'static str, namespace: &'static str, name: &'static str) -> Write {
    Write {
        operation: Operation::Update,
        name,
        ..create(group, plural, namespace)
    }
}

/// Mutates and validates.
fn admit(
    fixture: &Fixture,
    identity: &Identity,
    write: &Write,
    object: &mut Value,
    current: Option<&Value>,
) -> Result<(), Status> {
    let is_deletion = write.operation == Operation::Delete;
    let mut request = Request {
        identity,
        operation: write.operation,
        row: row(write.kind.0, write.kind.1, !write.namespace.is_empty()),
        subresource: write.subresource,
        namespace: write.namespace,
        name: write.name,
        object: Some(object).filter(|_| !is_deletion),
        current,
    };
    let admission = fixture.auth.admission();
    admission.mutate(&mut request)?;
    admission.validate(&request)
}

fn admin() -> Identity {
    Identity::new(User {
        groups: vec!["system:masters".into()],
        ..user("admin")
    })
}

fn pod() -> Value {
    json!({"metadata": {"name": "web", "namespace": "default"}, "spec": {"containers": [{"name": "a"}]}})
}

#[tokio::test]
async fn a_new_pod_gets_account_token_tolerations_and_priority() {
    let fixture = Fixture::new().await;
    let mut object = pod();
    object["spec"]["initContainers"] = json!([{"name": "i"}]);
    admit(&fixture, &admin(), &create("", "pods", "default"), &mut object, None).unwrap();
    let spec = &object["spec"];
    assert_eq!(spec["serviceAccountName"], "default");
    let volume = text(spec, "/volumes/0/name");
    assert!(volume.starts_with("kube-api-access-") && volume.len() == "kube-api-access-".len() + 5);
    assert_eq!(
        spec["volumes"][0]["projected"]["sources"][0],
        json!({"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}})
    );
    for list in ["containers", "initContainers"] {
        let mount = &spec[list][0]["volumeMounts"][0];
        assert_eq!(mount["mountPath"], "/var/run/secrets/kubernetes.io/serviceaccount");
        assert_eq!(mount["name"], volume);
    }
    assert_eq!(
        spec["tolerations"],
        json!([
            {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
            {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
        ])
    );
    assert_eq!(
        (&spec["priority"], &spec["preemptionPolicy"]),
        (&json!(0), &json!("PreemptLowerPriority"))
    );
    assert!(spec.get("priorityClassName").is_none());
}

#[tokio::test]
async fn a_pod_that_wants_no_token_or_has_tolerations_is_left_alone() {
    let fixture = Fixture::new().await;
    let mut object = pod();
    object["spec"]["automountServiceAccountToken"] = json!(false);
    object["spec"]["tolerations"] = json!([{"operator": "Exists"}]);
    object["spec"]["priorityClassName"] = json!("system-node-critical");
    admit(&fixture, &admin(), &create("", "pods", "default"), &mut object, None).unwrap();
    assert!(object["spec"].get("volumes").is_none());
    assert_eq!(object["spec"]["tolerations"], json!([{"operator": "Exists"}]));
    assert_eq!(object["spec"]["priority"], 2_000_001_000);
}

#[tokio::test]
async fn a_pod_of_what_does_not_exist_is_refused_with_the_real_words() {
    let fixture = Fixture::new().await;
    let refused = |field: &str, value: &str| {
        let mut object = pod();
        object["spec"][field] = json!(value);
        let result = admit(&fixture, &admin(), &create("", "pods", "default"), &mut object, None);
        result.unwrap_err().message
    };
    assert_eq!(
        refused("serviceAccountName", "nobody"),
        r#"pods "web" is forbidden: error looking up service account default/nobody: serviceaccount "nobody" not found"#
    );
    assert_eq!(
        refused("priorityClassName", "high"),
        r#"pods "web" is forbidden: no PriorityClass with name high was found"#
    );
    assert_eq!(
        refused("runtimeClassName", "kata"),
        r#"pods "web" is forbidden: pod rejected: RuntimeClass "kata" not found"#
    );
}

#[tokio::test]
async fn a_runtime_class_brings_its_overhead_and_where_it_runs() {
    let fixture = Fixture::new().await;
    let class = json!({
        "metadata": {"name": "kata"},
        "handler": "kata",
        "overhead": {"podFixed": {"memory": "64Mi"}},
        "scheduling": {"nodeSelector": {"kata": "yes"}, "tolerations": [{"key": "kata", "operator": "Exists"}]},
    });
    fixture.put("node.k8s.io", "runtimeclasses", class).await;
    let mut object = pod();
    object["spec"]["runtimeClassName"] = json!("kata");
    admit(&fixture, &admin(), &create("", "pods", "default"), &mut object, None).unwrap();
    assert_eq!(object["spec"]["overhead"], json!({"memory": "64Mi"}));
    assert_eq!(object["spec"]["nodeSelector"], json!({"kata": "yes"}));
    assert_eq!(object["spec"]["tolerations"].as_array().unwrap().len(), 3);
    let mut object = pod();
    object["spec"]["overhead"] = json!({"memory": "64Mi"});
    admit(&fixture, &admin(), &create("", "pods", "default"), &mut object, None).unwrap_err();
}

#[tokio::test]
async fn nothing_is_made_in_a_namespace_that_is_not_there_or_goes_away() {
    let fixture = Fixture::new().await;
    let mut object = json!({"metadata": {"name": "c", "namespace": "gone"}});
    let write = create("", "configmaps", "gone");
    let refusal = admit(&fixture, &admin(), &write, &mut object, None).unwrap_err();
    assert_eq!(
        (refusal.code, refusal.message.as_str()),
        (404, r#"namespaces "gone" not found"#)
    );
    let namespace = json!({"metadata": {"name": "gone"}, "status": {"phase": "Terminating"}});
    fixture.put("", "namespaces", namespace).await;
    let refusal = admit(&fixture, &admin(), &write, &mut object, None).unwrap_err();
    assert_eq!(
        refusal.message,
        r#"configmaps "c" is forbidden: unable to create new content in namespace gone because it is being terminated"#
    );
    assert_eq!(refusal.details.unwrap().causes[0].reason, "NamespaceTerminating");
    // What is there may still change: finalizers must go.
    let current = object.clone();
    admit(
        &fixture,
        &admin(),
        &update("", "configmaps", "gone", "c"),
        &mut object,
        Some(&current),
    )
    .unwrap();
}

#[tokio::test]
async fn some_namespaces_never_go() {
    let fixture = Fixture::new().await;
    let delete = |name: &'static str| {
        let write = Write {
            operation: Operation::Delete,
            ..update("", "namespaces", "", name)
        };
        admit(&fixture, &admin(), &write, &mut Value::Null, None)
    };
    let refusal = delete("kube-system").unwrap_err();
    assert_eq!(
        refusal.message,
        r#"namespaces "kube-system" is forbidden: this namespace may not be deleted"#
    );
    delete("kube-node-lease").unwrap();
}

#[tokio::test]
async fn a_node_registers_itself_with_labels_of_its_own_domain_only() {
    let fixture = Fixture::new().await;
    let robot = node("robot");
    let write = create("", "nodes", "");
    let labelled = |labels: Value| json!({"metadata": {"name": "robot", "labels": labels}});
    let mut object = labelled(json!({"kubernetes.io/hostname": "robot", "acme.com/arm": "left"}));
    admit(&fixture, &robot, &write, &mut object, None).unwrap();
    assert_eq!(
        object["spec"]["taints"],
        json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}])
    );
    let mut bad =
        labelled(json!({"node-role.kubernetes.io/control-plane": "", "x.node-restriction.kubernetes.io/a": "b"}));
    let refusal = admit(&fixture, &robot, &write, &mut bad, None).unwrap_err();
    assert_eq!(
        refusal.message,
        r#"nodes "robot" is forbidden: node "robot" is not allowed to set the following labels: node-role.kubernetes.io/control-plane, x.node-restriction.kubernetes.io/a"#
    );
    let refusal = admit(&fixture, &node("other"), &write, &mut object, None).unwrap_err();
    assert!(
        refusal
            .message
            .ends_with(r#"node "other" is not allowed to modify node "robot""#)
    );
    let current = object.clone();
    object["spec"]["taints"] = json!([]);
    let refusal = admit(
        &fixture,
        &robot,
        &update("", "nodes", "", "robot"),
        &mut object,
        Some(&current),
    );
    assert!(
        refusal
            .unwrap_err()
            .message
            .ends_with(r#"node "robot" is not allowed to modify taints"#)
    );
}

#[tokio::test]
async fn a_node_touches_its_own_pods_and_lease_only() {
    let fixture = Fixture::new().await;
    let mut stored = fixture.pod("web", "robot").await;
    let current = stored.clone();
    let status = Write {
        subresource: "status",
        ..update("", "pods", "default", "web")
    };
    admit(&fixture, &node("robot"), &status, &mut stored, Some(&current)).unwrap();
    let refusal = admit(&fixture, &node("other"), &status, &mut stored, Some(&current)).unwrap_err();
    assert!(
        refusal
            .message
            .ends_with(r#"node "other" can only update pod status for pods with spec.nodeName set to itself"#)
    );
    let spec = update("", "pods", "default", "web");
    admit(&fixture, &node("robot"), &spec, &mut stored, Some(&current)).unwrap_err();
    let delete = Write {
        operation: Operation::Delete,
        ..update("", "pods", "default", "web")
    };
    admit(&fixture, &node("robot"), &delete, &mut stored, Some(&current)).unwrap();
    admit(&fixture, &node("other"), &delete, &mut stored, Some(&current)).unwrap_err();
    let mut plain = pod();
    plain["spec"]["nodeName"] = json!("robot");
    let write = create("", "pods", "default");
    let refusal = admit(&fixture, &node("robot"), &write, &mut plain, None).unwrap_err();
    assert!(refusal.message.contains("can only create mirror pods"), "{refusal}");
    let lease = create("coordination.k8s.io", "leases", "kube-node-lease");
    let mut object = json!({"metadata": {"name": "robot", "namespace": "kube-node-lease"}});
    admit(&fixture, &node("robot"), &lease, &mut object, None).unwrap();
    admit(&fixture, &node("other"), &lease, &mut object, None).unwrap_err();
}

#[tokio::test]
async fn a_mirror_pod_of_its_node_is_taken_as_it_is() {
    let fixture = Fixture::new().await;
    fixture
        .put("", "nodes", json!({"metadata": {"name": "robot", "uid": "u"}}))
        .await;
    let mirror = json!({
        "metadata": {
            "name": "static-robot",
            "namespace": "default",
            "annotations": {"kubernetes.io/config.mirror": "h"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "robot", "uid": "u", "controller": true}],
        },
        "spec": {"nodeName": "robot", "containers": [{"name": "a"}]},
    });
    let write = create("", "pods", "default");
    let mut object = mirror.clone();
    admit(&fixture, &node("robot"), &write, &mut object, None).unwrap();
    assert!(object["spec"].get("volumes").is_none() && object["spec"].get("serviceAccountName").is_none());
    let mut object = mirror.clone();
    object["spec"]["volumes"] = json!([{"name": "v", "configMap": {"name": "c"}}]);
    let refusal = admit(&fixture, &node("robot"), &write, &mut object, None).unwrap_err();
    assert!(
        refusal
            .message
            .contains("can not create pods that reference configmaps"),
        "{refusal}"
    );
}

#[tokio::test]
async fn nobody_gives_away_more_than_they_have() {
    let fixture = Fixture::new().await;
    let own = json!([
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
        {"apiGroups": [GROUP], "resources": ["clusterroles"], "resourceNames": ["view"], "verbs": ["bind"]},
    ]);
    fixture.grant("bob", own).await;
    let bob = Identity::new(user("bob"));
    let write = create(GROUP, "roles", "default");
    let mut role = json!({
        "metadata": {"name": "r", "namespace": "default"},
        "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}],
    });
    admit(&fixture, &bob, &write, &mut role, None).unwrap();
    role["rules"][0]["verbs"] = json!(["get", "delete"]);
    let refusal = admit(&fixture, &bob, &write, &mut role, None).unwrap_err();
    assert_eq!(
        refusal.message,
        "roles.rbac.authorization.k8s.io \"r\" is forbidden: user \"bob\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\"]}"
    );
    admit(&fixture, &admin(), &write, &mut role, None).unwrap();
    let write = create(GROUP, "rolebindings", "default");
    let binding = |role: &str| {
        let mut object = json!({
            "metadata": {"name": "b", "namespace": "default"},
            "roleRef": {"kind": "ClusterRole", "name": role},
        });
        admit(&fixture, &bob, &write, &mut object, None)
    };
    binding("view").unwrap();
    assert_eq!(binding("edit").unwrap_err().code, 403);
    assert_eq!(binding("none").unwrap_err().code, 404);
}

#[tokio::test]
async fn one_priority_class_is_the_default() {
    let fixture = Fixture::new().await;
    let class = json!({"metadata": {"name": "low"}, "value": 5, "globalDefault": true, "preemptionPolicy": "Never"});
    fixture.put("scheduling.k8s.io", "priorityclasses", class.clone()).await;
    let mut object = pod();
    admit(&fixture, &admin(), &create("", "pods", "default"), &mut object, None).unwrap();
    assert_eq!(object["spec"]["priorityClassName"], "low");
    assert_eq!(
        (&object["spec"]["priority"], &object["spec"]["preemptionPolicy"]),
        (&json!(5), &json!("Never"))
    );
    let mut other = class;
    other["metadata"]["name"] = json!("other");
    let write = create("scheduling.k8s.io", "priorityclasses", "");
    let refusal = admit(&fixture, &admin(), &write, &mut other, None).unwrap_err();
    assert!(
        refusal
            .message
            .ends_with("PriorityClass low is already marked as default. Only one default can exist")
    );
}

#[tokio::test]
async fn a_pod_waits_for_the_account_of_a_new_namespace() {
    let fixture = Fixture::new().await;
    fixture
        .put("", "namespaces", json!({"metadata": {"name": "new"}}))
        .await;
    let mut object = json!({"metadata": {"name": "web", "namespace": "new"}, "spec": {"containers": []}});
    let identity = admin();
    let admission = fixture.auth.admission();
    let mut request = Request {
        identity: &identity,
        operation: Operation::Create,
        row: row("", "pods", true),
        subresource: "",
        namespace: "new",
        name: "",
        object: Some(&mut object),
        current: None,
    };
    let account = json!({"metadata": {"name": "default", "namespace": "new"}});
    tokio::join!(admission.settle(&request), fixture.put("", "serviceaccounts", account));
    admission.mutate(&mut request).unwrap();
}
