//! The feed's answers to a hub's requests, as kube-apiserver words them: get, list, watch, create, replace, patch, delete.
//!
//! Whoever asks may do everything: who may do what is not measured here. Events are taken and forgotten.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::objects::{Kind, Object, Objects, Page, Refused, Which, id, merge};

/// A watch whose client says no time.
const LONGEST: Duration = Duration::from_secs(1800);
/// Bytes of events that are put together for a connection.
const CHUNK: usize = 64 * 1024;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
struct Path<'a> {
    plural: &'a str,
    namespace: &'a str,
    /// Empty: all of them.
    name: &'a str,
}

impl<'a> Path<'a> {
    /// `/api/VERSION/…` or `/apis/GROUP/VERSION/…`; subresources are their objects.
    fn parse(path: &'a str) -> Option<Self> {
        let mut parts = path.strip_prefix('/')?.split('/');
        match parts.next()? {
            "api" => _ = parts.next()?,
            "apis" => _ = (parts.next()?, parts.next()?),
            _ => return None,
        }
        let rest: Vec<&str> = parts.collect();
        let (namespace, rest) = match rest.as_slice() {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            rest => ("", rest),
        };
        let (plural, name) = match rest {
            [plural] => (*plural, ""),
            [plural, name] | [plural, name, _] => (*plural, *name),
            _ => return None,
        };
        Some(Self {
            plural,
            namespace,
            name,
        })
    }
}

/// A value of the query, `%`-decoded.
fn asked(query: &str, name: &str) -> Option<String> {
    let value = query
        .split('&')
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
    let mut out = Vec::new();
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        let hex = |byte: Option<u8>| char::from(byte?).to_digit(16);
        match byte {
            b'%' => out.push(u8::try_from(hex(bytes.next())? * 16 + hex(bytes.next())?).ok()?),
            byte => out.push(byte),
        }
    }
    String::from_utf8(out).ok()
}

fn which(path: &Path<'_>, query: &str) -> Which {
    let fields = asked(query, "fieldSelector").unwrap_or_default();
    let label = asked(query, "labelSelector");
    Which {
        one: fields
            .strip_prefix("metadata.name=")
            .map(|name| id(path.namespace, name)),
        label: label.and_then(|label| {
            label
                .split_once('=')
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
        }),
    }
}

fn full(code: StatusCode, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(bytes.into()).boxed_unsync());
    *response.status_mut() = code;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json"),
    );
    response
}

fn refused(code: StatusCode, reason: &str) -> Response<Body> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": reason,
                        "reason": reason, "code": code.as_u16()});
    full(code, status.to_string())
}

fn written(kind: &Kind, code: StatusCode, result: Result<impl AsRef<Object>, Refused>) -> Response<Body> {
    match result {
        Ok(object) => full(code, kind.full(object.as_ref())),
        Err(Refused::Missing) => refused(StatusCode::NOT_FOUND, "NotFound"),
        Err(Refused::Conflict) => refused(StatusCode::CONFLICT, "AlreadyExists"),
    }
}

/// Answers one request.
pub(super) async fn answer(objects: Objects, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let (head, body) = request.into_parts();
    let Some((path, kind)) =
        Path::parse(head.uri.path()).and_then(|path| Kind::of(path.plural).map(|kind| (path, kind)))
    else {
        tracing::warn!(method = %head.method, uri = %head.uri, "the feed has no such thing");
        return Ok(refused(StatusCode::NOT_FOUND, "NotFound"));
    };
    let query = head.uri.query().unwrap_or_default();
    if head.method == Method::GET {
        return Ok(read(&objects, kind, &path, query));
    }
    let bytes = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let sent: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let content = head
        .headers
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .unwrap_or_default();
    let strategic = content.starts_with("application/strategic");
    Ok(write(&objects, kind, &path, (&head.method, sent, strategic)))
}

fn read(objects: &Objects, kind: &'static Kind, path: &Path<'_>, query: &str) -> Response<Body> {
    if !path.name.is_empty() {
        let found = objects
            .get(kind, &id(path.namespace, path.name))
            .ok_or(Refused::Missing);
        return written(kind, StatusCode::OK, found);
    }
    let which = which(path, query);
    if matches!(asked(query, "watch").as_deref(), Some("true" | "1")) {
        let revision = asked(query, "resourceVersion")
            .and_then(|text| text.parse().ok())
            .unwrap_or_default();
        let seconds = asked(query, "timeoutSeconds").and_then(|text| text.parse().ok());
        let end = Instant::now() + seconds.map_or(LONGEST, Duration::from_secs);
        return watch(objects.watch(kind, &which, revision), end);
    }
    let limit = asked(query, "limit")
        .and_then(|text| text.parse().ok())
        .unwrap_or_default();
    let after = asked(query, "continue").unwrap_or_default();
    full(StatusCode::OK, list(kind, objects.page(kind, &which, &after, limit)))
}

fn list(kind: &Kind, page: Page) -> Vec<u8> {
    let mut metadata = json!({"resourceVersion": page.revision.to_string()});
    if let Some(more) = page.more {
        metadata["continue"] = more.into();
    }
    let head = format!(
        r#"{{"kind":"{}List","apiVersion":"{}","metadata":{metadata},"items":["#,
        kind.kind, kind.version
    );
    let mut out = head.into_bytes();
    for (index, object) in page.items.iter().enumerate() {
        out.extend_from_slice(if index == 0 { b"{" } else { b",{" });
        out.extend_from_slice(&object.rest);
    }
    out.extend_from_slice(b"]}\n");
    out
}

/// Events until the client goes, falls behind, or `end`.
fn watch(events: mpsc::Receiver<Bytes>, end: Instant) -> Response<Body> {
    let chunks = stream::unfold(events, move |mut events| async move {
        let first = tokio::select! {
            biased;
            event = events.recv() => event?,
            () = sleep_until(end) => return None,
        };
        let mut more = Vec::new();
        while first.len() + more.len() < CHUNK
            && let Ok(line) = events.try_recv()
        {
            more.extend_from_slice(&line);
        }
        // An event that comes alone, as nearly all do, is not copied.
        let chunk = if more.is_empty() {
            first
        } else {
            [&first[..], &more[..]].concat().into()
        };
        Some((Ok(Frame::data(chunk)), events))
    });
    let mut response = Response::new(StreamBody::new(chunks).boxed_unsync());
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json"),
    );
    response
}

fn write(
    objects: &Objects,
    kind: &'static Kind,
    path: &Path<'_>,
    (method, mut sent, strategic): (&Method, Value, bool),
) -> Response<Body> {
    let name = match path.name {
        "" => sent["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
        name => name.to_owned(),
    };
    let at = id(path.namespace, &name);
    match *method {
        Method::POST if kind.plural == "events" => full(StatusCode::CREATED, sent.to_string()),
        Method::POST => {
            sent["metadata"]["uid"] = format!("{}-{at}", kind.plural).into();
            written(kind, StatusCode::CREATED, objects.create(kind, &at, sent))
        }
        Method::PUT => {
            let put = objects.change(kind, &at, |value| {
                let version = &sent["metadata"]["resourceVersion"];
                if !version.is_null() && *version != value["metadata"]["resourceVersion"] {
                    return Err(Refused::Conflict);
                }
                sent["metadata"]["uid"] = value["metadata"]["uid"].take();
                *value = sent;
                Ok(())
            });
            written(kind, StatusCode::OK, put)
        }
        Method::PATCH => {
            let patched = objects.change(kind, &at, |value| {
                merge(value, &sent, strategic);
                Ok(())
            });
            written(kind, StatusCode::OK, patched)
        }
        Method::DELETE => written(kind, StatusCode::OK, objects.delete(kind, &at).ok_or(Refused::Missing)),
        _ => refused(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_both_kinds_of_groups_name_their_object() {
        let path = |plural, namespace, name| {
            Some(Path {
                plural,
                namespace,
                name,
            })
        };
        assert_eq!(Path::parse("/api/v1/nodes"), path("nodes", "", ""));
        assert_eq!(Path::parse("/api/v1/nodes/a/status"), path("nodes", "", "a"));
        assert_eq!(
            Path::parse("/api/v1/namespaces/kube-system"),
            path("namespaces", "", "kube-system")
        );
        assert_eq!(
            Path::parse("/api/v1/namespaces/n/pods/p/status"),
            path("pods", "n", "p")
        );
        let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/a";
        assert_eq!(Path::parse(lease), path("leases", "kube-node-lease", "a"));
        assert_eq!(Path::parse("/healthz"), None);
    }

    #[test]
    fn selectors_are_read_from_the_query() {
        let path = Path::parse("/api/v1/namespaces/n/configmaps").unwrap();
        let which = which(
            &path,
            "fieldSelector=metadata.name=own-1&limit=500&labelSelector=kedge.dev%2Fx%3Dtrue",
        );
        assert_eq!(which.one.as_deref(), Some("n/own-1"));
        assert_eq!(which.label, Some(("kedge.dev/x".into(), "true".into())));
        assert_eq!(asked("limit=500&continue=", "continue").as_deref(), Some(""));
        assert_eq!(asked("limit=500", "watch"), None);
    }

    #[test]
    fn a_list_says_where_it_goes_on() {
        let (objects, kind) = (Objects::default(), Kind::of("nodes").unwrap());
        for name in ["a", "b"] {
            objects.put(kind, &id("", name), json!({"metadata": {"name": name}}));
        }
        let page: Value = serde_json::from_slice(&list(kind, objects.page(kind, &Which::default(), "", 1))).unwrap();
        assert_eq!(
            (&page["kind"], &page["metadata"]["continue"]),
            (&json!("NodeList"), &json!("/a"))
        );
        assert_eq!(
            page["items"],
            json!([{"metadata": {"name": "a", "resourceVersion": "1"}}])
        );
    }
}
