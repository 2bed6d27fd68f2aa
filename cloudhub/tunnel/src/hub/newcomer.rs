//! Who a connection is: its certificate and its Attach, checked.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;

use crate::bond::{PathId, Policy};
use crate::driver::PathInfo;
use crate::frame::{Attach, Control};
use crate::liveness::PING_INTERVAL;
use crate::tls::PeerCertificate;
use crate::types::PeerInfo;

/// The longest silence that an edge may announce: nobody should be missed for longer than a minute.
const MAX_PING_INTERVAL: Duration = Duration::from_secs(50);
/// Longest boot id or uplink name in bytes.
const MAX_NAME: usize = 64;

/// One more path, and the session that it names.
pub(super) struct Attached {
    pub(super) peer: PeerInfo,
    pub(super) joins: bool,
    pub(super) path: PathInfo,
}

/// What the chain that the peer showed says; who signed it was for the handshake to check.
pub(super) fn certificate(chain: Option<&[CertificateDer<'_>]>) -> Result<PeerCertificate, String> {
    let first = chain
        .and_then(<[_]>::first)
        .ok_or_else(|| "no client certificate".to_owned())?;
    PeerCertificate::parse(first).map_err(|error| error.to_string())
}

/// Reads the first frame of node `node`, which came from `remote`.
///
/// # Errors
/// Which field cannot be so.
pub(super) fn read(first: Control, node: &str, remote: SocketAddr) -> Result<Attached, String> {
    let Control::Attach(attach) = first else {
        return Err("the first frame is not Attach".to_owned());
    };
    let names = [
        ("boot_id", &attach.boot_id),
        ("agent", &attach.agent),
        ("uplink", &attach.uplink),
    ];
    for (field, value) in names {
        if value.len() > MAX_NAME {
            return Err(format!("{field} has more than {MAX_NAME} bytes"));
        }
    }
    let number = u8::try_from(attach.path).map_err(|_| "path must be below 256".to_owned())?;
    let incarnation = attach.incarnation.as_slice().try_into();
    let incarnation = incarnation.map_err(|_| "incarnation must have 16 bytes".to_owned())?;
    Ok(Attached {
        joins: attach.joins,
        path: path(&attach, PathId(number)),
        peer: PeerInfo {
            node: node.to_owned(),
            incarnation,
            epoch: attach.epoch,
            boot_id: attach.boot_id,
            agent: attach.agent,
            uplink: attach.uplink,
            remote,
            local_addr_of_peer: attach.local_address.parse().ok(),
        },
    })
}

fn path(attach: &Attach, id: PathId) -> PathInfo {
    PathInfo {
        id,
        uplink: attach.uplink.clone(),
        ping_interval: match attach.ping_seconds {
            0 => PING_INTERVAL,
            seconds => Duration::from_secs(seconds.into()).min(MAX_PING_INTERVAL),
        },
        policy: attach.policy.clone().map(Policy::from).unwrap_or_default(),
        traffic: Arc::default(),
    }
}
