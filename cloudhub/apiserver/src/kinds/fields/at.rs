//! A place in an object: the value there and the path by which messages name it.

use serde_json::{Value, json};

use crate::status::Errors;

static NOTHING: Value = Value::Null;

/// A place in an object. What is absent is `null`.
#[derive(Debug, Clone)]
pub(crate) struct At<'a> {
    /// What is there.
    pub(crate) value: &'a Value,
    /// `spec.containers[0].image`.
    pub(crate) path: String,
}

impl<'a> At<'a> {
    /// The place `path`, which holds `value`.
    pub(crate) fn new(value: &'a Value, path: impl Into<String>) -> Self {
        let path = path.into();
        Self { value, path }
    }

    /// The whole object.
    pub(crate) fn root(object: &'a Value) -> Self {
        Self::new(object, "")
    }

    /// The field `name`.
    pub(crate) fn child(&self, name: &str) -> Self {
        let path = if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        };
        Self::new(self.value.get(name).unwrap_or(&NOTHING), path)
    }

    /// The field at the end of `names`.
    pub(crate) fn down(&self, names: &[&str]) -> Self {
        names.iter().fold(self.clone(), |at, name| at.child(name))
    }

    /// Whether something is there.
    pub(crate) fn is_set(&self) -> bool {
        !self.value.is_null()
    }

    /// The place, where something is there.
    pub(crate) fn set(self) -> Option<Self> {
        self.is_set().then_some(self)
    }

    /// The text there, or "".
    pub(crate) fn text(&self) -> &'a str {
        self.value.as_str().unwrap_or_default()
    }

    /// The whole number there.
    pub(crate) fn number(&self) -> Option<i64> {
        self.value.as_i64()
    }

    /// Whether `true` is there.
    pub(crate) fn is_true(&self) -> bool {
        self.value.as_bool().unwrap_or_default()
    }

    /// The items of the list there.
    pub(crate) fn items(&self) -> impl Iterator<Item = At<'a>> + use<'a> {
        let path = self.path.clone();
        let list = self.value.as_array().into_iter().flatten().enumerate();
        list.map(move |(index, value)| At::new(value, format!("{path}[{index}]")))
    }

    /// The entries of the map there.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&'a str, At<'a>)> + use<'a> {
        let path = self.path.clone();
        let map = self.value.as_object().into_iter().flatten();
        map.map(move |(key, value)| (key.as_str(), At::new(value, format!("{path}[{key}]"))))
    }

    /// What messages show: the value, "" for an absent text.
    fn shown(&self) -> Value {
        if self.is_set() { self.value.clone() } else { json!("") }
    }

    /// It must be there.
    pub(crate) fn required(&self, errors: &mut Errors, detail: &str) {
        errors.required(&self.path, detail);
    }

    /// It is wrong.
    pub(crate) fn invalid(&self, errors: &mut Errors, detail: &str) {
        errors.invalid(&self.path, &self.shown(), detail);
    }

    /// It must not be there.
    pub(crate) fn forbidden(&self, errors: &mut Errors, detail: &str) {
        errors.forbidden(&self.path, detail);
    }

    /// It is there twice.
    pub(crate) fn duplicate(&self, errors: &mut Errors) {
        errors.duplicate(&self.path, &self.shown());
    }

    /// What it names is nowhere.
    pub(crate) fn not_found(&self, errors: &mut Errors) {
        errors.not_found(&self.path, &self.shown());
    }

    /// Each complaint about it.
    pub(crate) fn complain(&self, errors: &mut Errors, wrong: Vec<String>) {
        for words in wrong {
            self.invalid(errors, &words);
        }
    }

    /// It must be one of `supported`.
    pub(crate) fn one_of(&self, errors: &mut Errors, supported: &[&str]) {
        if !supported.contains(&self.text()) {
            errors.not_supported(&self.path, &self.shown(), supported);
        }
    }

    /// It must be there and one of `supported`.
    pub(crate) fn required_one_of(&self, errors: &mut Errors, supported: &[&str]) {
        if self.text().is_empty() {
            self.required(errors, "");
        } else {
            self.one_of(errors, supported);
        }
    }

    /// Where a number is there, it must lie between.
    pub(crate) fn in_range(&self, errors: &mut Errors, low: i64, high: i64) {
        if let Some(number) = self.number() {
            self.complain(errors, super::in_range(number, low, high));
        }
    }

    /// Where a number is there, it must not be below 0.
    pub(crate) fn non_negative(&self, errors: &mut Errors) {
        super::non_negative(errors, &self.path, Some(self.value));
    }

    /// It must be there, and `check` must have nothing to say.
    pub(crate) fn named(&self, errors: &mut Errors, check: fn(&str) -> Vec<String>) {
        if self.text().is_empty() {
            self.required(errors, "");
        } else {
            self.complain(errors, check(self.text()));
        }
    }

    /// Where it is there, `check` must have nothing to say.
    pub(crate) fn checked(&self, errors: &mut Errors, check: fn(&str) -> Vec<String>) {
        if !self.text().is_empty() {
            self.complain(errors, check(self.text()));
        }
    }
}
