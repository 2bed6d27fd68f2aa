//! Who may do what: RBAC, impersonation, service accounts, anonymous callers.

use kit::Site;
use serde_json::Value;

use crate::bench::Bench;

#[test]
fn kubectl_auth_answers() {
    let site = Site::new().expect("a site");
    let b = Bench::new(&site);
    assert_eq!(b.ok(&["auth", "can-i", "create", "pods"]), "yes\n");
    b.shows(&["auth", "can-i", "--list"], &["*.*", "[*]"]);
    let me: Value = serde_json::from_str(&b.ok(&["auth", "whoami", "-o", "json"])).expect("JSON");
    let groups = &me["status"]["userInfo"]["groups"];
    assert_eq!(
        groups,
        &serde_json::json!(["system:masters", "system:authenticated"]),
        "{me:#}"
    );
    b.refuses(&["auth", "can-i", "create", "pods", "--as=alice"], &["no"]);
    b.shows(
        &["auth", "whoami", "--as=alice", "--as-group=pilots", "--as-uid=7"],
        &["alice", "pilots", "system:authenticated", "7"],
    );
    b.refuses(
        &["get", "secrets", "--as=alice"],
        &["Error from server (Forbidden)", "secrets is forbidden: User \"alice\" cannot list resource \"secrets\" in API group \"\" in the namespace \"default\""],
    );
    b.ok(&[
        "create",
        "role",
        "reader",
        "--verb=get,list",
        "--resource=configmaps",
        "--resource-name=only",
    ]);
    b.ok(&["create", "rolebinding", "pilots", "--role=reader", "--group=pilots"]);
    b.ok(&["create", "configmap", "only", "--from-literal=a=b"]);
    b.ok(&["create", "configmap", "other", "--from-literal=a=b"]);
    let pilot = ["--as=alice", "--as-group=pilots"];
    b.ok(&[&["get", "configmap", "only"], &pilot[..]].concat());
    b.refuses(
        &[&["get", "configmap", "other"], &pilot[..]].concat(),
        &["Forbidden", "\"other\""],
    );
    b.shows(
        &[&["auth", "can-i", "--list"], &pilot[..]].concat(),
        &["configmaps", "[only]", "selfsubjectreviews"],
    );
    b.ok(&["auth", "reconcile", "-f", &b.file("role.yaml", ROLE)]);
    b.shows(&["describe", "role", "reconciled"], &["pods", "[get]"]);
}

const ROLE: &str = "apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reconciled, namespace: default}
rules: [{apiGroups: [''], resources: [pods], verbs: [get]}]
";

#[test]
fn nobody_gives_more_than_he_has() {
    let site = Site::new().expect("a site");
    let b = Bench::new(&site);
    b.ok(&[
        "create",
        "role",
        "granter",
        "--verb=create",
        "--resource=roles.rbac.authorization.k8s.io",
    ]);
    b.ok(&["create", "rolebinding", "granter", "--role=granter", "--user=alice"]);
    b.refuses(
        &[
            "create",
            "role",
            "greedy",
            "--verb=*",
            "--resource=secrets",
            "--as=alice",
        ],
        &["Forbidden", "attempting to grant RBAC permissions not currently held"],
    );
}

#[test]
fn a_service_account_is_known_by_its_token() {
    let site = Site::new().expect("a site");
    let b = Bench::new(&site);
    b.ok(&["create", "serviceaccount", "robot"]);
    b.ok(&[
        "create",
        "rolebinding",
        "robot",
        "--clusterrole=view",
        "--serviceaccount=default:robot",
    ]);
    let token = b.ok(&["create", "token", "robot"]);
    let bearer = format!("Authorization: Bearer {}", token.trim());
    let (code, body) = b.curl(&["-H", &bearer], "/api/v1/namespaces/default/pods");
    assert_eq!(code, 200, "{body}");
    let (code, body) = b.curl(&["-H", &bearer], "/api/v1/namespaces/default/secrets");
    assert!(
        code == 403 && body.contains("system:serviceaccount:default:robot"),
        "{code} {body}"
    );
    let (code, _) = b.curl(
        &["-H", "Authorization: Bearer a.b.c"],
        "/api/v1/namespaces/default/pods",
    );
    assert_eq!(code, 401, "a token that is none is not anonymous");
    b.ok(&["delete", "serviceaccount", "robot"]);
    let (code, _) = b.curl(&["-H", &bearer], "/api/v1/namespaces/default/pods");
    assert_eq!(code, 401, "the token of a deleted account");
}

#[test]
fn anonymous_sees_health_and_version_only() {
    let site = Site::new().expect("a site");
    let b = Bench::new(&site);
    for path in ["/healthz", "/livez", "/readyz", "/version"] {
        let (code, body) = b.curl(&[], path);
        assert_eq!(code, 200, "{path}: {body}");
    }
    for path in [
        "/",
        "/api",
        "/apis",
        "/openapi/v3",
        "/api/v1/pods",
        "/apis/apps/v1/deployments",
        "/metrics",
        "/nothing",
    ] {
        let (code, body) = b.curl(&[], path);
        assert_eq!(code, 403, "{path}: {body}");
        let status: Value = serde_json::from_str(&body).unwrap_or_default();
        assert_eq!(status["reason"], "Forbidden", "{path}: {body}");
        assert!(body.contains("system:anonymous"), "{path}: {body}");
    }
    let (code, _) = b.curl(
        &["-X", "POST", "-d", "{}", "-H", "Content-Type: application/json"],
        "/api/v1/namespaces",
    );
    assert_eq!(code, 403);
}
