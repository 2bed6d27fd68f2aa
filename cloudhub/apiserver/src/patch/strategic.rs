//! Strategic merge patch: a merge patch that merges lists of objects by a key, told by the schema which and how.
//!
//! * `$patch: replace | delete` on an object; on a list's item: empties the list first, takes the item out
//! * `$retainKeys`: the fields that may stay
//! * `$deleteFromPrimitiveList/FIELD`: takes plain values out of a list
//! * `$setElementOrder/FIELD`: the order of a merged list: first what it says, then the patch, then what was there
//!
//! The rules, their order and their odd corners (an item without its key is a server's error) are apimachinery's
//! `strategicpatch.StrategicMergeMapPatch`; lists are looked up by hash here, so that large ones do not cost their square.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::show::{go_type, show, show_map};
use crate::schema::{Shape, Type};
use crate::status::Status;

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList";
const SET_ORDER: &str = "$setElementOrder";

type Fields = Map<String, Value>;

/// `current`, patched.
///
/// # Errors
///
/// 400 for a directive that is malformed, 422 for lists of lists, 500 for what else does not fit, as the real server answers.
pub(super) fn apply(current: &Value, patch: &Fields, of: &'static Type) -> Result<Value, Status> {
    let current = current.as_object().cloned().unwrap_or_default();
    merge_map(current, patch.clone(), Place::Struct(of)).map(Value::Object)
}

/// What an object is, by the schema.
#[derive(Clone, Copy)]
enum Place {
    Struct(&'static Type),
    Map(&'static Shape),
    /// The schema says nothing (a ControllerRevision's data).
    Unknown,
}

/// How a field is patched.
struct Meta {
    shape: Shape,
    /// Its items merge.
    merge: bool,
    /// By this field of theirs; "" for plain values.
    key: &'static str,
    replace: bool,
}

impl Place {
    fn of(shape: Shape) -> Self {
        match shape.resolved() {
            Shape::Map(values) => Self::Map(values),
            resolved => resolved.target().map_or(Self::Unknown, Self::Struct),
        }
    }

    fn field(self, name: &str) -> Result<Meta, Status> {
        let plain = |shape| Meta {
            shape,
            merge: false,
            key: "",
            replace: false,
        };
        match self {
            Self::Struct(of) => {
                let field = of.field(name).ok_or_else(|| {
                    let of = of.name.rsplit('.').next().unwrap_or_default();
                    fault(format!(
                        "unable to find api field in struct {of} for the json field {name:?}"
                    ))
                })?;
                Ok(Meta {
                    shape: field.shape,
                    merge: field.merge,
                    key: field.merge_key,
                    replace: field.replace,
                })
            }
            Self::Map(values) => Ok(plain(*values)),
            Self::Unknown => Ok(plain(Shape::Any)),
        }
    }
}

impl Meta {
    /// What the list's items are.
    fn items(&self) -> Place {
        match self.shape {
            Shape::List(items) => Place::of(*items),
            _ => Place::Unknown,
        }
    }
}

/// An error that the real server does not classify: 500 without a reason.
fn fault(message: String) -> Status {
    Status::new(500, "", message)
}

fn bad_format(of: &str) -> Status {
    Status::bad_request(format!("invalid patch format of {of}"))
}

fn no_merge_key(item: &Fields, key: &str) -> Status {
    fault(format!(
        "map: {} does not contain declared merge key: {key}",
        show_map(item)
    ))
}

fn wrong_type(expected: &str, found: &Value) -> Status {
    fault(format!("expected a {expected}, but received a {}", go_type(found)))
}

fn merge_map(mut original: Fields, mut patch: Fields, place: Place) -> Result<Fields, Status> {
    if let Some(directive) = patch.get(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => {
                patch.shift_remove(DIRECTIVE);
                Ok(patch)
            }
            Some("delete") => Ok(Fields::new()),
            _ => Err(fault(format!(
                "unknown patch type: {} in map: {}",
                show(directive),
                show_map(&patch)
            ))),
        };
    }
    retain_keys(&mut original, &mut patch)?;
    set_element_orders(&mut original, &mut patch, place)?;
    for (name, value) in patch {
        match name.strip_prefix(DELETE_FROM) {
            Some(rest) => {
                let field = rest.strip_prefix('/').ok_or_else(|| bad_format("primitive list"))?;
                delete_from_list(&mut original, field, value, place)?;
            }
            None => merge_field(&mut original, name, value, place)?,
        }
    }
    Ok(original)
}

fn merge_field(original: &mut Fields, name: String, patch: Value, place: Place) -> Result<(), Status> {
    if patch.is_null() {
        original.shift_remove(&name);
        return Ok(());
    }
    let Some(current) = original.get_mut(&name) else {
        if let Some(value) = without_directives(without_nulls(patch)) {
            original.insert(name, value);
        }
        return Ok(());
    };
    match (std::mem::take(current), patch) {
        (Value::Object(fields), Value::Object(patch)) => {
            let meta = place.field(&name)?;
            *current = if meta.replace {
                Value::Object(patch)
            } else {
                Value::Object(merge_map(fields, patch, Place::of(meta.shape))?)
            };
        }
        (Value::Array(items), Value::Array(patch)) => {
            let meta = place.field(&name)?;
            *current = if meta.merge {
                Value::Array(merge_list(items, patch, &meta)?)
            } else {
                Value::Array(patch)
            };
        }
        (_, patch) => match without_directives(without_nulls(patch)) {
            Some(value) => *current = value,
            None => {
                original.shift_remove(&name);
            }
        },
    }
    Ok(())
}

/// `$deleteFromPrimitiveList/FIELD`.
fn delete_from_list(original: &mut Fields, field: &str, gone: Value, place: Place) -> Result<(), Status> {
    if gone.is_null() {
        original.shift_remove(field);
        return Ok(());
    }
    let (Some(Value::Array(items)), Value::Array(gone)) = (original.get_mut(field), gone) else {
        return Ok(());
    };
    if items.is_empty() && gone.is_empty() {
        return Ok(());
    }
    let meta = place.field(field)?;
    if items.iter().chain(&gone).any(Value::is_object) {
        *items = merge_list(std::mem::take(items), gone, &meta)?;
        return Ok(());
    }
    element_kind(items.iter().chain(&gone))?;
    let gone: HashSet<String> = gone.iter().map(Value::to_string).collect();
    items.retain(|item| !gone.contains(&item.to_string()));
    Ok(())
}

/// `$retainKeys`: every other field goes, and the patch may set no other.
fn retain_keys(original: &mut Fields, patch: &mut Fields) -> Result<(), Status> {
    let Some(keys) = patch.shift_remove(RETAIN_KEYS) else {
        return Ok(());
    };
    let Value::Array(keys) = keys else {
        return Err(bad_format("retainKeys"));
    };
    let keys: HashSet<&str> = keys.iter().filter_map(Value::as_str).collect();
    let beyond = |(name, value): (&String, &Value)| {
        let directive = name.starts_with(DELETE_FROM) || name.starts_with(SET_ORDER);
        !value.is_null() && !directive && !keys.contains(name.as_str())
    };
    if patch.iter().any(beyond) {
        return Err(bad_format("retainKeys"));
    }
    original.retain(|name, _| keys.contains(name.as_str()));
    Ok(())
}

/// All `$setElementOrder/FIELD` of an object, each with the list that the patch has for its field.
fn set_element_orders(original: &mut Fields, patch: &mut Fields, place: Place) -> Result<(), Status> {
    let directives: Vec<String> = patch.keys().filter(|k| k.starts_with(SET_ORDER)).cloned().collect();
    for directive in directives {
        let order = match patch.shift_remove(&directive) {
            Some(Value::Array(order)) => order,
            Some(other) => return Err(wrong_type("[]interface {}", &other)),
            None => continue,
        };
        let field = directive[SET_ORDER.len()..]
            .strip_prefix('/')
            .ok_or_else(|| bad_format("setElementOrder list"))?;
        set_element_order(original, patch, field, &order, place)?;
    }
    Ok(())
}

fn set_element_order(
    original: &mut Fields,
    patch: &mut Fields,
    field: &str,
    order: &[Value],
    place: Place,
) -> Result<(), Status> {
    let list = |value: Option<&Value>| match value {
        Some(Value::Array(items)) => Ok(Some(items.clone())),
        Some(other) => Err(wrong_type("[]interface {}", other)),
        None => Ok(None),
    };
    let current = list(original.get(field))?;
    let patched = list(patch.get(field))?;
    let meta = place.field(field)?;
    check_order(patched.as_deref().unwrap_or_default(), order, meta.key)?;
    let before = current.clone().unwrap_or_default();
    let merged = match (current, patched) {
        (Some(current), None) => current,
        (None, Some(patched)) => patched.into_iter().filter_map(without_directives).collect(),
        (Some(current), Some(patched)) if meta.merge => merge_list(current, patched, &meta)?,
        (Some(_), Some(patched)) => patched,
        (None, None) => return Ok(()),
    };
    element_kind(before.iter().chain(&merged).chain(order))?;
    let merged = in_order(merged, order, &before, meta.key)?;
    original.insert(field.to_owned(), Value::Array(merged));
    patch.shift_remove(field);
    Ok(())
}

/// The items of a patch must be among those of its order, and in that order.
fn check_order(patch: &[Value], order: &[Value], key: &str) -> Result<(), Status> {
    if patch.is_empty() || order.is_empty() {
        return Ok(());
    }
    let mut rest = order.iter();
    for item in patch.iter().filter(|i| i.get(DIRECTIVE).is_none()) {
        let wanted = identity(item, key)?;
        let mut found = false;
        for next in rest.by_ref() {
            if identity(next, key)? == wanted {
                found = true;
                break;
            }
        }
        if !found {
            return Err(fault(format!(
                "The order in patch list:\n{}\n doesn't match {SET_ORDER} list:\n{}\n",
                show(&Value::Array(patch.to_vec())),
                show(&Value::Array(order.to_vec()))
            )));
        }
    }
    Ok(())
}

/// What an item is found by: its key, or itself where it is a plain value.
fn identity(item: &Value, key: &str) -> Result<String, Status> {
    if key.is_empty() {
        return Ok(item.to_string());
    }
    let fields = item
        .as_object()
        .ok_or_else(|| wrong_type("map[string]interface {}", item))?;
    let value = fields.get(key).ok_or_else(|| no_merge_key(fields, key))?;
    Ok(value.to_string())
}

/// Whether the items are objects; they must all be of one type, and no lists.
fn element_kind<'a>(mut items: impl Iterator<Item = &'a Value>) -> Result<bool, Status> {
    let Some(first) = items.next() else {
        return Err(fault("no elements in any of the given slices".into()));
    };
    if first.is_array() {
        return Err(Status::new(422, "Invalid", "lists of lists are not supported"));
    }
    let kind = go_type(first);
    match items.find(|i| go_type(i) != kind) {
        Some(other) => Err(fault(format!(
            "list element types are not identical: [[{} {}]]",
            show(first),
            show(other)
        ))),
        None => Ok(first.is_object()),
    }
}

/// Merges the list of a field whose strategy is to merge.
fn merge_list(original: Vec<Value>, patch: Vec<Value>, meta: &Meta) -> Result<Vec<Value>, Status> {
    if original.is_empty() && patch.is_empty() {
        return Ok(original);
    }
    if !element_kind(original.iter().chain(&patch))? {
        let mut seen = HashSet::new();
        let both = original.iter().chain(&patch).cloned();
        let merged = both.filter(|v| seen.insert(v.to_string())).collect();
        return in_order(merged, &patch, &original, "");
    }
    if meta.key.is_empty() {
        return Err(fault("cannot merge lists without merge key for struct".into()));
    }
    let (original, patch) = item_directives(original, patch, meta.key)?;
    let before = original.clone();
    let merged = merge_items(original, &patch, meta)?;
    in_order(merged, &patch, &before, meta.key)
}

/// Does what `$patch` in a list's items says: the list without the items to delete, the patch without such items.
fn item_directives(original: Vec<Value>, patch: Vec<Value>, key: &str) -> Result<(Vec<Value>, Vec<Value>), Status> {
    let mut gone = HashSet::new();
    let mut plain = Vec::new();
    let mut replace = false;
    for item in patch {
        let Some(directive) = item.get(DIRECTIVE) else {
            plain.push(item);
            continue;
        };
        match directive.as_str() {
            Some("delete") => {
                gone.insert(identity(&item, key)?);
            }
            Some("replace") => replace = true,
            Some("merge") => return Err(fault("merging lists cannot yet be specified in the patch".into())),
            _ => {
                return Err(fault(format!(
                    "unknown patch type: {} in map: {}",
                    show(directive),
                    show(&item)
                )));
            }
        }
    }
    if replace {
        return Ok((plain, Vec::new()));
    }
    let stays = |item: &Value| item.get(key).is_none_or(|k| !gone.contains(&k.to_string()));
    Ok((original.into_iter().filter(stays).collect(), plain))
}

fn merge_items(mut merged: Vec<Value>, patch: &[Value], meta: &Meta) -> Result<Vec<Value>, Status> {
    let mut places: HashMap<String, usize> = HashMap::new();
    for (number, item) in merged.iter().enumerate() {
        if let Some(key) = item.get(meta.key) {
            places.entry(key.to_string()).or_insert(number);
        }
    }
    for item in patch {
        let key = identity(item, meta.key)?;
        let Some(number) = places.get(&key) else {
            places.insert(key, merged.len());
            merged.push(item.clone());
            continue;
        };
        if let (Value::Object(fields), Value::Object(patch)) = (std::mem::take(&mut merged[*number]), item) {
            merged[*number] = Value::Object(merge_map(fields, patch.clone(), meta.items())?);
        }
    }
    Ok(merged)
}

/// `merged` in the order of `first`; what is not there keeps the order of `before` and goes in front of what it was in front of.
fn in_order(merged: Vec<Value>, first: &[Value], before: &[Value], key: &str) -> Result<Vec<Value>, Status> {
    let (first, before) = (ranks(first, key)?, ranks(before, key)?);
    let (mut patched, mut others) = (Vec::new(), Vec::new());
    for item in merged {
        let id = identity(&item, key)?;
        let was = before.get(&id).copied();
        match first.get(&id) {
            Some(rank) => patched.push((*rank, was, item)),
            None => others.push((was.unwrap_or(usize::MAX), was, item)),
        }
    }
    patched.sort_by_key(|(rank, ..)| *rank);
    others.sort_by_key(|(rank, ..)| *rank);
    let mut out = Vec::with_capacity(patched.len() + others.len());
    let (mut patched, mut others) = (patched.into_iter().peekable(), others.into_iter().peekable());
    loop {
        let other_first = match (others.peek(), patched.peek()) {
            (Some((_, Some(other), _)), Some((_, Some(patch), _))) => other < patch,
            (Some(_), None) => true,
            _ => false,
        };
        let next = if other_first { others.next() } else { patched.next() };
        match next {
            Some((_, _, item)) => out.push(item),
            None => return Ok(out),
        }
    }
}

/// Where each item stands.
fn ranks(items: &[Value], key: &str) -> Result<HashMap<String, usize>, Status> {
    let mut out = HashMap::new();
    for (number, item) in items.iter().enumerate() {
        out.entry(identity(item, key)?).or_insert(number);
    }
    Ok(out)
}

/// A new value has no nulls in its objects.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.into_iter().filter(|(_, v)| !v.is_null());
            Value::Object(kept.map(|(k, v)| (k, without_nulls(v))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(without_nulls).collect()),
        scalar => scalar,
    }
}

/// A new value without the objects in it that are directives; None where it is one.
fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(fields) if fields.contains_key(DIRECTIVE) => None,
        Value::Object(fields) => {
            let kept = fields
                .into_iter()
                .filter_map(|(k, v)| Some((k, without_directives(v)?)));
            Some(Value::Object(kept.collect()))
        }
        Value::Array(items) => Some(Value::Array(items.into_iter().filter_map(without_directives).collect())),
        scalar => Some(scalar),
    }
}

#[cfg(test)]
mod tests;
