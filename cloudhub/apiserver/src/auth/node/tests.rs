use serde_json::json;

use super::super::testing::{Fixture, node};
use super::*;

fn asked(verb: &str, resource: &str, name: &str) -> Attributes {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    Attributes {
        verb: verb.into(),
        resource: resource.into(),
        subresource: subresource.into(),
        namespace: "default".into(),
        name: name.into(),
        ..Attributes::default()
    }
}

#[tokio::test]
async fn a_node_reads_what_its_pods_name_and_by_name_only() {
    let fixture = Fixture::new().await;
    fixture.pod("web", "robot").await;
    let may = |node_name: &str, attributes: &Attributes| fixture.auth.authorize(&node(node_name), attributes);
    for verb in ["get", "list", "watch"] {
        may("robot", &asked(verb, "secrets", "secret")).unwrap();
        assert_eq!(may("other", &asked(verb, "secrets", "secret")).unwrap_err().code, 403);
        assert_eq!(may("robot", &asked(verb, "secrets", "another")).unwrap_err().code, 403);
    }
    let refusal = may("robot", &asked("list", "secrets", "")).unwrap_err();
    assert!(refusal.message.ends_with(": No Object name found"), "{refusal}");
    let refusal = may("other", &asked("get", "secrets", "secret")).unwrap_err();
    assert_eq!(
        refusal.message,
        r#"secrets "secret" is forbidden: User "system:node:other" cannot get resource "secrets" in API group "" in the namespace "default": no relationship found between node 'other' and this object"#
    );
    may("robot", &asked("create", "serviceaccounts/token", "default")).unwrap();
    may("other", &asked("create", "serviceaccounts/token", "default")).unwrap_err();
    may("robot", &asked("get", "pods", "web")).unwrap();
    may("other", &asked("get", "pods", "web")).unwrap_err();
    may("robot", &asked("get", "pods/status", "web")).unwrap_err();
}

#[tokio::test]
async fn what_a_node_reads_ends_with_its_pod() {
    let fixture = Fixture::new().await;
    let secret = asked("get", "secrets", "secret");
    let mut pod = fixture.pod("web", "robot").await;
    fixture.auth.authorize(&node("robot"), &secret).unwrap();
    pod["spec"]["volumes"] = json!([]);
    fixture.put("", "pods", pod.clone()).await;
    fixture.auth.authorize(&node("robot"), &secret).unwrap_err();
    fixture.pod("again", "robot").await;
    fixture.auth.authorize(&node("robot"), &secret).unwrap();
    fixture
        .delete(
            "",
            "pods",
            &json!({"metadata": {"name": "again", "namespace": "default"}}),
        )
        .await;
    fixture.auth.authorize(&node("robot"), &secret).unwrap_err();
}

#[tokio::test]
async fn a_mirror_pod_opens_nothing() {
    let fixture = Fixture::new().await;
    let mut pod = fixture.pod("web", "robot").await;
    pod["metadata"]["annotations"] = json!({references::MIRROR: "hash"});
    fixture.put("", "pods", pod).await;
    let refused = |attributes: Attributes| fixture.auth.authorize(&node("robot"), &attributes).is_err();
    assert!(refused(asked("get", "secrets", "secret")));
    assert!(refused(asked("create", "serviceaccounts/token", "default")));
}

#[tokio::test]
async fn a_node_has_its_own_node_and_lease() {
    let fixture = Fixture::new().await;
    let of = |resource: &str, verb: &str, name: &str| Attributes {
        namespace: String::new(),
        ..asked(verb, resource, name)
    };
    let may = |attributes: Attributes| fixture.auth.authorize(&node("robot"), &attributes).is_ok();
    assert!(may(of("nodes", "get", "robot")) && may(of("nodes", "create", "")));
    assert!(may(of("nodes/status", "patch", "robot")));
    assert!(!may(of("nodes/status", "get", "robot")));
    assert!(!may(of("nodes", "get", "other")) && !may(of("nodes", "list", "")));
    assert!(!may(of("nodes", "delete", "robot")));
    let lease = |namespace: &str, verb: &str, name: &str| Attributes {
        group: "coordination.k8s.io".into(),
        namespace: namespace.into(),
        ..asked(verb, "leases", name)
    };
    assert!(may(lease(LEASES, "update", "robot")) && may(lease(LEASES, "create", "")));
    assert!(!may(lease(LEASES, "update", "other")) && !may(lease("default", "create", "")));
    assert!(!may(lease(LEASES, "list", "")));
    assert!(may(asked("create", "events", "")) && may(of("services", "list", "")));
    assert!(!may(asked("create", "configmaps", "")) && !may(of("namespaces", "get", "default")));
}
