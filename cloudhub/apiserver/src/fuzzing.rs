//! Doors for `tests/fuzz`: every function here that reads what a client or a kubelet sends. Not for anybody else.
//!
//! An `Err` is a promise of ours that was broken, never a refusal.

use serde_json::Value;

pub use crate::auth::fuzzing::{Tokens, certificate, headers};
pub use crate::http::fuzzing::{accept, options, request};
use crate::kinds::{self, Row};
use crate::patch::{self, PatchType};
pub use crate::registry::fuzzing::{create, update};
use crate::schema;
use crate::selector::{Fields, Labels};

/// The row that a body says it is of.
pub(crate) fn row_of(bytes: &[u8]) -> Option<&'static Row> {
    let (version, kind) = schema::identity(bytes).ok()?;
    let (group, version) = version.split_once('/').unwrap_or(("", &version));
    kinds::row_of_kind(group, version, &kind)
}

/// A body as an object of the kind that it names, as a write decodes it; what fits once fits again, unchanged.
///
/// # Errors
/// It does not.
pub fn schema(bytes: &[u8]) -> Result<(), String> {
    let Some(row) = row_of(bytes) else {
        return Ok(());
    };
    let version = row.api_version();
    let Ok(decoded) = schema::decode(bytes, &version, row.kind) else {
        return Ok(());
    };
    let again = schema::conform(decoded.object.clone(), &version, row.kind);
    let again = again.map_err(|status| format!("decoded, it is refused: {}", status.message))?;
    if again.object != decoded.object || !again.faults.is_empty() {
        return Err(format!("{} decodes again to {}", decoded.object, again.object));
    }
    let mut complete = decoded.object;
    schema::complete(&mut complete, &version, row.kind);
    let once = complete.clone();
    schema::complete(&mut complete, &version, row.kind);
    if once != complete {
        return Err(format!("{once} completes again to {complete}"));
    }
    Ok(())
}

/// An object and a patch of it, with a NUL between them: all three kinds of patch.
///
/// # Errors
/// A merge patch that is applied twice gives another object than once.
pub fn patch(bytes: &[u8]) -> Result<(), String> {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let (Some(object), Some(patch)) = (parts.next(), parts.next()) else {
        return Ok(());
    };
    let Some(row) = row_of(object) else { return Ok(()) };
    let version = row.api_version();
    let (Ok(object), Ok(patch)) = (
        schema::decode(object, &version, row.kind),
        serde_json::from_slice::<Value>(patch),
    ) else {
        return Ok(());
    };
    for how in [PatchType::Json, PatchType::Merge, PatchType::Strategic] {
        let Ok(patched) = patch::apply(&object.object, how, &patch, &version, row.kind) else {
            continue;
        };
        if how == PatchType::Merge {
            let twice = patch::apply(&patched, how, &patch, &version, row.kind);
            if twice.as_ref() != Ok(&patched) {
                return Err(format!("{patch} twice is not {patched}"));
            }
        }
        if let Err(status) = schema::conform(patched.clone(), &version, row.kind) {
            patch::refuse(how, &patch, &patched, &status.message);
        }
    }
    Ok(())
}

/// Label and field selectors, in a query and (where it is JSON) in an object.
pub fn selector(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(labels) = Labels::parse(&text) {
        labels.matches_labels(&[("app".to_owned(), "web".to_owned())]);
    }
    for row in kinds::rows() {
        // Refusals name the text; the message is what costs.
        let _ = Fields::parse(&text, row);
    }
    if let Ok(value) = serde_json::from_slice::<Value>(bytes)
        && let Ok(labels) = Labels::of_object(&value)
    {
        labels.matches_labels(&[]);
    }
}

/// A kubelet's `/metrics/resource`.
pub fn metrics(bytes: &[u8]) {
    crate::metrics::fuzz(&String::from_utf8_lossy(bytes));
}
