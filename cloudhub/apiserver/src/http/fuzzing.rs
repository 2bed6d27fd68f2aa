//! Doors for [`crate::fuzzing`]: what is read of a request before anything is done.

use http::{HeaderMap, HeaderValue, Method, header};
use serde_json::{Value, json};

use super::answer::{self, Accept};
use super::input::{self, Query};
use super::read::{Continue, Scope};
use super::route::{self, Route};
use crate::kubelet::paths;
use crate::registry::DeleteOptions;
use crate::table::IncludeObject;

/// `METHOD PATH?QUERY`: the route, what is authorized, and all that is read of the query.
///
/// # Errors
/// A continue token that is not the same when it is written again.
pub fn request(bytes: &[u8]) -> Result<(), String> {
    let text = String::from_utf8_lossy(bytes);
    let (method, rest) = text.split_once(' ').unwrap_or(("GET", &text));
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let method = Method::from_bytes(method.as_bytes()).unwrap_or(Method::GET);
    let query = match Query::parse(query) {
        Ok(query) => query,
        Err(status) => {
            answer::refusal(&status);
            return Ok(());
        }
    };
    let route = match route::parse(path) {
        Ok(route) => route,
        Err(status) => {
            answer::refusal(&status);
            return Ok(());
        }
    };
    let _ = route.attributes(&method, &query);
    let _ = (route.needs_create(), route.is_stream());
    parameters(&query);
    if let Route::Resource(place) = &route {
        if let Err(status) = Scope::new(place, &query) {
            answer::refusal(&status);
        }
        let _ = paths::node_of_proxy(&place.name);
        streams(&query);
    }
    tokens(query.get("continue"))
}

fn parameters(query: &Query) {
    for name in ["limit", "timeoutSeconds", "resourceVersion", "gracePeriodSeconds"] {
        let _ = query.number(name);
    }
    for name in ["watch", "follow", "allowWatchBookmarks", "pretty"] {
        query.flag(name);
    }
    let _ = (query.dry_run(&http::Method::PATCH), query.validation());
    let _ = super::read::from_the_future(query, 7);
    let _ = IncludeObject::parse(query.get("includeObject"));
}

/// Which kubelet path a subresource is.
fn streams(query: &Query) {
    let pod = json!({"metadata": {"name": "web", "namespace": "shop"},
        "spec": {"nodeName": "n1", "containers": [{"name": "main"}], "initContainers": [{"name": "first"}]}});
    let query = paths::Query::new(query.pairs());
    let _ = paths::log(&pod, query);
    let _ = paths::process("exec", &pod, query);
    let _ = paths::port_forward(&pod, query);
}

fn tokens(text: &str) -> Result<(), String> {
    let Ok(token) = Continue::parse(text) else {
        return Ok(());
    };
    let again = token.text();
    match Continue::parse(&again) {
        Ok(second) if second.text() == again => Ok(()),
        _ => Err(format!("{text} is written again as {again}, and that is not read back")),
    }
}

/// Lines of an Accept header, and a Content-Type.
pub fn accept(bytes: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(header::ACCEPT, value.clone());
            headers.insert(header::CONTENT_TYPE, value);
        }
    }
    let _ = Accept::parse(headers.get_all(header::ACCEPT));
    crate::patch::PatchType::of_media_type(input::content_type(&headers));
}

/// A body of options: JSON of any shape.
pub fn options(bytes: &[u8]) {
    let body: Value = match input::json(bytes) {
        Ok(body) => body,
        Err(status) => {
            answer::refusal(&status);
            return;
        }
    };
    if let Err(status) = DeleteOptions::parse(&body) {
        answer::refusal(&status);
    }
}
