//! Encoding, and decoding with a byte budget.
//!
//! A repeated field can cost many times its bytes: an empty submessage is two bytes on the wire and tens in memory. So the
//! bytes are counted before they are decoded (`count`): there may be [`MAX_REPEATED`] fields in a message, and packed
//! numbers shorter than 8 bytes only in short lists. Byte fields are slices of what arrived. So decoding allocates at most
//! what arrived plus a constant, but for the growth of lists.

use bytes::Bytes;
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_varint};

use crate::proto;

/// The largest tunnel message, bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;
/// The largest item that is put together from fragments, bytes: an object may have 3 MiB.
pub const MAX_ITEM: usize = 4 << 20;

/// Fields that one message may have, each occurrence of a repeated one counted; a SnapshotSent has the most: a mark a kind.
/// Lists of numbers are packed into one.
pub const MAX_REPEATED: usize = 1024;
/// The largest Ack, bytes: the only list of numbers of variable length.
const MAX_ACK: usize = 1024;

/// Why a message is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// It is larger than its budget.
    #[error("{size} bytes are more than the {limit} that a {what} may have")]
    TooLarge {
        /// What it should be.
        what: &'static str,
        /// Its size, bytes.
        size: usize,
        /// The budget, bytes.
        limit: usize,
    },
    /// It is no protobuf of its type.
    #[error("not a {what}: {source}")]
    Malformed {
        /// What it should be.
        what: &'static str,
        /// prost's reason.
        source: prost::DecodeError,
    },
    /// It has more fields than it may.
    #[error("a {what} with more than {MAX_REPEATED} fields")]
    TooMany {
        /// What it should be.
        what: &'static str,
    },
    /// A field that must be there is not.
    #[error("a {what} without {field}")]
    Missing {
        /// What it should be.
        what: &'static str,
        /// The field.
        field: &'static str,
    },
}

/// Encodes a message.
#[must_use]
pub fn encode(message: &impl Message) -> Bytes {
    message.encode_to_vec().into()
}

fn decode<T: Message + Default>(bytes: Bytes, what: &'static str, limit: usize) -> Result<T, DecodeError> {
    if bytes.len() > limit {
        return Err(DecodeError::TooLarge {
            what,
            size: bytes.len(),
            limit,
        });
    }
    if !count(&bytes) {
        return Err(DecodeError::TooMany { what });
    }
    T::decode(bytes).map_err(|source| DecodeError::Malformed { what, source })
}

/// Whether the body (the one field of `bytes`) has at most [`MAX_REPEATED`] fields, and there is one body. Malformed
/// bytes pass: prost names what is wrong with them.
fn count(bytes: &Bytes) -> bool {
    let mut rest = bytes.clone();
    let mut budget = MAX_REPEATED;
    while let Some((_, body)) = field(&mut rest) {
        budget = budget.saturating_sub(1);
        let mut body = body.unwrap_or_default();
        while field(&mut body).is_some() {
            if budget == 0 {
                return false;
            }
            budget -= 1;
        }
    }
    budget > 0
}

/// The next field's number, and its bytes where it is length-delimited; `None` at the end or where it is malformed.
fn field(bytes: &mut Bytes) -> Option<(u32, Option<Bytes>)> {
    if bytes.is_empty() {
        return None;
    }
    let (tag, kind) = prost::encoding::decode_key(bytes).ok()?;
    if kind == WireType::LengthDelimited {
        let length = usize::try_from(decode_varint(bytes).ok()?).ok()?;
        return (length <= bytes.len()).then(|| (tag, Some(bytes.split_to(length))));
    }
    prost::encoding::skip_field(kind, tag, bytes, DecodeContext::default()).ok()?;
    Some((tag, None))
}

/// Decodes a tunnel message of at most [`MAX_MESSAGE`] bytes.
///
/// # Errors
/// When it is too large, malformed or empty.
pub fn decode_packet(bytes: Bytes) -> Result<proto::packet::Body, DecodeError> {
    if field(&mut bytes.clone()).is_some_and(|(tag, _)| tag == 2) && bytes.len() > MAX_ACK {
        let (what, size, limit) = ("acknowledgement", bytes.len(), MAX_ACK);
        return Err(DecodeError::TooLarge { what, size, limit });
    }
    let packet: proto::Packet = decode(bytes, "packet", MAX_MESSAGE)?;
    packet.body.ok_or(DecodeError::Missing {
        what: "packet",
        field: "body",
    })
}

/// Decodes an item from the hub of at most [`MAX_ITEM`] bytes. A body of a newer hub that is not known here is `None`.
///
/// # Errors
/// When it is too large or malformed.
pub fn decode_down(bytes: Bytes) -> Result<Option<proto::down::Body>, DecodeError> {
    Ok(decode::<proto::Down>(bytes, "message from the hub", MAX_ITEM)?.body)
}

/// Decodes an item from the edge of at most [`MAX_ITEM`] bytes. A body of a newer edge that is not known here is `None`.
///
/// # Errors
/// When it is too large or malformed.
pub fn decode_up(bytes: Bytes) -> Result<Option<proto::up::Body>, DecodeError> {
    Ok(decode::<proto::Up>(bytes, "message from the edge", MAX_ITEM)?.body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proto::{Apply, Down, Frame, Hello, Key, Mark, Packet, Up, down, packet, up};

    fn frame(payload: &[u8]) -> Packet {
        let body = Frame {
            class: 1,
            seq: 7,
            floor: 3,
            fragment: 0,
            fragments: 1,
            ttl_ms: 0,
            key: "Pod/default/web".into(),
            payload: payload.to_vec().into(),
        };
        Packet {
            body: Some(packet::Body::Frame(body)),
        }
    }

    #[test]
    fn golden_bytes_of_a_frame() {
        let expected = "0a1e08011007180328013a0f506f642f64656661756c742f77656242036f6e65";
        let encoded: String = encode(&frame(b"one")).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(encoded, expected);
    }

    #[test]
    fn golden_bytes_of_a_hello() {
        let hello = Hello {
            identity: "cluster".into(),
            marks: vec![Mark {
                kind: "Pod".into(),
                resource_version: 300,
            }],
            have: vec![1, 2],
        };
        let up = Up {
            body: Some(up::Body::Hello(hello)),
        };
        let encoded: String = encode(&up).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            encoded,
            "0a250a07636c757374657212080a03506f6410ac021a1001000000000000000200000000000000"
        );
    }

    #[test]
    fn a_body_of_a_newer_peer_is_none_and_no_error() {
        // Field 100, length-delimited, empty.
        assert_eq!(decode_down(Bytes::from_static(&[0xa2, 0x06, 0x00])).unwrap(), None);
    }

    #[test]
    fn what_is_too_large_is_refused_before_decoding() {
        let error = decode_packet(vec![0; MAX_MESSAGE + 1].into()).unwrap_err();
        assert!(
            error.to_string().contains("65537 bytes are more than the 65536"),
            "{error}"
        );
    }

    #[test]
    fn a_length_beyond_the_message_allocates_nothing() {
        // A payload that claims 4 GiB.
        let bytes = Bytes::from_static(&[0x0a, 0x06, 0x42, 0xff, 0xff, 0xff, 0xff, 0x0f]);
        assert!(decode_packet(bytes).is_err());
    }

    proptest! {
        #[test]
        fn round_trip(uid in ".{0,40}", object in prop::collection::vec(any::<u8>(), 0..500)) {
            let apply = Apply {
                key: Some(Key { kind: "Pod".into(), namespace: "default".into(), name: "web".into() }),
                uid,
                version: vec![1; 32].into(),
                object: object.into(),
            };
            let body = Some(down::Body::Apply(apply));
            prop_assert_eq!(decode_down(encode(&Down { body: body.clone() })).unwrap(), body);
        }

        #[test]
        fn mangled_bytes_never_panic(payload in prop::collection::vec(any::<u8>(), 0..200), flips in prop::collection::vec((any::<usize>(), any::<u8>()), 1..6), cut in any::<usize>()) {
            let mut bytes = encode(&frame(&payload)).to_vec();
            for (at, value) in flips {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            bytes.truncate(cut % (bytes.len() + 1));
            let _ = decode_packet(bytes.clone().into());
            let _ = decode_down(bytes.clone().into());
            let _ = decode_up(bytes.into());
        }
    }
}
