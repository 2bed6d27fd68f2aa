//! The hub's UDP socket: one for thousands of connections, so what quinn keeps a connection because of it is multiplied.

use std::io::IoSliceMut;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, UdpPoller};

/// Packets that the hub hands to the kernel at once (GSO). quinn keeps a buffer of so many for each connection, idle or not: of
/// its ten, 13 KiB an edge. What four cost more is a system call for four packets in the place of one for ten.
const SEGMENTS: usize = 4;

/// Takes over a bound socket.
pub(crate) fn adopt(socket: std::net::UdpSocket) -> std::io::Result<Arc<dyn AsyncUdpSocket>> {
    let socket = quinn::TokioRuntime.wrap_udp_socket(socket)?;
    Ok(Arc::new(HubSocket { socket }))
}

/// A socket that takes [`SEGMENTS`] packets at once.
#[derive(Debug)]
struct HubSocket {
    socket: Arc<dyn AsyncUdpSocket>,
}

impl AsyncUdpSocket for HubSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.socket.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> std::io::Result<()> {
        self.socket.try_send(transmit)
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<std::io::Result<usize>> {
        self.socket.poll_recv(context, buffers, meta)
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments().min(SEGMENTS)
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}
