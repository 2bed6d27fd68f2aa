//! Kinds that are only asked, never stored: who is this token, may that user do this, who am I.

use serde_json::{Map, Value, json};

use super::{Attributes, Auth, Identity, User, tokens};
use crate::object::{self, items, text};
use crate::status::{Errors, Status};

/// A kind that can only be created, and is not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Virtual {
    /// API group.
    pub group: &'static str,
    /// API version.
    pub version: &'static str,
    /// `TokenReview`.
    pub kind: &'static str,
    /// `tokenreviews`.
    pub plural: &'static str,
    /// `tokenreview`.
    pub singular: &'static str,
    /// Whether it is asked in a namespace.
    pub namespaced: bool,
}

const AUTHENTICATION: &str = "authentication.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";

const fn kind(
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    namespaced: bool,
) -> Virtual {
    Virtual {
        group,
        version: "v1",
        kind,
        plural,
        singular,
        namespaced,
    }
}

/// All of them, in the order of discovery.
pub const RESOURCES: &[Virtual] = &[
    kind(
        AUTHENTICATION,
        "SelfSubjectReview",
        "selfsubjectreviews",
        "selfsubjectreview",
        false,
    ),
    kind(AUTHENTICATION, "TokenReview", "tokenreviews", "tokenreview", false),
    kind(
        AUTHORIZATION,
        "LocalSubjectAccessReview",
        "localsubjectaccessreviews",
        "localsubjectaccessreview",
        true,
    ),
    kind(
        AUTHORIZATION,
        "SelfSubjectAccessReview",
        "selfsubjectaccessreviews",
        "selfsubjectaccessreview",
        false,
    ),
    kind(
        AUTHORIZATION,
        "SelfSubjectRulesReview",
        "selfsubjectrulesreviews",
        "selfsubjectrulesreview",
        false,
    ),
    kind(
        AUTHORIZATION,
        "SubjectAccessReview",
        "subjectaccessreviews",
        "subjectaccessreview",
        false,
    ),
];

/// Answers a review of `plural`. The caller is authorized to create it already.
///
/// # Errors
/// 400 and 422 for questions that make no sense, 404 for a kind that is none of [`RESOURCES`].
pub fn create(
    auth: &Auth,
    identity: &Identity,
    plural: &str,
    namespace: &str,
    mut object: Value,
) -> Result<Value, Status> {
    let resource = RESOURCES.iter().find(|resource| resource.plural == plural);
    let Some(resource) = resource else {
        return Err(Status::no_such_path());
    };
    object::metadata(&mut object);
    object::map(&mut object, "spec");
    let status = match plural {
        "tokenreviews" => token(auth, &object)?,
        "selfsubjectreviews" => {
            let at = object::timestamp(object::now());
            object = json!({"metadata": {"creationTimestamp": at}});
            json!({"userInfo": identity.user.to_json()})
        }
        "selfsubjectrulesreviews" => {
            let status = rules(auth, &identity.user, text(&object, "/spec/namespace"))?;
            object["spec"] = json!({});
            status
        }
        "selfsubjectaccessreviews" => {
            validate(&object, Scope::Own)?;
            access(auth, &identity.user, &object)
        }
        "localsubjectaccessreviews" => {
            if object::namespace(&object).is_empty() {
                object::metadata(&mut object).insert("namespace".into(), namespace.into());
            } else if object::namespace(&object) != namespace {
                return Err(Status::bad_request(
                    "the namespace of the provided object does not match the namespace sent on the request",
                ));
            }
            validate(&object, Scope::Namespace)?;
            access(auth, &user(&object), &object)
        }
        _ => {
            validate(&object, Scope::Cluster)?;
            access(auth, &user(&object), &object)
        }
    };
    let mut out = Map::new();
    out.insert("kind".into(), resource.kind.into());
    out.insert(
        "apiVersion".into(),
        format!("{}/{}", resource.group, resource.version).into(),
    );
    for field in ["metadata", "spec"] {
        if let Some(value) = object.get(field) {
            out.insert(field.into(), value.clone());
        }
    }
    out.insert("status".into(), status);
    Ok(Value::Object(out))
}

fn token(auth: &Auth, review: &Value) -> Result<Value, Status> {
    let token = text(review, "/spec/token");
    if token.is_empty() {
        return Err(Status::bad_request(
            "token is required for TokenReview in authentication",
        ));
    }
    let mut audiences: Vec<String> = items(review, "/spec/audiences")
        .iter()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    if audiences.is_empty() {
        audiences.clone_from(&auth.inner.config.audiences);
    }
    Ok(match tokens::verify(auth, token, &audiences) {
        Ok(verified) => json!({
            "authenticated": true,
            "user": verified.user.to_json(),
            "audiences": verified.audiences,
        }),
        Err(error) => json!({"user": {}, "error": error}),
    })
}

/// What `user` may do in `namespace`, as `kubectl auth can-i --list` asks.
fn rules(auth: &Auth, user: &User, namespace: &str) -> Result<Value, Status> {
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let bound = auth.inner.rbac.rules_for(&auth.inner.store, user, namespace);
    let (paths, resources): (Vec<_>, Vec<_>) = bound.rules.iter().partition(|rule| rule.resources.is_empty());
    let resources = resources.iter().map(|rule| rule.to_json());
    let paths = paths.iter().filter(|rule| !rule.urls.is_empty());
    let paths = paths.map(|rule| json!({"verbs": rule.verbs, "nonResourceURLs": rule.urls}));
    let mut errors = bound.errors.clone();
    // A node's rights depend on its pods: no list tells them.
    let is_node = user.node().is_some();
    if is_node {
        errors.insert(0, "node authorizer does not support user rule resolution".into());
    }
    let error = super::rbac::Bound {
        errors,
        ..Default::default()
    }
    .error();
    let mut status = json!({
        "resourceRules": resources.collect::<Vec<_>>(),
        "nonResourceRules": paths.collect::<Vec<_>>(),
        "incomplete": is_node,
    });
    if !error.is_empty() {
        status["evaluationError"] = json!(error);
    }
    Ok(status)
}

/// The user that a SubjectAccessReview is about.
fn user(review: &Value) -> User {
    let strings = |list: &[Value]| -> Vec<String> {
        let texts = list.iter().filter_map(Value::as_str);
        texts.map(str::to_owned).collect()
    };
    let extra = review.pointer("/spec/extra").and_then(Value::as_object);
    let extra = extra.into_iter().flatten();
    let extra = extra.map(|(key, values)| {
        (
            key.to_lowercase(),
            strings(values.as_array().map_or(&[], Vec::as_slice)),
        )
    });
    User {
        name: text(review, "/spec/user").into(),
        uid: text(review, "/spec/uid").into(),
        groups: strings(items(review, "/spec/groups")),
        extra: extra.collect(),
    }
}

fn access(auth: &Auth, user: &User, review: &Value) -> Value {
    let decision = auth.decide(user, &attributes(review));
    let mut status = json!({"allowed": decision.allowed});
    if !decision.reason.is_empty() {
        status["reason"] = json!(decision.reason);
    }
    status
}

fn attributes(review: &Value) -> Attributes {
    let of = |part: &str, field: &str| text(review, &format!("/spec/{part}/{field}")).to_owned();
    if review.pointer("/spec/resourceAttributes").is_none_or(Value::is_null) {
        return Attributes {
            verb: of("nonResourceAttributes", "verb"),
            path: of("nonResourceAttributes", "path"),
            ..Attributes::default()
        };
    }
    Attributes {
        verb: of("resourceAttributes", "verb"),
        group: of("resourceAttributes", "group"),
        version: of("resourceAttributes", "version"),
        resource: of("resourceAttributes", "resource"),
        subresource: of("resourceAttributes", "subresource"),
        namespace: of("resourceAttributes", "namespace"),
        name: of("resourceAttributes", "name"),
        node: node_of(review),
        path: String::new(),
    }
}

/// The node that the review's field selector asks for.
fn node_of(review: &Value) -> String {
    let requirements = object::items(review, "/spec/resourceAttributes/fieldSelector/requirements");
    let node = requirements
        .iter()
        .find(|requirement| text(requirement, "/key") == "spec.nodeName" && text(requirement, "/operator") == "In");
    match node.map(|node| object::items(node, "/values")) {
        Some([Value::String(only)]) => only.clone(),
        _ => String::new(),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// About the caller.
    Own,
    /// About anyone, in one namespace.
    Namespace,
    /// About anyone.
    Cluster,
}

fn validate(review: &Value, scope: Scope) -> Result<(), Status> {
    let mut errors = Errors::default();
    let part = |name: &str| review.pointer(&format!("/spec/{name}")).filter(|v| !v.is_null());
    match (part("resourceAttributes"), part("nonResourceAttributes")) {
        (Some(_), Some(path)) => errors.invalid(
            "spec.nonResourceAttributes",
            // As the real server shows its own struct.
            &json!({"Path": text(path, "/path"), "Verb": text(path, "/verb")}),
            "cannot be specified in combination with resourceAttributes",
        ),
        (None, None) => errors.invalid(
            "spec.resourceAttributes",
            &Value::Null,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ),
        _ => {}
    }
    let nobody = text(review, "/spec/user").is_empty() && items(review, "/spec/groups").is_empty();
    if scope != Scope::Own && nobody {
        let detail = "at least one of user or group must be specified";
        errors.invalid("spec.user", &json!(""), detail);
    }
    let mut metadata = review.get("metadata").cloned().unwrap_or_default();
    if let Some(fields) = metadata.as_object_mut() {
        fields.shift_remove("managedFields");
        if scope == Scope::Namespace {
            fields.shift_remove("namespace");
        }
        fields.retain(|_, value| !value.is_null());
        if !fields.is_empty() {
            let detail = match scope {
                Scope::Namespace => "must be empty except for namespace",
                _ => "must be empty",
            };
            errors.invalid("metadata", &metadata, detail);
        }
    }
    if scope == Scope::Namespace {
        validate_local(review, &mut errors);
    }
    if errors.is_empty() {
        return Ok(());
    }
    // The real server names no kind here.
    Err(Status::invalid(AUTHORIZATION, "", "", errors))
}

fn validate_local(review: &Value, errors: &mut Errors) {
    let namespace = text(review, "/spec/resourceAttributes/namespace");
    let has = |name: &str| review.pointer(name).is_some_and(|v| !v.is_null());
    if has("/spec/resourceAttributes") && namespace != object::namespace(review) {
        let field = "spec.resourceAttributes.namespace";
        errors.invalid(field, &json!(namespace), "must match metadata.namespace");
    }
    if has("/spec/nonResourceAttributes") {
        let value = review.pointer("/spec/nonResourceAttributes").unwrap_or(&Value::Null);
        errors.invalid(
            "spec.nonResourceAttributes",
            value,
            "disallowed on this kind of request",
        );
    }
}

#[cfg(test)]
mod tests;
