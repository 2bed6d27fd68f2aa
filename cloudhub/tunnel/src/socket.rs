//! The hub's UDP socket: one for thousands of connections, so what quinn keeps a connection because of it is multiplied, and who
//! reads it must not wait for thousands of other tasks.

use std::future::Future;
use std::io::IoSliceMut;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller};
use tokio::runtime::{Builder, Handle};

/// Packets that the hub hands to the kernel at once (GSO). quinn keeps a buffer of so many for each connection, idle or not: of
/// its ten, 13 KiB an edge. What four cost more is a system call for four packets in the place of one for ten.
const SEGMENTS: usize = 4;

/// A thread of its own for the task that reads the socket; it ends when this is dropped.
///
/// quinn reads for 50 µs a turn. Among the tasks of a fleet that comes back its turns are tens of milliseconds apart: the kernel's
/// buffer runs over, packets are lost that the hub had time for, and sessions end for want of an answer.
#[derive(Debug)]
pub(crate) struct Reader(Option<tokio::runtime::Runtime>);

impl Reader {
    pub(crate) fn start() -> std::io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("tunnel reader")
            .enable_all()
            .build()?;
        Ok(Self(Some(runtime)))
    }

    fn handle(&self) -> &Handle {
        let runtime = self.0.as_ref().expect("it is taken by drop alone");
        runtime.handle()
    }

    /// Takes over a bound socket.
    pub(crate) fn adopt(&self, socket: std::net::UdpSocket) -> std::io::Result<Arc<dyn AsyncUdpSocket>> {
        let _entered = self.handle().enter();
        let socket = TokioRuntime.wrap_udp_socket(socket)?;
        Ok(Arc::new(HubSocket { socket }))
    }

    /// For the endpoint that has the socket.
    pub(crate) fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(HubRuntime {
            reader: self.handle().clone(),
            has_reader: AtomicBool::new(false),
        })
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // Whoever drops it may be a task, which must not wait.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Puts an endpoint's first task, which reads the socket, on the reader's thread, and its connections' tasks beside their callers.
#[derive(Debug)]
struct HubRuntime {
    reader: Handle,
    has_reader: AtomicBool,
}

impl Runtime for HubRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        if self.has_reader.swap(true, Ordering::Relaxed) {
            TokioRuntime.spawn(future);
        } else {
            self.reader.spawn(future);
        }
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> std::io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
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
