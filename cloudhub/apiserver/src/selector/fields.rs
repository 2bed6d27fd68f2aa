//! Field selectors: `metadata.name=a,status.phase!=Running`.

use crate::kinds::{self, Row};
use crate::status::Status;
use crate::store::Stored;

/// Selects objects by the fields that their row offers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Fields {
    terms: Vec<Term>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Term {
    label: &'static str,
    value: String,
    equal: bool,
}

/// Fields that the real server compares by another value where they are absent: label, value.
const ABSENT: &[(&str, &str)] = &[
    ("spec.unschedulable", "false"),
    ("spec.hostNetwork", "false"),
    ("status.replicas", "0"),
];

impl Fields {
    /// Reads the query parameter `fieldSelector` of a request for `row`.
    ///
    /// # Errors
    /// 400 for what is no selector and for fields that the row does not offer.
    pub(crate) fn parse(text: &str, row: &Row) -> Result<Self, Status> {
        let mut terms = Vec::new();
        for part in split(text) {
            if part.is_empty() {
                continue;
            }
            let Some((label, equal, value)) = operator(part) else {
                let message = format!("invalid selector: '{text}'; can't understand '{part}'");
                return Err(Status::bad_request(message));
            };
            let value = unescape(value).map_err(Status::bad_request)?;
            let label = known(row, label).map_err(Status::bad_request)?;
            terms.push(Term { label, value, equal });
        }
        Ok(Self { terms })
    }

    /// Whether it selects every object.
    pub(crate) fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The one name that it asks for: a list with it is authorized as a request for that object.
    pub(crate) fn name_of(&self) -> Option<&str> {
        self.wanted("metadata.name")
    }

    /// The one value of `label` that it asks for.
    pub(crate) fn wanted(&self, label: &str) -> Option<&str> {
        let term = self.terms.iter().find(|t| t.equal && t.label == label)?;
        Some(&term.value)
    }

    /// Whether it selects `object`.
    pub(crate) fn matches(&self, object: &Stored) -> bool {
        self.terms
            .iter()
            .all(|term| (field(object, term.label) == term.value) == term.equal)
    }
}

fn field<'a>(object: &'a Stored, label: &str) -> &'a str {
    let value = object.field(label).unwrap_or_default();
    if !value.is_empty() {
        return value;
    }
    if label == "source" {
        // Events written through events.k8s.io name only their controller.
        return object.field("reportingComponent").unwrap_or_default();
    }
    ABSENT.iter().find(|(l, _)| *l == label).map_or("", |(_, v)| *v)
}

/// The label under which objects of `row` are indexed. Rows that share a storage are indexed under the labels of the first.
fn known(row: &Row, label: &str) -> Result<&'static str, String> {
    match label {
        "metadata.name" => return Ok("metadata.name"),
        "metadata.namespace" if row.namespaced || row.selectable.is_empty() => return Ok("metadata.namespace"),
        _ if row.selectable.is_empty() => {
            return Err(format!(
                "{label:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
            ));
        }
        _ => {}
    }
    let found = row.selectable.iter().find(|(l, _)| *l == label);
    let indexed = found.and_then(|(_, pointer)| {
        let first = kinds::rows().find(|r| r.storage == row.storage)?;
        first.selectable.iter().find(|(_, p)| p == pointer)
    });
    indexed
        .map(|(label, _)| *label)
        .ok_or_else(|| format!("field label not supported: {label}"))
}

/// Splits at commas that are not escaped.
fn split(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// Label, whether it must be equal, value as it stands.
fn operator(term: &str) -> Option<(&str, bool, &str)> {
    let at = term
        .char_indices()
        .find(|(at, c)| *c == '=' || *c == '!' && term[at + 1..].starts_with('='))
        .map(|(at, _)| at)?;
    let (label, rest) = term.split_at(at);
    for (operator, equal) in [("!=", false), ("==", true), ("=", true)] {
        if let Some(value) = rest.strip_prefix(operator) {
            return Some((label, equal, value));
        }
    }
    None
}

fn unescape(value: &str) -> Result<String, String> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                other => {
                    let sequence: String = std::iter::once('\\').chain(other).collect();
                    return Err(format!("invalid field selector: invalid escape sequence: {sequence}"));
                }
            },
            ',' | '=' => {
                // The real server prints the number of the character.
                let number = u32::from(c);
                return Err(format!(
                    "invalid field selector: unescaped character in value: {number}"
                ));
            }
            _ => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, plural: &str) -> Result<Fields, String> {
        let row = kinds::rows().find(|r| r.plural == plural).unwrap();
        Fields::parse(text, row).map_err(|s| s.message)
    }

    fn terms(fields: &Fields) -> Vec<(&str, bool, &str)> {
        fields
            .terms
            .iter()
            .map(|t| (t.label, t.equal, t.value.as_str()))
            .collect()
    }

    #[test]
    fn terms_are_equal_or_not() {
        let fields = parse("metadata.name==a,type!=Opaque,", "secrets").unwrap();
        assert_eq!(
            terms(&fields),
            [("metadata.name", true, "a"), ("type", false, "Opaque")]
        );
        assert_eq!(fields.name_of(), Some("a"));
        assert!(parse("", "secrets").unwrap().is_empty());
        assert_eq!(parse("metadata.name!=a", "secrets").unwrap().name_of(), None);
    }

    #[test]
    fn commas_may_be_escaped() {
        let fields = parse(r"type=a\,b\=c\\,metadata.name=x", "secrets").unwrap();
        assert_eq!(terms(&fields)[0], ("type", true, r"a,b=c\"));
        assert_eq!(
            parse(r"type=a\b", "secrets").unwrap_err(),
            r"invalid field selector: invalid escape sequence: \b"
        );
        assert_eq!(
            parse("type=a=b", "secrets").unwrap_err(),
            "invalid field selector: unescaped character in value: 61"
        );
    }

    #[test]
    fn fields_that_a_row_does_not_offer_are_refused() {
        assert_eq!(
            parse("spec.x=1", "secrets").unwrap_err(),
            "field label not supported: spec.x"
        );
        assert_eq!(
            parse("spec.x=1", "configmaps").unwrap_err(),
            "\"spec.x\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        );
        assert_eq!(
            parse("metadata.namespace=a", "nodes").unwrap_err(),
            "field label not supported: metadata.namespace"
        );
        assert_eq!(
            parse("metadata.name", "secrets").unwrap_err(),
            "invalid selector: 'metadata.name'; can't understand 'metadata.name'"
        );
    }

    #[test]
    fn both_groups_of_events_select_the_same_field() {
        let row = kinds::row("events.k8s.io", "v1", "events").unwrap();
        let fields = Fields::parse("regarding.name=a,reportingController=b", row).unwrap();
        assert_eq!(
            terms(&fields),
            [("involvedObject.name", true, "a"), ("reportingComponent", true, "b")]
        );
    }
}
