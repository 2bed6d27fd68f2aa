//! What the API answers when it refuses: `meta.k8s.io/v1 Status`, with the reasons, causes and words of the real server
//! (apimachinery `api/errors` and `util/validation/field`).

use serde_json::{Map, Value, json};

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    /// HTTP status.
    pub code: u16,
    /// Machine-readable reason, CamelCase.
    pub reason: &'static str,
    /// What a person reads.
    pub message: String,
    /// What the refusal is about.
    pub details: Option<Box<Details>>,
}

/// What a refusal is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Details {
    /// Name of the object.
    pub name: String,
    /// API group.
    pub group: String,
    /// Kind or plural, as the real server has it there.
    pub kind: String,
    /// One a fault.
    pub causes: Vec<Cause>,
    /// When to ask again, seconds.
    pub retry_after_seconds: u32,
    /// The token with which a list that has expired can go on.
    pub continue_token: String,
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// `FieldValueRequired`, `FieldValueInvalid`, …
    pub reason: &'static str,
    /// The fault without the field.
    pub message: String,
    /// The field's path.
    pub field: String,
}

/// `GROUP/RESOURCE` as it stands in messages: `pods`, `deployments.apps`.
fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() {
        resource.to_owned()
    } else {
        format!("{resource}.{group}")
    }
}

impl Status {
    /// A refusal without details.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: None,
        }
    }

    /// A refusal whose details are there and say nothing.
    fn bare(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        let mut status = Self::new(code, reason, message);
        status.details = Some(Box::default());
        status
    }

    fn about(mut self, group: &str, kind: &str, name: &str) -> Self {
        self.details = Some(Box::new(Details {
            name: name.into(),
            group: group.into(),
            kind: kind.into(),
            ..Details::default()
        }));
        self
    }

    /// 404 for an object of `resource` (plural).
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {name:?} not found", qualified(group, resource));
        Self::new(404, "NotFound", message).about(group, resource, name)
    }

    /// 404 for a path that is not served.
    pub fn no_such_path() -> Self {
        Self::bare(404, "NotFound", "the server could not find the requested resource")
    }

    /// 409 on creation.
    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", qualified(group, resource));
        Self::new(409, "AlreadyExists", message).about(group, resource, name)
    }

    /// 409 on update.
    pub fn conflict(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} {name:?}: {why}",
            qualified(group, resource)
        );
        Self::new(409, "Conflict", message).about(group, resource, name)
    }

    /// 403 with the real server's words.
    pub fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message = if name.is_empty() {
            format!("{} is forbidden: {why}", qualified(group, resource))
        } else {
            format!("{} {name:?} is forbidden: {why}", qualified(group, resource))
        };
        Self::new(403, "Forbidden", message).about(group, resource, name)
    }

    /// 422 with every fault.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: Errors) -> Self {
        let words: Vec<String> = errors
            .list
            .iter()
            .map(|c| format!("{}: {}", c.field, c.message))
            .collect();
        let text = match words.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let message = format!("{} {name:?} is invalid: {text}", qualified(group, kind));
        let mut status = Self::new(422, "Invalid", message).about(group, kind, name);
        if let Some(details) = &mut status.details {
            details.causes = errors.list;
        }
        status
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 410: a resourceVersion or continue token that is too old.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 410 for the token of a list, with the one that goes on in what is there now.
    pub fn list_expired(continue_token: String) -> Self {
        let mut status = Self::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new list without the \
             continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with \
             the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the \
             first chunk was returned and now may show up in the list.",
        );
        status.details.get_or_insert_default().continue_token = continue_token;
        status
    }

    /// 405.
    pub fn method_not_allowed() -> Self {
        Self::bare(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
    }

    /// 406.
    pub fn not_acceptable(message: impl Into<String>) -> Self {
        Self::bare(406, "NotAcceptable", message)
    }

    /// 415.
    pub fn unsupported_media_type(message: impl Into<String>) -> Self {
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// 413.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(413, "RequestEntityTooLarge", message)
    }

    /// 429, as eviction gives it.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        let mut status = Self::new(429, "TooManyRequests", message);
        status.details = Some(Box::new(Details {
            retry_after_seconds,
            ..Details::default()
        }));
        status
    }

    /// 500.
    pub fn internal(message: impl std::fmt::Display) -> Self {
        let mut status = Self::new(500, "InternalError", format!("Internal error occurred: {message}"));
        status.details = Some(Box::new(Details {
            causes: vec![Cause {
                reason: "",
                message: message.to_string(),
                field: String::new(),
            }],
            ..Details::default()
        }));
        status
    }

    /// The same with causes.
    #[must_use]
    pub fn with_causes(mut self, causes: Vec<Cause>) -> Self {
        self.details.get_or_insert_default().causes = causes;
        self
    }

    /// As the API writes it.
    pub fn to_json(&self) -> Value {
        let mut status =
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": self.message});
        if !self.reason.is_empty() {
            status["reason"] = json!(self.reason);
        }
        match &self.details {
            Some(details) if !details.continue_token.is_empty() => {
                status["metadata"]["continue"] = json!(details.continue_token);
            }
            Some(details) => status["details"] = details.to_json(),
            None => {}
        }
        status["code"] = json!(self.code);
        status
    }
}

impl Details {
    fn to_json(&self) -> Value {
        let mut out = Map::new();
        for (field, text) in [("name", &self.name), ("group", &self.group), ("kind", &self.kind)] {
            if !text.is_empty() {
                out.insert(field.into(), json!(text));
            }
        }
        if !self.causes.is_empty() {
            let causes = self.causes.iter().map(Cause::to_json).collect();
            out.insert("causes".into(), Value::Array(causes));
        }
        if self.retry_after_seconds > 0 {
            out.insert("retryAfterSeconds".into(), json!(self.retry_after_seconds));
        }
        Value::Object(out)
    }
}

impl Cause {
    fn to_json(&self) -> Value {
        let mut out = Map::new();
        for (field, text) in [
            ("reason", self.reason),
            ("message", &self.message),
            ("field", &self.field),
        ] {
            if !text.is_empty() {
                out.insert(field.into(), json!(text));
            }
        }
        Value::Object(out)
    }
}

/// The faults of one object, collected; paths are written as `spec.containers[0].image`, `metadata.labels[a/b]`.
#[derive(Debug, Clone, Default)]
pub struct Errors {
    list: Vec<Cause>,
}

impl Errors {
    /// Whether nothing was wrong.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The faults.
    pub fn causes(&self) -> &[Cause] {
        &self.list
    }

    fn add(&mut self, reason: &'static str, field: impl Into<String>, message: String) {
        self.list.push(Cause {
            reason,
            message,
            field: field.into(),
        });
    }

    /// The field must be there. `detail` may be empty.
    pub fn required(&mut self, field: impl Into<String>, detail: &str) {
        let message = if detail.is_empty() {
            "Required value".into()
        } else {
            format!("Required value: {detail}")
        };
        self.add("FieldValueRequired", field, message);
    }

    /// The value is not one of those that the field takes.
    pub fn invalid(&mut self, field: impl Into<String>, value: &Value, detail: &str) {
        let value = show(value);
        let message = if detail.is_empty() {
            format!("Invalid value: {value}")
        } else {
            format!("Invalid value: {value}: {detail}")
        };
        self.add("FieldValueInvalid", field, message);
    }

    /// The value is not in the list.
    pub fn not_supported(&mut self, field: impl Into<String>, value: &Value, supported: &[&str]) {
        let names: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        let message = format!(
            "Unsupported value: {}: supported values: {}",
            show(value),
            names.join(", ")
        );
        self.add("FieldValueNotSupported", field, message);
    }

    /// Two list items have one key.
    pub fn duplicate(&mut self, field: impl Into<String>, value: &Value) {
        self.add(
            "FieldValueDuplicate",
            field,
            format!("Duplicate value: {}", show(value)),
        );
    }

    /// The same, with why it may not be.
    pub fn duplicate_because(&mut self, field: impl Into<String>, value: &Value, detail: &str) {
        self.add(
            "FieldValueDuplicate",
            field,
            format!("Duplicate value: {}: {detail}", show(value)),
        );
    }

    /// The field must not be set, or not so.
    pub fn forbidden(&mut self, field: impl Into<String>, detail: &str) {
        self.add("FieldValueForbidden", field, format!("Forbidden: {detail}"));
    }

    /// The named thing does not exist.
    pub fn not_found(&mut self, field: impl Into<String>, value: &Value) {
        self.add("FieldValueNotFound", field, format!("Not found: {}", show(value)));
    }

    /// More than `limit` bytes.
    pub fn too_long(&mut self, field: impl Into<String>, limit: usize) {
        self.add(
            "FieldValueTooLong",
            field,
            format!("Too long: may not be more than {limit} bytes"),
        );
    }

    /// What it names is nowhere, and where it should be.
    pub fn not_found_because(&mut self, field: impl Into<String>, value: &Value, detail: &str) {
        self.add(
            "FieldValueNotFound",
            field,
            format!("Not found: {}: {detail}", show(value)),
        );
    }

    /// More than `limit` items.
    pub fn too_many(&mut self, field: impl Into<String>, actual: usize, limit: usize) {
        self.add(
            "FieldValueTooMany",
            field,
            format!("Too many: {actual}: must have at most {limit} items"),
        );
    }
}

/// A value as Go prints it in such a message: strings quoted, `null`, numbers bare, objects as JSON.
fn show(value: &Value) -> String {
    value.to_string()
}
