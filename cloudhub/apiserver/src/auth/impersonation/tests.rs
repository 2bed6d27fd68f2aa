use http::HeaderMap;
use serde_json::{Value, json};

use super::super::testing::Fixture;
use super::super::{Attributes, Identity};

/// As a certificate would name it.
async fn acting(fixture: &Fixture, by: &str, headers: &[(&'static str, &str)]) -> Identity {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(*name, value.parse().unwrap());
    }
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, by);
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    fixture.auth.identify(Some(certificate.der()), &map).unwrap()
}

fn asked(verb: &str, resource: &str, name: &str) -> Attributes {
    Attributes {
        verb: verb.into(),
        resource: resource.into(),
        namespace: "default".into(),
        name: name.into(),
        ..Attributes::default()
    }
}

fn hub() -> Value {
    json!([
        {"apiGroups": ["authentication.k8s.io"], "resources": ["nodes"], "verbs": ["impersonate:arbitrary-node"]},
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["impersonate-on:arbitrary-node:get"]},
    ])
}

#[tokio::test]
async fn the_hub_acts_as_a_node_for_what_it_was_granted_and_no_more() {
    let fixture = Fixture::new().await;
    fixture.pod("web", "robot").await;
    fixture.grant("kedge:cloudhub", hub()).await;
    let as_robot = acting(&fixture, "kedge:cloudhub", &[("impersonate-user", "system:node:robot")]).await;
    assert_eq!(as_robot.user.groups, ["system:nodes", "system:authenticated"]);
    let may = |attributes: Attributes| fixture.auth.authorize(&as_robot, &attributes);
    may(asked("get", "secrets", "secret")).unwrap();
    // The node may, the hub was not granted it.
    let refusal = may(asked("list", "secrets", "secret")).unwrap_err();
    assert_eq!(
        refusal.message,
        r#"secrets "secret" is forbidden: User "kedge:cloudhub" cannot impersonate-on:arbitrary-node:list resource "secrets" in API group "" in the namespace "default""#
    );
    // The hub was granted it, the node may not.
    let refusal = may(asked("get", "secrets", "another")).unwrap_err();
    assert!(refusal.message.contains(r#"User "system:node:robot""#), "{refusal}");
    let other = acting(&fixture, "kedge:cloudhub", &[("impersonate-user", "system:node:other")]).await;
    fixture
        .auth
        .authorize(&other, &asked("get", "secrets", "secret"))
        .unwrap_err();
}

#[tokio::test]
async fn a_group_beside_the_nodes_name_falls_back_to_legacy_which_the_hub_has_not() {
    let fixture = Fixture::new().await;
    fixture.pod("web", "robot").await;
    fixture.grant("kedge:cloudhub", hub()).await;
    let headers = [
        ("impersonate-user", "system:node:robot"),
        ("impersonate-group", "system:nodes"),
    ];
    let identity = acting(&fixture, "kedge:cloudhub", &headers).await;
    assert_eq!(identity.user.name, "kedge:cloudhub", "nobody else than the caller");
    let refusal = fixture.auth.authorize(&identity, &asked("get", "secrets", "secret"));
    let message = refusal.unwrap_err().message;
    assert!(
        message.contains(r#"cannot impersonate resource "users" in API group """#),
        "{message}"
    );
}

#[tokio::test]
async fn legacy_impersonation_asks_for_each_part() {
    let fixture = Fixture::new().await;
    let rules =
        json!([{"apiGroups": [""], "resources": ["users"], "resourceNames": ["bob"], "verbs": ["impersonate"]}]);
    fixture.grant("alice", rules).await;
    fixture
        .grant(
            "bob",
            json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]),
        )
        .await;
    let as_bob = acting(&fixture, "alice", &[("impersonate-user", "bob")]).await;
    assert_eq!(as_bob.user.groups, ["system:authenticated"]);
    fixture.auth.authorize(&as_bob, &asked("list", "pods", "")).unwrap();
    let headers = [("impersonate-user", "bob"), ("impersonate-group", "system:masters")];
    let master = acting(&fixture, "alice", &headers).await;
    fixture.auth.authorize(&master, &asked("list", "pods", "")).unwrap_err();
    let headers = [("impersonate-user", "bob"), ("impersonate-extra-acme.com%2Fkey", "v")];
    let extra = acting(&fixture, "alice", &headers).await;
    fixture.auth.authorize(&extra, &asked("list", "pods", "")).unwrap_err();
}

#[tokio::test]
async fn an_admin_acts_for_anyone_with_the_groups_that_the_name_brings() {
    let fixture = Fixture::new().await;
    let mut map = HeaderMap::new();
    map.insert(
        "impersonate-user",
        "system:serviceaccount:default:default".parse().unwrap(),
    );
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "admin");
    params
        .distinguished_name
        .push(rcgen::DnType::OrganizationName, "system:masters");
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let identity = fixture.auth.identify(Some(certificate.der()), &map).unwrap();
    assert_eq!(
        identity.user.groups,
        [
            "system:serviceaccounts",
            "system:serviceaccounts:default",
            "system:authenticated"
        ]
    );
    let refusal = fixture.auth.authorize(&identity, &asked("list", "pods", ""));
    assert!(
        refusal
            .unwrap_err()
            .message
            .contains("system:serviceaccount:default:default")
    );
}

#[tokio::test]
async fn headers_without_a_user_are_refused() {
    let fixture = Fixture::new().await;
    let mut map = HeaderMap::new();
    map.insert("impersonate-group", "g".parse().unwrap());
    let refusal = fixture.auth.identify(None, &map).unwrap_err();
    assert_eq!(
        refusal.message,
        r#"requested &user.DefaultInfo{Name:"", UID:"", Groups:[]string{"g"}, Extra:map[string][]string(nil)} without impersonating a user name"#
    );
}
