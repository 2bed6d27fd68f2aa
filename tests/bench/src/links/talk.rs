//! What the measuring process and its ends say to each other: a line of JSON each.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::sink::Window;

/// The certificates of an installation, PEM; ends of QUIC use the hub's.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Keys {
    pub(crate) serving_ca: String,
    pub(crate) tunnel_ca: String,
    pub(crate) hub: (String, String),
    /// One a node.
    pub(crate) nodes: Vec<(String, String)>,
}

/// The first line that an end reads.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Setup {
    /// The network namespace that it lives in.
    pub(crate) namespace: String,
    pub(crate) role: Role,
}

/// What an end is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Role {
    TunnelHub {
        keys: Keys,
        listen: SocketAddr,
        /// The address of its TUN device, where it has one.
        inner: Option<String>,
    },
    TunnelEdge {
        keys: Keys,
        hub: SocketAddr,
        /// Devices.
        uplinks: Vec<String>,
        /// The same as one that pays for each byte.
        metered: bool,
        inner: Option<String>,
    },
    Hub {
        listen: SocketAddr,
        carrier: Carrier,
    },
    Edge {
        hub: SocketAddr,
        carrier: Carrier,
        /// The one device; else as the routes lead.
        device: Option<String>,
    },
}

/// What a baseline is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Carrier {
    Quinn { keys: Keys, congestion: String },
    Tcp { congestion: String, multipath: bool },
}

/// What is sent as fast as it is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Load {
    /// UDP packets of no special kind.
    Datagrams,
    /// UDP packets that may overtake each other (DSCP EF).
    Realtime,
    /// Packets of a TCP flow, which are kept in order.
    Ordered,
}

/// What an end is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Command {
    /// Waits until it is connected, over so many paths.
    Connect { paths: usize },
    /// Begins to send until that moment.
    Flood { load: Load, until: u64 },
    /// Sends requests of 256 bytes, 50 a second, until that moment, and says how long their echoes took.
    Ask { until: u64 },
    /// Begins to send a pod spec of 64 KiB a second until that moment.
    Specs { until: u64 },
    /// Begins to send messages of 256 bytes, 50 a second, until that moment, over whatever session there is.
    Beat { until: u64 },
    /// What arrived of the load.
    Seen(Window),
    /// What arrived of messages.
    Heard(Window),
    /// Its own counts.
    Stats,
    /// Forgets what arrived.
    Clear,
}

/// The answer to [`Command::Ask`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Asked {
    /// Round trips, ms, ascending.
    pub(crate) times: Vec<f64>,
    /// Requests without an echo three seconds behind the last.
    pub(crate) lost: usize,
    /// How long pod specs took one way, ms, ascending.
    pub(crate) specs: Vec<f64>,
}

/// The answer to any command.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Done(serde_json::Value),
    Failed(String),
}

/// Nanoseconds of CLOCK_MONOTONIC.
pub(crate) fn now() -> u64 {
    // It cannot fail for a clock that every kernel has.
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}
