//! Bodies in protobuf, the form in which `kubectl create` and Go's typed clients send their objects. It is only read: whoever sends
//! it also takes JSON.
//!
//! A body is [`MAGIC`], then an envelope (`runtime.Unknown`) of a type and an object. The object becomes the value that its JSON would
//! be, by the numbers in the tables of types; [`super::walk`] goes over it like over any other. As in Go, unknown numbers are passed over.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use super::types::{Field, Shape, Type};
use super::walk::MAX_DEPTH;

/// How a body in protobuf begins.
pub(crate) const MAGIC: &[u8] = b"k8s\0";

/// An object with its type, not yet read.
#[derive(Debug, PartialEq)]
pub(super) struct Envelope<'a> {
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) object: &'a [u8],
}

const CUT_OFF: &str = "unexpected EOF";
const WRONG_WIRE_TYPE: &str = "wrong wire type";

/// Opens the envelope that follows [`MAGIC`].
///
/// # Errors
///
/// Why it is none.
pub(super) fn open(envelope: &[u8]) -> Result<Envelope<'_>, String> {
    let mut opened = Envelope {
        api_version: String::new(),
        kind: String::new(),
        object: &[],
    };
    for part in Parts(envelope) {
        match part? {
            (1, wire) => {
                for part in Parts(wire.bytes()?) {
                    match part? {
                        (1, wire) => opened.api_version = wire.text()?,
                        (2, wire) => opened.kind = wire.text()?,
                        _ => {}
                    }
                }
            }
            (2, wire) => opened.object = wire.bytes()?,
            _ => {}
        }
    }
    Ok(opened)
}

/// The value of an object of type `of`.
///
/// # Errors
///
/// What in it is no protobuf of that type.
pub(super) fn value(object: &[u8], of: &'static Type) -> Result<Value, String> {
    let mut fields = Map::new();
    message(object, of, &mut fields, 0)?;
    Ok(Value::Object(fields))
}

/// What a number stands before.
#[derive(Debug, Clone, Copy)]
enum Wire<'a> {
    Varint(u64),
    /// No type of ours has one.
    Fixed,
    Bytes(&'a [u8]),
}

impl<'a> Wire<'a> {
    fn bytes(self) -> Result<&'a [u8], String> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(WRONG_WIRE_TYPE.into()),
        }
    }

    fn text(self) -> Result<String, String> {
        let text = std::str::from_utf8(self.bytes()?).map_err(|_| "text that is not UTF-8")?;
        Ok(text.to_owned())
    }

    fn number(self) -> Result<i64, String> {
        match self {
            Self::Varint(number) => Ok(number.cast_signed()),
            _ => Err(WRONG_WIRE_TYPE.into()),
        }
    }
}

/// The numbered parts of a message.
struct Parts<'a>(&'a [u8]);

impl<'a> Parts<'a> {
    fn varint(&mut self) -> Result<u64, &'static str> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or(CUT_OFF)?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("integer overflow")
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], &'static str> {
        let length = usize::try_from(length).map_err(|_| CUT_OFF)?;
        let (taken, rest) = self.0.split_at_checked(length).ok_or(CUT_OFF)?;
        self.0 = rest;
        Ok(taken)
    }

    fn part(&mut self) -> Result<(u16, Wire<'a>), &'static str> {
        let key = self.varint()?;
        // Numbers above are in no type of ours: one that is in none stands for them.
        let number = u16::try_from(key >> 3).unwrap_or(u16::MAX);
        let wire = match key & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                Wire::Fixed
            }
            2 => {
                let length = self.varint()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Wire::Fixed
            }
            _ => return Err("illegal wire type"),
        };
        Ok((number, wire))
    }
}

impl<'a> Iterator for Parts<'a> {
    type Item = Result<(u16, Wire<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let part = self.part();
        if part.is_err() {
            self.0 = &[];
        }
        Some(part.map_err(str::to_owned))
    }
}

fn message(bytes: &[u8], of: &'static Type, out: &mut Map<String, Value>, depth: usize) -> Result<(), String> {
    if depth >= MAX_DEPTH {
        return Err(format!("nested deeper than {MAX_DEPTH}"));
    }
    let field = |number| of.fields.iter().find(|f| f.number == number);
    for part in Parts(bytes) {
        let (number, wire) = part?;
        if let Some(field) = field((0, number)) {
            put(out, field, wire, depth).map_err(|why| format!("{}: {why}", field.name))?;
        } else if number != 0 && of.fields.iter().any(|f| f.number.0 == number) {
            for part in Parts(wire.bytes()?) {
                let (inner, wire) = part?;
                if let Some(field) = field((number, inner)) {
                    put(out, field, wire, depth).map_err(|why| format!("{}: {why}", field.name))?;
                }
            }
        }
    }
    Ok(())
}

fn put(out: &mut Map<String, Value>, field: &'static Field, wire: Wire<'_>, depth: usize) -> Result<(), String> {
    let slot = out.entry(field.name).or_insert(Value::Null);
    match (field.shape.resolved(), slot) {
        (Shape::List(items), slot) => {
            if slot.is_null() {
                *slot = json!([]);
            }
            if let Value::Array(list) = slot {
                item(list, *items, wire, depth)?;
            }
        }
        (Shape::Map(values), slot) => {
            if slot.is_null() {
                *slot = json!({});
            }
            if let Value::Object(map) = slot {
                entry(map, *values, wire.bytes()?, depth)?;
            }
        }
        // A struct that is there in parts is all of them together.
        (Shape::Ref(_), Value::Object(fields)) => {
            let of = field.shape.target().ok_or(WRONG_WIRE_TYPE)?;
            message(wire.bytes()?, of, fields, depth + 1)?;
        }
        (shape, slot) => *slot = one(shape, wire, depth)?,
    }
    Ok(())
}

/// An item of a list, or many numbers in one part.
fn item(list: &mut Vec<Value>, shape: Shape, wire: Wire<'_>, depth: usize) -> Result<(), String> {
    let packs = matches!(shape.resolved(), Shape::Int32 | Shape::Int64 | Shape::Bool);
    match wire {
        Wire::Bytes(bytes) if packs => {
            let mut rest = Parts(bytes);
            while !rest.0.is_empty() {
                list.push(one(shape, Wire::Varint(rest.varint()?), depth)?);
            }
        }
        wire => list.push(one(shape, wire, depth)?),
    }
    Ok(())
}

/// An entry of a map: a message of its key and its value.
fn entry(map: &mut Map<String, Value>, values: Shape, bytes: &[u8], depth: usize) -> Result<(), String> {
    let (mut key, mut value) = (String::new(), Value::Null);
    for part in Parts(bytes) {
        match part? {
            (1, wire) => key = wire.text()?,
            (2, wire) => value = one(values, wire, depth)?,
            _ => {}
        }
    }
    map.insert(key, value);
    Ok(())
}

/// One value. Null stands for "as absent".
fn one(shape: Shape, wire: Wire<'_>, depth: usize) -> Result<Value, String> {
    Ok(match shape.resolved() {
        Shape::Text => wire.text()?.into(),
        Shape::Bytes => STANDARD.encode(wire.bytes()?).into(),
        Shape::Bool => (wire.number()? != 0).into(),
        Shape::Int32 | Shape::Int64 => wire.number()?.into(),
        Shape::Time => time(wire.bytes()?, SECONDS)?,
        Shape::MicroTime => time(wire.bytes()?, MICROSECONDS)?,
        Shape::Quantity => only(wire.bytes()?)?.map_or(Ok(Value::Null), |wire| wire.text().map(Value::from))?,
        Shape::IntOrString => int_or_string(wire.bytes()?)?,
        Shape::Any => match only(wire.bytes()?)? {
            Some(wire) => serde_json::from_slice(wire.bytes()?).map_err(|e| format!("json: {e}"))?,
            None => Value::Null,
        },
        // A list that is a map's value is a message of its items.
        Shape::List(items) => {
            let mut list = Vec::new();
            for part in Parts(wire.bytes()?) {
                if let (1, wire) = part? {
                    item(&mut list, *items, wire, depth)?;
                }
            }
            list.into()
        }
        Shape::Ref(_) | Shape::Struct | Shape::Map(_) => {
            let of = shape.target().ok_or(WRONG_WIRE_TYPE)?;
            let mut fields = Map::new();
            message(wire.bytes()?, of, &mut fields, depth + 1)?;
            fields.into()
        }
    })
}

/// The last part of number 1: what the types with rules of their own consist of.
fn only(bytes: &[u8]) -> Result<Option<Wire<'_>>, String> {
    let mut found = None;
    for part in Parts(bytes) {
        if let (1, wire) = part? {
            found = Some(wire);
        }
    }
    Ok(found)
}

/// How a time is written: a Time has whole seconds, a MicroTime six digits more, and neither is read in the other's form.
type Form = &'static [BorrowedFormatItem<'static>];
const SECONDS: Form = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
const MICROSECONDS: Form = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");

/// Seconds and nanoseconds since 1970. The zero time of Go is an empty message.
fn time(bytes: &[u8], form: Form) -> Result<Value, String> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos) = (0, 0);
    for part in Parts(bytes) {
        match part? {
            (1, wire) => seconds = wire.number()?,
            (2, wire) => nanos = wire.number()?,
            _ => {}
        }
    }
    let nanos = i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    let at = OffsetDateTime::from_unix_timestamp_nanos(nanos).map_err(|_| "a time out of range")?;
    at.format(form)
        .map(Value::from)
        .map_err(|_| "a time out of range".into())
}

fn int_or_string(bytes: &[u8]) -> Result<Value, String> {
    let (mut is_text, mut number, mut text) = (false, 0, String::new());
    for part in Parts(bytes) {
        match part? {
            (1, wire) => is_text = wire.number()? != 0,
            (2, wire) => number = wire.number()?,
            (3, wire) => text = wire.text()?,
            _ => {}
        }
    }
    Ok(if is_text { text.into() } else { number.into() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::schema::{decode, find, identity};

    /// Part `number`: a message, a text or bytes.
    fn part(number: u8, bytes: impl AsRef<[u8]>) -> Vec<u8> {
        let bytes = bytes.as_ref();
        assert!(bytes.len() < 0x80, "one byte of length is enough for these tests");
        [&[number << 3 | 2, u8::try_from(bytes.len()).unwrap()], bytes].concat()
    }

    fn body(api_version: &str, kind: &str, object: &[u8]) -> Vec<u8> {
        let of = [part(1, api_version), part(2, kind)].concat();
        let mut envelope = part(1, of);
        envelope.extend([2 << 3 | 2, 0x80 | u8::try_from(object.len() & 0x7f).unwrap()]);
        envelope.push(u8::try_from(object.len() >> 7).unwrap());
        envelope.extend(object);
        [MAGIC, &envelope, &part(3, ""), &part(4, "")].concat()
    }

    #[test]
    fn a_secret_has_texts_maps_and_bytes() {
        let entry = [part(1, "key"), part(2, b"\xff\x00")].concat();
        // creationTimestamp is Go's zero time; number 15 is in no type.
        let metadata = [part(1, "a"), part(3, "n"), part(8, ""), part(15, "new")].concat();
        let object = [part(1, metadata), part(2, entry), part(3, "Opaque"), vec![5 << 3, 1]].concat();
        let sent = body("v1", "Secret", &object);
        assert_eq!(identity(&sent).unwrap(), ("v1".into(), "Secret".into()));
        let decoded = decode(&sent, "v1", "Secret").unwrap();
        assert_eq!(decoded.faults, Vec::<String>::new());
        assert_eq!(
            decoded.object,
            json!({"metadata": {"name": "a", "namespace": "n"}, "data": {"key": "/wA="}, "type": "Opaque", "immutable": true})
        );
    }

    #[test]
    fn embedded_structs_and_types_with_rules_of_their_own_are_read() {
        let get = [part(1, "/"), part(2, [1 << 3, 1, 3 << 3 | 2, 1, b'p'])].concat();
        let probe = [part(1, part(2, get)), vec![2 << 3, 7]].concat();
        let cpu = [part(1, "cpu"), part(2, part(1, "0.5"))].concat();
        let container = [part(1, "c"), part(8, part(2, cpu)), part(11, probe)].concat();
        let volume = [part(1, "v"), part(2, part(6, part(1, "s")))].concat();
        let gates = part(4, vec![8, 0x80, 8, 0x80, 8]);
        let security = [vec![4 << 3, 5, 4 << 3, 6], gates].concat();
        let spec = [part(2, &container), part(1, volume), part(14, security)].concat();
        let object = [vec![2 << 3 | 2, u8::try_from(spec.len()).unwrap()], spec].concat();
        let decoded = decode(&body("v1", "Pod", &object), "v1", "Pod").unwrap();
        let container = json!({"name": "c", "resources": {"requests": {"cpu": "500m"}},
            "readinessProbe": {"httpGet": {"path": "/", "port": "p"}, "initialDelaySeconds": 7}});
        assert_eq!(decoded.object["spec"]["containers"], json!([container]));
        assert_eq!(
            decoded.object["spec"]["volumes"],
            json!([{"name": "v", "secret": {"secretName": "s"}}])
        );
        let groups = &decoded.object["spec"]["securityContext"]["supplementalGroups"];
        assert_eq!(*groups, json!([5, 6, 8, 1024, 1024]), "one by one, and packed");
    }

    #[test]
    fn a_time_and_a_map_of_lists_are_read() {
        let micro = [vec![8, 5, 16, 0x80, 0x89, 0x7a]].concat();
        let lease = part(2, part(4, micro));
        let decoded = decode(
            &body("coordination.k8s.io/v1", "Lease", &lease),
            "coordination.k8s.io/v1",
            "Lease",
        );
        assert_eq!(
            decoded.unwrap().object["spec"]["renewTime"],
            "1970-01-01T00:00:05.002000Z"
        );
        let extra = [part(1, "scopes"), part(2, [part(1, "a"), part(1, "b")].concat())].concat();
        let review = part(2, part(5, extra));
        let of = ("authorization.k8s.io/v1", "SubjectAccessReview");
        let decoded = decode(&body(of.0, of.1, &review), of.0, of.1).unwrap();
        assert_eq!(decoded.object["spec"]["extra"], json!({"scopes": ["a", "b"]}));
    }

    #[test]
    fn what_is_cut_off_or_of_another_form_is_refused() {
        let object = part(1, part(1, "name"));
        let sent = body("v1", "ConfigMap", &object);
        let status = decode(&sent[..sent.len() - 6], "v1", "ConfigMap").unwrap_err();
        assert_eq!(status.code, 400);
        let wrong = body("v1", "ConfigMap", &[1 << 3, 1]);
        let status = decode(&wrong, "v1", "ConfigMap").unwrap_err();
        assert!(status.message.ends_with("proto: metadata: wrong wire type"), "{status}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = open(&bytes);
            for kind in ["Pod", "Service", "Secret"] {
                let _ = value(&bytes, find("v1", kind).unwrap());
            }
        }
    }
}
