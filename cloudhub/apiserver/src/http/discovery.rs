//! What is served: health, version, discovery (plain and aggregated), OpenAPI, the keys of tokens.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Method, Response, header};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Call, answer};
use crate::auth::reviews;
use crate::kinds::{self, Row};
use crate::kubelet::Body;
use crate::schema;
use crate::status::Status;

const AGGREGATED: HeaderValue =
    HeaderValue::from_static("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList");
const OLD_OPENAPI: HeaderValue = HeaderValue::from_static("application/com.github.proto-openapi.spec.v2.v1.0+protobuf");
const VERBS: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];

/// Answers a path that is no resource.
pub(super) fn answer(call: &Call, path: &str) -> Result<Response<Body>, Status> {
    if !matches!(call.method, Method::GET | Method::HEAD) {
        return Err(Status::method_not_allowed());
    }
    let trimmed = path.trim_end_matches('/');
    if let Some(health) = health(trimmed, call) {
        return Ok(health);
    }
    match trimmed {
        "" => Ok(answer::json(200, &json!({"paths": paths()}))),
        "/version" => Ok(answer::json(200, &call.shared.version)),
        "/api" if call.accept.aggregated => Ok(aggregated(&[""])),
        "/apis" if call.accept.aggregated => Ok(aggregated(&groups())),
        "/api" => Ok(answer::json(
            200,
            &json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}),
        )),
        "/apis" => {
            let groups: Vec<Value> = groups().iter().map(|g| in_list(group(g))).collect();
            Ok(answer::json(
                200,
                &json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}),
            ))
        }
        "/openapi/v2" => Ok(old_openapi(call)),
        "/openapi/v3" => Ok(answer::json(200, &schema::openapi_index())),
        "/.well-known/openid-configuration" => Ok(answer::json(
            200,
            &call.shared.auth.openid_configuration(&call.shared.address.to_string()),
        )),
        "/openid/v1/jwks" => Ok(answer::json(200, &call.shared.auth.jwks())),
        _ => document(call, trimmed),
    }
}

/// An OpenAPI v3 document; it is held compressed.
fn openapi(call: &Call, version: &str) -> Option<Response<Body>> {
    let accepted = call.headers.get(header::ACCEPT_ENCODING).and_then(|v| v.to_str().ok());
    let mut encodings = accepted.unwrap_or_default().split(',').map(str::trim);
    if !encodings.any(|encoding| encoding == "gzip") {
        return Some(answer::bytes(200, schema::openapi_document(version)?));
    }
    let mut response = answer::bytes(200, schema::openapi_document_gzip(version)?);
    response
        .headers_mut()
        .insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    Some(response)
}

/// The OpenAPI v2 document. kubectl asks for it when the v3 ones do not have a kind, and it shall learn that this one does not have it
/// either: so it describes nothing.
fn old_openapi(call: &Call) -> Response<Body> {
    let accepted = call.headers.get(header::ACCEPT);
    if !accepted.is_some_and(|a| a.as_bytes().ends_with(b"protobuf")) {
        return answer::json(
            200,
            &json!({"swagger": "2.0", "info": {"title": "Kubernetes", "version": "unversioned"}, "paths": {}}),
        );
    }
    // swagger (1), info (2) of title (1) and version (2).
    let mut response = answer::bytes(200, &b"\n\x032.0\x12\x19\n\nKubernetes\x12\x0bunversioned"[..]);
    response.headers_mut().insert(header::CONTENT_TYPE, OLD_OPENAPI);
    response
}

fn health(path: &str, call: &Call) -> Option<Response<Body>> {
    let base = path.split('/').nth(1)?;
    if !matches!(base, "healthz" | "livez" | "readyz") {
        return None;
    }
    let verbose = call.query.flag("verbose");
    Some(answer::text(if verbose {
        format!("[+]ping ok\n[+]store ok\n{base} check passed\n")
    } else {
        "ok".into()
    }))
}

fn document(call: &Call, path: &str) -> Result<Response<Body>, Status> {
    if let Some(version) = path.strip_prefix("/openapi/v3/") {
        return openapi(call, version).ok_or_else(Status::no_such_path);
    }
    let mut parts = path.split('/').skip(1);
    let (group_name, version) = match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some("api"), Some(version), None, None) => ("", version),
        (Some("apis"), Some(name), None, None) if groups().contains(&name) => {
            return Ok(answer::json(200, &group(name)));
        }
        (Some("apis"), Some(name), Some(version), None) => (name, version),
        _ => return Ok(answer::no_page()),
    };
    if !is_group(group_name) {
        return Ok(answer::no_page());
    }
    let resources = resources(group_name, version);
    if resources.is_empty() {
        return Err(Status::no_such_path());
    }
    let mut list = json!({"kind": "APIResourceList", "apiVersion": "v1",
                          "groupVersion": group_version(group_name, version), "resources": resources});
    if let Some(fields) = list.as_object_mut().filter(|_| group_name.is_empty()) {
        // The oldest group says it as the oldest clients knew it.
        fields.shift_remove("apiVersion");
    }
    Ok(answer::json(200, &list))
}

/// Whether anything of `group` is served.
pub(super) fn is_group(group: &str) -> bool {
    group.is_empty() || groups().contains(&group)
}

fn paths() -> Vec<String> {
    let mut paths: Vec<String> = [
        "/api",
        "/api/v1",
        "/apis",
        "/healthz",
        "/livez",
        "/openapi/v2",
        "/openapi/v3",
        "/readyz",
        "/version",
    ]
    .map(str::to_owned)
    .into();
    for group in groups() {
        paths.push(format!("/apis/{group}"));
        paths.extend(versions(group).iter().map(|version| format!("/apis/{group}/{version}")));
    }
    paths.sort();
    paths
}

/// Groups in the order that the real server prefers them.
const ORDER: &[&str] = &[
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
    "metrics.k8s.io",
];

/// Named groups in the order that the real server prefers them.
fn groups() -> Vec<&'static str> {
    let named = kinds::rows().map(|r| r.group);
    let mut found: Vec<&'static str> = named.chain(reviews::RESOURCES.iter().map(|v| v.group)).collect();
    found.push("metrics.k8s.io");
    found.retain(|group| !group.is_empty());
    found.sort_by_key(|group| (ORDER.iter().position(|known| known == group), *group));
    found.dedup();
    found
}

fn versions(group: &str) -> Vec<&'static str> {
    if group == "metrics.k8s.io" {
        return vec!["v1beta1"];
    }
    let mut found: Vec<&'static str> = Vec::new();
    let rows = kinds::rows().filter(|r| r.group == group).map(|r| r.version);
    for version in rows.chain(
        reviews::RESOURCES
            .iter()
            .filter(|v| v.group == group)
            .map(|v| v.version),
    ) {
        if !found.contains(&version) {
            found.push(version);
        }
    }
    found
}

fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}

fn group(name: &str) -> Value {
    let one = |version: &&str| json!({"groupVersion": group_version(name, version), "version": version});
    let versions = versions(name);
    let all: Vec<Value> = versions.iter().map(one).collect();
    json!({"kind": "APIGroup", "apiVersion": "v1", "name": name, "versions": all, "preferredVersion": all.first()})
}

/// Groups in lists do not say their kind.
fn in_list(mut group: Value) -> Value {
    if let Some(fields) = group.as_object_mut() {
        fields.shift_remove("kind");
        fields.shift_remove("apiVersion");
    }
    group
}

/// One resource of a group and version.
struct Resource {
    plural: &'static str,
    singular: &'static str,
    kind: &'static str,
    namespaced: bool,
    short_names: &'static [&'static str],
    categories: &'static [&'static str],
    verbs: &'static [&'static str],
    subresources: Vec<Subresource>,
}

struct Subresource {
    name: &'static str,
    /// Group, version, kind of its body where it is not its parent's.
    kind: (&'static str, &'static str, &'static str),
    verbs: &'static [&'static str],
}

fn all(group: &str, version: &str) -> Vec<Resource> {
    let rows = kinds::rows().filter(|r| r.group == group && r.version == version);
    let mut found: Vec<Resource> = rows.map(of_row).collect();
    for kind in reviews::RESOURCES
        .iter()
        .filter(|v| v.group == group && v.version == version)
    {
        found.push(Resource {
            plural: kind.plural,
            singular: kind.singular,
            kind: kind.kind,
            namespaced: kind.namespaced,
            short_names: &[],
            categories: &[],
            verbs: &["create"],
            subresources: Vec::new(),
        });
    }
    if group.is_empty() && version == "v1" {
        found.push(plain("bindings", "Binding", true, &["create"]));
    }
    if group == "metrics.k8s.io" && version == "v1beta1" {
        found.push(plain("nodes", "NodeMetrics", false, &["get", "list"]));
        found.push(plain("pods", "PodMetrics", true, &["get", "list"]));
    }
    found.sort_by_key(|r| r.plural);
    found
}

fn plain(plural: &'static str, kind: &'static str, namespaced: bool, verbs: &'static [&'static str]) -> Resource {
    let singular = if plural == "bindings" { "binding" } else { "" };
    Resource {
        plural,
        singular,
        kind,
        namespaced,
        short_names: &[],
        categories: &[],
        verbs,
        subresources: Vec::new(),
    }
}

fn of_row(row: &'static Row) -> Resource {
    Resource {
        plural: row.plural,
        singular: row.singular,
        kind: row.kind,
        namespaced: row.namespaced,
        short_names: row.short_names,
        categories: row.categories,
        // The real server has no deletecollection of namespaces.
        verbs: if row.plural == "namespaces" {
            &["create", "delete", "get", "list", "patch", "update", "watch"]
        } else {
            VERBS
        },
        subresources: subresources(row),
    }
}

fn subresources(row: &'static Row) -> Vec<Subresource> {
    let own = (row.group, row.version, row.kind);
    let mut found = Vec::new();
    let mut add = |name, kind, verbs| found.push(Subresource { name, kind, verbs });
    if row.status {
        add("status", own, &["get", "patch", "update"] as &[&str]);
    }
    if row.scale {
        add("scale", ("autoscaling", "v1", "Scale"), &["get", "patch", "update"]);
    }
    match (row.group, row.plural) {
        ("", "pods") => {
            add("attach", ("", "v1", "PodAttachOptions"), &["create", "get"]);
            add("binding", ("", "v1", "Binding"), &["create"]);
            add("ephemeralcontainers", own, &["get", "patch", "update"]);
            add("eviction", ("policy", "v1", "Eviction"), &["create"]);
            add("exec", ("", "v1", "PodExecOptions"), &["create", "get"]);
            add("log", own, &["get"]);
            add("portforward", ("", "v1", "PodPortForwardOptions"), &["create", "get"]);
        }
        ("", "nodes") => {
            add(
                "proxy",
                ("", "v1", "NodeProxyOptions"),
                &["create", "delete", "get", "patch", "update"],
            );
        }
        ("", "namespaces") => add("finalize", own, &["update"]),
        ("", "serviceaccounts") => add("token", ("authentication.k8s.io", "v1", "TokenRequest"), &["create"]),
        _ => {}
    }
    found.sort_by_key(|sub| sub.name);
    found
}

/// What the real server says of the version that a kind is stored in; clients only compare it.
fn storage_hash(resource: &Resource, group: &str, version: &str) -> Option<String> {
    let row = kinds::row(group, version, resource.plural)?;
    let stored = kinds::rows().find(|r| r.storage == row.storage)?;
    let digest = Sha256::digest(format!("{}/{}/{}", stored.group, stored.version, stored.kind));
    Some(STANDARD.encode(&digest[..8]))
}

fn resources(group: &str, version: &str) -> Vec<Value> {
    let mut list = Vec::new();
    for resource in all(group, version) {
        let mut value = json!({"name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced,
                               "kind": resource.kind, "verbs": resource.verbs});
        for (field, names) in [
            ("shortNames", resource.short_names),
            ("categories", resource.categories),
        ] {
            if !names.is_empty() {
                value[field] = json!(names);
            }
        }
        if let Some(hash) = storage_hash(&resource, group, version) {
            value["storageVersionHash"] = json!(hash);
        }
        list.push(value);
        for sub in &resource.subresources {
            let name = format!("{}/{}", resource.plural, sub.name);
            let mut value = json!({"name": name, "singularName": "", "namespaced": resource.namespaced,
                                   "kind": sub.kind.2, "verbs": sub.verbs});
            if (sub.kind.0, sub.kind.1) != (group, version) {
                value["group"] = json!(sub.kind.0);
                value["version"] = json!(sub.kind.1);
            }
            list.push(value);
        }
    }
    list
}

fn aggregated(groups: &[&'static str]) -> Response<Body> {
    let items: Vec<Value> = groups.iter().map(|group| aggregated_group(group)).collect();
    let list = json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items});
    let mut response = answer::json(200, &list);
    response.headers_mut().insert(header::CONTENT_TYPE, AGGREGATED);
    response
}

fn aggregated_group(group: &'static str) -> Value {
    let versions = if group.is_empty() { vec!["v1"] } else { versions(group) };
    let versions: Vec<Value> = versions
        .iter()
        .map(|version| {
            let resources: Vec<Value> = all(group, version)
                .iter()
                .map(|r| aggregated_resource(r, group, version))
                .collect();
            json!({"version": version, "resources": resources, "freshness": "Current"})
        })
        .collect();
    let metadata = if group.is_empty() {
        json!({})
    } else {
        json!({"name": group})
    };
    json!({"metadata": metadata, "versions": versions})
}

fn aggregated_resource(resource: &Resource, group: &str, version: &str) -> Value {
    let scope = if resource.namespaced { "Namespaced" } else { "Cluster" };
    // A kind of the same group and version is said without them.
    let kind_of = |kind: (&str, &str, &str)| {
        let (group, version) = if (kind.0, kind.1) == (group, version) {
            ("", "")
        } else {
            (kind.0, kind.1)
        };
        json!({"group": group, "version": version, "kind": kind.2})
    };
    let mut value = json!({"resource": resource.plural,
                           "responseKind": kind_of((group, version, resource.kind)),
                           "scope": scope, "singularResource": resource.singular, "verbs": resource.verbs});
    for (field, names) in [
        ("shortNames", resource.short_names),
        ("categories", resource.categories),
    ] {
        if !names.is_empty() {
            value[field] = json!(names);
        }
    }
    let subresources: Vec<Value> = resource
        .subresources
        .iter()
        .map(|sub| json!({"subresource": sub.name, "responseKind": kind_of(sub.kind), "verbs": sub.verbs}))
        .collect();
    if !subresources.is_empty() {
        value["subresources"] = Value::Array(subresources);
    }
    value
}
