//! Who carries the load, and as what its ends are started.

use std::net::SocketAddr;

use anyhow::Result;

use super::keys;
use super::talk::{Carrier, Role};
use super::world::{LINKS, Payload};

/// The hub's one address.
pub(crate) const HUB: ([u8; 4], u16) = ([203, 0, 113, 1], 7000);
/// Inside of a tunnel.
pub(crate) const INNER_HUB: &str = "10.99.0.1";
pub(crate) const INNER_EDGE: &str = "10.99.0.2";
const INNER: ([u8; 4], u16) = ([10, 99, 0, 1], 7001);

/// Who carries the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contender {
    /// Packets and messages of the bench's own.
    Kedge,
    /// The same with metered uplinks.
    Metered,
    /// One flow of the kernel's TCP through Kedge's IP tunnel.
    Inner { congestion: &'static str },
    /// Quinn as it is, over one link.
    Quinn { link: usize, congestion: &'static str },
    /// The kernel's TCP, over one link.
    Tcp { link: usize, congestion: &'static str },
    /// The kernel's MPTCP over all.
    Mptcp { congestion: &'static str },
    /// One flow of the kernel's TCP through boringtun.
    WireGuard { congestion: &'static str },
}

impl Contender {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Kedge => "kedge".to_owned(),
            Self::Metered => "kedge, metered".to_owned(),
            Self::Inner { congestion } => format!("kedge, inner TCP {congestion}"),
            Self::Quinn { link, congestion } => format!("quinn {congestion} over {}", LINKS[link].0),
            Self::Tcp { link, congestion } => format!("TCP {congestion} over {}", LINKS[link].0),
            Self::Mptcp { congestion } => format!("MPTCP {congestion}"),
            Self::WireGuard { congestion } => format!("boringtun, inner TCP {congestion}"),
        }
    }

    pub(crate) fn is_kedge(self) -> bool {
        matches!(self, Self::Kedge | Self::Metered | Self::Inner { .. })
    }

    /// Whether its ends talk through a tunnel that is not theirs.
    pub(crate) fn is_over_tunnel(self) -> bool {
        matches!(self, Self::Inner { .. } | Self::WireGuard { .. })
    }

    /// Of what it sends.
    pub(crate) fn payload(self) -> Payload {
        match self {
            Self::Kedge | Self::Metered | Self::Quinn { .. } => Payload::Datagram,
            Self::Inner { .. } => Payload::Inner,
            Self::Tcp { .. } | Self::WireGuard { .. } => Payload::Tcp { multipath: false },
            Self::Mptcp { .. } => Payload::Tcp { multipath: true },
        }
    }

    /// Hub and edge of the tunnel below, where it is ours.
    pub(crate) fn under(self, devices: &[&str]) -> Result<Option<[Role; 2]>> {
        match self {
            Self::Inner { .. } => tunnel(devices, false, true).map(Some),
            _ => Ok(None),
        }
    }

    /// Hub and edge.
    pub(crate) fn roles(self, devices: &[&str]) -> Result<[Role; 2]> {
        let tcp = |congestion: &str, multipath| Carrier::Tcp {
            congestion: congestion.to_owned(),
            multipath,
        };
        let (hub, carrier, link) = match self {
            Self::Kedge | Self::Metered => return tunnel(devices, self == Self::Metered, false),
            Self::Quinn { link, congestion } => {
                let (keys, congestion) = (keys::make(1)?, congestion.to_owned());
                (HUB, Carrier::Quinn { keys, congestion }, Some(link))
            }
            Self::Tcp { link, congestion } => (HUB, tcp(congestion, false), Some(link)),
            Self::Mptcp { congestion } => (HUB, tcp(congestion, true), None),
            Self::Inner { congestion } | Self::WireGuard { congestion } => (INNER, tcp(congestion, false), None),
        };
        let hub = SocketAddr::from(hub);
        let device = link.map(|link| devices[link].to_owned());
        let listens = Role::Hub {
            listen: hub,
            carrier: carrier.clone(),
        };
        Ok([listens, Role::Edge { hub, carrier, device }])
    }
}

fn tunnel(devices: &[&str], metered: bool, has_device: bool) -> Result<[Role; 2]> {
    let (keys, hub) = (keys::make(1)?, SocketAddr::from(HUB));
    let [at_hub, at_edge] = [INNER_HUB, INNER_EDGE].map(|address| has_device.then(|| format!("{address}/24")));
    let listens = Role::TunnelHub {
        keys: keys.clone(),
        listen: hub,
        inner: at_hub,
    };
    let dials = Role::TunnelEdge {
        keys,
        hub,
        uplinks: devices.iter().map(|device| (*device).to_owned()).collect(),
        metered,
        inner: at_edge,
    };
    Ok([listens, dials])
}
