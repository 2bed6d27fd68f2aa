//! What hub and edge say to each other: wire, relay, tunnel.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::executor::block_on;
use relay::{Event, Faults, Item, Lineage, Link, Replica, ReplicaState, Source, SourceObject, SourceView};
use wire::proto::{
    Ack, Adopt, Apply, Begin, Delete, Descent, Down, Frame, Gone, Hello, Key, Mark, Marks, Packet, Place, SnapshotSent,
    Status, Suspect, Up, down, packet, up,
};
use wire::{ClassId, Now};

fn key() -> Option<Key> {
    Some(Key {
        kind: "Pod".into(),
        namespace: "default".into(),
        name: "web".into(),
    })
}

fn marks() -> Vec<Mark> {
    ["Pod", "Node"]
        .map(|kind| Mark {
            kind: kind.into(),
            resource_version: 300,
        })
        .to_vec()
}

fn frame(class: u8, seq: u64, floor: u64, part: (u32, u32), payload: Bytes) -> Bytes {
    let frame = Frame {
        class: u32::from(class),
        seq,
        floor,
        fragment: part.0,
        fragments: part.1,
        ttl_ms: if class == ClassId::COMMAND.0 { 5000 } else { 0 },
        key: "Pod/default/web".into(),
        payload,
    };
    wire::encode(&Packet {
        body: Some(packet::Body::Frame(frame)),
    })
}

fn ack(class: u8, committed: u64, received: u64, also: Vec<u64>) -> Bytes {
    let ack = Ack {
        class: u32::from(class),
        committed,
        received,
        also,
    };
    wire::encode(&Packet {
        body: Some(packet::Body::Ack(ack)),
    })
}

fn vectors(list: impl IntoIterator<Item = Bytes>) -> Vec<Vec<u8>> {
    list.into_iter().map(|bytes| bytes.to_vec()).collect()
}

pub(super) fn packets() -> Vec<Vec<u8>> {
    let some = Bytes::from_static(b"payload");
    vectors([
        frame(1, 1, 1, (0, 1), some.clone()),
        frame(5, 7, 3, (1, 3), some),
        ack(1, 5, 7, vec![9, 11]),
    ])
}

/// What is decoded is encoded to what decodes to the same.
fn same<B: PartialEq + std::fmt::Debug>(body: &B, again: Result<B, wire::DecodeError>) -> Result<(), String> {
    match again {
        Ok(again) if again == *body => Ok(()),
        other => Err(format!("{body:?} is read back as {other:?}")),
    }
}

pub(super) fn packet(input: &[u8]) -> Result<(), String> {
    let Ok(body) = wire::decode_packet(Bytes::copy_from_slice(input)) else {
        return Ok(());
    };
    let encoded = wire::encode(&Packet {
        body: Some(body.clone()),
    });
    same(&body, wire::decode_packet(encoded))
}

fn place() -> Option<Place> {
    Some(Place {
        number: 4,
        id: 5,
        revision: 200,
    })
}

fn down_bodies() -> Vec<down::Body> {
    let (uid, object) = ("0b8a".to_owned(), Bytes::from_static(br#"{"metadata":{"uid":"0b8a"}}"#));
    vec![
        down::Body::Begin(Begin {
            identity: "cluster".into(),
            marks: marks(),
            place: place(),
            descent: Some(Descent {
                number: 4,
                id: 5,
                next: 300,
            }),
        }),
        down::Body::Apply(Apply {
            key: key(),
            uid: uid.clone(),
            version: relay::object_version(&object).to_vec().into(),
            object,
        }),
        down::Body::Delete(Delete { key: key(), uid }),
        down::Body::SnapshotSent(SnapshotSent {
            identity: "cluster".into(),
            marks: marks(),
            count: 1,
            digest: vec![7; 32].into(),
            drop: vec![1, 2],
            place: place(),
        }),
        down::Body::Marks(Marks {
            marks: marks(),
            place: place(),
        }),
        down::Body::Adopt(Adopt {
            identity: "other".into(),
        }),
    ]
}

pub(super) fn downs() -> Vec<Vec<u8>> {
    vectors(
        down_bodies()
            .into_iter()
            .map(|body| wire::encode(&Down { body: Some(body) })),
    )
}

pub(super) fn down(input: &[u8]) -> Result<(), String> {
    let Ok(body) = wire::decode_down(Bytes::copy_from_slice(input)) else {
        return Ok(());
    };
    let encoded = wire::encode(&Down { body: body.clone() });
    same(&body, wire::decode_down(encoded))
}

pub(super) fn ups() -> Vec<Vec<u8>> {
    let (uid, object) = ("0b8a".to_owned(), Bytes::from_static(b"{}"));
    let bodies = [
        up::Body::Hello(Hello {
            identity: "cluster".into(),
            marks: marks(),
            have: vec![1, 2, 3],
            place: place(),
        }),
        up::Body::Suspect(Suspect {
            reason: "older".into(),
            stops: vec!["a/b".into()],
        }),
        up::Body::Status(Status {
            key: key(),
            uid: uid.clone(),
            object: object.clone(),
        }),
        up::Body::Gone(Gone { key: key(), uid }),
        up::Body::Event(wire::proto::Event { object }),
    ];
    vectors(bodies.into_iter().map(|body| wire::encode(&Up { body: Some(body) })))
}

/// The hub decodes it, and a Hello makes it look at what it should send.
pub(super) fn up(input: &[u8]) -> Result<(), String> {
    let Ok(body) = wire::decode_up(Bytes::copy_from_slice(input)) else {
        return Ok(());
    };
    if let Some(up::Body::Hello(hello)) = &body {
        let mut source = Source::new(hello, view());
        while source.poll().is_some() {}
    }
    let encoded = wire::encode(&Up { body: body.clone() });
    same(&body, wire::decode_up(encoded))
}

fn view() -> SourceView {
    let bytes = Bytes::from_static(b"{}");
    let object = SourceObject {
        uid: "0b8a".into(),
        version: relay::object_version(&bytes),
        bytes,
    };
    SourceView {
        identity: "cluster".into(),
        marks: BTreeMap::from([("Pod".to_owned(), 300)]),
        revision: 300,
        lineage: Arc::new(Lineage::parse("4 5 0\n5 6 301\n")),
        objects: BTreeMap::from([(
            Arc::new(("Pod".into(), "default".into(), "web".into())),
            Arc::new(object),
        )]),
    }
}

/// Messages with their lengths before them, u16 big endian.
fn joined(messages: &[Bytes]) -> Vec<u8> {
    let mut out = Vec::new();
    for message in messages {
        out.extend_from_slice(&u16::try_from(message.len()).expect("these are short").to_be_bytes());
        out.extend_from_slice(message);
    }
    out
}

fn taken_apart(mut input: &[u8]) -> Vec<Bytes> {
    let mut messages = Vec::new();
    while let Some((head, rest)) = input.split_first_chunk::<2>() {
        let (message, rest) = rest.split_at(usize::from(u16::from_be_bytes(*head)).min(rest.len()));
        messages.push(Bytes::copy_from_slice(message));
        input = rest;
    }
    messages
}

/// Of each class: items in order, out of order, in parts, with holes, and acknowledgements of what the other end sent.
pub(super) fn conversations() -> Vec<Vec<u8>> {
    let some = || Bytes::from_static(b"0123456789");
    let mut all = Vec::new();
    for class in 0..7 {
        all.push(joined(&[
            frame(class, 1, 1, (0, 1), some()),
            frame(class, 3, 1, (0, 2), some()),
            ack(class, 1, 2, vec![3]),
            frame(class, 3, 1, (1, 2), some()),
            frame(class, 2, 1, (0, 1), some()),
            frame(class, 9, 8, (0, 1), some()),
            ack(class, 3, 3, vec![]),
        ]));
    }
    all
}

/// An end that has sent something of each class gets these messages; its owner commits now and then.
pub(super) fn converse(input: &[u8]) -> Result<(), String> {
    let mut link = Link::new(Faults::default());
    let at = |seconds| Now::at(Duration::from_secs(seconds));
    for class in 0..7 {
        for token in 0..3 {
            let item = Item {
                key: format!("Pod/default/{token}"),
                token,
                ttl: Some(Duration::from_secs(30)),
                ..Item::new(ClassId(class), Bytes::from_static(b"mine"))
            };
            link.send(at(0), item).map_err(|error| error.to_string())?;
        }
    }
    let mut tokens = 0;
    let messages = taken_apart(input);
    for (number, message) in messages.into_iter().enumerate() {
        let now = at(number as u64);
        while link.poll_transmit(now).is_some() {}
        if link.handle_message(now, message).is_err() {
            break;
        }
        while let Some(event) = link.poll_event() {
            match event {
                Event::Received { class, seq, .. } if number % 2 == 0 => link.commit(class, seq),
                Event::Acked { .. } | Event::Dropped { .. } => tokens += 1,
                Event::Received { .. } => {}
            }
        }
        let _ = link.poll_timeout();
    }
    if tokens > 21 {
        return Err(format!("21 items came back {tokens} times"));
    }
    Ok(())
}

pub(super) fn replicas() -> Vec<Vec<u8>> {
    let words: Vec<Bytes> = down_bodies()
        .into_iter()
        .map(|body| wire::encode(&Down { body: Some(body) }))
        .collect();
    vec![
        joined(&words),
        joined(&words[..3]),
        joined(&[words[0].clone(), words[3].clone(), words[4].clone()]),
    ]
}

/// An edge with nothing hears these words of its hub. What it says back, the hub must be able to read.
pub(super) fn replica(input: &[u8]) -> Result<(), String> {
    let mut replica = Replica::new(ReplicaState::default(), BTreeMap::new(), Faults::default());
    replica.hello();
    for message in taken_apart(input) {
        let Ok(body) = wire::decode_down(message) else { break };
        let effect = replica.handle(Down { body });
        let words = effect
            .hello
            .map(up::Body::Hello)
            .into_iter()
            .chain(effect.suspect.map(up::Body::Suspect));
        for body in words {
            let body = Some(body);
            same(&body, wire::decode_up(wire::encode(&Up { body: body.clone() })))?;
        }
    }
    Ok(())
}

pub(super) fn controls() -> Vec<Vec<u8>> {
    block_on(tunnel::fuzzing::examples())
}

pub(super) fn control(input: &[u8]) -> Result<(), String> {
    let Some(again) = block_on(tunnel::fuzzing::control(input)) else {
        return Ok(());
    };
    match block_on(tunnel::fuzzing::control(&again)) {
        Some(third) if third == again => Ok(()),
        other => Err(format!("{again:?} is read back as {other:?}")),
    }
}

pub(super) fn streams_of_records() -> Vec<Vec<u8>> {
    tunnel::fuzzing::streams_of_records()
}

pub(super) fn records(input: &[u8]) -> Result<(), String> {
    let again = tunnel::fuzzing::records(input);
    match tunnel::fuzzing::records(&again) {
        third if third == again => Ok(()),
        third => Err(format!("{again:?} is read back as {third:?}")),
    }
}

pub(super) fn proxy_answers() -> Vec<Vec<u8>> {
    let answers: [&[u8]; 3] = [
        b"HTTP/1.1 200 Connection established\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nVia: 1.1 proxy (squid)\r\n\r\n",
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\nno no",
    ];
    answers.map(<[u8]>::to_vec).into()
}

pub(super) fn proxy_answer(input: &[u8]) -> Result<(), String> {
    // A yes is not taken back, nor given before the end of the head.
    match tunnel::fuzzing::proxy_answer(input) {
        Some(true) if !input.ends_with(b"\r\n\r\n") => Err("yes before the end of the head".to_owned()),
        _ => Ok(()),
    }
}

pub(super) fn name(input: &[u8]) -> Result<(), String> {
    // An address takes its bytes and eleven before them.
    match tunnel::fuzzing::name_answer(input) {
        Some(found) if found.len() * 15 > input.len() => Err(format!("{} addresses of {input:?}", found.len())),
        _ => Ok(()),
    }
}
