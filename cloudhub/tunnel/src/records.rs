//! What a path over TCP carries: records, one after another on one byte stream.
//!
//! A record is its type (1 byte), the length of what follows (u16, big endian) and at most [`MAX_PAYLOAD`] bytes: a control frame
//! ([`crate::frame`]), a datagram of the bond, a question whether the peer is there, its answer, or the reason of the end. Lengths are
//! checked before anything is kept; what has arrived of one record is all that waits. Pure.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::frame::{self, Control, FrameError, MAX_FRAME};

/// Type and length.
const HEADER: usize = 3;
/// The longest payload: a control frame; datagrams have a third of it.
pub(crate) const MAX_PAYLOAD: usize = MAX_FRAME;
/// The most that [`Decoder`] asks for at once: a TLS record.
const CHUNK: usize = 16 * 1024;

mod kind {
    pub(super) const CONTROL: u8 = 1;
    pub(super) const DATAGRAM: u8 = 2;
    pub(super) const PING: u8 = 3;
    pub(super) const PONG: u8 = 4;
    pub(super) const CLOSE: u8 = 5;
}

/// One record.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Record {
    /// What the ends say of the path and its session.
    Control(Control),
    /// A datagram of the bond.
    Datagram(Bytes),
    /// Are you there?
    Ping,
    /// Yes.
    Pong,
    /// The path ends: a code and a text of [`crate::quic::reason`].
    Close(u8, Bytes),
}

/// The peer sends what is no record.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("a record of {0} bytes exceeds the limit of {MAX_PAYLOAD} bytes")]
    TooLong(usize),
    #[error("a record has the unknown type {0}")]
    Unknown(u8),
    #[error("a record of type {0} has {1} bytes")]
    Length(u8, usize),
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl Record {
    /// Appends it.
    ///
    /// # Errors
    /// It is too long: nothing is appended.
    pub(crate) fn encode(&self, out: &mut BytesMut) -> Result<(), RecordError> {
        match self {
            Self::Control(control) => put(out, kind::CONTROL, &[], &frame::encode(control.clone())?),
            Self::Datagram(datagram) => put(out, kind::DATAGRAM, &[], datagram),
            Self::Ping => put(out, kind::PING, &[], &[]),
            Self::Pong => put(out, kind::PONG, &[], &[]),
            Self::Close(code, text) => put(out, kind::CLOSE, &[*code], text),
        }
    }

    /// Bytes on the stream.
    pub(crate) fn len(&self) -> usize {
        HEADER
            + match self {
                Self::Control(control) => control.encoded_len(),
                Self::Datagram(datagram) => datagram.len(),
                Self::Ping | Self::Pong => 0,
                Self::Close(_, text) => 1 + text.len(),
            }
    }

    /// `None`: a control frame of a newer peer.
    fn decode(kind: u8, mut payload: Bytes) -> Result<Option<Self>, RecordError> {
        let length = payload.len();
        match (kind, length) {
            (kind::CONTROL, _) => match frame::decode(&payload) {
                Ok(control) => Ok(Some(Self::Control(control))),
                Err(FrameError::Unknown) => Ok(None),
                Err(error) => Err(error.into()),
            },
            // A copy: the bond may keep a few bytes for long, and must not keep what came beside them.
            (kind::DATAGRAM, _) => Ok(Some(Self::Datagram(Bytes::copy_from_slice(&payload)))),
            (kind::PING, 0) => Ok(Some(Self::Ping)),
            (kind::PONG, 0) => Ok(Some(Self::Pong)),
            (kind::CLOSE, 1..) => Ok(Some(Self::Close(payload.get_u8(), payload))),
            (kind::PING | kind::PONG | kind::CLOSE, _) => Err(RecordError::Length(kind, length)),
            _ => Err(RecordError::Unknown(kind)),
        }
    }
}

fn put(out: &mut BytesMut, kind: u8, head: &[u8], payload: &[u8]) -> Result<(), RecordError> {
    let length = head.len() + payload.len();
    let stated = u16::try_from(length).ok().filter(|_| length <= MAX_PAYLOAD);
    let stated = stated.ok_or(RecordError::TooLong(length))?;
    out.reserve(HEADER + length);
    out.put_u8(kind);
    out.put_u16(stated);
    out.put_slice(head);
    out.put_slice(payload);
    Ok(())
}

/// Takes a stream of bytes apart.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    buffer: BytesMut,
}

impl Decoder {
    /// Where the next bytes of the stream go, with room for some.
    pub(crate) fn buffer(&mut self) -> &mut BytesMut {
        if self.buffer.capacity() - self.buffer.len() < HEADER + MAX_PAYLOAD {
            self.buffer.reserve(CHUNK);
        }
        &mut self.buffer
    }

    /// The next record; `None` until more bytes have come.
    ///
    /// # Errors
    /// The bytes are no record: nothing that follows can be read.
    pub(crate) fn next(&mut self) -> Result<Option<Record>, RecordError> {
        while let Some((header, _)) = self.buffer.split_first_chunk::<HEADER>() {
            let [kind, high, low] = *header;
            let length = usize::from(u16::from_be_bytes([high, low]));
            if !(kind::CONTROL..=kind::CLOSE).contains(&kind) {
                return Err(RecordError::Unknown(kind));
            }
            if length > MAX_PAYLOAD {
                return Err(RecordError::TooLong(length));
            }
            if self.buffer.len() < HEADER + length {
                return Ok(None);
            }
            self.buffer.advance(HEADER);
            if let Some(record) = Record::decode(kind, self.buffer.split_to(length).freeze())? {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    /// Whether the stream stands between two records.
    pub(crate) fn is_between(&self) -> bool {
        self.buffer.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Record> {
        vec![
            Record::Control(Control::Challenge(vec![7; 8])),
            Record::Datagram(Bytes::from_static(b"bond")),
            Record::Datagram(Bytes::new()),
            Record::Ping,
            Record::Pong,
            Record::Close(6, Bytes::from_static(b"why")),
        ]
    }

    fn bytes(records: &[Record]) -> BytesMut {
        let mut out = BytesMut::new();
        for record in records {
            record.encode(&mut out).unwrap();
        }
        out
    }

    fn read(decoder: &mut Decoder) -> Vec<Record> {
        std::iter::from_fn(|| decoder.next().unwrap()).collect()
    }

    #[test]
    fn records_have_golden_bytes_and_come_back_however_they_are_cut() {
        let bytes = bytes(&all());
        let mut golden = vec![1, 0, 10, 0x22, 8];
        golden.extend([7; 8]);
        golden.extend([2, 0, 4, b'b', b'o', b'n', b'd', 2, 0, 0, 3, 0, 0, 4, 0, 0, 5, 0, 4, 6]);
        golden.extend(b"why");
        assert_eq!(bytes, golden);
        for size in 1..bytes.len() {
            let mut decoder = Decoder::default();
            let mut records = Vec::new();
            for chunk in bytes.chunks(size) {
                decoder.buffer().extend_from_slice(chunk);
                records.extend(read(&mut decoder));
            }
            assert_eq!(records, all(), "in pieces of {size}");
            assert!(decoder.is_between());
        }
    }

    #[test]
    fn what_is_no_record_is_named_before_it_is_kept() {
        for (bytes, why) in [
            (&[2, 0x10, 0x01][..], "4097 bytes exceeds"),
            (&[2, 0xff, 0xff], "65535 bytes exceeds"),
            (&[9, 0, 0], "unknown type 9"),
            (&[0, 0, 0], "unknown type 0"),
            (&[3, 0, 1, 0], "type 3 has 1 bytes"),
            (&[5, 0, 0], "type 5 has 0 bytes"),
            (&[1, 0, 1, 0xff], "not a control frame"),
        ] {
            let mut decoder = Decoder::default();
            decoder.buffer().extend_from_slice(bytes);
            let error = decoder.next().unwrap_err().to_string();
            assert!(error.contains(why), "{bytes:?}: {error}");
        }
        let long = Record::Datagram(Bytes::from(vec![0; MAX_PAYLOAD + 1]));
        assert!(long.encode(&mut BytesMut::new()).is_err());
    }

    #[test]
    fn control_frames_of_a_newer_peer_are_passed_over() {
        let mut decoder = Decoder::default();
        decoder.buffer().extend_from_slice(&[1, 0, 2, 0x7a, 0, 3, 0, 0]);
        assert_eq!(read(&mut decoder), [Record::Ping]);
    }
}
