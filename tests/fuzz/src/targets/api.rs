//! What clients of the embedded Kubernetes API send.

use std::sync::LazyLock;

use apiserver::fuzzing;
use serde_json::{Value, json};

use super::{OBJECTS, texts};

pub(super) fn objects() -> Vec<Vec<u8>> {
    OBJECTS.iter().map(|object| object.to_string().into_bytes()).collect()
}

pub(super) fn schema(input: &[u8]) -> Result<(), String> {
    fuzzing::schema(input)
}

pub(super) fn create(input: &[u8]) -> Result<(), String> {
    fuzzing::create(input)
}

fn pair(first: &Value, second: &Value) -> Vec<u8> {
    format!("{first}\0{second}").into_bytes()
}

/// Objects with themselves, changed a little.
pub(super) fn pairs() -> Vec<Vec<u8>> {
    let changed = |object: &Value| {
        let mut changed = object.clone();
        changed["metadata"]["labels"] = json!({"changed": "yes"});
        changed
    };
    OBJECTS.iter().map(|object| pair(object, &changed(object))).collect()
}

pub(super) fn update(input: &[u8]) -> Result<(), String> {
    fuzzing::update(input);
    Ok(())
}

/// Objects with a patch of each kind.
pub(super) fn patches() -> Vec<Vec<u8>> {
    let (pod, service) = (&OBJECTS[0], &OBJECTS[2]);
    let merges = [
        json!({"metadata": {"labels": {"app": null, "b": "c"}}, "spec": {"containers": [{"name": "main", "image": "x"}]}}),
        json!({"spec": {"$setElementOrder/containers": [{"name": "main"}, {"name": "new"}], "containers": [{"name": "new", "image": "y"}]}}),
        json!({"spec": {"containers": [{"$patch": "delete", "name": "main"}], "volumes": [{"$patch": "replace"}, {"name": "z"}]}}),
        json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["kedge.dev/x"]}, "spec": {"$retainKeys": ["nodeName"], "nodeName": "b"}}),
        json!([{"op": "test", "path": "/kind", "value": "Pod"}, {"op": "replace", "path": "/metadata/labels/app", "value": "b"},
            {"op": "copy", "from": "/spec", "path": "/spec/copy"}, {"op": "move", "from": "/spec/copy", "path": "/x~1y"},
            {"op": "add", "path": "/spec/containers/-", "value": {"name": "n"}}, {"op": "remove", "path": "/spec/containers/0"}]),
    ];
    let mut all: Vec<Vec<u8>> = merges.iter().map(|patch| pair(pod, patch)).collect();
    all.push(pair(
        service,
        &json!({"spec": {"ports": [{"port": 80, "$patch": "delete"}, {"port": 81}]}}),
    ));
    all
}

pub(super) fn patch(input: &[u8]) -> Result<(), String> {
    fuzzing::patch(input)
}

pub(super) fn requests() -> Vec<Vec<u8>> {
    texts(&[
        "GET /api/v1/namespaces/default/pods?labelSelector=app%3Dweb&fieldSelector=spec.nodeName%3Drobot-1&limit=5&continue=eyJ2ZXJzaW9uIjo3LCJuYW1lc3BhY2UiOiJhIiwibmFtZSI6ImIifQ",
        "GET /api/v1/pods?watch=1&allowWatchBookmarks=true&resourceVersion=7&resourceVersionMatch=NotOlderThan&timeoutSeconds=5",
        "PATCH /apis/apps/v1/namespaces/default/deployments/web/scale?fieldManager=kubectl&dryRun=All&fieldValidation=Strict",
        "POST /api/v1/namespaces/default/pods/web/exec?command=sh&container=main&stdin=true&stdout=true",
        "GET /api/v1/namespaces/default/pods/web/log?tailLines=5&sinceTime=2026-01-01T00:00:00Z&limitBytes=7&timestamps=1",
        "GET /api/v1/nodes/https:robot-1:10250/proxy/stats/summary?a=b",
        "DELETE /api/v1/namespaces/default/pods?gracePeriodSeconds=0&propagationPolicy=Background",
        "POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews?pretty=true&includeObject=Object",
        "GET /apis/metrics.k8s.io/v1beta1/namespaces/default/pods/web",
        "GET /openapi/v3/apis/apps/v1?hash=A",
        "POST /api/v1/namespaces/default/pods/web/portforward?ports=80,443",
    ])
}

pub(super) fn request(input: &[u8]) -> Result<(), String> {
    fuzzing::request(input)
}

pub(super) fn selectors() -> Vec<Vec<u8>> {
    texts(&[
        "app=web,tier!=x,a in (b, c),d notin (e),f,!g,h>5,i<7",
        "spec.nodeName=robot-1,metadata.name!=web,status.phase==Running",
        r#"{"matchLabels":{"a":"b"},"matchExpressions":[{"key":"c","operator":"In","values":["d"]},{"key":"e","operator":"Exists"}]}"#,
    ])
}

pub(super) fn selector(input: &[u8]) -> Result<(), String> {
    fuzzing::selector(input);
    Ok(())
}

pub(super) fn accepts() -> Vec<Vec<u8>> {
    texts(&[
        "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json\napplication/strategic-merge-patch+json; charset=utf-8",
        "application/vnd.kubernetes.protobuf, */*;q=0.8",
    ])
}

pub(super) fn accept(input: &[u8]) -> Result<(), String> {
    fuzzing::accept(input);
    Ok(())
}

pub(super) fn headers() -> Vec<Vec<u8>> {
    texts(&[
        "Authorization: Bearer a.b.c\nImpersonate-User: u\nImpersonate-Group: g\nImpersonate-Extra-a%2fb: c\nImpersonate-Uid: 5",
        "Sec-WebSocket-Protocol: v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.YS5iLmM\nImpersonate-Extra-%zz: c",
    ])
}

pub(super) fn header(input: &[u8]) -> Result<(), String> {
    fuzzing::headers(input);
    Ok(())
}

pub(super) fn certificate(input: &[u8]) -> Result<(), String> {
    fuzzing::certificate(input);
    Ok(())
}

static KEY: LazyLock<fuzzing::Tokens> = LazyLock::new(|| {
    let key = rcgen::KeyPair::generate().expect("the system has randomness");
    fuzzing::Tokens::new(&key.serialize_pem()).expect("rcgen makes P-256 keys")
});

const ISSUER: &str = "https://kubernetes.default.svc";

fn claims() -> Value {
    json!({"iss": ISSUER, "aud": ["api"], "exp": 4_000_000_000_u64, "nbf": 5, "iat": 5, "jti": "j", "sub": "system:serviceaccount:a:b",
        "kubernetes.io": {"namespace": "a", "serviceaccount": {"name": "b", "uid": "1"}, "pod": {"name": "p", "uid": "2"}}})
}

pub(super) fn tokens() -> Vec<Vec<u8>> {
    let signed = KEY.sign(&claims()).expect("an own key signs");
    vec![
        signed.into_bytes(),
        b"eyJhbGciOiJub25lIn0.eyJpc3MiOiJodHRwczovL2t1YmVybmV0ZXMuZGVmYXVsdC5zdmMifQ.".to_vec(),
    ]
}

/// A token that opens says what was signed: no other.
pub(super) fn token(input: &[u8]) -> Result<(), String> {
    match KEY.open(&String::from_utf8_lossy(input), ISSUER) {
        Some(opened) if opened != claims() => Err(format!("forged: {opened}")),
        _ => Ok(()),
    }
}

pub(super) fn options() -> Vec<Vec<u8>> {
    texts(&[
        r#"{"kind":"DeleteOptions","apiVersion":"v1","gracePeriodSeconds":0,"propagationPolicy":"Foreground","preconditions":{"uid":"1","resourceVersion":"7"}}"#,
        r#"{"orphanDependents":true}"#,
    ])
}

pub(super) fn option(input: &[u8]) -> Result<(), String> {
    fuzzing::options(input);
    Ok(())
}

pub(super) fn metrics() -> Vec<Vec<u8>> {
    texts(&[
        "# HELP node_cpu_usage_seconds_total x\n# TYPE node_cpu_usage_seconds_total counter\nnode_cpu_usage_seconds_total 12.5 1800000000000\nnode_memory_working_set_bytes 1.5e+09 1800000000000\ncontainer_cpu_usage_seconds_total{container=\"main\",namespace=\"a\",pod=\"b\"} 0.5 1800000000000\ncontainer_memory_working_set_bytes{container=\"main\",namespace=\"a\",pod=\"b\"} 4096\ncontainer_start_time_seconds{container=\"ma\\\"in\",namespace=\"a\",pod=\"b\"} 1.7e+09\n",
    ])
}

pub(super) fn metric(input: &[u8]) -> Result<(), String> {
    fuzzing::metrics(input);
    Ok(())
}
