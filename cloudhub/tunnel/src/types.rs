//! The words of the tunnel's contract: priorities, reasons, and what each end knows of the other.

use std::net::SocketAddr;
use std::time::Duration;

/// How urgent a message is. Each priority has a queue of its own, so urgent never waits behind bulk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Acks, commands, session control.
    Urgent,
    /// Someone waits for it.
    Interactive,
    /// Specs and status.
    Normal,
    /// Telemetry and snapshots.
    Bulk,
}

impl Priority {
    /// All priorities, the most urgent first.
    pub const ALL: [Priority; 4] = [
        Priority::Urgent,
        Priority::Interactive,
        Priority::Normal,
        Priority::Bulk,
    ];

    /// Position in [`Priority::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The priority with this index.
    pub fn from_index(index: u8) -> Option<Self> {
        Self::ALL.get(usize::from(index)).copied()
    }
}

/// Why a session (or one of its paths) ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// No path has answered for [`crate::DORMANT_FOR`]; of one path: it does not answer any more.
    LinkLost,
    /// The other end knows nothing of it any more: it was started again.
    Forgotten,
    /// The other end said goodbye, with its reason. Passed to [`crate::Session::close`], it is the goodbye that we say.
    PeerGoodbye {
        /// What it said; at most 256 bytes.
        text: String,
    },
    /// A session with a higher epoch, or of another incarnation of the node's store, took over.
    Replaced,
    /// The hub does not take this edge.
    Refused {
        /// Why, in words.
        reason: String,
        /// The epoch that the hub knows, where a lower one was offered.
        current_epoch: Option<u64>,
    },
    /// The hub wants the session elsewhere: the edge dials these first from now on.
    Redirected {
        /// Where to.
        to: HubAddresses,
    },
    /// The node's identity was revoked.
    Revoked,
    /// One end broke the rules of the tunnel.
    Violation {
        /// Which.
        text: String,
    },
    /// This end closed it.
    Local,
}

impl std::fmt::Display for CloseReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::LinkLost => f.write_str("link lost"),
            Self::Forgotten => f.write_str("the other end knows nothing of it any more"),
            Self::PeerGoodbye { text } => write!(f, "peer said goodbye: {text}"),
            Self::Replaced => f.write_str("replaced by a newer session"),
            Self::Refused {
                reason,
                current_epoch: None,
            } => write!(f, "refused: {reason}"),
            Self::Refused {
                reason,
                current_epoch: Some(epoch),
            } => write!(f, "refused: {reason} (the hub knows epoch {epoch})"),
            Self::Redirected { to } => write!(f, "redirected to {to}"),
            Self::Revoked => f.write_str("the node's identity was revoked"),
            Self::Violation { text } => write!(f, "a rule of the tunnel was broken: {text}"),
            Self::Local => f.write_str("closed by this end"),
        }
    }
}

/// Where a hub is reached: 1 to 8 addresses, `host:port` each, of [`Self::MAX_TEXT`] bytes together with the commas between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubAddresses(Vec<String>);

/// A text that is no [`HubAddresses`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not 1 to 8 addresses HOST:PORT with commas between them")]
pub struct NotHubAddresses(String);

impl HubAddresses {
    /// Longest text, bytes: what the end of a connection may say.
    pub const MAX_TEXT: usize = 256;

    /// One by one.
    pub fn as_slice(&self) -> &[String] {
        &self.0
    }
}

impl std::str::FromStr for HubAddresses {
    type Err = NotHubAddresses;

    fn from_str(text: &str) -> Result<Self, NotHubAddresses> {
        let is_address = |one: &str| {
            let parts = one.rsplit_once(':');
            parts.is_some_and(|(host, port)| {
                let clean = host.chars().all(|c| c.is_ascii_graphic() && c != ',');
                !host.is_empty() && clean && port.parse::<u16>().is_ok_and(|port| port > 0)
            })
        };
        let all: Vec<String> = text.split(',').map(str::to_owned).collect();
        if text.len() > Self::MAX_TEXT || all.len() > 8 || !all.iter().all(|one| is_address(one)) {
            return Err(NotHubAddresses(text.chars().take(Self::MAX_TEXT).collect()));
        }
        Ok(Self(all))
    }
}

impl std::fmt::Display for HubAddresses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

/// Whether the other end of a session is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It answers, or has not been silent for long.
    Here,
    /// No path has answered for about 10 s: the session is dormant until one does, and takes nothing new meanwhile.
    Away,
}

/// The session is over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("session closed: {reason}")]
pub struct Closed {
    /// Why.
    pub reason: CloseReason,
}

/// Why no stream was opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The session is dormant: nobody would answer.
    #[error("no uplink answers")]
    Away,
    /// The session is over.
    #[error(transparent)]
    Closed(#[from] Closed),
}

/// Why a message or a packet was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The queue is full, or the session is dormant: wait for [`crate::Session::ready`] or [`crate::PacketSender::ready`].
    #[error("the queue of this priority is full")]
    Busy,
    /// The message has more than [`crate::MAX_MESSAGE`] bytes.
    #[error("a message of {size} bytes exceeds the limit of {} bytes", crate::MAX_MESSAGE)]
    TooLarge {
        /// Its size in bytes.
        size: usize,
    },
    /// The packet is larger than the session's paths take, even in two halves.
    #[error("a packet of {size} bytes exceeds the limit of {limit} bytes")]
    PacketTooLarge {
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// Neither an IPv4 nor an IPv6 packet.
    #[error("not an IP packet")]
    NotIp,
    /// The session is over.
    #[error(transparent)]
    Closed(#[from] Closed),
}

/// Who is at the other end. On the hub: the edge. On the edge: the hub, with the edge's own session numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerInfo {
    /// Node name, from the node's certificate.
    pub node: String,
    /// Made with the edge's store; another one means another store.
    pub incarnation: [u8; 16],
    /// Durable, one more for each session of the incarnation.
    pub epoch: u64,
    /// The edge machine's boot id: a new one means that it was rebooted.
    pub boot_id: String,
    /// The edge's process: another one means that the agent was started again; empty from an edge that does not say.
    pub agent: String,
    /// Name of the uplink of the session's first path.
    pub uplink: String,
    /// Where the first path's datagrams come from, as this end sees it.
    pub remote: SocketAddr,
    /// The edge's own address on that uplink, as the edge sees it.
    pub local_addr_of_peer: Option<SocketAddr>,
}

/// What the hub allows one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest message in bytes.
    pub max_message: u32,
    /// Byte streams that the edge may have open at once.
    pub max_streams: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_message: crate::MAX_MESSAGE as u32,
            max_streams: 7,
        }
    }
}

/// The hub's answer to Attach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Random, made at each start of the hub's process.
    pub hub_instance: [u8; 16],
    /// The hub's wall clock, since 1970.
    pub wall_time: Duration,
    /// Where this very instance is reached, `host:port` each; empty = where the edge came in. The session's further paths go there.
    pub addresses: Vec<String>,
    /// What the hub allows.
    pub limits: Limits,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_a_hub_are_read_strictly() {
        for good in ["hub.example:6444", "a:1,[2001:db8::1]:6444,10.0.0.1:443"] {
            assert_eq!(good.parse::<HubAddresses>().unwrap().to_string(), good);
        }
        let (many, long) = (["a:1"; 9].join(","), format!("{}:1", "a".repeat(255)));
        for bad in [
            "", "a", ":1", "a:", "a:0", "a:65536", "a:1,", "a:1, b:2", "a b:1", &many, &long,
        ] {
            assert!(bad.parse::<HubAddresses>().is_err(), "{bad}");
        }
    }
}
