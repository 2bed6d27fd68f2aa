//! Event, which is served in two groups and stored once, as core/v1 has it.
//!
//! What events.k8s.io/v1 calls otherwise is renamed on the way in and out. Checks and columns read the stored form.

use serde_json::{Map, Value, json};

use crate::kinds::fields::{complain, is_qualified_name};
use crate::kinds::{Column, Row, Strategy, column, wide};
use crate::object::{self, text};
use crate::status::Errors;
use crate::table;

const COLUMNS: &[Column] = &[
    column("Last Seen"),
    column("Type"),
    column("Reason"),
    column("Object"),
    wide("Subobject"),
    wide("Source"),
    column("Message"),
    wide("First Seen"),
    wide("Count"),
    wide("Name"),
];

/// `events` of core/v1.
pub(super) const CORE: Row = Row {
    group: "",
    version: "v1",
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    categories: &[],
    namespaced: true,
    storage: "events",
    status: false,
    scale: false,
    generation: false,
    selectable: &[
        ("involvedObject.kind", "/involvedObject/kind"),
        ("involvedObject.namespace", "/involvedObject/namespace"),
        ("involvedObject.name", "/involvedObject/name"),
        ("involvedObject.uid", "/involvedObject/uid"),
        ("involvedObject.apiVersion", "/involvedObject/apiVersion"),
        ("involvedObject.resourceVersion", "/involvedObject/resourceVersion"),
        ("involvedObject.fieldPath", "/involvedObject/fieldPath"),
        ("reason", "/reason"),
        ("reportingComponent", "/reportingComponent"),
        ("source", "/source/component"),
        ("type", "/type"),
    ],
    columns: COLUMNS,
    strategy: &CoreEvents,
};

/// `events` of events.k8s.io/v1. Its pointers are those of the stored form.
pub(super) const EVENTS: Row = Row {
    group: "events.k8s.io",
    version: "v1",
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    categories: &[],
    namespaced: true,
    storage: "events",
    status: false,
    scale: false,
    generation: false,
    selectable: &[
        ("regarding.kind", "/involvedObject/kind"),
        ("regarding.namespace", "/involvedObject/namespace"),
        ("regarding.name", "/involvedObject/name"),
        ("regarding.uid", "/involvedObject/uid"),
        ("regarding.apiVersion", "/involvedObject/apiVersion"),
        ("regarding.resourceVersion", "/involvedObject/resourceVersion"),
        ("regarding.fieldPath", "/involvedObject/fieldPath"),
        ("reason", "/reason"),
        ("reportingController", "/reportingComponent"),
        ("type", "/type"),
    ],
    columns: COLUMNS,
    strategy: &NewEvents,
};

/// Names in events.k8s.io/v1 and in core/v1.
const NAMES: &[(&str, &str)] = &[
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

/// A field and what stands for nothing in it.
type Always = (&'static str, fn() -> Value);

/// Fields that the real server writes out in core/v1 though they are empty.
const CORE_ALWAYS: &[Always] = &[
    ("involvedObject", empty),
    ("source", empty),
    ("firstTimestamp", null),
    ("lastTimestamp", null),
    ("eventTime", null),
    ("reportingComponent", blank),
    ("reportingInstance", blank),
];
/// The same in events.k8s.io/v1.
const EVENTS_ALWAYS: &[Always] = &[
    ("eventTime", null),
    ("regarding", empty),
    ("deprecatedSource", empty),
    ("deprecatedFirstTimestamp", null),
    ("deprecatedLastTimestamp", null),
];

fn empty() -> Value {
    json!({})
}

fn null() -> Value {
    Value::Null
}

fn blank() -> Value {
    json!("")
}

fn fill(object: &mut Value, always: &[Always]) {
    let Some(fields) = object.as_object_mut() else { return };
    for (field, value) in always {
        fields.entry(*field).or_insert_with(value);
    }
}

/// Renames fields and says the version; what is called right already stays.
fn rename(object: &mut Value, version: &str, names: impl Iterator<Item = (&'static str, &'static str)>) {
    let Some(fields) = object.as_object_mut() else { return };
    for (from, to) in names {
        if let Some(value) = fields.shift_remove(from) {
            fields.insert(to.to_owned(), value);
        }
    }
    fields.retain(|_, value| !value.is_null());
    fields.insert("apiVersion".into(), json!(version));
}

fn stored(object: &mut Value) {
    rename(object, "v1", NAMES.iter().copied());
}

fn stored_form(object: &Value) -> Value {
    let mut object = object.clone();
    stored(&mut object);
    object
}

#[derive(Debug)]
struct CoreEvents;

impl Strategy for CoreEvents {
    /// The real server checks an event's name as a path segment only: `robot-1.` is a prefix of many.
    fn any_name(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        makes_sense(&stored_form(object), "reportingComponent", errors);
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
        cells(object)
    }

    fn to_storage(&self, object: &mut Value) {
        stored(object);
    }

    fn to_version(&self, object: &mut Value) {
        stored(object);
        fill(object, CORE_ALWAYS);
    }
}

#[derive(Debug)]
struct NewEvents;

impl Strategy for NewEvents {
    /// The real server checks an event's name as a path segment only: `robot-1.` is a prefix of many.
    fn any_name(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let event = stored_form(object);
        makes_sense(&event, "reportingController", errors);
        // Only what was stored once has a resourceVersion: an event that core/v1 wrote may be updated as it is.
        if text(&event, "/metadata/resourceVersion").is_empty() {
            is_new_form(&event, errors);
        }
    }

    fn validate_update(&self, object: &Value, current: &Value, errors: &mut Errors) {
        let (object, current) = (stored_form(object), stored_form(current));
        if object.get("series") != current.get("series") {
            series_makes_sense(&object, errors);
        }
        for field in FIXED {
            if bare(object.get(*field)) != bare(current.get(*field)) {
                let field_name = if *field == "reportingComponent" {
                    "reportingController"
                } else {
                    field
                };
                let value = object.get(*field).cloned().unwrap_or_default();
                errors.invalid(field_name, &value, "field is immutable");
            }
        }
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
        cells(&stored_form(object))
    }

    fn to_storage(&self, object: &mut Value) {
        stored(object);
    }

    fn to_version(&self, object: &mut Value) {
        let names = NAMES.iter().map(|(new, old)| (*old, *new));
        rename(object, "events.k8s.io/v1", names);
        fill(object, EVENTS_ALWAYS);
        if let Some(fields) = object.as_object_mut() {
            for field in ["reportingController", "reportingInstance"] {
                if fields.get(field).is_some_and(|value| value == "") {
                    fields.shift_remove(field);
                }
            }
        }
    }
}

/// What an update through events.k8s.io may not change.
const FIXED: &[&str] = &[
    "involvedObject",
    "reason",
    "message",
    "source",
    "firstTimestamp",
    "lastTimestamp",
    "count",
    "type",
    "eventTime",
    "action",
    "related",
    "reportingComponent",
    "reportingInstance",
];

/// A value without the ways of saying nothing.
fn bare(value: Option<&Value>) -> Option<&Value> {
    value.filter(|v| match v {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        Value::Number(number) => number.as_i64() != Some(0),
        _ => true,
    })
}

fn no_match(event: &Value, errors: &mut Errors) {
    let namespace = json!(text(event, "/involvedObject/namespace"));
    errors.invalid("involvedObject.namespace", &namespace, "does not match event.namespace");
}

/// What both groups ask of every event. Events that have an `eventTime` are those of the newer recorders: more is asked of them.
fn makes_sense(event: &Value, controller_field: &str, errors: &mut Errors) {
    let (own, involved) = (object::namespace(event), text(event, "/involvedObject/namespace"));
    if text(event, "/eventTime").is_empty() {
        let matches = match involved {
            "" => own.is_empty() || own == "default",
            involved => own == involved,
        };
        if !matches {
            no_match(event, errors);
        }
        return;
    }
    if involved.is_empty() && own != "default" && own != "kube-system" {
        no_match(event, errors);
    }
    let controller = text(event, "/reportingComponent");
    if controller.is_empty() {
        errors.required(controller_field, "");
    }
    complain(
        errors,
        controller_field,
        &json!(controller),
        is_qualified_name(controller),
    );
    for (field, needed, limit) in [
        ("reportingInstance", true, 128),
        ("action", true, 128),
        ("reason", true, 128),
        ("message", false, 1024),
    ] {
        let length = event.get(field).and_then(Value::as_str).map_or(0, str::len);
        if needed && length == 0 {
            errors.required(field, "");
        }
        if length > limit {
            errors.invalid(field, &json!(""), &format!("can have at most {limit} characters"));
        }
    }
}

/// What events.k8s.io/v1 asks of a new event besides.
fn is_new_form(event: &Value, errors: &mut Errors) {
    series_makes_sense(event, errors);
    if text(event, "/eventTime").is_empty() {
        errors.required("eventTime", "");
    }
    let kind = text(event, "/type");
    if kind != "Normal" && kind != "Warning" {
        errors.invalid("type", &json!(""), &format!("has invalid value: {kind}"));
    }
    for field in ["firstTimestamp", "lastTimestamp", "count", "source"] {
        if bare(event.get(field)).is_some() {
            errors.invalid(field, &json!(""), "needs to be unset");
        }
    }
}

fn series_makes_sense(event: &Value, errors: &mut Errors) {
    let Some(series) = event.get("series").filter(|s| s.is_object()) else {
        return;
    };
    if series.get("count").and_then(Value::as_i64).unwrap_or_default() < 2 {
        errors.invalid("series.count", &json!(""), "should be at least 2");
    }
    if text(series, "/lastObservedTime").is_empty() {
        errors.required("series.lastObservedTime", "");
    }
}

fn first(texts: [&str; 2]) -> &str {
    texts.into_iter().find(|t| !t.is_empty()).unwrap_or_default()
}

fn cells(event: &Value) -> Vec<Value> {
    let now = object::now();
    let event_time = text(event, "/eventTime");
    let first_seen = first([text(event, "/firstTimestamp"), event_time]);
    let series = event.get("series").and_then(Value::as_object);
    let (last_seen, count) = match series {
        Some(series) => (
            series
                .get("lastObservedTime")
                .and_then(Value::as_str)
                .unwrap_or_default(),
            number(series, "count"),
        ),
        None => {
            let count = event.as_object().map_or(0, |e| number(e, "count"));
            (first([text(event, "/lastTimestamp"), first_seen]), count.max(1))
        }
    };
    let kind = text(event, "/involvedObject/kind").to_lowercase();
    let target = match text(event, "/involvedObject/name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let component = first([text(event, "/source/component"), text(event, "/reportingComponent")]);
    let source = match first([text(event, "/source/host"), text(event, "/reportingInstance")]) {
        "" => component.to_owned(),
        instance => format!("{component}, {instance}"),
    };
    vec![
        json!(table::age(last_seen, now)),
        json!(text(event, "/type")),
        json!(text(event, "/reason")),
        json!(target),
        json!(text(event, "/involvedObject/fieldPath")),
        json!(source),
        json!(text(event, "/message").trim()),
        json!(table::age(first_seen, now)),
        json!(count),
    ]
}

fn number(fields: &Map<String, Value>, field: &str) -> i64 {
    fields.get(field).and_then(Value::as_i64).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn newer() -> Value {
        json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event",
            "metadata": {"name": "e", "namespace": "a"},
            "regarding": {"kind": "Pod", "name": "p", "namespace": "a"},
            "note": "text", "reason": "Scheduled", "type": "Normal", "action": "Binding",
            "reportingController": "scheduler", "reportingInstance": "s-1",
            "eventTime": "2025-01-01T00:00:00.000000Z",
        })
    }

    fn faults(strategy: &dyn Strategy, object: &Value) -> Vec<String> {
        let mut errors = Errors::default();
        strategy.validate(object, &mut errors);
        let causes = errors.causes().iter();
        causes.map(|c| format!("{}: {}", c.field, c.message)).collect()
    }

    #[test]
    fn an_event_of_one_group_is_read_in_the_other() {
        let mut event = newer();
        NewEvents.to_storage(&mut event);
        let stored = event.clone();
        NewEvents.to_storage(&mut event);
        assert_eq!(event, stored, "idempotent");
        assert_eq!(event["apiVersion"], "v1");
        assert_eq!(event["involvedObject"]["name"], "p");
        assert_eq!(event["reportingComponent"], "scheduler");
        CoreEvents.to_version(&mut event);
        assert_eq!(event["message"], "text");
        assert_eq!(event["source"], json!({}));
        assert_eq!(event["lastTimestamp"], Value::Null);
        CoreEvents.to_storage(&mut event);
        NewEvents.to_version(&mut event);
        for (field, value) in newer().as_object().unwrap() {
            assert_eq!(&event[field], value, "{field}");
        }
        assert_eq!(event["deprecatedSource"], json!({}));
        assert!(event.get("involvedObject").is_none());
    }

    #[test]
    fn an_older_event_only_needs_its_namespace() {
        let mut event = json!({
            "metadata": {"name": "e", "namespace": "a"},
            "involvedObject": {"kind": "Pod", "namespace": "a"},
        });
        assert!(faults(&CoreEvents, &event).is_empty());
        event["involvedObject"] = json!({"kind": "Node"});
        assert_eq!(
            faults(&CoreEvents, &event),
            ["involvedObject.namespace: Invalid value: \"\": does not match event.namespace"]
        );
        event["metadata"]["namespace"] = json!("default");
        assert!(faults(&CoreEvents, &event).is_empty());
    }

    #[test]
    fn a_newer_event_says_who_reports_what() {
        assert!(faults(&NewEvents, &newer()).is_empty());
        let mut event = newer();
        for field in ["reportingController", "action", "type"] {
            event.as_object_mut().unwrap().remove(field);
        }
        let words = faults(&NewEvents, &event);
        assert_eq!(words[0], "reportingController: Required value");
        assert!(words.contains(&"action: Required value".into()));
        assert_eq!(words.last().unwrap(), "type: Invalid value: \"\": has invalid value: ");
        let mut event = newer();
        event["deprecatedCount"] = json!(1);
        event["series"] = json!({"count": 1});
        assert_eq!(
            faults(&NewEvents, &event),
            [
                "series.count: Invalid value: \"\": should be at least 2",
                "series.lastObservedTime: Required value",
                "count: Invalid value: \"\": needs to be unset"
            ]
        );
    }

    #[test]
    fn only_the_series_of_a_newer_event_may_change() {
        let mut changed = newer();
        changed["note"] = json!("other");
        changed["reportingController"] = json!("other");
        changed["series"] = json!({"count": 2, "lastObservedTime": "2025-01-01T00:00:01.000000Z"});
        let mut errors = Errors::default();
        NewEvents.validate_update(&changed, &newer(), &mut errors);
        let fields: Vec<&str> = errors.causes().iter().map(|c| c.field.as_str()).collect();
        assert_eq!(fields, ["message", "reportingController"]);
    }

    #[test]
    fn a_row_shows_the_last_time_and_the_source() {
        let event = json!({
            "involvedObject": {"kind": "Pod", "name": "p", "fieldPath": "spec.containers{c}"},
            "source": {"component": "kubelet", "host": "n"}, "message": "text\n", "type": "Normal", "reason": "Pulled",
        });
        let cells = CoreEvents.cells(&event);
        assert_eq!(cells[0], "<unknown>");
        assert_eq!(cells[3], "pod/p");
        assert_eq!(cells[5], "kubelet, n");
        assert_eq!(cells[6], "text");
        assert_eq!(cells[8], 1);
        assert_eq!(NewEvents.cells(&newer())[5], "scheduler, s-1");
    }
}
