//! The cable between hub and edge: QUIC connections, one per uplink, joined into sessions; TLS over TCP where UDP is blocked.
//!
//! What it offers (design.md, "The tunnel's contract"), with no quinn type in sight:
//!
//! - messages up to [`MAX_MESSAGE`] bytes, delivered zero or more times in any order; `relay` alone orders, dedups and repeats
//! - byte streams ([`ByteStream`]), reliable and ordered, each direction half-closable
//! - IP packets ([`Session::packets`]), as a link would carry them, each flow in order
//!
//! Who owns what:
//!
//! - [`Hub`] owns the UDP socket, TCP listeners, one task per connection and the table of live sessions (`hub`)
//!   - [`attach`] decides what a newcomer's Attach does to the node's session (pure)
//!   - [`Admission`] judges every certificate after every handshake
//! - [`Edge`] owns the attempts to reach a hub and the paths of its session: sockets bound to uplinks, back-off, epochs (`edge`)
//! - [`Session`] is a cloneable handle: an outbox and an inbox with bounds, and the bond between them
//!   - `driver` runs the [`bond`] (pure): several paths as one, what one loses goes over another
//!   - [`path::PathTransport`] is the seam: QUIC (`quic`), TLS over TCP where a site blocks UDP (`tcp`)
//!   - [`Meter`] counts what each uplink of an edge carries; what it may carry is its [`bond::Policy`]
//!   - [`congestion`] says how much a path takes, [`liveness`] whether anybody is there (both pure)
//!
//! On failure: what a path carried when it died goes over the others. When no path answers, the session is dormant ([`Presence::Away`]) and
//! goes on when one does; after [`DORMANT_FOR`], or when the hub does not know it any more, it ends and the edge starts the next one with a
//! higher epoch.

pub mod attach;
pub mod backoff;
pub mod bond;
pub mod clock;
pub mod congestion;
mod driver;
mod edge;
pub mod exposition;
mod frame;
#[doc(hidden)]
pub mod fuzzing;
mod hub;
pub mod ip;
mod keys;
mod lane;
mod least;
pub mod liveness;
mod meter;
mod packets;
pub mod path;
mod proxy;
mod queue;
mod quic;
mod records;
mod session;
mod socket;
mod tcp;
pub mod tls;
mod transport;
mod types;

pub use driver::PathReport;
pub use edge::{ConnectError, Edge, EdgeConfig, EpochSource, Fallback, Uplink};
pub use hub::{Hub, HubConfig, HubError, TcpDoor};
pub use keys::QuicKeys;
pub use meter::{Carried, Meter};
pub use packets::{PacketReceiver, PacketSender};
pub use path::Transport;
pub use proxy::{NotAProxy, Proxy};
pub use session::{ByteStream, DORMANT_FOR, Session};
pub use tls::{ALPN, Admission, ClockFloor, PeerCertificate, SERVER_NAME, TRUST_DOMAIN};
pub use types::{
    CloseReason, Closed, HubAddresses, Limits, NotHubAddresses, OpenError, PeerInfo, Presence, Priority, SendError,
    Welcome,
};

/// The largest message that [`Session::send`] takes, in bytes. `relay` fragments what is larger.
pub const MAX_MESSAGE: usize = 64 * 1024;
