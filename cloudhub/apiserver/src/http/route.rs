//! From a path to what it names.

use http::Method;

use super::input::Query;
use crate::auth::{Attributes, reviews};
use crate::kinds::{self, Row};
use crate::selector;
use crate::status::Status;

/// What a request is about.
#[derive(Debug)]
pub(super) enum Route {
    /// Health, version, discovery, OpenAPI: no resource.
    Path(String),
    /// Stored objects.
    Resource(Place),
    /// A review: created, answered, never stored.
    Virtual(Place, reviews::Virtual),
    /// metrics.k8s.io.
    Metrics(Place),
    /// What is not served: who may not ask for it is told so first.
    Unknown(Place),
}

/// A resource's place.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// The row; for reviews and metrics there is none.
    pub(super) row: Option<&'static Row>,
    pub(super) group: String,
    pub(super) version: String,
    pub(super) plural: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) subresource: String,
    /// What follows the subresource: the path of a proxy.
    pub(super) rest: String,
}

impl Place {
    /// The row of a stored resource.
    pub(super) fn row(&self) -> Result<&'static Row, Status> {
        self.row.ok_or_else(Status::no_such_path)
    }
}

/// Parses a path; a kind that is not served is 404.
pub(super) fn parse(path: &str) -> Result<Route, Status> {
    let mut parts = path.trim_matches('/').split('/');
    let (group, version) = match parts.next().unwrap_or_default() {
        "api" => (String::new(), parts.next()),
        "apis" => match parts.next() {
            Some(group) => (decode(group)?, parts.next()),
            None => return Ok(Route::Path(path.to_owned())),
        },
        _ => return Ok(Route::Path(path.to_owned())),
    };
    let rest: Vec<String> = parts.map(decode).collect::<Result<_, _>>()?;
    let (Some(version), false) = (version, rest.is_empty()) else {
        return Ok(Route::Path(path.to_owned()));
    };
    if rest.iter().any(String::is_empty) {
        return Err(Status::no_such_path());
    }
    resource(group, decode(version)?, &rest)
}

fn resource(group: String, version: String, parts: &[String]) -> Result<Route, Status> {
    let in_namespace = parts[0] == "namespaces" && parts.len() > 2 && !is_namespace_subresource(&group, parts);
    let (namespace, parts) = if in_namespace {
        (parts[1].clone(), &parts[2..])
    } else {
        (String::new(), parts)
    };
    let at = |index: usize| parts.get(index).cloned().unwrap_or_default();
    let mut place = Place {
        row: kinds::row(&group, &version, &parts[0]),
        group,
        version,
        plural: parts[0].clone(),
        namespace,
        name: at(1),
        subresource: at(2),
        rest: parts.get(3..).map(|rest| rest.join("/")).unwrap_or_default(),
    };
    if place.plural == "namespaces" && place.group.is_empty() && !in_namespace && !place.name.is_empty() {
        // The real server takes a Namespace object to be in itself, for authorization.
        place.namespace.clone_from(&place.name);
    }
    if let Some(row) = place.row {
        if row.namespaced && place.namespace.is_empty() && !place.name.is_empty() {
            return Err(Status::no_such_path());
        }
        if !row.namespaced && in_namespace {
            return Err(Status::no_such_path());
        }
        return Ok(Route::Resource(place));
    }
    if place.group == "metrics.k8s.io"
        && place.version == "v1beta1"
        && matches!(place.plural.as_str(), "nodes" | "pods")
    {
        return Ok(Route::Metrics(place));
    }
    let virtuals = reviews::RESOURCES.iter();
    let mut found =
        virtuals.filter(|v| v.group == place.group && v.version == place.version && v.plural == place.plural);
    match found.next() {
        Some(kind) => Ok(Route::Virtual(place, *kind)),
        None if place.group.is_empty() && place.plural == "bindings" => {
            place.row = kinds::row("", "v1", "pods");
            place.subresource = "binding".into();
            Ok(Route::Resource(place))
        }
        None => Ok(Route::Unknown(place)),
    }
}

fn is_namespace_subresource(group: &str, parts: &[String]) -> bool {
    group.is_empty() && parts.len() == 3 && matches!(parts[2].as_str(), "status" | "finalize")
}

fn decode(part: &str) -> Result<String, Status> {
    super::input::percent_decode(part).ok_or_else(|| Status::bad_request(format!("path segment {part:?} is not UTF-8")))
}

impl Route {
    /// What is to be authorized.
    pub(super) fn attributes(&self, method: &Method, query: &Query) -> Result<Attributes, Status> {
        let place = match self {
            Self::Path(path) => {
                let verb = method.as_str().to_lowercase();
                return Ok(Attributes {
                    verb,
                    path: path.clone(),
                    ..Attributes::default()
                });
            }
            Self::Resource(place) | Self::Virtual(place, _) | Self::Metrics(place) | Self::Unknown(place) => place,
        };
        let mut name = place.name.clone();
        let mut node = String::new();
        let mut verb = verb(method, place, query);
        if matches!(verb, "list" | "watch" | "deletecollection")
            && let Some(row) = place.row
        {
            let fields = selector::Fields::parse(query.get("fieldSelector"), row)?;
            fields.wanted("spec.nodeName").unwrap_or_default().clone_into(&mut node);
            if name.is_empty() {
                name = fields.name_of().unwrap_or_default().to_owned();
            }
        }
        if place.subresource == "proxy" && verb == "list" {
            verb = "get";
        }
        Ok(Attributes {
            verb: verb.into(),
            group: place.group.clone(),
            version: place.version.clone(),
            resource: place.plural.clone(),
            subresource: place.subresource.clone(),
            namespace: place.namespace.clone(),
            name,
            node,
            path: String::new(),
        })
    }

    /// exec, attach and port-forward need `create` also when they are a GET (Kubernetes 1.35 on).
    pub(super) fn needs_create(&self) -> bool {
        matches!(self, Self::Resource(place) if matches!(place.subresource.as_str(), "exec" | "attach" | "portforward"))
    }

    /// Whether the answer may take for ever.
    pub(super) fn is_stream(&self) -> bool {
        matches!(self, Self::Resource(place)
            if matches!(place.subresource.as_str(), "exec" | "attach" | "portforward" | "log" | "proxy"))
    }
}

fn verb(method: &Method, place: &Place, query: &Query) -> &'static str {
    let one = !place.name.is_empty();
    match *method {
        Method::GET | Method::HEAD if query.flag("watch") && !one => "watch",
        Method::GET | Method::HEAD if one => "get",
        Method::GET | Method::HEAD => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if one => "delete",
        Method::DELETE => "deletecollection",
        _ => "",
    }
}
