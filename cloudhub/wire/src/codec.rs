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
const MAX_REPEATED: usize = 1024;
/// The largest Ack, bytes: the only list of numbers of variable length.
const MAX_ACK: usize = 1024;
/// Field `ack` of Packet.
const PACKET_ACK: u32 = 2;

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
    let mut rest = bytes.clone();
    while let Some((tag, body)) = field(&mut rest) {
        let size = body.map_or(0, |body| body.len());
        if tag == PACKET_ACK && size > MAX_ACK {
            let (what, limit) = ("acknowledgement", MAX_ACK);
            return Err(DecodeError::TooLarge { what, size, limit });
        }
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
    use proto::{Ack, Apply, Down, Frame, Hello, Key, Mark, Packet, Place, Up, down, packet, up};

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

    fn place() -> Place {
        Place {
            number: 4,
            id: 5,
            revision: 9,
        }
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
            place: Some(place()),
        };
        let up = Up {
            body: Some(up::Body::Hello(hello)),
        };
        let encoded: String = encode(&up).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            encoded,
            "0a340a07636c757374657212080a03506f6410ac021a1001000000000000000200000000000000220d08041105000000000000001809"
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

    #[test]
    fn what_would_grow_in_memory_is_refused_before_decoding() {
        let body = Some(up::Body::Hello(Hello {
            marks: vec![Mark::default(); 200_000],
            ..Hello::default()
        }));
        let bytes = encode(&Up { body });
        assert!(bytes.len() < MAX_ITEM);
        let what = "message from the edge";
        assert_eq!(decode_up(bytes), Err(DecodeError::TooMany { what }));
        let ack = Ack {
            also: vec![1; 60_000],
            ..Ack::default()
        };
        let bytes = encode(&Packet {
            body: Some(packet::Body::Ack(ack)),
        });
        assert!(matches!(
            decode_packet(bytes),
            Err(DecodeError::TooLarge { limit: MAX_ACK, .. })
        ));
    }

    #[test]
    fn a_hello_of_many_objects_passes() {
        let body = Some(up::Body::Hello(Hello {
            identity: "cluster".into(),
            marks: vec![Mark::default(); 5],
            have: (0..10_000).collect(),
            place: Some(place()),
        }));
        assert_eq!(decode_up(encode(&Up { body: body.clone() })).unwrap(), body);
    }

    fn hex(message: &impl Message) -> String {
        encode(message).iter().map(|b| format!("{b:02x}")).collect()
    }

    fn key() -> Option<Key> {
        Some(Key {
            kind: "Pod".into(),
            namespace: "a".into(),
            name: "b".into(),
        })
    }

    fn down_bodies() -> Vec<down::Body> {
        let marks = vec![Mark {
            kind: "Pod".into(),
            resource_version: 9,
        }];
        let (uid, text) = ("u".to_owned(), |text: &'static str| Bytes::from_static(text.as_bytes()));
        vec![
            down::Body::Begin(proto::Begin {
                identity: "i".into(),
                marks: marks.clone(),
                place: Some(place()),
                descent: Some(proto::Descent {
                    number: 4,
                    id: 5,
                    next: 8,
                }),
            }),
            down::Body::Apply(Apply {
                key: key(),
                uid: uid.clone(),
                version: text("v"),
                object: text("{}"),
            }),
            down::Body::Delete(proto::Delete { key: key(), uid }),
            down::Body::SnapshotSent(proto::SnapshotSent {
                identity: "i".into(),
                marks: marks.clone(),
                count: 2,
                digest: text("d"),
                drop: vec![3],
                place: Some(place()),
            }),
            down::Body::Marks(proto::Marks {
                marks,
                place: Some(place()),
            }),
            down::Body::Adopt(proto::Adopt { identity: "i".into() }),
        ]
    }

    /// One of each body, so that a changed field number is seen.
    #[test]
    fn golden_bytes_of_every_body() {
        let (uid, text) = ("u".to_owned(), |text: &'static str| Bytes::from_static(text.as_bytes()));
        let up = [
            up::Body::Suspect(proto::Suspect {
                reason: "r".into(),
                stops: vec!["a/b".into()],
            }),
            up::Body::Status(proto::Status {
                key: key(),
                uid: uid.clone(),
                object: text("{}"),
            }),
            up::Body::Gone(proto::Gone { key: key(), uid }),
            up::Body::Event(proto::Event { object: text("{}") }),
        ];
        let ack = Ack {
            class: 1,
            committed: 5,
            received: 7,
            also: vec![9],
        };
        let mut lines: Vec<String> = down_bodies()
            .into_iter()
            .map(|body| hex(&Down { body: Some(body) }))
            .collect();
        lines.extend(up.into_iter().map(|body| hex(&Up { body: Some(body) })));
        lines.push(hex(&Packet {
            body: Some(packet::Body::Ack(ack)),
        }));
        assert_eq!(lines, GOLDEN);
    }

    const GOLDEN: [&str; 11] = [
        "0a2a0a016912070a03506f6410091a0d08041105000000000000001809220d08041105000000000000001808",
        "12170a0b0a03506f641201611a01621201751a017622027b7d",
        "1a100a0b0a03506f641201611a0162120175",
        "222a0a016912070a03506f64100918022201642a080300000000000000320d08041105000000000000001809",
        "2a180a070a03506f641009120d08041105000000000000001809",
        "32030a0169",
        "12080a01721203612f62",
        "1a140a0b0a03506f641201611a01621201751a027b7d",
        "22100a0b0a03506f641201611a0162120175",
        "2a040a027b7d",
        "1209080110051807220109",
    ];

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
