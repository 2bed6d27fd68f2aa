//! What is refused, and that the refusal says why: misspelt fields, wrong types, kinds that are not served, bodies of other forms.

use kit::Site;
use serde_json::Value;

use crate::bench::Bench;

const DEPLOYMENT: &str = "apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: main, image: 'kedge.dev/demo:1'}
";

#[test]
fn a_misspelt_field_is_named() {
    let site = Site::new().expect("a site");
    let b = Bench::new(&site);
    for (from, to, wanted) in [
        ("replicas:", "replica:", &["unknown field \"spec.replica\""][..]),
        (
            "image:",
            "imagee:",
            &["unknown field \"spec.template.spec.containers[0].imagee\""],
        ),
        (
            "metadata: {name: web}",
            "metadata: {name: web, label: {}}",
            &["unknown field \"metadata.label\""],
        ),
    ] {
        for verb in ["apply", "create"] {
            b.refuses_object(verb, &DEPLOYMENT.replacen(from, to, 1), wanted);
        }
    }
    b.is_gone(&["deployment", "web"]);
    b.ok_with(&["apply", "-f", "-"], DEPLOYMENT);
    b.refuses_object(
        "apply",
        &DEPLOYMENT.replacen("replicas:", "replica:", 1),
        &["unknown field \"spec.replica\""],
    );
    let ignored = DEPLOYMENT.replacen("replicas:", "replica:", 1);
    let said = b.ok_with(&["apply", "--validate=ignore", "-f", "-"], &ignored);
    assert!(said.contains("deployment.apps/web"), "{said}");
    b.refuses(
        &["patch", "deployment", "web", "-p", r#"{"spec":{"replica":2}}"#],
        &["unknown field \"spec.replica\""],
    );
}

#[test]
fn what_makes_no_sense_is_named() {
    let site = Site::new().expect("a site");
    let b = Bench::new(&site);
    for (from, to, wanted) in [
        ("replicas: 1", "replicas: two", &["replicas"][..]),
        (
            "replicas: 1",
            "replicas: -1",
            &["spec.replicas: Invalid value: -1", "must be greater than or equal to 0"],
        ),
        (
            "labels: {app: web}",
            "labels: {app: other}",
            &["`selector` does not match template `labels`"],
        ),
        (
            "- {name: main",
            "- {name: Main_",
            &["spec.template.spec.containers[0].name: Invalid value"],
        ),
        (
            ", image: 'kedge.dev/demo:1'",
            "",
            &["spec.template.spec.containers[0].image: Required value"],
        ),
        (
            "selector: {matchLabels: {app: web}}",
            "selector: {}",
            &["empty selector is invalid for deployment"],
        ),
    ] {
        b.refuses_object("create", &DEPLOYMENT.replacen(from, to, 1), wanted);
    }
    let pod = "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: a, image: i}], restartPolicy: Sometimes}}";
    b.refuses_object(
        "create",
        pod,
        &["spec.restartPolicy: Unsupported value: \"Sometimes\"", "\"Always\""],
    );
    let service =
        "{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {clusterIP: 10.1.2.3, ports: [{port: 80}]}}";
    b.refuses_object("create", service, &["10.1.2.3", "not in the valid range"]);
}

#[test]
fn kinds_that_are_not_served_are_not_found() {
    let site = Site::new().expect("a site");
    let b = Bench::new(&site);
    b.refuses(
        &["get", "ingresses"],
        &["the server doesn't have a resource type \"ingresses\""],
    );
    b.refuses(&["get", "--raw", "/apis/networking.k8s.io/v1/ingresses"], &["NotFound"]);
    b.refuses(
        &["get", "--raw", "/api/v1/namespaces/default/pods/x/nothing"],
        &["NotFound"],
    );
    let set = DEPLOYMENT.replacen("Deployment", "StatefulSet", 1);
    b.refuses_object(
        "apply",
        &set,
        &["no matches for kind \"StatefulSet\" in version \"apps/v1\""],
    );
    b.refuses(&["get", "deployments.v1beta1.apps"], &["doesn't have a resource type"]);
}

#[test]
fn bodies_of_other_forms_are_refused() {
    let site = Site::new().expect("a site");
    let b = Bench::new(&site);
    b.ok(&["create", "serviceaccount", "root"]);
    b.ok(&[
        "create",
        "clusterrolebinding",
        "root",
        "--clusterrole=cluster-admin",
        "--serviceaccount=default:root",
    ]);
    let bearer = format!("Authorization: Bearer {}", b.ok(&["create", "token", "root"]).trim());
    let maps = "/api/v1/namespaces/default/configmaps";
    let post = |kind: &str, body: &str, query: &str| {
        let (kind, file) = (format!("Content-Type: {kind}"), b.file("body", body));
        let data = format!("@{file}");
        let (code, body) = b.curl(
            &["-H", &bearer, "-H", &kind, "-H", "Expect:", "--data-binary", &data],
            &format!("{maps}{query}"),
        );
        let status: Value = serde_json::from_str(&body).unwrap_or_default();
        (code, status["message"].as_str().unwrap_or(&body).to_owned())
    };
    let map = |name: &str, rest: &str| {
        format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}"}}{rest}}}"#)
    };
    for kind in ["application/vnd.kubernetes.protobuf", "application/cbor", "text/plain"] {
        let (code, message) = post(kind, &map("a", ""), "");
        assert_eq!(code, 415, "{kind}: {message}");
    }
    let json = "application/json";
    let (code, message) = post(
        json,
        &map("a", r#","data":{"x":"1","x":"2"}"#),
        "?fieldValidation=Strict",
    );
    assert!(code == 400 && message.contains("duplicate field"), "{code} {message}");
    let (code, message) = post(json, &map("a", r#","data":{"x":1}"#), "");
    assert!(code == 400 && message.contains("data"), "{code} {message}");
    let (code, message) = post(json, "{", "");
    assert_eq!(code, 400, "{message}");
    let (code, message) = post(json, "null", "");
    assert_eq!(code, 400, "{message}");
    let (code, message) = post(json, &format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)), "");
    assert_eq!(code, 400, "{}", message.chars().take(300).collect::<String>());
    let (code, message) = post(
        json,
        &map("a", &format!(r#","data":{{"x":"{}"}}"#, "x".repeat(3 << 20))),
        "",
    );
    assert_eq!(code, 413, "{message}");
    let (code, message) = post(
        json,
        &map("a", &format!(r#","data":{{"x":"{}"}}"#, "x".repeat((1 << 20) + 1))),
        "",
    );
    assert!(code == 422 && message.contains("Too long"), "{code} {message}");
    let (code, message) = post(json, &map("a", r#","data":null"#), "");
    assert_eq!(code, 201, "null is absence: {message}");
    let accepted = "application/vnd.kubernetes.protobuf,application/json";
    let (code, body) = b.curl(&["-H", &bearer, "-H", &format!("Accept: {accepted}")], maps);
    assert!(code == 200 && body.starts_with('{'), "{code} {body}");
    let (code, _) = b.curl(
        &["-H", &bearer, "-H", "Accept: application/vnd.kubernetes.protobuf"],
        maps,
    );
    assert_eq!(code, 406);
    let (code, body) = b.curl(&["-H", &bearer], &format!("{maps}?watch=1&resourceVersion=x"));
    assert_eq!(code, 400, "{body}");
    b.shows(&["get", "cm", "a"], &["a"]);
}
