//! A session: what one edge incarnation and epoch has to say to the hub and back, over whatever paths there are.
//!
//! - [`Session`] (cloneable handle) → outbox → each path's lanes → peer
//! - peer → each path's receiver → inbox → [`Session::recv`]
//!
//! The state is [`Inner`]; the task that runs a path ([`Inner::run_path`]) belongs to the hub's or edge's task set. The session
//! ends with its last path, or when either end closes it.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, watch};

use crate::MAX_MESSAGE;
use crate::liveness;
use crate::path::{PathTransport, Sink};
use crate::queue::{PushError, Queues};
use crate::types::{CloseReason, Closed, PeerInfo, Priority, SendError, Welcome};

/// Streams of the peer that wait for [`Session::accept_stream`].
const ACCEPT_BACKLOG: usize = 8;

/// A reliable, ordered byte stream. Shutting down the writer half-closes it; dropping it ends both directions.
pub struct ByteStream {
    reader: Box<dyn AsyncRead + Send + Unpin>,
    writer: Box<dyn AsyncWrite + Send + Unpin>,
}

impl ByteStream {
    /// Joins a reader and a writer.
    pub fn new(
        reader: impl AsyncRead + Send + Unpin + 'static,
        writer: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Self {
        Self {
            reader: Box::new(reader),
            writer: Box::new(writer),
        }
    }
}

impl std::fmt::Debug for ByteStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ByteStream").finish_non_exhaustive()
    }
}

impl AsyncRead for ByteStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.reader).poll_read(cx, buf)
    }
}

impl AsyncWrite for ByteStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(cx)
    }
}

/// A handle on a session; clones are the same session.
#[derive(Clone, Debug)]
pub struct Session {
    inner: Arc<Inner>,
}

impl Session {
    pub(crate) fn new(inner: Arc<Inner>) -> Self {
        Self { inner }
    }

    /// Queues a message of at most [`MAX_MESSAGE`] bytes. It is delivered zero or more times, in any order. Never blocks.
    ///
    /// # Errors
    /// [`SendError::Busy`] when the queue of this priority is full: wait for [`Session::ready`].
    pub fn send(&self, priority: Priority, message: Bytes) -> Result<(), SendError> {
        if message.len() > MAX_MESSAGE {
            return Err(SendError::TooLarge { size: message.len() });
        }
        self.inner
            .outbox
            .try_push(priority, message)
            .map_err(|error| match error {
                PushError::Busy => SendError::Busy,
                PushError::Closed => SendError::Closed(self.inner.closed_now()),
            })
    }

    /// Returns when every priority has room for at least one message, or the session is over.
    pub async fn ready(&self) {
        self.inner.outbox.ready().await;
    }

    /// The next message, the most urgent that has arrived. Cancel-safe.
    ///
    /// # Errors
    /// The session is over.
    pub async fn recv(&self) -> Result<Bytes, Closed> {
        match self.inner.inbox.pop_any().await {
            Some((_, message)) => {
                self.inner.answered.store(true, Ordering::Relaxed);
                Ok(message)
            }
            None => Err(self.closed().await),
        }
    }

    /// Opens a byte stream. The peer sees it with the first byte written.
    ///
    /// # Errors
    /// The session is over.
    pub async fn open_stream(&self) -> Result<ByteStream, Closed> {
        loop {
            let Some(path) = self.inner.newest_path() else {
                return Err(self.closed().await);
            };
            match path.open_stream().await {
                Ok(stream) => return Ok(stream),
                Err(_) => path_gone(&self.inner, &path).await,
            }
        }
    }

    /// The next byte stream that the peer opens. Cancel-safe.
    ///
    /// # Errors
    /// The session is over.
    pub async fn accept_stream(&self) -> Result<ByteStream, Closed> {
        let mut streams = self.inner.accepted.lock().await;
        tokio::select! {
            biased;
            closed = self.closed() => Err(closed),
            stream = streams.recv() => match stream {
                Some(stream) => {
                    self.inner.answered.store(true, Ordering::Relaxed);
                    Ok(stream)
                }
                None => Err(self.closed().await),
            },
        }
    }

    /// Resolves when the session is over.
    pub async fn closed(&self) -> Closed {
        let mut closed = self.inner.closed.subscribe();
        let reason = match closed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone(),
            Err(_) => None,
        };
        Closed {
            reason: reason.unwrap_or(CloseReason::Local),
        }
    }

    /// Ends the session on all paths and tells the peer: [`CloseReason::PeerGoodbye`] is our goodbye with its text.
    pub fn close(&self, reason: CloseReason) {
        self.inner.close(reason, true);
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &PeerInfo {
        &self.inner.peer
    }

    /// What the hub said at attach.
    pub fn welcome(&self) -> &Welcome {
        &self.inner.welcome
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }
}

/// Waits until the session has noticed that this path is gone, so that the caller can take another.
async fn path_gone(inner: &Arc<Inner>, path: &Arc<dyn PathTransport>) {
    let mut changed = inner.paths_changed.subscribe();
    while inner.holds(path) {
        if changed.changed().await.is_err() {
            return;
        }
    }
}

/// One path in the session.
#[derive(Debug)]
struct Slot {
    id: u64,
    path: Arc<dyn PathTransport>,
}

/// The session's state.
#[derive(Debug)]
pub(crate) struct Inner {
    /// Unique in this process: a clean-up names its own session.
    pub(crate) id: u64,
    pub(crate) peer: PeerInfo,
    pub(crate) welcome: Welcome,
    outbox: Queues,
    inbox: Queues,
    paths: Mutex<Vec<Slot>>,
    paths_changed: watch::Sender<u64>,
    accept: mpsc::Sender<ByteStream>,
    accepted: tokio::sync::Mutex<mpsc::Receiver<ByteStream>>,
    closed: watch::Sender<Option<CloseReason>>,
    answered: AtomicBool,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl Inner {
    pub(crate) fn new(peer: PeerInfo, welcome: Welcome) -> Arc<Self> {
        let (accept, accepted) = mpsc::channel(ACCEPT_BACKLOG);
        Arc::new(Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            peer,
            welcome,
            outbox: Queues::default(),
            inbox: Queues::default(),
            paths: Mutex::new(Vec::new()),
            paths_changed: watch::Sender::new(0),
            accept,
            accepted: tokio::sync::Mutex::new(accepted),
            closed: watch::Sender::new(None),
            answered: AtomicBool::new(false),
        })
    }

    /// Whether the peer's application has said anything in this session.
    pub(crate) fn answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    fn lock_paths(&self) -> MutexGuard<'_, Vec<Slot>> {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn newest_path(&self) -> Option<Arc<dyn PathTransport>> {
        self.lock_paths().last().map(|slot| slot.path.clone())
    }

    fn holds(&self, path: &Arc<dyn PathTransport>) -> bool {
        self.lock_paths().iter().any(|slot| Arc::ptr_eq(&slot.path, path))
    }

    fn closed_now(&self) -> Closed {
        Closed {
            reason: self.closed.borrow().clone().unwrap_or(CloseReason::Local),
        }
    }

    /// Ends the session once; later reasons are ignored.
    pub(crate) fn close(&self, reason: CloseReason, local: bool) {
        let seen = match &reason {
            CloseReason::PeerGoodbye { .. } if local => CloseReason::Local,
            other => other.clone(),
        };
        let first = self.closed.send_if_modified(|closed| {
            let first = closed.is_none();
            if first {
                *closed = Some(seen);
            }
            first
        });
        if first {
            for slot in self.lock_paths().iter() {
                slot.path.close(&reason);
            }
        }
        self.outbox.close();
        self.inbox.close();
    }

    /// Whether the session has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.borrow().is_some()
    }

    /// Whether the peer's end of the session answers on any path within the time.
    pub(crate) async fn challenge(&self, within: std::time::Duration) -> bool {
        let paths: Vec<_> = self.lock_paths().iter().map(|slot| slot.path.clone()).collect();
        let answers = paths.iter().map(|path| path.challenge());
        let mut any = futures::stream::FuturesUnordered::from_iter(answers);
        matches!(tokio::time::timeout(within, any.next()).await, Ok(Some(())))
    }

    /// Adds a path, so that the session lives as long as it does; run it with [`Inner::run_path`].
    pub(crate) fn add_path(&self, path: Arc<dyn PathTransport>) -> u64 {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        self.lock_paths().push(Slot { id, path });
        self.paths_changed.send_modify(|version| *version += 1);
        if let Some(reason) = self.closed.borrow().as_ref() {
            self.close_path(id, reason);
        }
        id
    }

    fn close_path(&self, id: u64, reason: &CloseReason) {
        if let Some(slot) = self.lock_paths().iter().find(|slot| slot.id == id) {
            slot.path.close(reason);
        }
    }

    /// Moves messages and streams over a path until it ends; with the last path the session ends too.
    pub(crate) async fn run_path(self: Arc<Self>, id: u64, path: Arc<dyn PathTransport>) {
        let reason = self.drive(path.as_ref()).await;
        path.close(&reason);
        let last = {
            let mut paths = self.lock_paths();
            paths.retain(|slot| slot.id != id);
            paths.is_empty()
        };
        self.paths_changed.send_modify(|version| *version += 1);
        if last {
            self.close(reason, false);
        }
    }

    async fn drive(&self, path: &dyn PathTransport) -> CloseReason {
        let sink = InboxSink { inbox: &self.inbox };
        tokio::select! {
            biased;
            reason = path.closed() => reason,
            reason = path.receive(&sink) => reason,
            reason = self.drain(path, Priority::Urgent) => reason,
            reason = self.drain(path, Priority::Interactive) => reason,
            reason = self.drain(path, Priority::Normal) => reason,
            reason = self.drain(path, Priority::Bulk) => reason,
            reason = self.accept_streams(path) => reason,
            () = liveness::watch(path) => CloseReason::LinkLost,
        }
    }

    async fn drain(&self, path: &dyn PathTransport, priority: Priority) -> CloseReason {
        while let Some(message) = self.outbox.pop(priority).await {
            if let Err(reason) = path.send(priority, message).await {
                return reason;
            }
        }
        // The session is over: the path's own end says why.
        path.closed().await
    }

    async fn accept_streams(&self, path: &dyn PathTransport) -> CloseReason {
        loop {
            match path.accept_stream().await {
                Ok(stream) => {
                    if self.accept.send(stream).await.is_err() {
                        return CloseReason::Local;
                    }
                }
                Err(reason) => return reason,
            }
        }
    }
}

struct InboxSink<'a> {
    inbox: &'a Queues,
}

impl Sink for InboxSink<'_> {
    fn deliver(&self, priority: Priority, message: Bytes) -> BoxFuture<'_, bool> {
        Box::pin(self.inbox.push(priority, message))
    }
}
