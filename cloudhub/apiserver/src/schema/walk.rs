//! One pass over a body (or over a value), by the tables of types: it builds the object and notes what does not fit.
//!
//! The rules are those of Go's decoder and encoder: `null` is as absent; what Go leaves out where it is empty is left out; a wrong
//! type ends the pass; unknown and duplicate fields are noted and passed over, and nothing is allocated for what is passed over.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::Decoded;
use super::scalar::{canonical_base64, canonical_quantity, canonical_time};
use super::types::{Field, Shape, Type};

/// How deep objects and lists may be nested. The deepest of the API's own types (a Deployment's affinity terms) need 16.
pub(super) const MAX_DEPTH: usize = 100;

/// Faults that are kept, as many as the real server keeps.
const MAX_FAULTS: usize = 100;

/// A step from the object to a value in it.
enum Step {
    Field(&'static str),
    Key(String),
    Index(usize),
}

/// Where the pass is, and what it has found.
struct Pass {
    path: Vec<Step>,
    /// The innermost struct's name: Go's messages begin with it.
    owner: &'static str,
    faults: Vec<String>,
    refusal: Option<String>,
}

/// Builds an object of type `of` from a JSON parser or from a [`Value`].
///
/// # Errors
///
/// Why it is none, in Go's words.
pub(super) fn walk<'de, D: Deserializer<'de>>(source: D, of: &'static Type) -> Result<Decoded, String> {
    let mut pass = Pass {
        path: Vec::new(),
        owner: "",
        faults: Vec::new(),
        refusal: None,
    };
    let seed = Seed {
        pass: &mut pass,
        what: What::Struct(of),
    };
    match seed.deserialize(source) {
        Ok(Value::Null) => Ok(Decoded {
            object: Value::Object(Map::new()),
            faults: pass.faults,
        }),
        Ok(object) => Ok(Decoded {
            object,
            faults: pass.faults,
        }),
        Err(e) => Err(pass.refusal.unwrap_or_else(|| format!("json: {e}"))),
    }
}

impl Pass {
    /// The path as strict decoding writes it: `spec.containers[0].image`.
    fn strict_path(&self, last: &str) -> String {
        let mut out = String::new();
        for step in &self.path {
            let name = match step {
                Step::Index(i) => {
                    out.push_str(&format!("[{i}]"));
                    continue;
                }
                Step::Field(name) => *name,
                Step::Key(name) => name.as_str(),
            };
            if !out.is_empty() {
                out.push('.');
            }
            out.push_str(name);
        }
        if !out.is_empty() {
            out.push('.');
        }
        out.push_str(last);
        out
    }

    fn fault(&mut self, what: &str, last: &str) {
        if self.faults.len() >= MAX_FAULTS {
            return;
        }
        let text = format!("{what} field {:?}", self.strict_path(last));
        if !self.faults.contains(&text) {
            self.faults.push(text);
        }
    }

    /// The path as Go's type errors write it: fields only.
    fn go_path(&self) -> String {
        let fields = self.path.iter().filter_map(|s| match s {
            Step::Field(name) => Some(*name),
            _ => None,
        });
        fields.collect::<Vec<_>>().join(".")
    }

    /// What a type's own reader says, which Go hands on as it is.
    fn refuse_text<E: Error>(&mut self, why: String) -> E {
        self.refusal = Some(why);
        E::custom("refused")
    }

    fn refuse<E: Error>(&mut self, value: &str, what: &What) -> E {
        let of = what.go_name();
        let text = if self.path.is_empty() {
            format!("json: cannot unmarshal {value} into Go value of type {of}")
        } else {
            let path = self.go_path();
            format!(
                "json: cannot unmarshal {value} into Go struct field {}.{path} of type {of}",
                self.owner
            )
        };
        self.refusal = Some(text);
        E::custom("refused")
    }
}

/// What is expected here.
#[derive(Clone, Copy)]
enum What {
    Struct(&'static Type),
    List(&'static Shape),
    Map(&'static Shape),
    Scalar(Shape),
}

impl What {
    fn of(shape: Shape) -> Self {
        match shape.resolved() {
            Shape::Ref(_) => match shape.target() {
                Some(of) => Self::Struct(of),
                None => Self::Scalar(Shape::Any),
            },
            Shape::List(items) => Self::List(items),
            Shape::Map(values) => Self::Map(values),
            scalar => Self::Scalar(scalar),
        }
    }

    fn go_name(self) -> String {
        match self {
            Self::Struct(of) => of.go_name(),
            Self::List(items) => Shape::List(items).go_name(),
            Self::Map(values) => Shape::Map(values).go_name(),
            Self::Scalar(shape) => shape.go_name(),
        }
    }

    /// What a `null` in a list or map becomes: Go's zero value.
    fn zero(self) -> Value {
        match self {
            Self::Struct(_) => Value::Object(Map::new()),
            Self::Scalar(Shape::Text | Shape::Bytes) => "".into(),
            Self::Scalar(Shape::Quantity) => "0".into(),
            Self::Scalar(Shape::Bool) => false.into(),
            Self::Scalar(Shape::Int32 | Shape::Int64 | Shape::IntOrString) => 0.into(),
            Self::List(_) | Self::Map(_) | Self::Scalar(_) => Value::Null,
        }
    }
}

/// Reads one value. `Null` stands for "as absent".
struct Seed<'a> {
    pass: &'a mut Pass,
    what: What,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<Value, D::Error> {
        if self.pass.path.len() >= MAX_DEPTH {
            self.pass.refusal = Some(format!(
                "json: nested deeper than {MAX_DEPTH} at {}",
                self.pass.go_path()
            ));
            return Err(D::Error::custom("refused"));
        }
        match self.what {
            What::Scalar(Shape::Any) => Value::deserialize(source),
            _ => source.deserialize_any(self),
        }
    }
}

impl Seed<'_> {
    fn integer(self, text: &str, value: Option<i64>) -> Result<Value, String> {
        let fits = value.filter(|v| {
            !matches!(self.what, What::Scalar(Shape::Int32 | Shape::IntOrString)) || i32::try_from(*v).is_ok()
        });
        fits.map(Value::from).ok_or_else(|| format!("number {text}"))
    }

    fn number<E: Error>(self, number: &Number) -> Result<Value, E> {
        let text = number.to_string();
        let what = self.what;
        let pass = &mut *self.pass;
        match what {
            What::Scalar(Shape::Int32 | Shape::Int64 | Shape::IntOrString) => {
                let seed = Seed { pass, what };
                match seed.integer(&text, number.as_i64()) {
                    Ok(value) => Ok(value),
                    Err(value) => Err(self.pass.refuse(&value, &what)),
                }
            }
            What::Scalar(Shape::Quantity) => match canonical_quantity(&text) {
                Ok(value) => Ok(value.into()),
                Err(why) => Err(pass.refuse_text(why.to_owned())),
            },
            _ => Err(pass.refuse("number", &what)),
        }
    }

    fn text<E: Error>(self, text: Cow<'_, str>) -> Result<Value, E> {
        let What::Scalar(shape) = self.what else {
            return Err(self.pass.refuse("string", &self.what));
        };
        let read = match shape {
            Shape::Text | Shape::IntOrString => Ok(text.into_owned()),
            Shape::Bytes => canonical_base64(&text),
            Shape::Quantity => canonical_quantity(&text).map_err(str::to_owned),
            Shape::Time => canonical_time(&text, false),
            Shape::MicroTime => canonical_time(&text, true),
            _ => return Err(self.pass.refuse("string", &self.what)),
        };
        read.map(Value::from).map_err(|why| self.pass.refuse_text(why))
    }

    fn fields<'de, A: MapAccess<'de>>(self, of: &'static Type, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        let mut seen = 0_u128;
        let owner = std::mem::replace(&mut self.pass.owner, of.short_name());
        while let Some(key) = map.next_key_seed(KeyOf(of))? {
            let (number, field) = match key {
                Key::Known(number) => (number, &of.fields[number]),
                Key::Unknown(name) => {
                    self.pass.fault("unknown", &name);
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            if seen & (1 << number) != 0 {
                self.pass.fault("duplicate", field.name);
            }
            seen |= 1 << number;
            self.pass.path.push(Step::Field(field.name));
            let value = map.next_value_seed(Seed {
                pass: self.pass,
                what: What::of(field.shape),
            })?;
            self.pass.path.pop();
            // A repeated field replaces, so that the last one counts.
            out.shift_remove(field.name);
            if !leaves_out(field, &value) {
                out.insert(field.name.to_owned(), value);
            }
        }
        self.pass.owner = owner;
        Ok(Value::Object(out))
    }

    fn entries<'de, A: MapAccess<'de>>(self, values: &'static Shape, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        let what = What::of(*values);
        while let Some(key) = map.next_key::<String>()? {
            if out.contains_key(&key) {
                self.pass.fault("duplicate", &key);
            }
            self.pass.path.push(Step::Key(key.clone()));
            let seed = Seed { pass: self.pass, what };
            let value = map.next_value_seed(seed)?;
            self.pass.path.pop();
            let value = if value.is_null() { what.zero() } else { value };
            out.insert(key, value);
        }
        Ok(Value::Object(out))
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        match self.what {
            What::Scalar(Shape::Bool) => Ok(Value::Bool(value)),
            _ => Err(self.pass.refuse("bool", &self.what)),
        }
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        self.number(&value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        self.number(&value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        match Number::from_f64(value) {
            Some(number) => self.number(&number),
            None => Err(self.pass.refuse("number", &self.what)),
        }
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        self.text(Cow::Borrowed(value))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        self.text(Cow::Owned(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let What::List(items) = self.what else {
            return Err(self.pass.refuse("array", &self.what));
        };
        let what = What::of(*items);
        let mut out = Vec::new();
        loop {
            self.pass.path.push(Step::Index(out.len()));
            let seed = Seed { pass: self.pass, what };
            let next = list.next_element_seed(seed)?;
            self.pass.path.pop();
            match next {
                Some(Value::Null) => out.push(what.zero()),
                Some(value) => out.push(value),
                None => return Ok(Value::Array(out)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Value, A::Error> {
        match self.what {
            What::Struct(of) => self.fields(of, map),
            What::Map(values) => self.entries(values, map),
            _ => Err(self.pass.refuse("object", &self.what)),
        }
    }
}

/// A field's name, looked up without a copy.
struct KeyOf(&'static Type);

enum Key {
    Known(usize),
    Unknown(String),
}

impl<'de> DeserializeSeed<'de> for KeyOf {
    type Value = Key;

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<Key, D::Error> {
        source.deserialize_str(self)
    }
}

impl Visitor<'_> for KeyOf {
    type Value = Key;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field's name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Key, E> {
        let found = self.0.fields.binary_search_by(|f| f.name.cmp(name));
        Ok(found.map_or_else(|_| Key::Unknown(name.to_owned()), Key::Known))
    }
}

/// Whether Go would not write the field with this value.
fn leaves_out(field: &Field, value: &Value) -> bool {
    match value {
        Value::Null => true,
        _ if field.written || field.pointer => false,
        Value::Array(items) => items.is_empty() && matches!(field.shape, Shape::List(_)),
        Value::Object(entries) => entries.is_empty() && matches!(field.shape, Shape::Map(_)),
        Value::String(text) => text.is_empty() && matches!(field.shape, Shape::Text | Shape::Bytes),
        Value::Bool(value) => !value && matches!(field.shape, Shape::Bool),
        Value::Number(number) => number.as_f64() == Some(0.0) && matches!(field.shape, Shape::Int32 | Shape::Int64),
    }
}

/// See [`super::complete`].
pub(super) fn complete(object: &mut Value, of: &'static Type) {
    let Value::Object(entries) = object else { return };
    for field in of.fields {
        match entries.get_mut(field.name) {
            // Go's codecs do not keep an empty list: what is read back is none.
            Some(Value::Array(list)) if list.is_empty() && field.written => {
                entries.insert(field.name.to_owned(), Value::Null);
            }
            Some(value) => complete_shape(value, field.shape),
            None => {
                if let Some(mut value) = always_written(field) {
                    complete_shape(&mut value, field.shape);
                    entries.insert(field.name.to_owned(), value);
                }
            }
        }
    }
}

fn complete_shape(value: &mut Value, shape: Shape) {
    match (What::of(shape), value) {
        (What::Struct(of), value) => complete(value, of),
        (What::List(items), Value::Array(list)) => list.iter_mut().for_each(|v| complete_shape(v, *items)),
        (What::Map(values), Value::Object(map)) => map.values_mut().for_each(|v| complete_shape(v, *values)),
        _ => {}
    }
}

/// What Go writes for a field that nobody set; None: nothing.
fn always_written(field: &Field) -> Option<Value> {
    let what = What::of(field.shape);
    if field.pointer {
        return field.written.then_some(Value::Null);
    }
    match what {
        What::Struct(_) if !field.value => field.written.then_some(Value::Null),
        What::Struct(_) => Some(what.zero()),
        // References to what is no struct: times, quantities, ports.
        What::Scalar(_) if matches!(field.shape, Shape::Ref(_)) => field.value.then(|| what.zero()),
        _ => field.written.then(|| what.zero()),
    }
}
