//! The three patches: JSON patch (RFC 6902), merge patch (RFC 7386), strategic merge patch (Kubernetes' own).
//!
//! [`apply`] makes a new value and says nothing of whether that is an object of its kind: [`crate::schema::conform`] does, and
//! [`refuse`] puts its words as the real server does after a patch. Work is linear in patch and object, depth and copies are bounded.

mod json;
mod show;
mod strategic;

use serde_json::{Map, Value};

use self::show::show;
use crate::schema;
use crate::status::{Details, Errors, Status};

/// How a patch is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PatchType {
    /// `application/json-patch+json`.
    Json,
    /// `application/merge-patch+json`.
    Merge,
    /// `application/strategic-merge-patch+json`.
    Strategic,
}

impl PatchType {
    /// By the media type, without its parameters.
    pub(crate) fn of_media_type(media_type: &str) -> Option<Self> {
        match media_type {
            "application/json-patch+json" => Some(Self::Json),
            "application/merge-patch+json" => Some(Self::Merge),
            "application/strategic-merge-patch+json" => Some(Self::Strategic),
            _ => None,
        }
    }
}

/// `current`, patched.
///
/// # Errors
///
/// 400 for what is no patch of that type, 413 for too many operations, 422 for an operation that cannot be done (also a failed
/// `test`), 500 for a strategic patch that does not fit the object's lists: as the real server answers.
pub(crate) fn apply(
    current: &Value,
    how: PatchType,
    patch: &Value,
    api_version: &str,
    kind: &str,
) -> Result<Value, Status> {
    match how {
        PatchType::Json => json::apply(current, patch),
        PatchType::Merge => {
            let patch = object(patch, "error decoding patch: ")?;
            let mut patched = current.clone();
            merge(&mut patched, patch);
            Ok(patched)
        }
        PatchType::Strategic => {
            let patch = object(patch, "")?;
            let of = schema::find(api_version, kind).ok_or_else(|| {
                Status::bad_request(format!("no kind {kind:?} is registered for version {api_version:?}"))
            })?;
            strategic::apply(current, patch, of)
        }
    }
}

fn object<'a>(patch: &'a Value, before: &str) -> Result<&'a Map<String, Value>, Status> {
    patch.as_object().ok_or_else(|| {
        let what = match patch {
            Value::Array(_) => "array",
            Value::String(_) => "string",
            Value::Number(_) => "number",
            _ => "bool",
        };
        Status::bad_request(format!(
            "{before}json: cannot unmarshal {what} into Go value of type map[string]interface {{}}"
        ))
    })
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Map<String, Value>) {
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(fields) = target else {
        unreachable!("made just above")
    };
    for (field, value) in patch {
        match value {
            Value::Null => {
                fields.shift_remove(field);
            }
            Value::Object(inner) => merge(fields.entry(field).or_insert(Value::Null), inner),
            other => {
                fields.insert(field.clone(), other.clone());
            }
        }
    }
}

/// 422 for a patch whose result is no object of its kind: `why` is the message of [`schema::conform`]'s refusal, or
/// `strict decoding error: …` with its faults.
pub(crate) fn refuse(how: PatchType, patch: &Value, patched: &Value, why: &str) -> Status {
    let why = match why.split_once(" cannot be handled as a ") {
        Some((_, rest)) => rest.split_once(": ").map_or(rest, |(_, words)| words),
        None => why,
    };
    let shown = match how {
        PatchType::Json | PatchType::Merge => patched.to_string(),
        PatchType::Strategic => show(patch),
    };
    let mut errors = Errors::default();
    errors.invalid("patch", &Value::String(shown), why);
    Status::invalid("", "", "", errors)
}

/// 422 without a word of why, as the real server answers a JSON patch that cannot be done.
fn rejected() -> Status {
    let mut status = Status::new(
        422,
        "Invalid",
        "the server rejected our request due to an error in our request",
    );
    status.details = Some(Box::new(Details::default()));
    status
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_merge_patch_does_what_the_rfc_shows() {
        let cases = [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (
                json!({"a": {"b": "c"}}),
                json!({"a": {"b": "d", "c": null}}),
                json!({"a": {"b": "d"}}),
            ),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ];
        for (current, patch, patched) in cases {
            let result = apply(&current, PatchType::Merge, &patch, "v1", "Pod");
            assert_eq!(result, Ok(patched), "{patch}");
        }
    }

    #[test]
    fn what_is_no_object_is_no_patch() {
        for how in [PatchType::Merge, PatchType::Strategic] {
            let refused = apply(&json!({}), how, &json!([1]), "v1", "Pod").unwrap_err();
            assert_eq!((refused.code, refused.reason), (400, "BadRequest"));
            assert!(refused.message.contains("cannot unmarshal array"));
        }
    }

    #[test]
    fn a_result_that_does_not_fit_is_refused_as_the_real_server_does() {
        let (patch, patched) = (json!({"spec": {"foo": 1}}), json!({"spec": {"foo": 1}}));
        let why = "strict decoding error: unknown field \"spec.foo\"";
        let status = refuse(PatchType::Strategic, &patch, &patched, why);
        assert_eq!(
            (status.code, status.message.as_str()),
            (
                422,
                " \"\" is invalid: patch: Invalid value: \"map[spec:map[foo:1]]\": strict decoding error: unknown field \"spec.foo\""
            )
        );
        let unfit = schema::conform(json!({"spec": []}), "v1", "Pod").unwrap_err();
        let status = refuse(PatchType::Merge, &patch, &patched, &unfit.message);
        assert!(
            status
                .message
                .ends_with(": json: cannot unmarshal array into Go struct field Pod.spec of type v1.PodSpec")
        );
    }
}
