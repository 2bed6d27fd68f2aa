//! The IP tunnel: any IPv4 or IPv6 traffic between a node and the hub's side, through a TUN device on each end.
//!
//! ```text
//! sockets, pods ─► kernel ─► TUN ─ 64 KiB at once ─► split ─► packets ─► session ─► bond ─► uplinks
//! sockets, pods ◄─ kernel ◄─ TUN ◄─ 64 KiB at once ─ coalesce ◄─ packets ◄─ session ◄─ bond ◄─ uplinks
//! ```
//!
//! - [`Tun`] owns the device: its file, its sizes, its counters; addresses and routes are its owner's business
//! - [`run`] moves packets between a device and one session after another; the device stays
//!   - `split`: super-packets of the kernel into packets, checksums completed, SYNs clamped; `coalesce`: the way back (both pure)
//!   - `header`, `checksum`, `clamp`: what packets look like (pure)
//!   - `sys`: the kernel's calls
//!
//! On failure: no session, a full queue, a device that is down: packets are dropped and counted, as on any link; the device's end is the only
//! error. Nothing is ever too large for a session: the device's MTU is below what any path takes in two halves, and the kernel answers
//! larger packets itself (ICMP's "fragmentation needed", ICMPv6's "packet too big").

pub(crate) mod checksum;
mod clamp;
mod coalesce;
pub(crate) mod examples;
pub(crate) mod fuzzing;
mod header;
#[cfg(test)]
mod properties;
mod pump;
mod split;
mod sys;
mod tun;

pub use pump::run;
pub use tun::{Tun, TunConfig, TunError, TunStats};

/// The usual size of the largest inner packet, bytes: the least that IPv6 allows (RFC 8200 §5). With the bond's and QUIC's headers it is
/// 1334 bytes, so that it crosses whole where the network takes 1362 bytes and in halves on anything down to QUIC's 1200. More would save at most
/// 0.8 % of the bytes on an Ethernet, and would be halved on LTE.
pub const INNER_MTU: usize = 1280;
/// The largest inner packet that any path takes, bytes: two halves in the smallest packets of QUIC.
pub const MAX_INNER_MTU: usize = 2288;
