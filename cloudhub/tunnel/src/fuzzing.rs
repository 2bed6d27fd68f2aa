//! Doors for `tests/fuzz`: the frames that a peer sends first, what a name server says, and IP packets. Not for anybody else.

use std::net::IpAddr;

use bytes::{Bytes, BytesMut};

use crate::bond::Policy;
use crate::edge::lookup::dns;
use crate::frame::{self, Attach, Control, RefusedFrame, WelcomeFrame};
use crate::ip;
use crate::proxy;
use crate::records::{Decoder, Record};

/// Reads one control frame and writes it again; None where it is refused.
pub async fn control(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let control = frame::read(&mut bytes).await.ok()?;
    let mut again = Vec::new();
    // What a newer peer says is not written again, so it may be shorter and never longer.
    frame::write(&mut again, control).await.ok()?;
    Some(again)
}

/// One frame of each kind.
pub async fn examples() -> Vec<Vec<u8>> {
    let attach = Attach {
        incarnation: vec![7; 16],
        epoch: 300,
        boot_id: "0b8a9f3c".to_owned(),
        uplink: "lte0".to_owned(),
        local_address: "192.0.2.1:4000".to_owned(),
        agent: "1-2".to_owned(),
        path: 3,
        joins: true,
        ping_seconds: 25,
        policy: Some(Policy::metered().into()),
    };
    let welcome = WelcomeFrame {
        hub_instance: vec![9; 16],
        wall_time_millis: 1_800_000_000_000,
        addresses: vec!["hub:6444".to_owned(), "192.0.2.2:6444".to_owned()],
        max_message: 65_536,
        max_streams: 64,
    };
    let refused = RefusedFrame {
        reason: "stale".to_owned(),
        current_epoch: Some(301),
    };
    let mut all = Vec::new();
    for control in [
        Control::Attach(attach),
        Control::Welcome(welcome),
        Control::Refused(refused),
        Control::Challenge(vec![1; 16]),
        Control::ChallengeAnswer(vec![1; 16]),
        Control::Policy(Policy::metered().into()),
    ] {
        let mut bytes = Vec::new();
        frame::write(&mut bytes, control)
            .await
            .expect("an example fits into a frame");
        all.push(bytes);
    }
    all
}

/// Takes a stream of records of a path over TCP apart and puts it together again, for as long as it is one.
pub fn records(bytes: &[u8]) -> Vec<u8> {
    let (mut decoder, mut again) = (Decoder::default(), BytesMut::new());
    // As a socket brings them.
    for piece in bytes.chunks(1000) {
        decoder.buffer().extend_from_slice(piece);
        loop {
            match decoder.next() {
                // What came in a record fits into one again.
                Ok(Some(record)) => drop(record.encode(&mut again)),
                Ok(None) => break,
                Err(_) => return again.to_vec(),
            }
        }
    }
    again.to_vec()
}

/// Streams of records.
pub fn streams_of_records() -> Vec<Vec<u8>> {
    let ends = [Record::Ping, Record::Pong, Record::Close(6, Bytes::from_static(b"why"))];
    let mut all: Vec<Record> = vec![
        Record::Control(Control::Challenge(vec![7; 8])),
        Record::Datagram(Bytes::from(vec![1; 1400])),
    ];
    all.extend(ends);
    let stream = |records: &[Record]| {
        let mut bytes = BytesMut::new();
        for record in records {
            record.encode(&mut bytes).expect("an example fits into a record");
        }
        bytes.to_vec()
    };
    let mut streams: Vec<Vec<u8>> = all.iter().map(|record| stream(std::slice::from_ref(record))).collect();
    streams.push(stream(&all));
    streams
}

/// Whether a proxy's answer to CONNECT is whole and says yes; None where it is an error.
pub fn proxy_answer(bytes: &[u8]) -> Option<bool> {
    proxy::answer(bytes).ok()
}

/// Reads a name server's answer; None where it is none.
pub fn name_answer(bytes: &[u8]) -> Option<Vec<IpAddr>> {
    dns::answer(bytes).map(|(_, addresses)| addresses)
}

/// Answers with an address of each family.
pub fn name_answers() -> Vec<Vec<u8>> {
    let one = |kind: dns::Kind, address: &[u8]| {
        let mut bytes = dns::query(7, "hub.example", kind).expect("a name");
        (bytes[2], bytes[7]) = (0x81, 1);
        // A pointer to the question's name, type, class, TTL, length.
        bytes.extend([0xc0, 12, 0, kind as u8, 0, 1, 0, 0, 0, 60, 0, address.len() as u8]);
        bytes.extend(address);
        bytes
    };
    vec![one(dns::Kind::A, &[192, 0, 2, 7]), one(dns::Kind::Aaaa, &[0xfd; 16])]
}

/// Cuts a read of a TUN device, or joins packets, and looks whether the other way gives back what was there.
///
/// # Errors
/// What was lost or changed.
pub fn offload(bytes: &[u8]) -> Result<(), String> {
    ip::fuzzing::check(bytes)
}

/// Reads and lists of packets.
pub fn offloads() -> Vec<Vec<u8>> {
    ip::fuzzing::corpus()
}
