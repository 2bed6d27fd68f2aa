//! The seam between a session and a way to its peer.
//!
//! A session's bond writes datagrams for its paths and takes what they bring; it knows nothing of QUIC. A path states what it can do
//! ([`PathFacts`]), so that a TLS-over-TCP path for sites that block UDP (`tcp`) stands beside `quic`, and a multipath connection can.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;

use crate::bond::Policy;
use crate::meter::Carried;
use crate::types::CloseReason;

/// What a path can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathFacts {
    /// Largest datagram in bytes, now; 0 when it takes none.
    pub max_datagram: usize,
    /// Every datagram arrives while the path lives.
    pub reliable: bool,
    /// Datagrams arrive in the order sent.
    pub ordered: bool,
}

/// What carries a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A QUIC connection.
    Quic,
    /// TLS over TCP: the site blocks UDP.
    Tcp,
    /// The same through an HTTP proxy, `host:port`.
    TcpVia(String),
}

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Quic => f.write_str("quic"),
            Self::Tcp => f.write_str("tcp"),
            Self::TcpVia(proxy) => write!(f, "tcp via {proxy}"),
        }
    }
}

/// What was seen on a path, for [`crate::liveness`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets that arrived from the peer and were authentic or at least addressed to this path.
    pub received: u64,
    /// Packets sent that the peer must acknowledge.
    pub eliciting: u64,
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// What the network has carried, headers of UDP (TCP) and IP included.
    pub carried: Carried,
}

/// What the scheduler above tells a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hint {
    /// There is more for this path than it takes.
    pub backlogged: bool,
    /// The path does not answer: probes must leave whatever its congestion window says.
    pub probing: bool,
}

/// One way to the peer, as the session's table holds it. All methods may run concurrently.
pub trait PathControl: std::fmt::Debug + Send + Sync {
    /// What this path can do now.
    fn facts(&self) -> PathFacts;
    /// Asks the session at the other end to answer; resolves when it has, else never.
    fn challenge(&self) -> BoxFuture<'_, ()>;
    /// What was seen so far.
    fn counters(&self) -> Counters;
    /// Where the peer is, as this end sees it; a proxy between the two is what it sees.
    fn remote(&self) -> SocketAddr;
    /// What carries it.
    fn transport(&self) -> Transport;
    /// What the scheduler knows.
    fn hint(&self, hint: Hint);
    /// Tells the hub what the path may carry and costs from now on. Only an edge does.
    fn tell(&self, policy: Policy) -> BoxFuture<'_, ()>;
    /// Ends the path and tells the peer why.
    fn close(&self, reason: &CloseReason);
}

/// One way to the peer, as the task that runs it sees it. Futures are cancel-safe unless they say otherwise.
pub trait PathTransport: PathControl {
    /// Sends one datagram; returns when the path has taken it, which is when it has room.
    fn send(&self, datagram: Bytes) -> impl Future<Output = Result<(), CloseReason>> + Send;
    /// The next datagram of the peer.
    fn receive(&self) -> impl Future<Output = Result<Bytes, CloseReason>> + Send;
    /// Serves what the ends say to each other about the path, until it ends; what the peer says of its policy goes to `told`. Not
    /// cancel-safe.
    fn serve(&self, told: &(dyn Fn(Policy) + Send + Sync)) -> impl Future<Output = CloseReason> + Send;
    /// Resolves when the path has ended, with why.
    fn closed(&self) -> impl Future<Output = CloseReason> + Send;
}
