//! A session: what one edge incarnation and epoch has to say to the hub and back, over whatever paths there are.
//!
//! - [`Session`] (cloneable handle) → outbox → [`Inner::run`] → the bond: messages in copies (urgent, interactive), or a lane, which is a
//!   stream a priority (normal, bulk) → paths → peer
//! - peer → paths → the bond → inbox → [`Session::recv`]
//!
//! The state is [`Inner`]; its task ([`Inner::run`]) and those that run its paths ([`Inner::run_path`]) belong to the hub's or edge's task
//! set. While no path answers the session is dormant ([`Presence::Away`]): what both ends hold is kept, and nothing new is taken. It ends
//! after a while of that ([`Inner::expire`]), when the peer does not know it any more, or when either end closes it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use crate::MAX_MESSAGE;
use crate::bond::{Config, PathId, Policy, SessionStats};
use crate::driver::stream::{Purpose, Reader, Writer};
use crate::driver::{Driver, Over, PathInfo, PathReport};
use crate::lane;
use crate::meter::Carried;
use crate::path::{PathControl, PathTransport, Transport};
use crate::queue::{Backlog, PushError, Queues};
use crate::types::{CloseReason, Closed, OpenError, PeerInfo, Presence, Priority, SendError, Welcome};

/// How long a session outlives its links at both ends: most tunnels, lifts and modems that start anew. What it holds meanwhile is bounded,
/// and people who wait for an answer have left by then.
pub const DORMANT_FOR: Duration = Duration::from_secs(600);
/// Streams of the peer that wait for [`Session::accept_stream`].
const ACCEPT_BACKLOG: usize = 8;
/// Streams of each end that are lanes: normal and bulk messages.
const LANES: usize = 2;

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
    /// [`SendError::Busy`] when the queue of this priority is full, or the session is dormant and the message is not urgent enough to be the
    /// first word after that: wait for [`Session::ready`].
    pub fn send(&self, priority: Priority, message: Bytes) -> Result<(), SendError> {
        if message.len() > MAX_MESSAGE {
            return Err(SendError::TooLarge { size: message.len() });
        }
        if priority > Priority::Interactive && self.inner.driver.is_away() && !self.inner.is_closed() {
            return Err(SendError::Busy);
        }
        self.inner
            .outbox
            .try_push(priority, message)
            .map_err(|error| match error {
                PushError::Busy => SendError::Busy,
                PushError::Closed => SendError::Closed(self.inner.closed_now()),
            })
    }

    /// Returns when every priority takes at least one message, or the session is over.
    pub async fn ready(&self) {
        tokio::select! {
            () = self.inner.ended() => {}
            () = self.inner.driver.until(Presence::Here) => self.inner.outbox.ready().await,
        }
    }

    /// Whether the other end is there, and each change of that.
    pub fn presence(&self) -> watch::Receiver<Presence> {
        self.inner.driver.presence()
    }

    /// Whether the other end is there now.
    pub fn is_here(&self) -> bool {
        !self.inner.driver.is_away()
    }

    /// The next message, the most urgent that has arrived. Cancel-safe.
    ///
    /// # Errors
    /// The session is over.
    pub async fn recv(&self) -> Result<Bytes, Closed> {
        match self.inner.driver.inbox.pop_any().await {
            Some((_, message)) => {
                self.inner.set_answered();
                Ok(message)
            }
            None => Err(self.closed().await),
        }
    }

    /// Opens a byte stream. The peer sees it with the first byte written.
    ///
    /// # Errors
    /// The session is over, or dormant.
    pub async fn open_stream(&self) -> Result<ByteStream, OpenError> {
        tokio::select! {
            biased;
            closed = self.closed() => Err(OpenError::Closed(closed)),
            () = self.inner.driver.until(Presence::Away) => Err(OpenError::Away),
            (reader, writer) = self.inner.driver.open_stream(Purpose::Bytes) => Ok(ByteStream::new(reader, writer)),
        }
    }

    /// The next byte stream that the peer opens. Cancel-safe.
    ///
    /// # Errors
    /// The session is over.
    pub async fn accept_stream(&self) -> Result<ByteStream, Closed> {
        tokio::select! {
            biased;
            closed = self.closed() => Err(closed),
            stream = self.inner.accepted.pop() => {
                self.inner.set_answered();
                Ok(stream)
            }
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

    /// The paths that it has now, in the order of their numbers.
    pub fn paths(&self) -> Vec<PathReport> {
        self.inner.driver.paths()
    }

    /// What its paths have carried together.
    pub fn stats(&self) -> SessionStats {
        self.inner.driver.stats()
    }

    /// What all its paths have carried, those that are gone too, to half a second.
    pub fn carried(&self) -> Carried {
        self.inner.driver.carried()
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }
}

/// The session's state.
#[derive(Debug)]
pub(crate) struct Inner {
    /// Unique in this process: a clean-up names its own session.
    pub(crate) id: u64,
    pub(crate) peer: PeerInfo,
    pub(crate) welcome: Welcome,
    driver: Arc<Driver>,
    outbox: Queues,
    accepted: Backlog<ByteStream>,
    closed: watch::Sender<Option<CloseReason>>,
    answered: AtomicBool,
    /// How long it may be dormant.
    dormant_for: Duration,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl Inner {
    /// A session without paths; the limits of streams in `config` are those of byte streams.
    pub(crate) fn new(peer: PeerInfo, welcome: Welcome, config: Config, dormant_for: Duration) -> Arc<Self> {
        let with_lanes = Config {
            max_streams: config.max_streams + LANES,
            max_peer_streams: config.max_peer_streams + LANES,
            ..config
        };
        Arc::new(Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            peer,
            welcome,
            driver: Arc::new(Driver::new(with_lanes, config.max_streams)),
            outbox: Queues::default(),
            accepted: Backlog::new(ACCEPT_BACKLOG),
            closed: watch::Sender::new(None),
            answered: AtomicBool::new(false),
            dormant_for,
        })
    }

    /// Whether the peer's application has said anything in this session.
    pub(crate) fn answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    /// Why it has ended, when it has.
    pub(crate) fn end(&self) -> Option<CloseReason> {
        self.closed.borrow().clone()
    }

    pub(crate) fn set_answered(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }

    pub(crate) fn driver(&self) -> &Driver {
        &self.driver
    }

    pub(crate) fn closed_now(&self) -> Closed {
        Closed {
            reason: self.end().unwrap_or(CloseReason::Local),
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
            self.driver.close(&reason);
        }
        self.outbox.close();
        self.driver.inbox.close();
    }

    /// Whether the session has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.borrow().is_some()
    }

    /// Whether a live path over this uplink, of what `by` says, carries it.
    pub(crate) fn is_carried(&self, uplink: &str, by: impl Fn(&Transport) -> bool) -> bool {
        self.driver.is_carried(uplink, by)
    }

    /// Resolves when the session is over.
    pub(crate) async fn ended(&self) {
        let mut closed = self.closed.subscribe();
        // The sender lives as long as this does.
        let _ = closed.wait_for(Option::is_some).await;
    }

    /// Whether the peer's end of the session answers on any path within the time.
    pub(crate) async fn challenge(&self, within: Duration) -> bool {
        let paths = self.driver.controls();
        let answers = paths.iter().map(|path| path.challenge());
        let mut any = FuturesUnordered::from_iter(answers);
        matches!(tokio::time::timeout(within, any.next()).await, Ok(Some(())))
    }

    /// Adds a path; run it with [`Inner::run_path`]. False when the session is over or has
    /// as many as it may: the path is closed then.
    pub(crate) fn add_path(&self, info: PathInfo, control: Arc<dyn PathControl>) -> bool {
        let takes = self.driver.add_path(info, control.clone());
        if !takes {
            control.close(&self.end().unwrap_or(CloseReason::LinkLost));
        }
        takes
    }

    /// What a path may carry has changed: both ends obey.
    pub(crate) fn set_policy(&self, id: PathId, policy: Policy) {
        self.driver.set_policy(id, policy);
    }

    /// Moves datagrams over a path that was added until it ends, which may be the session's end too. True when it was.
    pub(crate) async fn run_path(&self, id: PathId, path: &impl PathTransport) -> bool {
        match self.driver.run_path(id, path).await {
            Over::PathOnly => self.is_closed(),
            Over::Session(reason) => {
                self.close(reason, false);
                true
            }
        }
    }

    /// Moves messages and streams between their owners and the bond until the session ends.
    pub(crate) async fn run(self: Arc<Self>) {
        tokio::select! {
            biased;
            () = self.ended() => {}
            () = self.expire() => {}
            () = self.driver.run_clock() => {}
            () = self.send_messages(Priority::Urgent) => {}
            () = self.send_messages(Priority::Interactive) => {}
            () = self.fill_lane(Priority::Normal) => {}
            () = self.fill_lane(Priority::Bulk) => {}
            () = self.accept_streams() => {}
        }
    }

    /// Ends the session when it has been dormant for too long. Time in which the machine sleeps does not count: nobody could have come.
    async fn expire(&self) {
        let (node, epoch) = (&self.peer.node, self.peer.epoch);
        loop {
            self.driver.until(Presence::Away).await;
            tracing::info!(node, epoch, "no path answers: the session is dormant");
            tokio::select! {
                () = self.driver.until(Presence::Here) => tracing::info!(node, epoch, "the session goes on"),
                () = tokio::time::sleep(self.dormant_for) => return self.close(CloseReason::LinkLost, true),
            }
        }
    }

    async fn send_messages(&self, priority: Priority) {
        while let Some(message) = self.outbox.pop(priority).await {
            self.driver.send_message(priority, message).await;
        }
        self.ended().await;
    }

    async fn fill_lane(&self, priority: Priority) {
        let mut lane = None;
        while let Some(message) = self.outbox.pop(priority).await {
            let (_, writer) = match &mut lane {
                Some(lane) => lane,
                empty => empty.insert(self.driver.open_stream(Purpose::Lane(priority)).await),
            };
            if let Err(error) = lane::write(writer, &message).await {
                // No honest peer stops a lane.
                return self
                    .break_off(format!("the lane of {priority:?} messages: {error}"))
                    .await;
            }
        }
        self.ended().await;
    }

    /// The peer broke the rules, unless the session has just ended.
    async fn break_off(&self, text: String) {
        if !self.is_closed() {
            tracing::warn!(node = self.peer.node, text, "the peer breaks the rules of the session");
            self.close(CloseReason::Violation { text }, true);
        }
        self.ended().await;
    }

    /// Sorts the streams that the peer opens.
    async fn accept_streams(&self) {
        let mut served = FuturesUnordered::new();
        loop {
            tokio::select! {
                (reader, writer) = self.driver.accept_stream() => served.push(self.serve_stream(reader, writer)),
                Some(broken) = served.next() => if let Err(text) = broken {
                    return self.break_off(text).await;
                },
            }
        }
    }

    /// Hands a byte stream over, or reads a lane to its end; the error is the rule that was broken.
    async fn serve_stream(&self, mut reader: Reader, writer: Writer) -> Result<(), String> {
        let mut first = [0];
        match reader.read(&mut first).await {
            Ok(1) => {}
            // It was given up before it began.
            _ => return Ok(()),
        }
        match Purpose::from_byte(first[0]) {
            Some(Purpose::Bytes) => {
                self.accepted.push(ByteStream::new(reader, writer)).await;
                Ok(())
            }
            Some(Purpose::Lane(priority)) => loop {
                match lane::read(&mut reader).await {
                    Ok(Some(message)) => {
                        if !self.driver.inbox.push(priority, message).await {
                            return Ok(());
                        }
                    }
                    Ok(None) => return Ok(()),
                    Err(error) => return Err(format!("a lane of {priority:?} messages: {error}")),
                }
            },
            None => Err(format!("a stream begins with the unknown byte {}", first[0])),
        }
    }
}
