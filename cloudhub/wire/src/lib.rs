//! What hub and edge say to each other: messages, classes, limits, time. No tokio, no clock.
//!
//! * [`proto`]: the protobuf messages (`proto/wire.proto`)
//! * [`decode_packet`], [`decode_down`], [`decode_up`]: decoding with a byte budget; what is refused is named
//! * [`CLASSES`]: one row a class of traffic
//! * [`Now`]: time as an argument
//!
//! The first frames of a connection (Attach, Welcome) belong to `tunnel`, which frames them itself.

mod class;
mod codec;
mod time;

pub use class::{CLASSES, ClassId, ClassRow, Delivery, Priority};
pub use codec::{DecodeError, MAX_ITEM, MAX_MESSAGE, decode_down, decode_packet, decode_up, encode};
pub use time::Now;

#[expect(missing_docs, reason = "generated; the proto file documents it")]
#[allow(clippy::all, reason = "generated")]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/kedge.wire.v1.rs"));
}
