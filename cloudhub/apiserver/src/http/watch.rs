//! A watch: what is there (where that is asked for), then every change, then bookmarks; ended by its time, by the client, or by
//! an ERROR event when it has fallen behind the store's log.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http::{HeaderValue, Response, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use super::Call;
use super::answer::{self, Shape};
use super::read::{self, Scope};
use crate::kubelet::Body;
use crate::status::Status;
use crate::store::{Before, Change, Stored, Watch};
use crate::table::{self, IncludeObject, ListMeta};

/// As kube-apiserver: about once a minute.
const BOOKMARK: Duration = Duration::from_secs(60);
/// kube-apiserver ends a watch without a timeout after 30 to 60 minutes.
const LONGEST: Duration = Duration::from_secs(45 * 60);
/// Bytes that are put together before they are handed to the connection.
const CHUNK: usize = 64 * 1024;

/// How events look.
#[derive(Debug, Clone, Copy)]
struct Look {
    shape: Shape,
    include: IncludeObject,
    bookmarks: bool,
}

struct Following {
    scope: Scope,
    look: Look,
    watch: Watch,
    /// What is to be sent before changes are looked at: the objects that are there.
    initial: VecDeque<Arc<Stored>>,
    /// The bookmark that ends them, when it was asked for.
    initial_end: bool,
    /// The first event of a Table watch says what the columns are.
    columns_said: bool,
    next_bookmark: Instant,
    end: Instant,
    over: bool,
}

pub(super) fn answer(call: &Call, scope: Scope) -> Result<Response<Body>, Status> {
    let following = begin(call, scope)?;
    let body = match following {
        Ok(following) => {
            let chunks = stream::unfold(following, |mut following| async move {
                let chunk = following.next().await?;
                Some((Ok::<_, Infallible>(Frame::data(chunk)), following))
            });
            StreamBody::new(chunks).map_err(|never| match never {}).boxed_unsync()
        }
        Err(expired) => answer::full(event("ERROR", &expired.to_json())),
    };
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, super::JSON);
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    Ok(response)
}

fn begin(call: &Call, scope: Scope) -> Result<Result<Following, Status>, Status> {
    let query = &call.query;
    let store = call.shared.registry.store();
    let look = Look {
        shape: call.accept.shape,
        include: IncludeObject::parse(query.get("includeObject"))?,
        bookmarks: query.flag("allowWatchBookmarks"),
    };
    let wants_initial = !query.get("sendInitialEvents").is_empty();
    let initial_events = wants_initial.then(|| query.flag("sendInitialEvents"));
    let asked = match query.get("resourceVersion") {
        "" => 0,
        text => read::parse_version(text).map_err(|why| Status::new(500, "", why))?,
    };
    let namespace = scope.namespace.as_deref();
    let storage = scope.row.storage;
    let (mut initial, mut from) = (VecDeque::new(), asked);
    let now = store.version();
    if asked > now {
        return Err(read::too_new(query.get("resourceVersion"), now));
    }
    if initial_events == Some(true) || (asked == 0 && initial_events.is_none()) {
        let (version, objects) = store.list(storage, namespace, None, usize::MAX);
        initial = objects.into_iter().filter(|stored| scope.has(stored)).collect();
        from = version;
    } else if asked == 0 {
        from = now;
    }
    let Some(watch) = store.watch(storage, namespace, from) else {
        return Ok(Err(Status::expired(format!(
            "too old resource version: {asked} ({now})"
        ))));
    };
    let seconds = query
        .number("timeoutSeconds")?
        .and_then(|seconds| u64::try_from(seconds).ok().filter(|seconds| *seconds > 0))
        .map(Duration::from_secs);
    let start = Instant::now();
    Ok(Ok(Following {
        scope,
        look,
        watch,
        initial,
        initial_end: initial_events == Some(true),
        columns_said: false,
        next_bookmark: start + BOOKMARK,
        end: start + seconds.unwrap_or(LONGEST).min(LONGEST),
        over: false,
    }))
}

impl Following {
    /// The next bytes; None when the watch is over.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.over {
                return None;
            }
            if let Some(chunk) = self.initial() {
                return Some(chunk);
            }
            tokio::select! {
                biased;
                changes = self.watch.next() => match changes {
                    Some(changes) => {
                        let chunk = self.changes(&changes);
                        if !chunk.is_empty() {
                            return Some(chunk);
                        }
                    }
                    None => {
                        self.over = true;
                        let status = Status::expired("The resourceVersion for the provided watch is too old.");
                        return Some(event("ERROR", &status.to_json()));
                    }
                },
                () = sleep_until(self.end) => {
                    self.over = true;
                    return self.look.bookmarks.then(|| self.bookmark(false));
                }
                () = sleep_until(self.next_bookmark) => {
                    self.next_bookmark = Instant::now() + BOOKMARK;
                    if self.look.bookmarks {
                        return Some(self.bookmark(false));
                    }
                }
            }
        }
    }

    /// A part of the objects that were there; None when there are no more.
    fn initial(&mut self) -> Option<Bytes> {
        if self.initial.is_empty() && !self.initial_end {
            return None;
        }
        let mut out = Vec::new();
        while let Some(stored) = self.initial.pop_front() {
            self.push(&mut out, "ADDED", &stored);
            if out.len() >= CHUNK {
                return Some(Bytes::from(out));
            }
        }
        if std::mem::take(&mut self.initial_end) {
            out.extend_from_slice(&self.bookmark(true));
        }
        Some(Bytes::from(out))
    }

    fn changes(&mut self, changes: &[Arc<Change>]) -> Bytes {
        let mut out = Vec::new();
        for change in changes {
            let was = change.before().is_some_and(|stored| self.scope.has(stored));
            let is = !change.deleted && self.scope.has(&change.object);
            match (was, is) {
                (false, true) => self.push(&mut out, "ADDED", &change.object),
                (true, true) => self.push(&mut out, "MODIFIED", &change.object),
                (true, false) => self.push_gone(&mut out, change),
                (false, false) => {}
            }
        }
        Bytes::from(out)
    }

    /// An object that is gone, or no longer among those that are looked at: as it last was there, in the version of the change.
    fn push_gone(&mut self, out: &mut Vec<u8>, change: &Change) {
        let Before::Other(last) = &change.before else {
            return self.push(out, "DELETED", &change.object);
        };
        if change.deleted {
            return self.push(out, "DELETED", &change.object);
        }
        let version = change.object.resource_version;
        let mut object = last.value();
        object["metadata"]["resourceVersion"] = version.to_string().into();
        let shown = self.shaped(read::in_version(self.scope.row, object), version);
        out.extend_from_slice(&event("DELETED", &shown));
    }

    fn push(&mut self, out: &mut Vec<u8>, kind: &str, stored: &Stored) {
        let row = self.scope.row;
        let head = format!(r#"{{"type":"{kind}","object":"#);
        out.extend_from_slice(head.as_bytes());
        if self.look.shape == Shape::Full && read::is_stored_version(row) {
            out.extend_from_slice(&stored.bytes);
        } else {
            let shown = self.shaped(read::in_version(row, stored.value()), stored.resource_version);
            out.extend_from_slice(shown.to_string().as_bytes());
        }
        out.extend_from_slice(b"}\n");
    }

    fn shaped(&mut self, object: Value, version: u64) -> Value {
        match self.look.shape {
            Shape::Full => object,
            Shape::Metadata => table::partial(object),
            Shape::Table => {
                let meta = ListMeta {
                    resource_version: version.to_string(),
                    ..ListMeta::default()
                };
                let first = !std::mem::replace(&mut self.columns_said, true);
                table::render(self.scope.row, &meta, [object], self.look.include, first)
            }
        }
    }

    fn bookmark(&self, ends_initial: bool) -> Bytes {
        let row = self.scope.row;
        let mut metadata = json!({"resourceVersion": self.watch.seen().to_string()});
        if ends_initial {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let (kind, version) = match self.look.shape {
            Shape::Metadata => ("PartialObjectMetadata", "meta.k8s.io/v1".to_owned()),
            _ => (row.kind, row.api_version()),
        };
        let object = json!({"kind": kind, "apiVersion": version, "metadata": metadata});
        if self.look.shape == Shape::Table {
            let cells = table::cells_of(row, &object);
            let rows = json!([{"cells": cells, "object": {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]}}]);
            let table = json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": object["metadata"]["resourceVersion"]},
                               "columnDefinitions": null, "rows": rows});
            return event("BOOKMARK", &table);
        }
        event("BOOKMARK", &object)
    }
}

fn event(kind: &str, object: &Value) -> Bytes {
    Bytes::from(format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n"))
}
