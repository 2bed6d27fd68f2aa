//! The seam between a session and a way to its peer.
//!
//! A session drains its outbox into its paths and lets them fill its inbox; it knows nothing of QUIC. A path states what it can
//! do ([`PathFacts`]), so that a TLS-over-TCP path for sites that block UDP, or a multipath connection, can stand beside `quic`.

use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;

use crate::session::ByteStream;
use crate::types::{CloseReason, Priority};

/// What a path can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathFacts {
    /// Largest frame in bytes.
    pub max_frame: usize,
    /// Every frame arrives while the path lives.
    pub reliable: bool,
    /// Frames arrive in the order sent.
    pub ordered: bool,
}

/// What was seen on a path, for [`crate::liveness`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Datagrams that arrived from the peer and were authentic or at least addressed to this path.
    pub received: u64,
    /// Frames sent that the peer must acknowledge.
    pub eliciting: u64,
    /// Smoothed round-trip time.
    pub rtt: Duration,
}

/// Where a path puts what arrives. Returns false when the session is over.
pub trait Sink: Send + Sync {
    /// Hands over one message; waits while the session's reader is behind.
    fn deliver(&self, priority: Priority, message: Bytes) -> BoxFuture<'_, bool>;
}

/// One way to the peer. All methods may run concurrently; futures are cancel-safe unless they say otherwise.
pub trait PathTransport: std::fmt::Debug + Send + Sync {
    /// What this path can do.
    fn facts(&self) -> PathFacts;
    /// Sends one message; returns when the path has taken it. Not cancel-safe: a message may be cut, which ends the path.
    fn send(&self, priority: Priority, message: Bytes) -> BoxFuture<'_, Result<(), CloseReason>>;
    /// Delivers what arrives until the path or the session ends.
    fn receive<'a>(&'a self, sink: &'a dyn Sink) -> BoxFuture<'a, CloseReason>;
    /// Opens a byte stream to the peer.
    fn open_stream(&self) -> BoxFuture<'_, Result<ByteStream, CloseReason>>;
    /// The next byte stream that the peer opens.
    fn accept_stream(&self) -> BoxFuture<'_, Result<ByteStream, CloseReason>>;
    /// Asks the session at the other end to answer; resolves when it has, else never.
    fn challenge(&self) -> BoxFuture<'_, ()>;
    /// What was seen so far.
    fn counters(&self) -> Counters;
    /// Ends the path and tells the peer why.
    fn close(&self, reason: &CloseReason);
    /// Resolves when the path has ended, with why.
    fn closed(&self) -> BoxFuture<'_, CloseReason>;
}
