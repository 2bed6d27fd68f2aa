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
    let patch = ["patch", "deployment", "web", "-p", r#"{"spec":{"replica":2}}"#];
    let patched = b.hub.kubectl.output(&patch).expect("kubectl");
    let said = String::from_utf8_lossy(&patched.stderr).into_owned();
    assert!(
        patched.status.success() && said.contains("Warning: unknown field \"spec.replica\""),
        "{said}"
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
    b.refuses_object(
        "create",
        service,
        &[
            "failed to allocate IP 10.1.2.3",
            "the provided IP (10.1.2.3) is not in the valid range",
        ],
    );
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

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const JSON: &str = "application/json";

/// The Authorization header of an account that may do everything.
fn root(b: &Bench<'_>) -> String {
    b.ok(&["create", "serviceaccount", "root"]);
    let account = "--serviceaccount=default:root";
    b.ok(&[
        "create",
        "clusterrolebinding",
        "root",
        "--clusterrole=cluster-admin",
        account,
    ]);
    format!("Authorization: Bearer {}", b.ok(&["create", "token", "root"]).trim())
}

/// POST of a body: (HTTP status, message of the Status or the whole answer).
fn post(b: &Bench<'_>, bearer: &str, kind: &str, body: &str, query: &str) -> (u16, String) {
    let (kind, file) = (format!("Content-Type: {kind}"), b.file("body", body));
    let data = format!("@{file}");
    let args = ["-H", bearer, "-H", &kind, "-H", "Expect:", "--data-binary", &data];
    let (code, body) = b.curl(&args, &format!("{MAPS}{query}"));
    let status: Value = serde_json::from_str(&body).unwrap_or_default();
    let message = status["message"].as_str().unwrap_or(&body);
    (code, message.chars().take(300).collect())
}

/// A ConfigMap in JSON with more fields.
fn map(rest: &str) -> String {
    format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"a"}}{rest}}}"#)
}

#[test]
fn bodies_of_other_forms_are_refused() {
    let site = Site::new().expect("a site");
    let b = Bench::new(&site);
    let bearer = root(&b);
    for kind in ["application/cbor", "text/plain"] {
        let (code, message) = post(&b, &bearer, kind, &map(""), "");
        assert_eq!(code, 415, "{kind}: {message}");
    }
    let (code, message) = post(&b, &bearer, "application/vnd.kubernetes.protobuf", &map(""), "");
    assert!(
        code == 400 && message.contains("does not appear to be a protobuf message"),
        "{code} {message}"
    );
    let data = |size: usize| map(&format!(r#","data":{{"x":"{}"}}"#, "x".repeat(size)));
    let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for (body, query, wanted, word) in [
        (
            map(r#","data":{"x":"1","x":"2"}"#),
            "?fieldValidation=Strict",
            400,
            "duplicate field",
        ),
        (map(r#","data":{"x":1}"#), "", 400, "data"),
        ("{".into(), "", 400, ""),
        ("null".into(), "", 400, ""),
        (nested, "", 400, ""),
        (data(3 << 20), "", 413, ""),
        (data((1 << 20) + 1), "", 422, "Too long"),
        (map(r#","data":null"#), "", 201, ""),
    ] {
        let (code, message) = post(&b, &bearer, JSON, &body, query);
        let shown: String = body.chars().take(100).collect();
        assert!(
            code == wanted && message.contains(word),
            "{shown}: {code}, not {wanted}: {message}"
        );
    }
    b.shows(&["get", "cm", "a"], &["a"]);
}

#[test]
fn what_is_accepted_says_what_is_answered() {
    let site = Site::new().expect("a site");
    let b = Bench::new(&site);
    let bearer = root(&b);
    let get = |accept: &str, query: &str| {
        b.curl(
            &["-H", &bearer, "-H", &format!("Accept: {accept}")],
            &format!("{MAPS}{query}"),
        )
    };
    let (code, body) = get(&format!("application/vnd.kubernetes.protobuf,{JSON}"), "");
    assert!(code == 200 && body.starts_with('{'), "{code} {body}");
    assert_eq!(get("application/vnd.kubernetes.protobuf", "").0, 406);
    assert_eq!(get(&format!("{JSON};as=Table;v=v1;g=meta.k8s.io"), "").0, 200);
    let (code, body) = get(JSON, "?watch=1&resourceVersion=x");
    // The real server does not call this the client's fault either.
    assert!(
        code == 500 && body.contains("resourceVersion: Invalid value"),
        "{code} {body}"
    );
}
