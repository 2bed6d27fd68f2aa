//! The feed's objects and who watches them: bytes in memory, one resourceVersion for all of them.
//!
//! - put → the next resourceVersion → one event line, made once, into the queue of each watch that it concerns
//! - a queue that is full ends its watch, as kube-apiserver ends that of a client which does not read
//!
//! State: [`State`] behind one lock, never held over an await. There is no log of changes: a watch that begins is told of what
//! has changed since by the objects' own resourceVersions, and objects that hubs watch are not deleted here.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// Events that a watch of a whole kind may be behind: a status of each of 10 000 nodes, a few times.
const BEHIND: usize = 65_536;
/// Events that a watch of one object may be behind.
const BEHIND_ONE: usize = 64;
/// A watch is told every so many calls of [`Objects::bookmark`] how far it is.
const BOOKMARK_TURNS: u64 = 60;

/// A kind that hubs ask for: its path's last part, its name, its apiVersion.
#[derive(Debug)]
pub(super) struct Kind {
    pub(super) plural: &'static str,
    pub(super) kind: &'static str,
    pub(super) version: &'static str,
}

const fn kind(plural: &'static str, kind: &'static str, version: &'static str) -> Kind {
    Kind { plural, kind, version }
}

/// All that a hub asks for.
const KINDS: [Kind; 8] = [
    kind("configmaps", "ConfigMap", "v1"),
    kind("events", "Event", "v1"),
    kind("leases", "Lease", "coordination.k8s.io/v1"),
    kind("namespaces", "Namespace", "v1"),
    kind("nodes", "Node", "v1"),
    kind("pods", "Pod", "v1"),
    kind("runtimeclasses", "RuntimeClass", "node.k8s.io/v1"),
    kind("secrets", "Secret", "v1"),
];

impl Kind {
    pub(super) fn of(plural: &str) -> Option<&'static Kind> {
        KINDS.iter().find(|kind| kind.plural == plural)
    }

    fn event(&self, what: &str, object: &Object) -> Bytes {
        let mut line = format!(r#"{{"type":"{what}","object":"#).into_bytes();
        line.extend_from_slice(&self.full(object));
        line.extend_from_slice(b"}\n");
        line.into()
    }

    /// The object as it is answered alone.
    pub(super) fn full(&self, object: &Object) -> Vec<u8> {
        let mut bytes = format!(r#"{{"kind":"{}","apiVersion":"{}","#, self.kind, self.version).into_bytes();
        bytes.extend_from_slice(&object.rest);
        bytes
    }
}

/// An object. Never changes.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) revision: u64,
    /// Its JSON without `{`, kind and apiVersion: items of lists have neither.
    pub(super) rest: Bytes,
}

impl Object {
    fn new(mut value: Value, revision: u64) -> Self {
        if let Some(fields) = value.as_object_mut() {
            fields.shift_remove("kind");
            fields.shift_remove("apiVersion");
        }
        value["metadata"]["resourceVersion"] = revision.to_string().into();
        let text = value.to_string().into_bytes();
        Self {
            revision,
            rest: Bytes::from(text).slice(1..),
        }
    }

    /// Parsed, without kind and apiVersion.
    pub(super) fn value(&self) -> Value {
        let mut text = b"{".to_vec();
        text.extend_from_slice(&self.rest);
        serde_json::from_slice(&text).expect("it was written from a value")
    }

    /// Whether it has this label, by its text: names of labels appear nowhere else in what is here.
    pub(super) fn has_label(&self, (name, value): (&str, &str)) -> bool {
        let wanted = format!(r#""{name}":"{value}""#).into_bytes();
        self.rest.windows(wanted.len()).any(|part| part == wanted)
    }
}

/// NAMESPACE/NAME; the namespace may be empty.
pub(super) fn id(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

type Watchers = HashMap<u64, mpsc::Sender<Bytes>>;

#[derive(Debug, Default)]
struct Collection {
    objects: BTreeMap<String, Arc<Object>>,
    watch_all: Watchers,
    watch_one: HashMap<String, Watchers>,
}

#[derive(Debug, Default)]
struct State {
    revision: u64,
    watches: u64,
    turns: u64,
    kinds: HashMap<&'static str, Collection>,
}

/// A page of a list.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) revision: u64,
    pub(super) items: Vec<Arc<Object>>,
    /// The id of the last item, when there are more.
    pub(super) more: Option<String>,
}

/// Which objects of a kind: one, those with a label, or all.
#[derive(Debug, Clone, Default)]
pub(super) struct Which {
    pub(super) one: Option<String>,
    pub(super) label: Option<(String, String)>,
}

impl Which {
    fn has(&self, id: &str, object: &Object) -> bool {
        let label = self.label.as_ref().map(|(name, value)| (name.as_str(), value.as_str()));
        self.one.as_deref().is_none_or(|one| one == id) && label.is_none_or(|label| object.has_label(label))
    }
}

/// What a write found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// It is there already, or is another version.
    Conflict,
    /// It is not there.
    Missing,
}

/// Clones are the same objects.
#[derive(Debug, Clone, Default)]
pub(in crate::scale) struct Objects(Arc<Mutex<State>>);

impl Objects {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, kind: &Kind, id: &str) -> Option<Arc<Object>> {
        self.lock().found(kind, id)
    }

    /// At most `limit` after `after`; 0 is no limit.
    pub(super) fn page(&self, kind: &Kind, which: &Which, after: &str, limit: usize) -> Page {
        let state = self.lock();
        let mut page = Page {
            revision: state.revision,
            items: Vec::new(),
            more: None,
        };
        let Some(collection) = state.kinds.get(kind.plural) else {
            return page;
        };
        if let Some(one) = &which.one {
            page.items.extend(collection.objects.get(one).cloned());
            return page;
        }
        let from = (Bound::Excluded(after), Bound::Unbounded);
        let mut last = "";
        for (id, object) in collection.objects.range::<str, _>(from) {
            if limit > 0 && page.items.len() == limit {
                page.more = Some(last.to_owned());
                break;
            }
            if which.has(id, object) {
                page.items.push(object.clone());
                last = id;
            }
        }
        page
    }

    /// Puts an object, whatever is there.
    pub(super) fn put(&self, kind: &'static Kind, id: &str, value: Value) -> Arc<Object> {
        self.lock().put(kind, id, value)
    }

    /// Makes an object that is not there.
    ///
    /// # Errors
    /// [`Refused::Conflict`].
    pub(super) fn create(&self, kind: &'static Kind, id: &str, value: Value) -> Result<Arc<Object>, Refused> {
        let mut state = self.lock();
        if state.found(kind, id).is_some() {
            return Err(Refused::Conflict);
        }
        Ok(state.put(kind, id, value))
    }

    /// Changes an object that is there; what stays as it was is not written.
    ///
    /// # Errors
    /// [`Refused::Missing`], or what `change` says.
    pub(super) fn change(
        &self,
        kind: &'static Kind,
        id: &str,
        change: impl FnOnce(&mut Value) -> Result<(), Refused>,
    ) -> Result<Arc<Object>, Refused> {
        let mut state = self.lock();
        let found = state.found(kind, id).ok_or(Refused::Missing)?;
        let before = found.value();
        let mut after = before.clone();
        change(&mut after)?;
        Ok(if after == before {
            found
        } else {
            state.put(kind, id, after)
        })
    }

    /// Forgets an object and says so.
    pub(super) fn delete(&self, kind: &'static Kind, id: &str) -> Option<Arc<Object>> {
        let mut state = self.lock();
        let gone = state.kinds.get_mut(kind.plural)?.objects.remove(id)?;
        state.revision += 1;
        let last = Object::new(gone.value(), state.revision);
        state.tell(kind, id, kind.event("DELETED", &last));
        Some(gone)
    }

    /// Follows objects from after `revision`: what has changed since, then what changes.
    pub(super) fn watch(&self, kind: &'static Kind, which: &Which, revision: u64) -> mpsc::Receiver<Bytes> {
        let mut state = self.lock();
        state.watches += 1;
        let number = state.watches;
        let collection = state.kinds.entry(kind.plural).or_default();
        let (sender, receiver) = mpsc::channel(if which.one.is_some() { BEHIND_ONE } else { BEHIND });
        let since = |(id, object): &(&String, &Arc<Object>)| object.revision > revision && which.has(id, object);
        let range = match &which.one {
            Some(one) => (Bound::Included(one.as_str()), Bound::Included(one.as_str())),
            None => (Bound::Unbounded, Bound::Unbounded),
        };
        let found = collection.objects.range::<str, _>(range).filter(since);
        let missed: Vec<Bytes> = found.map(|(_, object)| kind.event("MODIFIED", object)).collect();
        // More than fit: the watch is over before it begins, and its client lists again.
        if missed.into_iter().all(|line| sender.try_send(line).is_ok()) {
            let watchers = match &which.one {
                Some(one) => collection.watch_one.entry(one.clone()).or_default(),
                None => &mut collection.watch_all,
            };
            watchers.insert(number, sender);
        }
        receiver
    }

    /// Tells a part of all watches how far they are: each once in [`BOOKMARK_TURNS`] calls. Those that have ended are forgotten.
    pub(super) fn bookmark(&self) {
        let mut state = self.lock();
        state.turns += 1;
        let (turn, revision) = (state.turns % BOOKMARK_TURNS, state.revision);
        for (plural, collection) in &mut state.kinds {
            let kind = Kind::of(plural).expect("only kinds are here");
            let object = json!({"kind": kind.kind, "apiVersion": kind.version,
                                "metadata": {"resourceVersion": revision.to_string(), "creationTimestamp": null}});
            let line = Bytes::from(format!("{}\n", json!({"type": "BOOKMARK", "object": object})));
            let told = |number: &u64, sender: &mut mpsc::Sender<Bytes>| {
                !sender.is_closed() && (number % BOOKMARK_TURNS != turn || sender.try_send(line.clone()).is_ok())
            };
            collection.watch_all.retain(told);
            collection.watch_one.retain(|_, watchers| {
                watchers.retain(told);
                !watchers.is_empty()
            });
        }
    }
}

impl State {
    fn found(&self, kind: &Kind, id: &str) -> Option<Arc<Object>> {
        self.kinds.get(kind.plural)?.objects.get(id).cloned()
    }

    fn put(&mut self, kind: &'static Kind, id: &str, value: Value) -> Arc<Object> {
        self.revision += 1;
        let object = Arc::new(Object::new(value, self.revision));
        let collection = self.kinds.entry(kind.plural).or_default();
        let before = collection.objects.insert(id.to_owned(), object.clone());
        let what = if before.is_some() { "MODIFIED" } else { "ADDED" };
        self.tell(kind, id, kind.event(what, &object));
        object
    }

    fn tell(&mut self, kind: &Kind, id: &str, line: Bytes) {
        let collection = self.kinds.entry(kind.plural).or_default();
        let told = |_: &u64, sender: &mut mpsc::Sender<Bytes>| sender.try_send(line.clone()).is_ok();
        collection.watch_all.retain(told);
        if let Some(watchers) = collection.watch_one.get_mut(id) {
            watchers.retain(told);
        }
    }
}

/// A JSON merge patch (RFC 7386), or of a strategic one what hubs send: lists of conditions and addresses are merged by their
/// type, a list with `$patch: replace` is replaced.
pub(super) fn merge(target: &mut Value, patch: &Value, strategic: bool) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let fields = target.as_object_mut().expect("made just above");
    for (name, value) in patch {
        match (name.as_str(), value) {
            (_, Value::Null) => _ = fields.shift_remove(name),
            ("conditions" | "addresses", Value::Array(items)) if strategic => {
                merge_by_type(fields.entry(name).or_insert_with(|| json!([])), items);
            }
            (_, Value::Array(items)) if strategic => {
                let items = items.iter().filter(|item| item.get("$patch").is_none());
                fields.insert(name.clone(), items.cloned().collect());
            }
            _ => merge(fields.entry(name).or_insert(Value::Null), value, strategic),
        }
    }
}

fn merge_by_type(target: &mut Value, patch: &[Value]) {
    let Value::Array(have) = target else {
        *target = patch.to_vec().into();
        return;
    };
    for item in patch {
        match have.iter_mut().find(|known| known["type"] == item["type"]) {
            Some(known) => merge(known, item, true),
            None => have.push(item.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(value: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "labels": {"x": "y"}}, "data": {"value": value}})
    }

    fn maps() -> &'static Kind {
        Kind::of("configmaps").unwrap()
    }

    fn event(receiver: &mut mpsc::Receiver<Bytes>) -> Value {
        serde_json::from_slice(&receiver.try_recv().unwrap()).unwrap()
    }

    #[test]
    fn a_watch_is_told_of_what_changed_since_its_list_and_of_what_changes() {
        let objects = Objects::default();
        let one = Which {
            one: Some(id("n", "a")),
            ..Which::default()
        };
        objects.put(maps(), "n/a", map("1"));
        let listed = objects.page(maps(), &one, "", 0);
        assert_eq!((listed.revision, listed.items.len()), (1, 1));
        objects.put(maps(), "n/a", map("2"));
        objects.put(maps(), "n/b", map("3"));
        let mut watch = objects.watch(maps(), &one, listed.revision);
        assert_eq!(event(&mut watch)["object"]["data"]["value"], "2");
        objects.put(maps(), "n/b", map("4"));
        objects.put(maps(), "n/a", map("5"));
        let changed = event(&mut watch);
        assert_eq!(
            (&changed["type"], &changed["object"]["kind"]),
            (&json!("MODIFIED"), &json!("ConfigMap"))
        );
        assert_eq!(changed["object"]["metadata"]["resourceVersion"], "5");
        assert!(watch.try_recv().is_err());
        for _ in 0..BOOKMARK_TURNS {
            objects.bookmark();
        }
        assert_eq!(event(&mut watch)["object"]["metadata"]["resourceVersion"], "5");
        assert!(watch.try_recv().is_err(), "one in all these turns");
    }

    #[test]
    fn pages_follow_each_other_and_a_label_selects() {
        let objects = Objects::default();
        for name in ["a", "b", "c"] {
            objects.put(maps(), &id("n", name), map(name));
        }
        let first = objects.page(maps(), &Which::default(), "", 2);
        assert_eq!((first.items.len(), first.more.as_deref()), (2, Some("n/b")));
        let rest = objects.page(maps(), &Which::default(), "n/b", 2);
        assert_eq!((rest.items.len(), rest.more), (1, None));
        let labelled = |value: &str| Which {
            label: Some(("x".into(), value.into())),
            ..Which::default()
        };
        assert_eq!(objects.page(maps(), &labelled("y"), "", 0).items.len(), 3);
        assert_eq!(objects.page(maps(), &labelled("z"), "", 0).items.len(), 0);
    }

    #[test]
    fn what_a_patch_leaves_as_it_was_is_no_write() {
        let objects = Objects::default();
        let first = objects.put(maps(), "n/a", map("1"));
        let same = objects.change(maps(), "n/a", |value| {
            merge(value, &json!({"data": {"value": "1"}}), false);
            Ok(())
        });
        assert_eq!(same.unwrap().revision, first.revision);
        assert_eq!(objects.create(maps(), "n/a", map("2")).unwrap_err(), Refused::Conflict);
        let missing = objects.change(maps(), "n/b", |_| Ok(()));
        assert_eq!(missing.unwrap_err(), Refused::Missing);
    }

    #[test]
    fn conditions_are_merged_by_type_and_other_lists_replaced() {
        let mut node = json!({"conditions": [{"type": "A", "status": "True", "reason": "r"}, {"type": "B"}], "images": [1, 2], "gone": 1});
        let patch = json!({"conditions": [{"type": "A", "status": "False"}, {"type": "C"}], "images": [3], "gone": null,
                           "podIPs": [{"ip": "1"}, {"$patch": "replace"}]});
        merge(&mut node, &patch, true);
        let wanted = json!({"conditions": [{"type": "A", "status": "False", "reason": "r"}, {"type": "B"}, {"type": "C"}],
                            "images": [3], "podIPs": [{"ip": "1"}]});
        assert_eq!(node, wanted);
    }
}
