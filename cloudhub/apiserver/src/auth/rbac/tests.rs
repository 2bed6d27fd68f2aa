use serde_json::json;

use super::super::testing::{Fixture, user};
use super::*;

fn asked(verb: &str, group: &str, resource: &str, name: &str) -> Attributes {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    Attributes {
        verb: verb.into(),
        group: group.into(),
        resource: resource.into(),
        subresource: subresource.into(),
        name: name.into(),
        ..Attributes::default()
    }
}

fn path(path: &str) -> Attributes {
    Attributes {
        verb: "get".into(),
        path: path.into(),
        ..Attributes::default()
    }
}

#[test]
fn a_rule_allows_exactly_what_it_says() {
    let rule = |rule: Value| Rule::from_json(&rule);
    let pods = rule(json!({"apiGroups": [""], "resources": ["pods", "*/scale"], "verbs": ["get"]}));
    assert!(pods.allows(&asked("get", "", "pods", "a")));
    assert!(!pods.allows(&asked("list", "", "pods", "")));
    assert!(!pods.allows(&asked("get", "apps", "pods", "a")));
    assert!(
        !pods.allows(&asked("get", "", "pods/log", "a")),
        "a subresource is a resource of its own"
    );
    assert!(pods.allows(&asked("get", "", "anything/scale", "a")));
    let named = rule(json!({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"], "resourceNames": ["a"]}));
    assert!(named.allows(&asked("delete", "apps", "deployments/status", "a")));
    assert!(
        !named.allows(&asked("create", "apps", "deployments", "")),
        "a creation has no name"
    );
    assert!(!named.allows(&path("/metrics")));
    let paths = rule(json!({"nonResourceURLs": ["/healthz", "/api/*"], "verbs": ["get"]}));
    assert!(paths.allows(&path("/healthz")) && paths.allows(&path("/api/v1")));
    assert!(!paths.allows(&path("/healthz/etcd")) && !paths.allows(&path("/apis")));
}

#[test]
fn what_is_lacking_is_shown_by_resource_with_its_verbs() {
    let rules = |rules: Value| -> Vec<Rule> { items(&rules, "").iter().map(Rule::from_json).collect() };
    let own = rules(json!([{"apiGroups": [""], "resources": ["pods", "*/log"], "verbs": ["get"]}]));
    let wanted = rules(json!([
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "delete"]},
        {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
        {"nonResourceURLs": ["/x"], "verbs": ["get"]},
    ]));
    let shown = missing(&own, &wanted);
    assert_eq!(
        shown,
        [
            r#"{APIGroups:[""], Resources:["pods"], Verbs:["list" "delete"]}"#,
            r#"{NonResourceURLs:["/x"], Verbs:["get"]}"#
        ]
    );
    assert!(missing(&wanted, &own[..0]).is_empty());
    let named = rules(json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"], "resourceNames": ["a"]}]));
    assert!(missing(&own, &named).is_empty(), "all pods are more than one");
    assert!(!missing(&named, &own).is_empty());
}

#[tokio::test]
async fn a_binding_holds_from_its_creation_to_its_deletion() {
    let fixture = Fixture::new().await;
    let list = asked("list", "", "pods", "");
    let bob = user("bob");
    let decision = fixture.auth.decide(&bob, &list);
    assert!(!decision.allowed && decision.reason.is_empty());
    fixture
        .grant(
            "bob",
            json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]),
        )
        .await;
    let decision = fixture.auth.decide(&bob, &list);
    assert_eq!(
        decision.reason,
        r#"RBAC: allowed by ClusterRoleBinding "binding-of-bob" of ClusterRole "role-of-bob" to User "bob""#
    );
    fixture
        .delete(GROUP, "clusterroles", &json!({"metadata": {"name": "role-of-bob"}}))
        .await;
    let decision = fixture.auth.decide(&bob, &list);
    assert!(!decision.allowed);
    assert_eq!(
        decision.reason,
        r#"RBAC: clusterrole.rbac.authorization.k8s.io "role-of-bob" not found"#
    );
}

#[tokio::test]
async fn a_role_binding_reaches_no_further_than_its_namespace() {
    let fixture = Fixture::new().await;
    let binding = json!({
        "metadata": {"name": "b", "namespace": "default"},
        "roleRef": {"kind": "ClusterRole", "name": "admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "default"}],
    });
    fixture.put(GROUP, "rolebindings", binding).await;
    let account = user("system:serviceaccount:default:default");
    let within = |namespace: &str, verb: &str, resource: &str| Attributes {
        namespace: namespace.into(),
        ..asked(verb, "", resource, "")
    };
    let may = |attributes: Attributes| fixture.auth.decide(&account, &attributes);
    let seen = may(within("default", "list", "pods"));
    assert!(seen.allowed, "admin gathers edit, which gathers view");
    assert!(
        seen.reason.ends_with(r#"to ServiceAccount "default/default""#),
        "{}",
        seen.reason
    );
    assert!(may(within("default", "create", "pods")).allowed);
    assert!(!may(within("kube-system", "list", "pods")).allowed);
    assert!(!may(within("", "list", "pods")).allowed);
}

#[tokio::test]
async fn a_refusal_has_the_real_servers_words() {
    let fixture = Fixture::new().await;
    let identity = super::super::Identity::new(user("x"));
    let attributes = Attributes {
        namespace: "default".into(),
        ..asked("list", "", "pods", "")
    };
    let refusal = fixture.auth.authorize(&identity, &attributes).unwrap_err();
    assert_eq!(
        refusal.message,
        r#"pods is forbidden: User "x" cannot list resource "pods" in API group "" in the namespace "default""#
    );
    let attributes = asked("get", "apps", "deployments/scale", "web");
    let refusal = fixture.auth.authorize(&identity, &attributes).unwrap_err();
    assert_eq!(
        refusal.message,
        r#"deployments.apps "web" is forbidden: User "x" cannot get resource "deployments/scale" in API group "apps" at the cluster scope"#
    );
    let refusal = fixture.auth.authorize(&identity, &path("/metrics")).unwrap_err();
    assert_eq!(refusal.message, r#"forbidden: User "x" cannot get path "/metrics""#);
    assert_eq!(refusal.to_json()["details"], json!({}));
}

#[tokio::test]
async fn anonymous_sees_health_and_version_only() {
    let fixture = Fixture::new().await;
    let identity = fixture.auth.identify(None, &http::HeaderMap::new()).unwrap();
    assert_eq!(identity.user.name, "system:anonymous");
    for open in ["/healthz", "/livez", "/readyz", "/version"] {
        fixture.auth.authorize(&identity, &path(open)).unwrap();
    }
    for closed in ["/api", "/apis", "/openapi/v3", "/metrics"] {
        assert_eq!(fixture.auth.authorize(&identity, &path(closed)).unwrap_err().code, 403);
    }
}
