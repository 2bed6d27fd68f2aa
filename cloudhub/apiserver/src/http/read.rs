//! GET of an object, of a list, and where a watch begins.
//!
//! A list's objects are copied as bytes; only another shape or version makes them be parsed.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::Response;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::answer::{self, Shape};
use super::input::Query;
use super::route::Place;
use super::{Call, watch};
use crate::kinds::{self, Row};
use crate::kubelet::Body;
use crate::object;
use crate::selector::{Fields, Labels};
use crate::status::{Cause, Status};
use crate::store::{Key, Store, Stored};
use crate::table::{self, IncludeObject, ListMeta};

/// Which objects of a kind.
#[derive(Debug)]
pub(super) struct Scope {
    pub(super) row: &'static Row,
    pub(super) namespace: Option<String>,
    pub(super) labels: Labels,
    pub(super) fields: Fields,
}

impl Scope {
    pub(super) fn new(place: &Place, query: &Query) -> Result<Self, Status> {
        let row = place.row()?;
        let labels = Labels::parse(query.get("labelSelector"))?;
        let fields = Fields::parse(query.get("fieldSelector"), row)?;
        let namespace = (row.namespaced && !place.namespace.is_empty()).then(|| place.namespace.clone());
        Ok(Self {
            row,
            namespace,
            labels,
            fields,
        })
    }

    pub(super) fn has(&self, stored: &Stored) -> bool {
        self.labels.matches(stored) && self.fields.matches(stored)
    }
}

/// Where a list goes on.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Continue {
    /// The resourceVersion of the first page: a watch from there sees all that changed since. None: whatever is there now.
    version: Option<u64>,
    namespace: String,
    name: String,
}

impl Continue {
    pub(super) fn parse(text: &str) -> Result<Self, Status> {
        let fault = || Status::bad_request("continue key is not valid");
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| fault())?;
        serde_json::from_slice(&bytes).map_err(|_| fault())
    }

    /// The token of a request, or how a list goes on whose first page is too long ago to be watched from.
    fn of(text: &str, store: &Store, row: &Row) -> Result<Self, Status> {
        let token = Self::parse(text)?;
        if token
            .version
            .is_some_and(|version| !store.remembers(row.storage, version))
        {
            let now = Self { version: None, ..token };
            return Err(Status::list_expired(now.text()));
        }
        Ok(token)
    }

    pub(super) fn text(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }
}

pub(super) fn answer(call: &Call, place: &Place) -> Result<Response<Body>, Status> {
    let row = place.row()?;
    if place.name.is_empty() {
        let watches = call.query.flag("watch");
        call.query.check_list(watches)?;
        return if watches {
            watch::answer(call, Scope::new(place, &call.query)?)
        } else {
            list(call, place)
        };
    }
    let version = call.query.get("resourceVersion");
    if !version.is_empty() {
        parse_version(version).map_err(|why| Status::new(500, "", why))?;
    }
    let key = Key::new(
        row.storage,
        if row.namespaced { &place.namespace } else { "" },
        &place.name,
    );
    let stored = call.shared.registry.store().get(&key);
    let stored = stored.ok_or_else(|| Status::not_found(row.group, row.plural, &place.name))?;
    one(call, row, 200, &stored)
}

/// One object in the shape that was asked for.
pub(super) fn one(call: &Call, row: &'static Row, code: u16, stored: &Stored) -> Result<Response<Body>, Status> {
    if call.accept.shape == Shape::Full && is_stored_version(row) {
        return Ok(answer::bytes(code, stored.bytes.clone()));
    }
    value(call, row, code, stored.value())
}

/// One object, parsed, in the shape that was asked for.
pub(super) fn value(call: &Call, row: &'static Row, code: u16, object: Value) -> Result<Response<Body>, Status> {
    let object = in_version(row, object);
    Ok(match call.accept.shape {
        Shape::Full => answer::json(code, &object),
        Shape::Metadata => answer::json(code, &table::partial(object)),
        Shape::Table => {
            let resource_version = object::text(&object, "/metadata/resourceVersion").to_owned();
            let meta = ListMeta {
                resource_version,
                ..ListMeta::default()
            };
            let include = IncludeObject::parse(call.query.get("includeObject"))?;
            answer::json(code, &table::render(row, &meta, [object], include, true))
        }
    })
}

/// Whether objects are stored in this row's version.
pub(super) fn is_stored_version(row: &Row) -> bool {
    kinds::rows()
        .find(|r| r.storage == row.storage)
        .is_some_and(|first| first.group == row.group)
}

/// An object in the row's version.
pub(super) fn in_version(row: &Row, mut object: Value) -> Value {
    if !is_stored_version(row) {
        row.strategy.to_version(&mut object);
        object["apiVersion"] = row.api_version().into();
    }
    object
}

/// The page of a list.
struct Page {
    version: u64,
    objects: Vec<std::sync::Arc<Stored>>,
    next: Option<Continue>,
    remaining: Option<usize>,
}

fn page(call: &Call, scope: &Scope) -> Result<Page, Status> {
    let store = call.shared.registry.store();
    let limit = call
        .query
        .number("limit")?
        .filter(|limit| *limit > 0)
        .and_then(|limit| usize::try_from(limit).ok());
    let from = match call.query.get("continue") {
        "" => None,
        _ if !matches!(call.query.get("resourceVersion"), "" | "0") => {
            return Err(Status::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        text => Some(Continue::of(text, store, scope.row)?),
    };
    let after = from
        .as_ref()
        .map(|from| Key::new(scope.row.storage, &from.namespace, &from.name));
    let (now, objects) = store.list(
        scope.row.storage,
        scope.namespace.as_deref(),
        after.as_ref(),
        usize::MAX,
    );
    let version = from.and_then(|from| from.version).unwrap_or(now);
    if from_the_future(&call.query, now)? {
        return Err(too_new(call.query.get("resourceVersion"), now));
    }
    if call.query.get("resourceVersionMatch") == "Exact" && call.query.get("resourceVersion") != version.to_string() {
        return Err(Status::expired("The resourceVersion for the provided list is too old."));
    }
    let filtered = !scope.labels.is_empty() || !scope.fields.is_empty();
    let mut found: Vec<_> = objects.into_iter().filter(|stored| scope.has(stored)).collect();
    let (mut next, mut remaining) = (None, None);
    if let Some(limit) = limit.filter(|limit| found.len() > *limit) {
        // With a selector the real server does not count either.
        remaining = (!filtered).then_some(found.len() - limit);
        found.truncate(limit);
        let last = found.last().map(|stored| &stored.key);
        next = last.map(|key| Continue {
            version: Some(version),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
        });
    }
    Ok(Page {
        version,
        objects: found,
        next,
        remaining,
    })
}

/// A resourceVersion, or why it is none.
pub(super) fn parse_version(text: &str) -> Result<u64, String> {
    let fault =
        |_| format!("resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax");
    text.parse().map_err(fault)
}

/// Whether the client has seen a later version than there is: it came from another store.
pub(super) fn from_the_future(query: &Query, now: u64) -> Result<bool, Status> {
    let version = query.get("resourceVersion");
    if version.is_empty() {
        return Ok(false);
    }
    parse_version(version)
        .map(|version| version > now)
        .map_err(|why| Status::bad_request(format!("invalid resource version: {why}")))
}

pub(super) fn too_new(version: &str, now: u64) -> Status {
    let message = format!("Too large resource version: {version}, current: {now}");
    let mut status = Status::new(504, "Timeout", message).with_causes(vec![Cause {
        reason: "ResourceVersionTooLarge",
        message: "Too large resource version".into(),
        field: String::new(),
    }]);
    if let Some(details) = &mut status.details {
        details.retry_after_seconds = 1;
    }
    status
}

fn list(call: &Call, place: &Place) -> Result<Response<Body>, Status> {
    let scope = Scope::new(place, &call.query)?;
    let page = page(call, &scope)?;
    let meta = ListMeta {
        resource_version: page.version.to_string(),
        continue_token: page.next.as_ref().map(Continue::text).unwrap_or_default(),
        remaining: page.remaining.map(|left| left as u64),
    };
    let row = scope.row;
    let list = |kind: &str, version: String, items: Vec<Value>| {
        let list = json!({"kind": kind, "apiVersion": version, "metadata": meta.to_json(), "items": items});
        Ok(answer::json(200, &list))
    };
    match call.accept.shape {
        Shape::Full if is_stored_version(row) => Ok(answer::bytes(200, full(row, &meta.to_json(), &page))),
        Shape::Full => {
            let items = page
                .objects
                .iter()
                .map(|stored| item(in_version(row, stored.value())))
                .collect();
            list(&format!("{}List", row.kind), row.api_version(), items)
        }
        Shape::Metadata => {
            let items = page
                .objects
                .iter()
                .map(|stored| table::partial(stored.value()))
                .collect();
            list("PartialObjectMetadataList", "meta.k8s.io/v1".into(), items)
        }
        Shape::Table => {
            let objects = page.objects.iter().map(|stored| in_version(row, stored.value()));
            let include = IncludeObject::parse(call.query.get("includeObject"))?;
            Ok(answer::json(200, &table::render(row, &meta, objects, include, true)))
        }
    }
}

/// Objects in lists do not say their kind.
pub(super) fn item(mut object: Value) -> Value {
    if let Some(fields) = object.as_object_mut() {
        fields.shift_remove("kind");
        fields.shift_remove("apiVersion");
    }
    object
}

/// The list as bytes: kind and apiVersion are cut off each object, where the registry has put them.
fn full(row: &Row, metadata: &Value, page: &Page) -> Bytes {
    let prefix = format!(r#"{{"kind":"{}","apiVersion":"{}","#, row.kind, row.api_version());
    let size: usize = page.objects.iter().map(|stored| stored.bytes.len() + 1).sum();
    let mut out = Vec::with_capacity(size + 256);
    let head = format!(
        r#"{{"kind":"{}List","apiVersion":"{}","metadata":{metadata},"items":["#,
        row.kind,
        row.api_version()
    );
    out.extend_from_slice(head.as_bytes());
    for (index, stored) in page.objects.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        match stored.bytes.strip_prefix(prefix.as_bytes()) {
            Some(rest) => {
                out.push(b'{');
                out.extend_from_slice(rest);
            }
            None => out.extend_from_slice(&stored.bytes),
        }
    }
    out.extend_from_slice(b"]}");
    Bytes::from(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(version: Option<u64>) -> String {
        let (namespace, name) = ("default".to_owned(), "a".to_owned());
        let token = Continue {
            version,
            namespace,
            name,
        };
        token.text()
    }

    #[test]
    fn a_list_whose_first_page_is_forgotten_goes_on_with_the_token_of_the_refusal() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _committer) = Store::open(folder.path()).unwrap();
        let row = kinds::row("", "v1", "configmaps").unwrap();
        let now = store.version();
        assert_eq!(Continue::of(&token(Some(now)), &store, row).unwrap().version, Some(now));
        store.forget_log(now + 7);
        let refusal = Continue::of(&token(Some(now)), &store, row).unwrap_err().to_json();
        assert_eq!((&refusal["code"], &refusal["reason"]), (&json!(410), &json!("Expired")));
        assert_eq!(refusal.get("details"), None);
        let next = refusal["metadata"]["continue"].as_str().unwrap();
        let goes_on = Continue::of(next, &store, row).unwrap();
        assert_eq!((goes_on.version, goes_on.name.as_str()), (None, "a"));
        assert!(Continue::of("nonsense", &store, row).is_err());
    }
}
