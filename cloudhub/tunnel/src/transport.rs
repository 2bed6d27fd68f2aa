//! Sockets and QUIC transport parameters of both ends, each number with its reason.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, IdleTimeout, ServerConfig, TransportConfig, VarInt};
use socket2::{Domain, Protocol, Socket, Type};

use crate::congestion::controller::{Factory, Told};
use crate::keys::QuicKeys;
use crate::session::DORMANT_FOR;
use crate::tls::TlsError;

/// Kernel socket buffers: the default 208 KiB overflows in a fan-out, which costs seconds of retransmission.
const SOCKET_BUFFER: usize = 4 * 1024 * 1024;
/// A dormant session's connections outlive it, so that it goes on by one round trip over whichever of them answers. What is of no use is
/// closed long before: a peer that does not attach, a path that is silent while others live.
const IDLE_TIMEOUT: Duration = DORMANT_FOR.saturating_add(Duration::from_secs(60));
/// Before the first sample: retransmits a lost first packet after 0.6 s, not 1.
const INITIAL_RTT: Duration = Duration::from_millis(200);
/// Streams that a peer may open: the edge one, for control frames.
const HUB_STREAMS: u32 = 1;
/// Datagrams queued for sending: one GSO batch, so that the scheduler above decides late.
pub(crate) const DATAGRAM_SEND_BUFFER: usize = 16 * 1024;
/// Datagrams that wait for the session's task: 200 Mbit/s for 10 ms. What does not fit is repaired by the bond.
const DATAGRAM_RECEIVE_BUFFER: usize = 256 * 1024;
/// A stream carries control frames of at most 4 KiB.
const STREAM_WINDOW: u32 = 16 * 1024;
/// What an end holds of its control frames until they are acknowledged.
pub(crate) const SEND_WINDOW: u64 = 64 * 1024;

fn common(told: &Told) -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(IdleTimeout::try_from(IDLE_TIMEOUT).ok())
        .initial_rtt(INITIAL_RTT)
        .congestion_controller_factory(Arc::new(Factory(told.clone())))
        .datagram_send_buffer_size(DATAGRAM_SEND_BUFFER)
        .datagram_receive_buffer_size(Some(DATAGRAM_RECEIVE_BUFFER))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(STREAM_WINDOW))
        .send_window(SEND_WINDOW);
    config
}

/// The hub's end of all connections.
pub(crate) fn hub(tls: rustls::ServerConfig, keys: &QuicKeys) -> Result<ServerConfig, TlsError> {
    let crypto = QuicServerConfig::try_from(tls)
        .map_err(|_| TlsError::Verifier("the TLS provider lacks QUIC's initial suite".to_owned()))?;
    Ok(ServerConfig::new(Arc::new(crypto), keys.token_key()))
}

/// The same for one connection, whose congestion controller listens to `told`.
pub(crate) fn hub_connection(server: &ServerConfig, told: &Told) -> Arc<ServerConfig> {
    let mut transport = common(told);
    transport.max_concurrent_bidi_streams(VarInt::from_u32(HUB_STREAMS));
    let mut config = server.clone();
    config.transport_config(Arc::new(transport));
    Arc::new(config)
}

/// The edge's TLS for all connections: resumption needs it to be one.
pub(crate) fn edge(tls: rustls::ClientConfig) -> Result<Arc<QuicClientConfig>, TlsError> {
    let crypto = QuicClientConfig::try_from(tls)
        .map_err(|_| TlsError::Verifier("the TLS provider lacks QUIC's initial suite".to_owned()))?;
    Ok(Arc::new(crypto))
}

/// The edge's end of one connection. Only the edge pings, so an idle link carries one PING and one ACK each interval. Its packets have
/// `mtu` bytes until discovery finds out more.
pub(crate) fn edge_connection(
    crypto: Arc<QuicClientConfig>,
    told: &Told,
    (ping_interval, mtu): (Duration, u16),
) -> ClientConfig {
    let mut transport = common(told);
    transport
        .initial_mtu(mtu)
        .keep_alive_interval(Some(ping_interval))
        .max_concurrent_bidi_streams(VarInt::from_u32(0));
    let mut config = ClientConfig::new(crypto);
    config.transport_config(Arc::new(transport));
    config
}

/// A UDP socket, bound to the device of an uplink where one is named (SO_BINDTODEVICE).
pub(crate) fn socket(address: SocketAddr, device: Option<&str>) -> std::io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    // Best effort: net.core.rmem_max and wmem_max may forbid it.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    if let Some(device) = device {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    if address.is_ipv6() {
        let _ = socket.set_only_v6(false);
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}
