//! Session control frames: the first on each connection, on the stream that the edge opens first.
//!
//! Edge: [`Attach`]. Hub: [`WelcomeFrame`] or [`RefusedFrame`]; later [`Control::Challenge`], answered with the same nonce.
//! A frame is its length (u16, big endian) and a protobuf message of at most [`MAX_FRAME`] bytes. Unknown fields are skipped, so
//! that a newer end may say more.

use std::num::NonZeroU64;

use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::bond::{Carries, Policy};
use crate::types::Welcome;

/// Attach is under 300 bytes, Welcome under 1 KiB with ten addresses.
pub(crate) const MAX_FRAME: usize = 4096;

/// One frame.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Frame {
    #[prost(oneof = "Control", tags = "1, 2, 3, 4, 5, 6")]
    pub(crate) control: Option<Control>,
}

/// What a frame says.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Control {
    #[prost(message, tag = "1")]
    Attach(Attach),
    #[prost(message, tag = "2")]
    Welcome(WelcomeFrame),
    #[prost(message, tag = "3")]
    Refused(RefusedFrame),
    #[prost(bytes = "vec", tag = "4")]
    Challenge(Vec<u8>),
    #[prost(bytes = "vec", tag = "5")]
    ChallengeAnswer(Vec<u8>),
    #[prost(message, tag = "6")]
    Policy(PolicyFrame),
}

/// The edge names its session.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Attach {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) incarnation: Vec<u8>,
    #[prost(uint64, tag = "2")]
    pub(crate) epoch: u64,
    #[prost(string, tag = "3")]
    pub(crate) boot_id: String,
    #[prost(string, tag = "4")]
    pub(crate) uplink: String,
    /// Socket address of the uplink as the edge sees it; empty = unknown.
    #[prost(string, tag = "5")]
    pub(crate) local_address: String,
    /// Random, made at the start of the edge's process; empty = unknown.
    #[prost(string, tag = "6")]
    pub(crate) agent: String,
    /// The path's number in its session, below 256.
    #[prost(uint32, tag = "7")]
    pub(crate) path: u32,
    /// One more path of a session that was welcomed over another: never the start of one.
    #[prost(bool, tag = "8")]
    pub(crate) joins: bool,
    /// How often the edge asks whether the idle path is there; 0 = every 8 s.
    #[prost(uint32, tag = "9")]
    pub(crate) ping_seconds: u32,
    /// What the path may carry and costs; none = everything, and nothing.
    #[prost(message, optional, tag = "10")]
    pub(crate) policy: Option<PolicyFrame>,
}

/// What a path may carry and costs: the edge says it in Attach, and again when it changes. A hub that does not know it sends what it likes.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PolicyFrame {
    #[prost(bool, tag = "1")]
    pub(crate) metered: bool,
    /// A bit a priority, the most urgent is 1.
    #[prost(uint32, tag = "2")]
    pub(crate) allow: u32,
    #[prost(uint32, tag = "3")]
    pub(crate) when_alone: u32,
    #[prost(sint32, tag = "4")]
    pub(crate) priority: i32,
    /// Bytes a second each way; 0 = no limit.
    #[prost(uint64, tag = "5")]
    pub(crate) rate: u64,
}

impl From<Policy> for PolicyFrame {
    fn from(policy: Policy) -> Self {
        Self {
            metered: policy.metered,
            allow: policy.allow.bits(),
            when_alone: policy.when_alone.bits(),
            priority: policy.priority,
            rate: policy.rate.map_or(0, NonZeroU64::get),
        }
    }
}

impl From<PolicyFrame> for Policy {
    fn from(frame: PolicyFrame) -> Self {
        Self {
            metered: frame.metered,
            allow: Carries::from_bits(frame.allow),
            when_alone: Carries::from_bits(frame.when_alone),
            priority: frame.priority,
            rate: NonZeroU64::new(frame.rate),
        }
    }
}

/// The hub takes the session.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct WelcomeFrame {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) hub_instance: Vec<u8>,
    #[prost(uint64, tag = "2")]
    pub(crate) wall_time_millis: u64,
    #[prost(string, repeated, tag = "3")]
    pub(crate) addresses: Vec<String>,
    #[prost(uint32, tag = "4")]
    pub(crate) max_message: u32,
    #[prost(uint32, tag = "5")]
    pub(crate) max_streams: u32,
}

impl From<&Welcome> for WelcomeFrame {
    fn from(welcome: &Welcome) -> Self {
        Self {
            hub_instance: welcome.hub_instance.to_vec(),
            wall_time_millis: u64::try_from(welcome.wall_time.as_millis()).unwrap_or(u64::MAX),
            addresses: welcome.addresses.clone(),
            max_message: welcome.limits.max_message,
            max_streams: welcome.limits.max_streams,
        }
    }
}

/// The hub does not take the session.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct RefusedFrame {
    #[prost(string, tag = "1")]
    pub(crate) reason: String,
    #[prost(uint64, optional, tag = "2")]
    pub(crate) current_epoch: Option<u64>,
}

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("the stream broke")]
    Io(#[from] std::io::Error),
    #[error("a control frame of {0} bytes exceeds the limit of {MAX_FRAME}")]
    TooLong(usize),
    #[error("not a control frame")]
    Decode(#[from] prost::DecodeError),
    #[error("an empty or unknown control frame")]
    Unknown,
}

/// Reads one frame. Not cancel-safe.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Control, FrameError> {
    let length = usize::from(stream.read_u16().await?);
    if length > MAX_FRAME {
        return Err(FrameError::TooLong(length));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    decode(&bytes)
}

/// A frame without the length before it.
pub(crate) fn decode(bytes: &[u8]) -> Result<Control, FrameError> {
    Frame::decode(bytes)?.control.ok_or(FrameError::Unknown)
}

/// The same the other way; at most [`MAX_FRAME`] bytes.
pub(crate) fn encode(control: Control) -> Result<Vec<u8>, FrameError> {
    let body = Frame { control: Some(control) }.encode_to_vec();
    match body.len() {
        0..=MAX_FRAME => Ok(body),
        length => Err(FrameError::TooLong(length)),
    }
}

/// Writes one frame. Not cancel-safe.
pub(crate) async fn write(stream: &mut (impl AsyncWrite + Unpin), control: Control) -> Result<(), FrameError> {
    let body = encode(control)?;
    let length = u16::try_from(body.len()).map_err(|_| FrameError::TooLong(body.len()))?;
    let mut bytes = Vec::with_capacity(2 + body.len());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&body);
    stream.write_all(&bytes).await?;
    stream.flush().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Priority;

    fn attach() -> Control {
        Control::Attach(Attach {
            incarnation: vec![7; 16],
            epoch: 300,
            boot_id: "b".to_owned(),
            uplink: "lte0".to_owned(),
            local_address: String::new(),
            agent: String::new(),
            path: 0,
            joins: false,
            ping_seconds: 0,
            policy: None,
        })
    }

    #[tokio::test]
    async fn attach_has_golden_bytes() {
        let mut bytes = Vec::new();
        write(&mut bytes, attach()).await.unwrap();
        let mut golden = vec![0, 32, 0x0a, 30, 0x0a, 16];
        golden.extend([7; 16]);
        golden.extend([0x10, 0xac, 0x02, 0x1a, 1, b'b', 0x22, 4]);
        golden.extend(b"lte0");
        assert_eq!(bytes, golden);
        assert_eq!(read(&mut bytes.as_slice()).await.unwrap(), attach());
    }

    #[test]
    fn a_policy_survives_the_wire() {
        let policy = Policy {
            allow: Carries::from(Priority::Interactive),
            priority: -7,
            rate: NonZeroU64::new(250_000),
            ..Policy::metered()
        };
        for policy in [policy, Policy::metered(), Policy::default()] {
            let bytes = PolicyFrame::from(policy).encode_to_vec();
            assert_eq!(Policy::from(PolicyFrame::decode(bytes.as_slice()).unwrap()), policy);
        }
    }

    #[tokio::test]
    async fn mangled_frames_are_errors() {
        let mut bytes = Vec::new();
        write(&mut bytes, attach()).await.unwrap();
        for cut in 0..bytes.len() {
            assert!(read(&mut &bytes[..cut]).await.is_err());
        }
        for position in 0..bytes.len() {
            for bit in 0..8 {
                let mut mangled = bytes.clone();
                mangled[position] ^= 1 << bit;
                let _ = read(&mut mangled.as_slice()).await;
            }
        }
        let oversized = [0xff; 70_000];
        assert!(matches!(
            read(&mut oversized.as_slice()).await,
            Err(FrameError::TooLong(65_535))
        ));
        assert!(matches!(read(&mut [0, 0].as_slice()).await, Err(FrameError::Unknown)));
    }
}
