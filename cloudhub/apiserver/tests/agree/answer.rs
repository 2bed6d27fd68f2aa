//! Answers as values that can be compared: what a server chooses or counts is replaced by a word for it.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::client::Reply;

/// A part of an answer that is not the same.
#[derive(Debug)]
pub(crate) struct Difference {
    /// JSON pointer.
    pub(crate) at: String,
    real: Option<Value>,
    ours: Option<Value>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |value: &Option<Value>| match value {
            None => "-".to_owned(),
            Some(value) => value.to_string().chars().take(700).collect(),
        };
        write!(
            f,
            "{}\n      real {}\n      ours {}",
            self.at,
            text(&self.real),
            text(&self.ours)
        )
    }
}

/// `{code, type, warnings, body}`; the body of a watch is a list of events.
pub(crate) fn value(reply: &Reply) -> Value {
    // Ours tells what a Service is for here; that is not the API's.
    let warnings: Vec<_> = reply.warnings.iter().filter(|text| !text.contains("Kedge")).collect();
    let body = serde_json::from_slice(&reply.body).unwrap_or_else(|_| {
        let text = String::from_utf8_lossy(&reply.body);
        let lines: Option<Vec<Value>> = text.lines().map(|line| serde_json::from_str(line).ok()).collect();
        match lines {
            Some(lines) if !lines.is_empty() => Value::Array(lines),
            _ => Value::String(text.into_owned()),
        }
    });
    json!({"code": reply.code, "type": reply.content_type, "warnings": warnings, "body": body})
}

/// Takes out what may differ in any answer.
pub(crate) fn normalize(value: &mut Value, address: &str) {
    match value {
        Value::Object(fields) => object(fields, address),
        Value::Array(items) => items.iter_mut().for_each(|item| normalize(item, address)),
        Value::String(text) => *text = words(text, address),
        _ => {}
    }
}

fn object(fields: &mut Map<String, Value>, address: &str) {
    fields.shift_remove("managedFields");
    generated_name(fields);
    for (key, value) in fields.iter_mut() {
        normalize(value, address);
        match (key.as_str(), &mut *value) {
            ("resourceVersion", Value::String(text)) if !text.is_empty() => *text = "VERSION".into(),
            ("continue", Value::String(text)) if !text.is_empty() => *text = "CONTINUE".into(),
            ("token", Value::String(text)) if text.len() > 100 => *text = "TOKEN".into(),
            ("nodePort" | "healthCheckNodePort", Value::Number(port)) if port.as_u64().is_some_and(|p| p >= 30000) => {
                *value = "PORT".into();
            }
            // The real server goes through bindings in no order.
            ("nonResourceRules" | "resourceRules", Value::Array(rules)) => rules.sort_by_key(sorted_text),
            // Documentation: ours is in our own words.
            ("columnDefinitions", Value::Array(columns)) => {
                columns.iter_mut().filter_map(Value::as_object_mut).for_each(|column| {
                    column.shift_remove("description");
                })
            }
            ("cells", Value::Array(cells)) => cells.iter_mut().for_each(chosen),
            _ => {}
        }
    }
}

/// The text of an object whatever the order of its fields.
fn sorted_text(value: &Value) -> String {
    let fields: BTreeMap<_, _> = value.as_object().into_iter().flatten().collect();
    format!("{fields:?}")
}

fn generated_name(metadata: &mut Map<String, Value>) {
    let prefix = metadata
        .get("generateName")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    if let Some(Value::String(name)) = metadata.get_mut("name")
        && !prefix.is_empty()
        && name.starts_with(&prefix)
        && name.len() == prefix.len() + 5
    {
        *name = format!("{prefix}XXXXX");
    }
}

/// Ages, and ports that the server chose: `80:30123/TCP`.
fn chosen(cell: &mut Value) {
    if is_age(cell) {
        *cell = "AGE".into();
    }
    let Some(text) = cell.as_str().filter(|text| text.contains(":3")) else {
        return;
    };
    let ports = text
        .split(',')
        .map(|port| match (port.split_once(':'), port.rsplit_once('/')) {
            (Some((port, _)), Some((_, protocol))) => format!("{port}:PORT/{protocol}"),
            _ => port.to_owned(),
        });
    *cell = ports.collect::<Vec<_>>().join(",").into();
}

/// `5s`, `2m30s`, `3d`.
fn is_age(cell: &Value) -> bool {
    cell.as_str().is_some_and(|text| {
        text.starts_with(|c: char| c.is_ascii_digit())
            && text.ends_with(['s', 'm', 'h', 'd', 'y'])
            && text.chars().all(|c| c.is_ascii_digit() || "smhdy".contains(c))
    })
}

fn words(text: &str, address: &str) -> String {
    if is_recent(text) {
        return if text.contains('.') { "MICROTIME" } else { "TIME" }.into();
    }
    if let Some((path, _)) = text.split_once("?hash=") {
        return path.to_owned();
    }
    let mut text = without_object(&text.replace(address, "ADDRESS"));
    for (prefix, length, word) in [("kube-api-access-", 5, "XXXXX"), ("10.96.", 0, "A.B")] {
        text = after(&text, prefix, length, word);
    }
    uids(&text)
}

/// A refused patch's text quotes the whole object in Go's order, with `managedFields`, which we do not keep.
fn without_object(text: &str) -> String {
    match (text.find("Invalid value: \"{\\\""), text.rfind("}\": ")) {
        (Some(from), Some(to)) if from < to => format!("{}Invalid value: OBJECT{}", &text[..from], &text[to + 2..]),
        _ => text.to_owned(),
    }
}

/// Query parameters that are not ours: for watches that several clients share, and for objects that cannot be decoded.
const NOT_SERVED: [&str; 2] = ["shardSelector", "ignoreStoreReadErrorWithClusterBreakingPotential"];

/// What an OpenAPI document says that is not compared: prose, and media types and methods that we do not have.
pub(crate) fn without_prose(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if fields.get("description").is_some_and(Value::is_string) {
                fields.shift_remove("description");
            }
            if let Some(Value::Object(content)) = fields.get_mut("content") {
                content.retain(|media, _| media == "application/json" || media.ends_with("patch+json"));
            }
            // The schemas that ours are made from have neither.
            fields.retain(|key, value| !(key == "enum" && value.is_array()) && key != "x-kubernetes-unions");
            if let Some(Value::Array(required)) = fields.get_mut("required") {
                required.sort_by_key(Value::to_string);
            }
            if let Some(Value::Array(parameters)) = fields.get_mut("parameters") {
                parameters.retain(|parameter| !NOT_SERVED.iter().any(|name| parameter["name"] == *name));
                parameters.sort_by_key(|parameter| parameter["name"].to_string());
            }
            fields.values_mut().for_each(without_prose);
        }
        Value::Array(items) => items.iter_mut().for_each(without_prose),
        _ => {}
    }
}

/// Whether it is a time that a server has put there: scripts have none after 2025.
fn is_recent(text: &str) -> bool {
    OffsetDateTime::parse(text, &Rfc3339).is_ok_and(|time| time.year() > 2025 && time.year() < 2090)
}

/// Replaces what follows `prefix`: `length` bytes, or as many digits and dots as there are.
fn after(text: &str, prefix: &str, length: usize, word: &str) -> String {
    let mut parts = text.split(prefix);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let digits = part
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(part.len());
        let end = if length == 0 { digits } else { length.min(part.len()) };
        out += prefix;
        out += word;
        out += part.get(end..).unwrap_or_default();
    }
    out
}

fn uids(text: &str) -> String {
    let is_uid = |part: &str| {
        part.bytes().enumerate().all(|(index, byte)| match index {
            8 | 13 | 18 | 23 => byte == b'-',
            14 => byte == b'4',
            _ => byte.is_ascii_hexdigit(),
        })
    };
    let mut out = String::new();
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        if let Some(part) = rest.get(..36)
            && is_uid(part)
        {
            out += "UID";
            rest = &rest[36..];
        } else {
            out.push(next);
            rest = &rest[next.len_utf8()..];
        }
    }
    out
}

/// What names an item of a list.
fn identity(item: &Value) -> Option<&str> {
    let places = ["/name", "/resource", "/subresource", "/version", "/metadata/name"];
    places
        .iter()
        .find_map(|place| item.pointer(place).and_then(Value::as_str))
}

/// Takes out of `real` the named items, paths and schemas that `ours` does not have.
pub(crate) fn prune(real: &mut Value, ours: &mut Value) {
    // Only ours serves it itself; above the real one it is an API of its own.
    for list in ["/body/groups", "/body/items"] {
        if let Some(Value::Array(groups)) = ours.pointer_mut(list) {
            groups.retain(|group| identity(group) != Some("metrics.k8s.io"));
        }
    }
    prune_in(real, ours);
}

fn prune_in(real: &mut Value, ours: &Value) {
    match (real, ours) {
        (Value::Object(real), Value::Object(ours)) => {
            for (key, value) in real.iter_mut() {
                let Some(own) = ours.get(key) else { continue };
                if let ("paths" | "schemas", Value::Object(entries), Value::Object(own)) =
                    (key.as_str(), &mut *value, own)
                {
                    entries.retain(|name, _| own.contains_key(name));
                }
                prune_in(value, own);
            }
        }
        (Value::Array(real), Value::Array(ours)) => {
            let same = |item: &Value| {
                ours.iter().find(|own| {
                    identity(own) == identity(item)
                        && std::mem::discriminant(*own) == std::mem::discriminant(item)
                        && (own.is_object() || *own == item)
                })
            };
            real.retain(|item| same(item).is_some());
            for item in real {
                if let Some(own) = same(item) {
                    prune_in(item, own);
                }
            }
        }
        _ => {}
    }
}

/// Where the two are not the same.
pub(crate) fn differences(real: &Value, ours: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    differ("", Some(real), Some(ours), &mut found);
    if real["code"] != ours["code"] {
        // Of an object and a refusal only these say something.
        found.retain(|difference| matches!(difference.at.as_str(), "/code" | "/body/message"));
    }
    found
}

fn differ(at: &str, real: Option<&Value>, ours: Option<&Value>, found: &mut Vec<Difference>) {
    match (real, ours) {
        (Some(Value::Object(real)), Some(Value::Object(ours))) => {
            let only_ours = ours.keys().filter(|key| !real.contains_key(*key));
            for key in real.keys().chain(only_ours) {
                let step = key.replace('~', "~0").replace('/', "~1");
                differ(&format!("{at}/{step}"), real.get(key), ours.get(key), found);
            }
        }
        (Some(Value::Array(real)), Some(Value::Array(ours))) if real.len() == ours.len() => {
            for (index, (real, ours)) in real.iter().zip(ours).enumerate() {
                differ(&format!("{at}/{index}"), Some(real), Some(ours), found);
            }
        }
        (real, ours) if real == ours => {}
        (real, ours) => found.push(Difference {
            at: at.to_owned(),
            real: real.cloned(),
            ours: ours.cloned(),
        }),
    }
}
