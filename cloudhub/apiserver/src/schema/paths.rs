//! The paths of an OpenAPI document: what may be asked of each kind, and with which parameters.
//!
//! kubectl reads from them whether the server validates fields (a parameter of PATCH) and which patches it takes (the bodies of
//! PATCH). Server-side apply is not among them: it is not served.

use serde_json::{Map, Value, json};

use super::openapi::REF;
use super::types;
use crate::kinds::Row;

/// The component of a patch's body: any JSON, for lists and objects are patches.
pub(super) const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";

const PATCHES: [&str; 3] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// A kind by group, version and name.
#[derive(Clone, Copy)]
struct Gvk(&'static str, &'static str, &'static str);

/// A path beyond what each row has.
struct Extra {
    /// The document that it is in.
    group: &'static str,
    version: &'static str,
    /// Below `/namespaces/{namespace}` where it is namespaced.
    path: &'static str,
    namespaced: bool,
    /// Which methods: `post`, `get`, `put`, `patch`.
    methods: &'static [&'static str],
    /// What the body and the answer are; they are text or a stream where the kind is no component (`PodExecOptions`).
    kind: Gvk,
    /// Ends the operation's id.
    id: &'static str,
}

const fn create(group: &'static str, path: &'static str, kind: &'static str, namespaced: bool) -> Extra {
    Extra {
        group,
        version: "v1",
        path,
        namespaced,
        methods: &["post"],
        kind: Gvk(group, "v1", kind),
        id: kind,
    }
}

const fn of_pod(path: &'static str, methods: &'static [&'static str], kind: Gvk, id: &'static str) -> Extra {
    Extra {
        group: "",
        version: "v1",
        path,
        namespaced: true,
        methods,
        kind,
        id,
    }
}

const EXTRAS: &[Extra] = &[
    of_pod("pods/{name}/binding", &["post"], Gvk("", "v1", "Binding"), "PodBinding"),
    of_pod(
        "pods/{name}/eviction",
        &["post"],
        Gvk("policy", "v1", "Eviction"),
        "PodEviction",
    ),
    of_pod(
        "pods/{name}/ephemeralcontainers",
        &["get", "put", "patch"],
        Gvk("", "v1", "Pod"),
        "PodEphemeralcontainers",
    ),
    of_pod("pods/{name}/log", &["get"], Gvk("", "v1", "Pod"), "PodLog"),
    of_pod(
        "pods/{name}/exec",
        &["get", "post"],
        Gvk("", "v1", "PodExecOptions"),
        "PodExec",
    ),
    of_pod(
        "pods/{name}/attach",
        &["get", "post"],
        Gvk("", "v1", "PodAttachOptions"),
        "PodAttach",
    ),
    of_pod(
        "pods/{name}/portforward",
        &["get", "post"],
        Gvk("", "v1", "PodPortForwardOptions"),
        "PodPortforward",
    ),
    of_pod(
        "serviceaccounts/{name}/token",
        &["post"],
        Gvk("authentication.k8s.io", "v1", "TokenRequest"),
        "ServiceAccountToken",
    ),
    create("authentication.k8s.io", "tokenreviews", "TokenReview", false),
    create(
        "authentication.k8s.io",
        "selfsubjectreviews",
        "SelfSubjectReview",
        false,
    ),
    create(
        "authorization.k8s.io",
        "subjectaccessreviews",
        "SubjectAccessReview",
        false,
    ),
    create(
        "authorization.k8s.io",
        "selfsubjectaccessreviews",
        "SelfSubjectAccessReview",
        false,
    ),
    create(
        "authorization.k8s.io",
        "selfsubjectrulesreviews",
        "SelfSubjectRulesReview",
        false,
    ),
    create(
        "authorization.k8s.io",
        "localsubjectaccessreviews",
        "LocalSubjectAccessReview",
        true,
    ),
];

/// The groups and versions that there is a document for, in the order of discovery.
pub(super) fn groups(rows: &[&Row]) -> Vec<(&'static str, &'static str)> {
    let mut out: Vec<(&str, &str)> = Vec::new();
    let extras = EXTRAS.iter().filter(|e| !e.group.is_empty());
    for group in rows
        .iter()
        .map(|r| (r.group, r.version))
        .chain(extras.map(|e| (e.group, e.version)))
    {
        if !out.contains(&group) {
            out.push(group);
        }
    }
    out
}

/// The value of `paths` of one document.
pub(super) fn of_group(rows: &[&Row], group: &str, version: &str) -> Map<String, Value> {
    let mut out = Map::new();
    for row in rows.iter().filter(|r| r.group == group && r.version == version) {
        add_row(&mut out, row);
    }
    for extra in EXTRAS.iter().filter(|e| e.group == group && e.version == version) {
        // A subresource of what is not served is not served.
        let parent = extra.path.split_once('/').map(|(plural, _)| plural);
        if parent.is_none_or(|p| rows.iter().any(|r| r.group == group && r.plural == p)) {
            add_extra(&mut out, extra);
        }
    }
    out
}

fn root(group: &str, version: &str) -> String {
    if group.is_empty() {
        format!("/api/{version}")
    } else {
        format!("/apis/{group}/{version}")
    }
}

/// `CoreV1`, `RbacAuthorizationV1`: the middle of operation ids.
fn camel(group: &str, version: &str) -> String {
    let group = match group.trim_end_matches(".k8s.io") {
        "" => "core",
        other => other,
    };
    let words = group.split('.').chain([version]);
    words.map(capital).collect()
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters
        .next()
        .map(|first| first.to_uppercase().chain(letters).collect())
        .unwrap_or_default()
}

/// One operation, about to be written.
struct Operation {
    /// `list`, `get`, `post`, `put`, `patch`, `delete`, `deletecollection`, `connect`.
    action: &'static str,
    id: String,
    tag: String,
    kind: Gvk,
    /// The body's component.
    body: Option<String>,
    /// The answer's component.
    answer: Option<String>,
}

fn component(kind: Gvk) -> Option<String> {
    let Gvk(group, version, name) = kind;
    let api_version = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    types::find(&api_version, name).map(|t| format!("{REF}{}", t.name))
}

fn add_row(out: &mut Map<String, Value>, row: &Row) {
    let base = collection(row.group, row.version, row.plural, row.namespaced);
    let path = format!("{base}/{{name}}");
    let of_all: &[&str] = match row.plural {
        // Nobody deletes all namespaces at once.
        "namespaces" => &["list", "post"],
        _ => &["list", "post", "deletecollection"],
    };
    add_item(out, base, &operations(row, of_all));
    add_item(out, path.clone(), &operations(row, &["get", "put", "delete", "patch"]));
    let middle = camel(row.group, row.version);
    if row.namespaced {
        let mut list = operation(row, "list");
        list.id = format!("list{middle}{}ForAllNamespaces", row.kind);
        let everywhere = format!("{}/{}", root(row.group, row.version), row.plural);
        add_item(out, everywhere, &[("get", list)]);
    }
    let subresources = [
        ("status", row.status, Gvk(row.group, row.version, row.kind)),
        ("scale", row.scale, Gvk("autoscaling", "v1", "Scale")),
    ];
    for (name, _, kind) in subresources.into_iter().filter(|s| s.1) {
        let id = format!("{}{}{}", scope(row.namespaced), row.kind, capital(name));
        let item = subresource(
            &["get", "put", "patch"],
            kind,
            (&middle, &id),
            tag(row.group, row.version),
        );
        add_item(out, format!("{path}/{name}"), &item);
    }
}

fn scope(namespaced: bool) -> &'static str {
    if namespaced { "Namespaced" } else { "" }
}

/// A path's operations, by method.
type Operations = Vec<(&'static str, Operation)>;

/// A path's methods, by what they do.
fn operations(row: &Row, actions: &[&'static str]) -> Operations {
    let method = |action: &'static str| match action {
        "list" => "get",
        "deletecollection" => "delete",
        same => same,
    };
    actions.iter().map(|&a| (method(a), operation(row, a))).collect()
}

/// What is asked of a row's objects themselves.
fn operation(row: &Row, action: &'static str) -> Operation {
    let kind = Gvk(row.group, row.version, row.kind);
    let own = component(kind);
    let status = || component(Gvk("", "v1", "Status"));
    let options = || component(Gvk("", "v1", "DeleteOptions"));
    let (verb, body, answer) = match action {
        "list" => ("list", None, component_of_list(row)),
        "post" => ("create", own.clone(), own),
        "put" => ("replace", own.clone(), own),
        "patch" => ("patch", None, own),
        // What clients want to see the last of.
        "delete" if matches!(row.plural, "pods" | "services" | "serviceaccounts") => ("delete", options(), own),
        "delete" | "deletecollection" => ("delete", options(), status()),
        _ => ("read", None, own),
    };
    let all = if action == "deletecollection" { "Collection" } else { "" };
    let middle = camel(row.group, row.version);
    Operation {
        action,
        id: format!("{verb}{middle}{all}{}{}", scope(row.namespaced), row.kind),
        tag: tag(row.group, row.version),
        kind,
        body,
        answer,
    }
}

fn add_extra(out: &mut Map<String, Value>, extra: &Extra) {
    let middle = camel(extra.group, extra.version);
    let id = format!("{}{}", scope(extra.namespaced), extra.id);
    let item = subresource(
        extra.methods,
        extra.kind,
        (&middle, &id),
        tag(extra.group, extra.version),
    );
    let path = collection(extra.group, extra.version, extra.path, extra.namespaced);
    add_item(out, path, &item);
}

/// Parameters that all operations of a path take stand at the path.
fn add_item(out: &mut Map<String, Value>, path: String, operations: &[(&'static str, Operation)]) {
    let all: Vec<Vec<Parameter>> = operations.iter().map(|(_, operation)| operation.parameters()).collect();
    let is_common = |parameter: &Parameter| all.iter().all(|own| own.contains(parameter));
    let mut item: Map<String, Value> = operations
        .iter()
        .zip(&all)
        .map(|((method, operation), own)| {
            let own = own.iter().copied().filter(|p| !is_common(p)).collect();
            ((*method).to_owned(), operation.to_json(own))
        })
        .collect();
    let common = all.first().into_iter().flatten().copied().filter(is_common);
    item.insert("parameters".into(), path_parameters(&path, common.collect()));
    out.insert(path, item.into());
}

/// `id` is what ends the operations' ids, in two parts.
fn subresource(methods: &[&'static str], kind: Gvk, id: (&str, &str), tag: String) -> Operations {
    let own = component(kind);
    let stream = own.is_none();
    let operation = |method: &str| {
        let (action, verb, by) = match method {
            "get" if stream => ("connect", "connect", "Get"),
            "post" if stream => ("connect", "connect", "Post"),
            "post" => ("post", "create", ""),
            "put" => ("put", "replace", ""),
            "patch" => ("patch", "patch", ""),
            _ => ("get", "read", ""),
        };
        Operation {
            action,
            id: format!("{verb}{}{by}{}", id.0, id.1),
            tag: tag.clone(),
            kind,
            body: own.clone().filter(|_| matches!(method, "post" | "put")),
            answer: own.clone().filter(|_| !id.1.ends_with("PodLog")),
        }
    };
    methods.iter().map(|m| (*m, operation(m))).collect()
}

fn component_of_list(row: &Row) -> Option<String> {
    types::find(&row.api_version(), &format!("{}List", row.kind)).map(|t| format!("{REF}{}", t.name))
}

fn collection(group: &str, version: &str, plural: &str, namespaced: bool) -> String {
    let root = root(group, version);
    if namespaced {
        format!("{root}/namespaces/{{namespace}}/{plural}")
    } else {
        format!("{root}/{plural}")
    }
}

/// `core_v1`, `rbacAuthorization_v1`.
fn tag(group: &str, version: &str) -> String {
    let words = camel(group, "");
    let (first, rest) = words.split_at(1);
    format!("{}{rest}_{version}", first.to_lowercase())
}

impl Operation {
    /// What it takes in the query; `pretty` wherever the answer is an object or text.
    fn parameters(&self) -> Vec<Parameter> {
        let mut out: Vec<Parameter> = match (self.action, self.kind.2) {
            ("get", _) if self.id.ends_with("PodLog") => LOG.into(),
            ("connect", "PodExecOptions") => STREAMS.into_iter().chain([COMMAND]).collect(),
            ("connect", "PodAttachOptions") => STREAMS.into(),
            ("connect", _) => vec![PORTS],
            (action, _) => parameters(action),
        };
        out.extend(Some(PRETTY).filter(|_| self.action != "connect"));
        out.sort_unstable_by_key(|parameter| parameter.0);
        out
    }

    fn to_json(&self, parameters: Vec<Parameter>) -> Value {
        let Gvk(group, version, kind) = self.kind;
        let mut out = Map::new();
        out.insert("tags".into(), json!([self.tag]));
        out.insert("operationId".into(), json!(self.id));
        if !parameters.is_empty() {
            let parameters: Vec<Value> = parameters.into_iter().map(query).collect();
            out.insert("parameters".into(), parameters.into());
        }
        if self.action == "patch" {
            let content: Map<String, Value> = PATCHES
                .iter()
                .map(|p| ((*p).to_owned(), json!({"schema": {"$ref": format!("{REF}{PATCH}")}})))
                .collect();
            out.insert("requestBody".into(), json!({"content": content, "required": true}));
        } else if let Some(body) = &self.body {
            let required = matches!(self.action, "post" | "put");
            let mut request = json!({"content": {"*/*": {"schema": {"$ref": body}}}});
            if required {
                request["required"] = json!(true);
            }
            out.insert("requestBody".into(), request);
        }
        let schema = match &self.answer {
            Some(answer) => json!({"application/json": {"schema": {"$ref": answer}}}),
            None if self.action == "connect" => json!({"*/*": {"schema": {"type": "string"}}}),
            None => {
                json!({"application/json": {"schema": {"type": "string"}}, "text/plain": {"schema": {"type": "string"}}})
            }
        };
        let codes: &[&str] = match self.action {
            "post" => &["200", "201", "202"],
            "put" | "patch" => &["200", "201"],
            "delete" => &["200", "202"],
            _ => &["200"],
        };
        let mut responses: Map<String, Value> = codes
            .iter()
            .map(|c| {
                (
                    (*c).to_owned(),
                    json!({"description": answer_text(c), "content": schema}),
                )
            })
            .collect();
        responses.insert("401".into(), json!({"description": "Unauthorized"}));
        out.insert("responses".into(), responses.into());
        out.insert("x-kubernetes-action".into(), json!(self.action));
        out.insert(
            "x-kubernetes-group-version-kind".into(),
            json!({"group": group, "version": version, "kind": kind}),
        );
        Value::Object(out)
    }
}

fn answer_text(code: &str) -> &'static str {
    match code {
        "201" => "Created",
        "202" => "Accepted",
        _ => "OK",
    }
}

/// A query parameter: name, type, what it does.
type Parameter = (&'static str, &'static str, &'static str);

const WRITE: [Parameter; 3] = [
    (
        "dryRun",
        "string",
        "With the value All, everything is checked and nothing is stored.",
    ),
    ("fieldManager", "string", "Who changes the object."),
    (
        "fieldValidation",
        "string",
        "What unknown and duplicate fields are: Ignore drops them, Warn drops them with a warning, Strict refuses the request.",
    ),
];

const FORCE: Parameter = (
    "force",
    "boolean",
    "Takes over what others manage; only for server-side apply.",
);

const LIST: [Parameter; 10] = [
    (
        "allowWatchBookmarks",
        "boolean",
        "Bookmarks may be among the events of a watch.",
    ),
    (
        "continue",
        "string",
        "Goes on with a list where an earlier answer's token says.",
    ),
    ("fieldSelector", "string", "Only objects whose fields match."),
    ("labelSelector", "string", "Only objects whose labels match."),
    ("limit", "integer", "At most so many objects in one answer."),
    (
        "resourceVersion",
        "string",
        "How old the answer may be, or where a watch begins.",
    ),
    ("resourceVersionMatch", "string", "How resourceVersion is meant."),
    (
        "sendInitialEvents",
        "boolean",
        "A watch begins with the objects that there are.",
    ),
    ("timeoutSeconds", "integer", "Ends the request after so many seconds."),
    ("watch", "boolean", "Sends changes as they come instead of a list."),
];

const DELETE: [Parameter; 4] = [
    (
        "dryRun",
        "string",
        "With the value All, everything is checked and nothing is deleted.",
    ),
    (
        "gracePeriodSeconds",
        "integer",
        "How long the object may take to end; 0: at once.",
    ),
    (
        "orphanDependents",
        "boolean",
        "Dependents stay; propagationPolicy has taken its place.",
    ),
    (
        "propagationPolicy",
        "string",
        "What becomes of dependents: Orphan, Background or Foreground.",
    ),
];

const PRETTY: Parameter = ("pretty", "string", "Whether the answer is laid out for people.");

const LOG: [Parameter; 9] = [
    (
        "container",
        "string",
        "Which container; the only one where there is one.",
    ),
    ("follow", "boolean", "Goes on with what is written later."),
    (
        "insecureSkipTLSVerifyBackend",
        "boolean",
        "The node's certificate is not looked at.",
    ),
    ("limitBytes", "integer", "Ends after so many bytes."),
    ("previous", "boolean", "The instance before the current one."),
    ("sinceSeconds", "integer", "Only what is no older than so many seconds."),
    ("stream", "string", "All, Stdout or Stderr."),
    ("tailLines", "integer", "Only so many lines from the end."),
    ("timestamps", "boolean", "Each line begins with its time."),
];

const STREAMS: [Parameter; 5] = [
    (
        "container",
        "string",
        "Which container; the only one where there is one.",
    ),
    ("stderr", "boolean", "Standard error is sent."),
    ("stdin", "boolean", "Standard input is taken."),
    ("stdout", "boolean", "Standard output is sent."),
    ("tty", "boolean", "A terminal stands between."),
];
const COMMAND: Parameter = ("command", "string", "A word of the command, as often as it has words.");
const PORTS: Parameter = ("ports", "integer", "Ports of the pod.");

/// Query parameters by action.
fn parameters(action: &str) -> Vec<Parameter> {
    match action {
        "post" | "put" => WRITE.into(),
        "patch" => WRITE.into_iter().chain([FORCE]).collect(),
        "list" => LIST.into(),
        "delete" => DELETE.into(),
        "deletecollection" => {
            let fits = |p: &Parameter| !matches!(p.0, "allowWatchBookmarks" | "watch");
            DELETE.into_iter().chain(LIST.into_iter().filter(fits)).collect()
        }
        _ => Vec::new(),
    }
}

fn query((name, kind, description): Parameter) -> Value {
    json!({"name": name, "in": "query", "description": description, "schema": {"type": kind, "uniqueItems": true}})
}

/// The parameters in the path itself, and what every method there takes.
fn path_parameters(path: &str, common: Vec<Parameter>) -> Value {
    let in_path = [
        ("name", "Name of the object."),
        ("namespace", "The object's namespace."),
    ];
    let own = in_path
        .into_iter()
        .filter(|(name, _)| path.contains(&format!("{{{name}}}")))
        .map(|(name, description)| {
            json!({
                "name": name, "in": "path", "required": true, "description": description,
                "schema": {"type": "string", "uniqueItems": true},
            })
        });
    own.chain(common.into_iter().map(query)).collect()
}
