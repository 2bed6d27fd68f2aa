//! Sockets and QUIC transport parameters of both ends, each number with its reason.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, IdleTimeout, ServerConfig, TransportConfig, VarInt};
use socket2::{Domain, Protocol, Socket, Type};

use crate::keys::QuicKeys;
use crate::liveness::PING_INTERVAL;
use crate::tls::TlsError;

/// Kernel socket buffers: the default 208 KiB overflows in a fan-out, which costs seconds of retransmission.
const SOCKET_BUFFER: usize = 4 * 1024 * 1024;
/// Behind our own dead-peer detection; for peers that never attach.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Before the first sample: retransmits a lost first packet after 0.6 s, not 1.
const INITIAL_RTT: Duration = Duration::from_millis(200);
/// Streams that an edge may open at the hub: 8 bidirectional, 8 unidirectional (4 are lanes). 31 KiB a connection, not 38.
const HUB_STREAMS: u32 = 8;
/// Streams that the hub may open at an edge: logs, exec and port-forward of many users.
const EDGE_STREAMS: u32 = 128;
/// Datagrams queued for sending: one GSO batch of 16 packets, so that the scheduler above decides late.
const DATAGRAM_SEND_BUFFER: usize = 24 * 1024;
/// Datagrams that wait for the session's reader.
const DATAGRAM_RECEIVE_BUFFER: usize = 64 * 1024;
/// A stream's window at the hub: 20 Mbit/s at 100 ms.
const HUB_STREAM_WINDOW: u32 = 256 * 1024;
/// What one edge may have in flight at the hub, so what a hostile one can make it hold.
const HUB_WINDOW: u32 = 512 * 1024;
/// What the hub holds for one edge until it is acknowledged.
const HUB_SEND_WINDOW: u64 = 512 * 1024;
/// A stream's window at the edge.
const EDGE_STREAM_WINDOW: u32 = 512 * 1024;
/// All streams' window at the edge.
const EDGE_WINDOW: u32 = 1024 * 1024;

fn common() -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(IdleTimeout::try_from(IDLE_TIMEOUT).ok())
        .initial_rtt(INITIAL_RTT)
        .datagram_send_buffer_size(DATAGRAM_SEND_BUFFER)
        .datagram_receive_buffer_size(Some(DATAGRAM_RECEIVE_BUFFER));
    config
}

/// The hub's end.
pub(crate) fn hub(tls: rustls::ServerConfig, keys: &QuicKeys) -> Result<ServerConfig, TlsError> {
    let crypto = QuicServerConfig::try_from(tls)
        .map_err(|_| TlsError::Verifier("the TLS provider lacks QUIC's initial suite".to_owned()))?;
    let mut transport = common();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(HUB_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(HUB_STREAMS))
        .stream_receive_window(VarInt::from_u32(HUB_STREAM_WINDOW))
        .receive_window(VarInt::from_u32(HUB_WINDOW))
        .send_window(HUB_SEND_WINDOW);
    let mut config = ServerConfig::new(Arc::new(crypto), keys.token_key());
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// The edge's end. Only the edge pings, so an idle link carries one PING and one ACK each [`PING_INTERVAL`].
pub(crate) fn edge(tls: rustls::ClientConfig) -> Result<ClientConfig, TlsError> {
    let crypto = QuicClientConfig::try_from(tls)
        .map_err(|_| TlsError::Verifier("the TLS provider lacks QUIC's initial suite".to_owned()))?;
    let mut transport = common();
    transport
        .keep_alive_interval(Some(PING_INTERVAL))
        .max_concurrent_bidi_streams(VarInt::from_u32(EDGE_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(HUB_STREAMS))
        .stream_receive_window(VarInt::from_u32(EDGE_STREAM_WINDOW))
        .receive_window(VarInt::from_u32(EDGE_WINDOW))
        .send_window(u64::from(EDGE_WINDOW));
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport));
    Ok(config)
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
