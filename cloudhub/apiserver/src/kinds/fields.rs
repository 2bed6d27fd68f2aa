//! Checks of single fields that several kinds share: names, labels, selectors, ports, quantities. No state.
//!
//! A check of a text answers with the real server's complaints (apimachinery `util/validation`); none means that it is right.

mod at;
mod quantity;
mod selector;

use serde_json::{Value, json};

pub(crate) use at::At;
pub(crate) use quantity::Quantity;
pub(crate) use selector::{is_empty_selector, labels_text, selector_text};

use crate::object::items;
use crate::status::Errors;

const LABEL_FORMAT: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const QUALIFIED_FORMAT: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";

/// The complaint that names a pattern and examples of what matches it.
fn pattern(words: &str, format: &str, examples: &[&str]) -> String {
    let examples: Vec<String> = examples.iter().map(|e| format!("'{e}', ")).collect();
    let examples = examples.join(" or ");
    format!("{words} (e.g. {examples}regex used for validation is '{format}')")
}

fn no_more_than(length: usize) -> String {
    format!("must be no more than {length} characters")
}

fn is_lower(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

/// Whether every byte is `inside` and the first and last are `edge`; never for "".
fn shaped(value: &str, edge: fn(u8) -> bool, inside: fn(u8) -> bool) -> bool {
    let bytes = value.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    edge(*first) && edge(*last) && bytes.iter().all(|b| inside(*b))
}

fn matches_label(value: &str) -> bool {
    shaped(value, is_lower, |b| is_lower(b) || b == b'-')
}

fn matches_subdomain(value: &str) -> bool {
    value.split('.').all(matches_label)
}

fn matches_qualified(value: &str) -> bool {
    shaped(
        value,
        |b| b.is_ascii_alphanumeric(),
        |b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'),
    )
}

/// A DNS label: `my-name`, at most 63 bytes.
pub(crate) fn is_dns1123_label(value: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if value.len() > 63 {
        wrong.push(no_more_than(63));
    }
    if matches_label(value) {
        return wrong;
    }
    if matches_subdomain(value) {
        wrong.push("must not contain dots".into());
    } else {
        wrong.push(pattern(
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character",
            LABEL_FORMAT,
            &["my-name", "123-abc"],
        ));
    }
    wrong
}

/// DNS labels with dots between, at most 253 bytes: what most objects' names are.
pub(crate) fn is_dns1123_subdomain(value: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if value.len() > 253 {
        wrong.push(no_more_than(253));
    }
    if !matches_subdomain(value) {
        wrong.push(pattern(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
            &format!("{LABEL_FORMAT}(\\.{LABEL_FORMAT})*"),
            &["example.com"],
        ));
    }
    wrong
}

/// The key of a label, an annotation, a taint or a resource: `[PREFIX/]NAME`.
pub(crate) fn is_qualified_name(value: &str) -> Vec<String> {
    let words = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
    let complaint = pattern(words, QUALIFIED_FORMAT, &["MyName", "my.name", "123-abc"]);
    let parts: Vec<&str> = value.split('/').collect();
    let mut wrong = Vec::new();
    let name = match parts.as_slice() {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                wrong.push("prefix part must be non-empty".into());
            } else {
                wrong.extend(
                    is_dns1123_subdomain(prefix)
                        .into_iter()
                        .map(|w| format!("prefix part {w}")),
                );
            }
            name
        }
        _ => {
            let tail = "with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')";
            return vec![format!("a valid label key {complaint} {tail}")];
        }
    };
    if name.is_empty() {
        wrong.push("name part must be non-empty".into());
    } else if name.len() > 63 {
        wrong.push(format!("name part {}", no_more_than(63)));
    }
    if !matches_qualified(name) {
        wrong.push(format!("name part {complaint}"));
    }
    wrong
}

/// The value of a label; "" is one.
pub(crate) fn is_label_value(value: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if value.len() > 63 {
        wrong.push(no_more_than(63));
    }
    if !value.is_empty() && !matches_qualified(value) {
        wrong.push(pattern(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            &format!("({QUALIFIED_FORMAT})?"),
            &["MyValue", "my_value", "12345"],
        ));
    }
    wrong
}

/// The name of a port: `http`, at most 15 bytes with a letter among them.
pub(crate) fn is_port_name(value: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if value.len() > 15 {
        wrong.push(no_more_than(15));
    }
    if value.is_empty() || !value.bytes().all(|b| is_lower(b) || b == b'-') {
        wrong.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !value.bytes().any(|b| b.is_ascii_lowercase()) {
        wrong.push("must contain at least one letter (a-z)".into());
    }
    if value.contains("--") {
        wrong.push("must not contain consecutive hyphens".into());
    }
    if value.starts_with('-') || value.ends_with('-') {
        wrong.push("must not begin or end with a hyphen".into());
    }
    wrong
}

/// The name of an environment variable: printable ASCII without `=`.
pub(crate) fn is_env_name(value: &str) -> Vec<String> {
    if value.is_empty() {
        return vec!["environment variable name must be non-empty".into()];
    }
    if value.chars().all(|c| (' '..='~').contains(&c) && c != '=') {
        return Vec::new();
    }
    vec!["a valid environment variable name must consist only of printable ASCII characters other than '='".into()]
}

/// A key of a ConfigMap's or Secret's data, which becomes a file's name.
pub(crate) fn is_config_key(value: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if value.len() > 253 {
        wrong.push(no_more_than(253));
    }
    let inside = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if value.is_empty() || !value.bytes().all(inside) {
        wrong.push(pattern(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    match value {
        "." => wrong.push("must not be '.'".into()),
        ".." => wrong.push("must not be '..'".into()),
        _ if value.starts_with("..") => wrong.push("must not start with '..'".into()),
        _ => {}
    }
    wrong
}

/// A whole number from `low` to `high`.
pub(crate) fn in_range(value: i64, low: i64, high: i64) -> Vec<String> {
    if (low..=high).contains(&value) {
        return Vec::new();
    }
    vec![format!("must be between {low} and {high}, inclusive")]
}

/// A port number.
pub(crate) fn is_port(value: i64) -> Vec<String> {
    in_range(value, 1, 65535)
}

/// A percentage, as a rolling update takes it: `25%`.
pub(crate) fn is_percent(value: &str) -> Vec<String> {
    let digits = value.strip_suffix('%').unwrap_or_default();
    if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        return Vec::new();
    }
    vec![pattern(
        "a valid percent string must be a numeric string followed by an ending '%'",
        "[0-9]+%",
        &["1%", "93%"],
    )]
}

/// Adds each complaint about `value` at `field`.
pub(crate) fn complain(errors: &mut Errors, field: &str, value: &Value, wrong: Vec<String>) {
    for words in wrong {
        errors.invalid(field, value, &words);
    }
}

/// The number must not be below 0; absent is right.
pub(crate) fn non_negative(errors: &mut Errors, field: &str, value: Option<&Value>) {
    if let Some(value) = value.filter(|v| v.as_i64().is_some_and(|n| n < 0)) {
        errors.invalid(field, value, "must be greater than or equal to 0");
    }
}

/// The text must be one of `supported`.
pub(crate) fn one_of(errors: &mut Errors, field: &str, value: &Value, supported: &[&str]) {
    if !value.as_str().is_some_and(|text| supported.contains(&text)) {
        errors.not_supported(field, value, supported);
    }
}

/// A map of labels.
pub(crate) fn labels(errors: &mut Errors, field: &str, labels: Option<&Value>) {
    for (key, value) in labels.and_then(Value::as_object).into_iter().flatten() {
        complain(errors, field, &json!(key), is_qualified_name(key));
        complain(errors, field, value, is_label_value(value.as_str().unwrap_or_default()));
    }
}

/// A `metav1.LabelSelector`.
pub(crate) fn label_selector(errors: &mut Errors, field: &str, selector: Option<&Value>) {
    let Some(selector) = selector else { return };
    labels(errors, &format!("{field}.matchLabels"), selector.get("matchLabels"));
    for (index, requirement) in items(selector, "/matchExpressions").iter().enumerate() {
        selector_requirement(errors, &format!("{field}.matchExpressions[{index}]"), requirement);
    }
}

fn selector_requirement(errors: &mut Errors, field: &str, requirement: &Value) {
    let values = items(requirement, "/values");
    let operator = requirement.get("operator").cloned().unwrap_or_else(|| json!(""));
    match operator.as_str().unwrap_or_default() {
        "In" | "NotIn" if values.is_empty() => {
            let words = "must be specified when `operator` is 'In' or 'NotIn'";
            errors.required(format!("{field}.values"), words);
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            let words = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            errors.forbidden(format!("{field}.values"), words);
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        _ => errors.invalid(format!("{field}.operator"), &operator, "not a valid selector operator"),
    }
    let key = requirement.get("key").and_then(Value::as_str).unwrap_or_default();
    complain(errors, &format!("{field}.key"), &json!(key), is_qualified_name(key));
    for (index, value) in values.iter().enumerate() {
        let wrong = is_label_value(value.as_str().unwrap_or_default());
        complain(errors, &format!("{field}.values[{index}]"), value, wrong);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_judged_in_the_real_servers_words() {
        assert!(is_dns1123_label("web-1").is_empty());
        assert_eq!(is_dns1123_label("a.b"), ["must not contain dots"]);
        assert_eq!(
            is_dns1123_label("Web"),
            [
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with \
                 an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
            ]
        );
        assert!(is_dns1123_subdomain("a.b-c.d").is_empty());
        assert_eq!(is_dns1123_subdomain("a..b").len(), 1);
        assert!(is_config_key("..a").contains(&"must not start with '..'".to_owned()));
        assert!(is_env_name("A B").is_empty());
        assert!(!is_env_name("A=B").is_empty());
    }

    #[test]
    fn label_keys_may_have_one_prefix() {
        assert!(is_qualified_name("app.kubernetes.io/name").is_empty());
        assert!(is_qualified_name("a/b/c")[0].ends_with("'/' (e.g. 'example.com/MyName')"));
        assert_eq!(is_qualified_name("/b"), ["prefix part must be non-empty"]);
        assert!(is_label_value("").is_empty());
        assert!(!is_label_value("-a").is_empty());
        assert!(!is_label_value(&"a".repeat(64)).is_empty());
    }

    #[test]
    fn a_selector_says_which_requirement_is_wrong() {
        let mut errors = Errors::default();
        let selector = json!({"matchExpressions": [{"key": "a", "operator": "In"}, {"key": "b", "operator": "Is"}]});
        label_selector(&mut errors, "spec.selector", Some(&selector));
        let fields: Vec<&str> = errors.causes().iter().map(|c| c.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "spec.selector.matchExpressions[0].values",
                "spec.selector.matchExpressions[1].operator"
            ]
        );
    }
}
