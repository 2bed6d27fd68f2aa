//! The hub's UDP socket: one for thousands of connections, so what quinn keeps a connection because of it is multiplied, and whoever
//! reads it must not wait behind thousands of tasks.
//!
//! - kernel → a thread of its own ([`adopt`]; quinn's endpoint: whose packet is it?) → the connections' tasks, on the hub's runtime
//!
//! quinn reads for 50 µs and then lets others run. Among a fleet's tasks, when each has something to do, its turn comes half a second
//! later: the kernel's buffer overflows, all that was lost is repeated, and the repeats are lost too.

use std::future::Future;
use std::io::IoSliceMut;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::task::{Context, Poll};
use std::time::Instant;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncTimer, AsyncUdpSocket, Runtime as _, TokioRuntime, UdpPoller};

/// Packets that the hub hands to the kernel at once (GSO). quinn keeps a buffer of so many for each connection, idle or not: of
/// its ten, 13 KiB an edge. What four cost more is a system call for four packets in the place of one for ten.
const SEGMENTS: usize = 4;

type Endpoint = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Takes over a bound socket, and gives by what quinn is to spawn: its endpoint, which then reads the socket on a thread of its own
/// until it and its connections are closed; after it the connections, where they are accepted.
///
/// # Errors
/// The system has no thread for it, or the socket is none.
pub(crate) fn adopt(
    socket: std::net::UdpSocket,
) -> std::io::Result<(Arc<dyn AsyncUdpSocket>, Arc<dyn quinn::Runtime>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let handle = runtime.handle().clone();
    let (endpoint, begun) = mpsc::sync_channel::<Endpoint>(1);
    std::thread::Builder::new()
        .name("tunnel-reader".into())
        .spawn(move || {
            if let Ok(endpoint) = begun.recv() {
                runtime.block_on(endpoint);
            }
        })?;
    let _entered = handle.enter();
    let socket = TokioRuntime.wrap_udp_socket(socket)?;
    let spawner = Spawner(Mutex::new(Some(endpoint)));
    Ok((Arc::new(HubSocket { socket }), Arc::new(spawner)))
}

/// Where quinn's tasks run: the first is the endpoint's.
#[derive(Debug)]
struct Spawner(Mutex<Option<mpsc::SyncSender<Endpoint>>>);

impl quinn::Runtime for Spawner {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        let reader = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        match reader {
            // It waits for nothing else.
            Some(reader) => drop(reader.send(future)),
            None => TokioRuntime.spawn(future),
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
