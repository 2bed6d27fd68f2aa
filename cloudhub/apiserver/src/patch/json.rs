//! JSON patch (RFC 6902).

use serde_json::{Map, Value};

use super::rejected;
use crate::status::Status;

/// As many operations as the real server takes.
const MAX_OPERATIONS: usize = 10_000;

/// What all `copy` and `move` operations together may carry, about in bytes: else a small patch could grow an object without bounds.
const MAX_CARRIED: usize = 3 << 20;

/// How deep the result may be nested; as deep as a body may be.
const MAX_DEPTH: usize = 100;

/// `current`, patched.
///
/// # Errors
///
/// 400 for what is no JSON patch, 413 for too many operations, 422 for one that cannot be done.
pub(super) fn apply(current: &Value, patch: &Value) -> Result<Value, Status> {
    let Value::Array(operations) = patch else {
        return Err(Status::bad_request(
            "error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp",
        ));
    };
    if operations.len() > MAX_OPERATIONS {
        let count = operations.len();
        return Err(Status::too_large(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {count}"
        )));
    }
    let operations: Vec<Operation<'_>> = operations.iter().map(Operation::read).collect::<Result<_, _>>()?;
    let mut document = Document {
        root: current.clone(),
        carried: 0,
    };
    for operation in operations {
        document.run(&operation).ok_or_else(rejected)?;
    }
    Ok(document.root)
}

/// One operation, its pointers split.
struct Operation<'a> {
    op: &'a str,
    path: Option<Vec<String>>,
    from: Option<Vec<String>>,
    value: Option<&'a Value>,
}

impl<'a> Operation<'a> {
    fn read(operation: &'a Value) -> Result<Self, Status> {
        let no_patch = |what: &str| Status::bad_request(format!("error decoding patch: {what}"));
        let fields: &Map<String, Value> = operation
            .as_object()
            .ok_or_else(|| no_patch("json: an operation is an object"))?;
        let text = |field: &str| match fields.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(_) => Err(no_patch(&format!(
                "json: the field {field:?} of an operation is a string"
            ))),
        };
        Ok(Self {
            op: text("op")?.unwrap_or_default(),
            path: text("path")?.and_then(pointer),
            from: text("from")?.and_then(pointer),
            value: fields.get("value"),
        })
    }
}

/// The steps of a JSON pointer; None where it is none.
fn pointer(text: &str) -> Option<Vec<String>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    let steps = text.strip_prefix('/')?.split('/');
    Some(steps.map(|s| s.replace("~1", "/").replace("~0", "~")).collect())
}

/// The value while it is patched.
struct Document {
    root: Value,
    carried: usize,
}

impl Document {
    /// None: it cannot be done.
    fn run(&mut self, operation: &Operation<'_>) -> Option<()> {
        let path = operation.path.as_deref()?;
        match operation.op {
            "add" => self.add(path, operation.value?.clone()),
            "remove" => self.remove(path).map(drop),
            "replace" => {
                let value = operation.value?.clone();
                fits(path, &value)?;
                match self.find(path) {
                    Some(at) => *at = value,
                    // The real server's library replaces what is not there, in an object.
                    None => {
                        let (last, parent) = path.split_last()?;
                        self.find(parent)?.as_object_mut()?.insert(last.clone(), value);
                    }
                }
                Some(())
            }
            "move" => {
                let from = operation.from.as_deref()?;
                if path.len() > from.len() && path.starts_with(from) {
                    return None;
                }
                let value = self.remove(from)?;
                self.carry(&value)?;
                self.add(path, value)
            }
            "copy" => {
                let value = self.find(operation.from.as_deref()?)?.clone();
                self.carry(&value)?;
                self.add(path, value)
            }
            "test" => {
                // A value that is not there equals null, as in the real server.
                let found = self.find(path).map_or(Value::Null, |v| v.clone());
                (&found == operation.value.unwrap_or(&Value::Null)).then_some(())
            }
            _ => None,
        }
    }

    fn carry(&mut self, value: &Value) -> Option<()> {
        self.carried += weigh(value).1;
        (self.carried <= MAX_CARRIED).then_some(())
    }

    fn find(&mut self, path: &[String]) -> Option<&mut Value> {
        path.iter().try_fold(&mut self.root, |at, step| match at {
            Value::Object(fields) => fields.get_mut(step),
            Value::Array(items) => {
                let number = index(step, items.len())?;
                items.get_mut(number)
            }
            _ => None,
        })
    }

    fn add(&mut self, path: &[String], value: Value) -> Option<()> {
        fits(path, &value)?;
        let Some((last, parent)) = path.split_last() else {
            self.root = value;
            return Some(());
        };
        match self.find(parent)? {
            Value::Object(fields) => {
                fields.insert(last.clone(), value);
            }
            Value::Array(items) if last == "-" => items.push(value),
            Value::Array(items) => {
                let number = index(last, items.len() + 1)?;
                items.insert(number, value);
            }
            _ => return None,
        }
        Some(())
    }

    fn remove(&mut self, path: &[String]) -> Option<Value> {
        let (last, parent) = path.split_last()?;
        match self.find(parent)? {
            Value::Object(fields) => fields.shift_remove(last),
            Value::Array(items) => index(last, items.len()).map(|i| items.remove(i)),
            _ => None,
        }
    }
}

/// A list's index below `end`.
fn index(step: &str, end: usize) -> Option<usize> {
    let canonical = step == "0" || (!step.starts_with('0') && step.bytes().all(|b| b.is_ascii_digit()));
    let number: usize = step.parse().ok().filter(|_| canonical)?;
    (number < end).then_some(number)
}

/// Whether the document is not nested too deep with `value` there.
fn fits(path: &[String], value: &Value) -> Option<()> {
    (path.len() + weigh(value).0 <= MAX_DEPTH).then_some(())
}

/// Depth and, about, bytes.
fn weigh(value: &Value) -> (usize, usize) {
    let over = |weights: &mut dyn Iterator<Item = (usize, usize)>| {
        weights.fold((1, 8), |(depth, bytes), (d, b)| (depth.max(d + 1), bytes + b))
    };
    match value {
        Value::String(text) => (1, 8 + text.len()),
        Value::Array(items) => over(&mut items.iter().map(weigh)),
        Value::Object(fields) => over(&mut fields.iter().map(|(name, v)| {
            let (depth, bytes) = weigh(v);
            (depth, bytes + name.len())
        })),
        _ => (1, 8),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn every_operation_does_what_the_rfc_shows() {
        let cases = [
            (
                json!({"a": 1}),
                json!([{"op": "add", "path": "/b", "value": [1]}]),
                json!({"a": 1, "b": [1]}),
            ),
            (
                json!({"a": [1, 3]}),
                json!([{"op": "add", "path": "/a/1", "value": 2}]),
                json!({"a": [1, 2, 3]}),
            ),
            (
                json!({"a": [1]}),
                json!([{"op": "add", "path": "/a/-", "value": 2}]),
                json!({"a": [1, 2]}),
            ),
            (
                json!({"a": [1, 2]}),
                json!([{"op": "remove", "path": "/a/0"}]),
                json!({"a": [2]}),
            ),
            (
                json!({"a": 1}),
                json!([{"op": "replace", "path": "/a", "value": null}]),
                json!({"a": null}),
            ),
            (
                json!({"a": {"b": 1}}),
                json!([{"op": "move", "from": "/a/b", "path": "/c"}]),
                json!({"a": {}, "c": 1}),
            ),
            (
                json!({"a": 1}),
                json!([{"op": "copy", "from": "/a", "path": "/b"}]),
                json!({"a": 1, "b": 1}),
            ),
            (
                json!({"a/b": {"~": 1}}),
                json!([{"op": "test", "path": "/a~1b/~0", "value": 1}]),
                json!({"a/b": {"~": 1}}),
            ),
            (
                json!({}),
                json!([{"op": "test", "path": "/x", "value": null}]),
                json!({}),
            ),
            (
                json!({"a": 1}),
                json!([{"op": "add", "path": "", "value": {"b": 1}}]),
                json!({"b": 1}),
            ),
            (json!({"a": 1}), json!([]), json!({"a": 1})),
        ];
        for (current, patch, patched) in cases {
            assert_eq!(apply(&current, &patch), Ok(patched), "{patch}");
        }
    }

    #[test]
    fn what_cannot_be_done_is_rejected_and_changes_nothing() {
        let current = json!({"a": [1], "b": {"c": 1}});
        let cases = [
            json!([{"op": "remove", "path": "/x"}]),
            json!([{"op": "replace", "path": "/x/y", "value": 1}]),
            json!([{"op": "add", "path": "/x/y", "value": 1}]),
            json!([{"op": "add", "path": "/a/2", "value": 1}]),
            json!([{"op": "add", "path": "/a/01", "value": 1}]),
            json!([{"op": "add", "path": "/a/+1", "value": 1}]),
            json!([{"op": "add", "path": "a", "value": 1}]),
            json!([{"op": "add", "path": "/a/b"}]),
            json!([{"op": "test", "path": "/b/c", "value": 2}]),
            json!([{"op": "move", "from": "/b", "path": "/b/c"}]),
            json!([{"op": "remove", "path": "/a/-"}]),
            json!([{"op": "remove", "path": ""}]),
            json!([{"op": "merge", "path": "/a"}]),
            json!([{"op": "remove"}]),
        ];
        for patch in cases {
            let status = apply(&current, &patch).unwrap_err();
            assert_eq!((status.code, status.reason), (422, "Invalid"), "{patch}");
            assert_eq!(
                status.message,
                "the server rejected our request due to an error in our request"
            );
        }
    }

    #[test]
    fn what_is_no_json_patch_is_a_bad_request() {
        for patch in [
            json!({}),
            json!([1]),
            json!([{"op": 1}]),
            json!([{"op": "add", "path": []}]),
        ] {
            assert_eq!(apply(&json!({}), &patch).unwrap_err().code, 400, "{patch}");
        }
        let many: Vec<Value> = vec![json!({"op": "test", "path": "/x"}); MAX_OPERATIONS + 1];
        assert_eq!(apply(&json!({}), &Value::Array(many)).unwrap_err().code, 413);
    }

    #[test]
    fn copies_cannot_grow_an_object_without_bounds() {
        let doubling: Vec<Value> = (0..64)
            .map(|i| json!({"op": "copy", "from": "/a", "path": format!("/a/{i}")}))
            .collect();
        assert_eq!(apply(&json!({"a": {}}), &Value::Array(doubling)).unwrap_err().code, 422);
        let wrap: Vec<Value> = (0..9_000)
            .flat_map(|_| {
                [
                    json!({"op": "move", "from": "/a", "path": "/b"}),
                    json!({"op": "add", "path": "/a", "value": {}}),
                    json!({"op": "move", "from": "/b", "path": "/a/b"}),
                ]
            })
            .take(MAX_OPERATIONS)
            .collect();
        assert_eq!(apply(&json!({"a": {}}), &Value::Array(wrap)).unwrap_err().code, 422);
    }

    proptest! {
        #[test]
        fn no_operation_panics(op in "add|remove|replace|move|copy|test", path in "(/(a|b|0|1|-|~1|~))*", from in "(/(a|b|0|1))*") {
            let current = json!({"a": [{"b": 1}, [2]], "b": {"a": [0]}});
            let _ = apply(&current, &json!([{"op": op, "path": path, "from": from, "value": {"a": 1}}]));
        }
    }
}
