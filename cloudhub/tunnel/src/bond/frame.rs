//! What travels in one datagram of a path: a header and frames, big endian.
//!
//! ```text
//! packet    = flags (0x40, +1 asks for an acknowledgement at once), path sequence (low 32 bits), frame…
//! DATAGRAM  = 0x00 + order (2 bits) + part (2 bits), number (u32), flow (u16: generation 4 bits, slot 12), flow sequence (u32), rest
//! MESSAGE   = 0x10 + priority (2 bits), id (u32), offset (u16), size - 1 (u16), length (u16), bytes
//! STREAM    = 0x20 + fin (1 bit) + priority (2 bits), id, offset, length (u16), bytes
//! ACK       = 0x30, blocks (u8), each: path (u8), largest (u32), delay (u16, 16 µs), further ranges (u8), length - 1, {gap - 1, length - 1}…
//! PROBE     = 0x31
//! CREDIT    = 0x32, stream, offset up to which it may send
//! RESET     = 0x33, stream, code (u32): the sender of the stream gives it up
//! STOP      = 0x34, stream, code (u32): the reader of the stream wants no more
//! ```
//!
//! Numbers without a size are QUIC's variable-length integers (RFC 9000 §16). A packet of the IP tunnel costs 16 bytes.
//! Everything is bounded before it is kept: frames a packet, blocks and ranges an acknowledgement.

use std::ops::Range;
use std::time::Duration;

use bytes::{Buf, Bytes};

use crate::types::Priority;

/// The packet header and a DATAGRAM's own header, bytes.
pub(crate) const DATAGRAM_OVERHEAD: usize = HEADER + 11;
/// The packet header, bytes.
pub(crate) const HEADER: usize = 5;
/// What a MESSAGE frame costs beside its bytes.
pub(crate) const MESSAGE_OVERHEAD: usize = 11;
/// What a STREAM frame costs at most beside its bytes.
pub(crate) const STREAM_OVERHEAD: usize = 1 + 8 + 8 + 2;
/// Blocks in an acknowledgement: more paths than a robot has.
pub(crate) const MAX_BLOCKS: usize = 16;
/// Ranges in a block: 5 % loss leaves 20 packets a range, so 12 look back over 240 packets, 60 ms at 50 Mbit/s.
pub(crate) const MAX_RANGES: usize = 12;
/// The largest ACK frame: blocks × (header + ranges of at most 2 × 8 bytes).
const MAX_FRAMES: usize = 64;
const VERSION: u8 = 0x40;
const ACK_NOW: u8 = 1;

/// How a flow's packets are put back in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Delivered as they come.
    None,
    /// Held for a short time: datagram protocols that mind disorder.
    Short,
    /// Held until the repair must have come: TCP.
    Long,
}

/// Which part of a packet travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Whole,
    First,
    Second,
}

impl Part {
    /// A bit a half.
    pub(crate) fn bits(self) -> u8 {
        match self {
            Self::First => 1,
            Self::Second => 2,
            Self::Whole => 3,
        }
    }
}

/// What a peer's acknowledgement says of one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AckBlock {
    pub(crate) path: u8,
    /// Low 32 bits of the largest sequence received.
    pub(crate) largest: u32,
    /// How long the largest waited for this acknowledgement.
    pub(crate) delay: Duration,
    /// Distances below `largest` + 1 that were received, the nearest first: `0..3` is the largest and the two before it.
    pub(crate) ranges: Vec<Range<u64>>,
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    Datagram {
        number: u32,
        flow: u16,
        sequence: u32,
        order: Order,
        part: Part,
        payload: Bytes,
    },
    Message {
        id: u32,
        priority: Priority,
        offset: usize,
        size: usize,
        payload: Bytes,
    },
    Stream {
        id: u64,
        priority: Priority,
        offset: u64,
        fin: bool,
        payload: Bytes,
    },
    Ack(Vec<AckBlock>),
    Probe,
    Credit {
        id: u64,
        offset: u64,
    },
    Reset {
        id: u64,
        code: u32,
    },
    Stop {
        id: u64,
        code: u32,
    },
}

/// The head of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) ack_now: bool,
    pub(crate) sequence: u32,
}

/// Why a packet is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// It ends within a field.
    #[error("a packet ends within a frame")]
    Short,
    /// It is of another version or has a frame that is not known.
    #[error("a packet has the unknown byte {0:#04x}")]
    Unknown(u8),
    /// It has more frames, blocks or ranges than a packet may have, or a number out of range.
    #[error("a packet exceeds the limit of {0}")]
    Limit(&'static str),
}

pub(crate) fn put_header(buffer: &mut Vec<u8>, header: Header) {
    buffer.push(VERSION | u8::from(header.ack_now));
    buffer.extend_from_slice(&header.sequence.to_be_bytes());
}

/// Appends a frame, whose fields are in range.
pub(crate) fn put(buffer: &mut Vec<u8>, frame: &Frame) {
    match frame {
        Frame::Datagram {
            number,
            flow,
            sequence,
            order,
            part,
            payload,
        } => {
            buffer.push(*order as u8 | ((*part as u8) << 2));
            buffer.extend_from_slice(&number.to_be_bytes());
            buffer.extend_from_slice(&flow.to_be_bytes());
            buffer.extend_from_slice(&sequence.to_be_bytes());
            buffer.extend_from_slice(payload);
        }
        Frame::Message {
            id,
            priority,
            offset,
            size,
            payload,
        } => {
            buffer.push(0x10 | *priority as u8);
            buffer.extend_from_slice(&id.to_be_bytes());
            put_u16(buffer, *offset);
            put_u16(buffer, size.saturating_sub(1));
            put_u16(buffer, payload.len());
            buffer.extend_from_slice(payload);
        }
        Frame::Stream {
            id,
            priority,
            offset,
            fin,
            payload,
        } => {
            buffer.push(0x20 | u8::from(*fin) | ((*priority as u8) << 1));
            put_varint(buffer, *id);
            put_varint(buffer, *offset);
            put_u16(buffer, payload.len());
            buffer.extend_from_slice(payload);
        }
        Frame::Ack(blocks) => put_ack(buffer, blocks),
        Frame::Probe => buffer.push(0x31),
        Frame::Credit { id, offset } => {
            buffer.push(0x32);
            put_varint(buffer, *id);
            put_varint(buffer, *offset);
        }
        Frame::Reset { id, code } => put_end(buffer, 0x33, *id, *code),
        Frame::Stop { id, code } => put_end(buffer, 0x34, *id, *code),
    }
}

fn put_end(buffer: &mut Vec<u8>, kind: u8, id: u64, code: u32) {
    buffer.push(kind);
    put_varint(buffer, id);
    buffer.extend_from_slice(&code.to_be_bytes());
}

fn put_u16(buffer: &mut Vec<u8>, value: usize) {
    let value = u16::try_from(value).expect("the caller keeps to the largest message and packet");
    buffer.extend_from_slice(&value.to_be_bytes());
}

fn put_varint(buffer: &mut Vec<u8>, value: u64) {
    match value {
        0..0x40 => buffer.push(value as u8),
        0x40..0x4000 => buffer.extend_from_slice(&(value as u16 | 0x4000).to_be_bytes()),
        0x4000..0x4000_0000 => buffer.extend_from_slice(&(value as u32 | 0x8000_0000).to_be_bytes()),
        _ => buffer.extend_from_slice(&(value | 0xc000_0000_0000_0000).to_be_bytes()),
    }
}

fn put_ack(buffer: &mut Vec<u8>, blocks: &[AckBlock]) {
    buffer.push(0x30);
    buffer.push(blocks.len().min(MAX_BLOCKS) as u8);
    for block in blocks.iter().take(MAX_BLOCKS) {
        buffer.push(block.path);
        buffer.extend_from_slice(&block.largest.to_be_bytes());
        let delay = u16::try_from(block.delay.as_micros() / 16).unwrap_or(u16::MAX);
        buffer.extend_from_slice(&delay.to_be_bytes());
        let ranges = &block.ranges[..block.ranges.len().min(MAX_RANGES)];
        buffer.push(ranges.len().saturating_sub(1) as u8);
        let mut end = 0;
        for (n, range) in ranges.iter().enumerate() {
            if n > 0 {
                put_varint(buffer, range.start - end - 1);
            }
            put_varint(buffer, range.end - range.start - 1);
            end = range.end;
        }
    }
}

/// Reads a packet frame by frame.
#[derive(Debug)]
pub(crate) struct Reader {
    rest: Bytes,
    frames: usize,
}

impl Reader {
    /// Starts with the header.
    pub(crate) fn new(mut packet: Bytes) -> Result<(Header, Self), FrameError> {
        let flags = take_u8(&mut packet)?;
        if flags & !ACK_NOW != VERSION {
            return Err(FrameError::Unknown(flags));
        }
        let sequence = take_u32(&mut packet)?;
        let header = Header {
            ack_now: flags & ACK_NOW != 0,
            sequence,
        };
        let reader = Self {
            rest: packet,
            frames: 0,
        };
        Ok((header, reader))
    }

    /// The next frame; None at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        self.frames += 1;
        if self.frames > MAX_FRAMES {
            return Err(FrameError::Limit("frames"));
        }
        let rest = &mut self.rest;
        let kind = take_u8(rest)?;
        let frame = match kind {
            0x00..=0x0f => take_datagram(rest, kind)?,
            0x10..=0x13 => take_message(rest, kind)?,
            0x20..=0x27 => Frame::Stream {
                id: take_varint(rest)?,
                priority: priority((kind >> 1) & 3),
                offset: take_varint(rest)?,
                fin: kind & 1 != 0,
                payload: take_bytes(rest)?,
            },
            0x30 => take_ack(rest)?,
            0x31 => Frame::Probe,
            0x32 => Frame::Credit {
                id: take_varint(rest)?,
                offset: take_varint(rest)?,
            },
            0x33 => Frame::Reset {
                id: take_varint(rest)?,
                code: take_u32(rest)?,
            },
            0x34 => Frame::Stop {
                id: take_varint(rest)?,
                code: take_u32(rest)?,
            },
            unknown => return Err(FrameError::Unknown(unknown)),
        };
        Ok(Some(frame))
    }
}

fn priority(bits: u8) -> Priority {
    Priority::from_index(bits & 3).expect("two bits name one of four")
}

fn take_datagram(rest: &mut Bytes, kind: u8) -> Result<Frame, FrameError> {
    let order = match kind & 3 {
        0 => Order::None,
        1 => Order::Short,
        2 => Order::Long,
        _ => return Err(FrameError::Unknown(kind)),
    };
    let part = match kind >> 2 {
        0 => Part::Whole,
        1 => Part::First,
        2 => Part::Second,
        _ => return Err(FrameError::Unknown(kind)),
    };
    Ok(Frame::Datagram {
        number: take_u32(rest)?,
        flow: take_u16(rest)?,
        sequence: take_u32(rest)?,
        order,
        part,
        payload: std::mem::take(rest),
    })
}

fn take_message(rest: &mut Bytes, kind: u8) -> Result<Frame, FrameError> {
    let id = take_u32(rest)?;
    let offset = usize::from(take_u16(rest)?);
    let size = usize::from(take_u16(rest)?) + 1;
    let payload = take_bytes(rest)?;
    // An empty message travels as an empty fragment of size 1, which no other fragment can be.
    let size = if payload.is_empty() { 0 } else { size };
    if offset + payload.len() > size {
        return Err(FrameError::Limit("a message's size"));
    }
    Ok(Frame::Message {
        id,
        priority: priority(kind),
        offset,
        size,
        payload,
    })
}

fn take_ack(rest: &mut Bytes) -> Result<Frame, FrameError> {
    let count = usize::from(take_u8(rest)?);
    if count > MAX_BLOCKS {
        return Err(FrameError::Limit("blocks"));
    }
    let mut blocks = Vec::with_capacity(count);
    for _ in 0..count {
        let path = take_u8(rest)?;
        let largest = take_u32(rest)?;
        let delay = Duration::from_micros(u64::from(take_u16(rest)?) * 16);
        let further = usize::from(take_u8(rest)?);
        if further >= MAX_RANGES {
            return Err(FrameError::Limit("ranges"));
        }
        let mut ranges = Vec::with_capacity(further + 1);
        let mut start = 0;
        for n in 0..=further {
            if n > 0 {
                start += take_varint(rest)? + 1;
            }
            let end = start + take_varint(rest)? + 1;
            if end > 1 << 32 {
                return Err(FrameError::Limit("a range"));
            }
            ranges.push(start..end);
            start = end;
        }
        blocks.push(AckBlock {
            path,
            largest,
            delay,
            ranges,
        });
    }
    Ok(Frame::Ack(blocks))
}

fn take_u8(rest: &mut Bytes) -> Result<u8, FrameError> {
    rest.try_get_u8().map_err(|_| FrameError::Short)
}

fn take_u16(rest: &mut Bytes) -> Result<u16, FrameError> {
    rest.try_get_u16().map_err(|_| FrameError::Short)
}

fn take_u32(rest: &mut Bytes) -> Result<u32, FrameError> {
    rest.try_get_u32().map_err(|_| FrameError::Short)
}

fn take_varint(rest: &mut Bytes) -> Result<u64, FrameError> {
    let first = *rest.first().ok_or(FrameError::Short)?;
    let length = 1 << (first >> 6);
    if rest.len() < length {
        return Err(FrameError::Short);
    }
    let value = rest.get_uint(length);
    Ok(value & (u64::MAX >> (66 - 8 * length)))
}

fn take_bytes(rest: &mut Bytes) -> Result<Bytes, FrameError> {
    let length = usize::from(take_u16(rest)?);
    if rest.len() < length {
        return Err(FrameError::Short);
    }
    Ok(rest.split_to(length))
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
