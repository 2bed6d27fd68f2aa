//! A path over TLS on TCP, for sites that block UDP: the same control frames and datagrams, as [`records`](crate::records).
//!
//! - the bond → [`TcpPath::send`] → [`State::out`] (at most [`QUEUE`] bytes, so that the scheduler above decides late) → TLS → the socket,
//!   which takes [`UNSENT`] bytes more than its congestion window ([`tune`])
//! - the socket → TLS → [`Decoder`] → [`State::incoming`] (at most [`RECEIVE_BUFFER`] bytes) → the bond
//! - [`TcpPath::ask`]: whether the peer is there, when it was idle (the edge) or has not answered (both), for [`crate::liveness`]
//!
//! Congestion, loss and order are the kernel's. On failure: a broken stream is a lost link; what is no record is a violation, which ends
//! the session. The last word goes out in [`TcpPath::finish`], after the path was run.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures::future::BoxFuture;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsStream;

use crate::bond::Policy;
use crate::frame::{Control, WelcomeFrame};
use crate::liveness::TICK;
use crate::meter::Carried;
use crate::path::{Counters, Hint, PathControl, PathFacts, PathTransport, Transport};
use crate::quic;
use crate::records::{Decoder, Record, RecordError};
use crate::types::CloseReason;

/// About what a QUIC path takes at an MTU of 1500: what one loses, the other carries whole.
const MAX_DATAGRAM: usize = 1400;
/// Header and tag of a TLS 1.3 record (RFC 8446 §5.2), and a TCP header with timestamps.
const TLS_AND_TCP: usize = 22 + 32;
/// Records that wait for TLS; as many more are on their way through it.
const QUEUE: usize = 8 * 1024;
/// Bytes that the kernel takes beyond its congestion window (TCP_NOTSENT_LOWAT): an urgent message waits behind this and the queue,
/// 25 ms at 10 Mbit/s.
const UNSENT: u32 = 16 * 1024;
/// Datagrams that wait for the session's task.
const RECEIVE_BUFFER: usize = 256 * 1024;
/// Answers to a peer that asks and does not read: more is no honest peer's.
const MAX_ANSWERS: usize = 64 * 1024;
/// Data that nobody acknowledges for so long ends the connection (TCP_USER_TIMEOUT, RFC 5482): the session is dormant by then, and the edge
/// dials again.
const USER_TIMEOUT: Duration = Duration::from_secs(15);
/// Behind our own dead-peer detection, and above the longest interval between two questions.
const SILENT_FOR: Duration = Duration::from_secs(60);
/// How long the last word may take.
const FINISH_WITHIN: Duration = Duration::from_secs(1);

/// Sets a socket up for [`TcpPath`].
pub(crate) fn tune(socket: &TcpStream) -> std::io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.set_tcp_notsent_lowat(UNSENT)
}

/// Why a stream of records ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("the stream broke: {0}")]
    Io(#[from] std::io::Error),
    #[error("the stream ended within a record")]
    Truncated,
    #[error("the stream ended")]
    Ended,
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl LinkError {
    /// Whether the other end, or its kernel, ended the stream; else nobody answered.
    fn is_peers_word(&self) -> bool {
        use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        match self {
            Self::Io(error) => matches!(
                error.kind(),
                BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
            ),
            Self::Truncated | Self::Ended => true,
            Self::Record(_) => false,
        }
    }
}

/// A connection before its path is run: one record after another.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) stream: TlsStream<TcpStream>,
    decoder: Decoder,
}

impl Link {
    pub(crate) fn new(stream: impl Into<TlsStream<TcpStream>>) -> Self {
        Self {
            stream: stream.into(),
            decoder: Decoder::default(),
        }
    }

    /// The next record. Cancel-safe.
    pub(crate) async fn read(&mut self) -> Result<Record, LinkError> {
        next(&mut self.stream, &mut self.decoder).await
    }

    /// Not cancel-safe.
    pub(crate) async fn write(&mut self, record: &Record) -> Result<(), LinkError> {
        let mut bytes = BytesMut::new();
        record.encode(&mut bytes)?;
        self.stream.write_all(&bytes).await?;
        Ok(self.stream.flush().await?)
    }

    /// Says why, within a second.
    pub(crate) async fn refuse(mut self, reason: &CloseReason) {
        let (code, text) = quic::code_of(reason);
        let last = async {
            self.write(&Record::Close(code, text.into())).await?;
            Ok::<_, LinkError>(self.stream.shutdown().await?)
        };
        if !matches!(timeout(FINISH_WITHIN, last).await, Ok(Ok(()))) {
            tracing::debug!("a peer did not take the last word");
        }
    }
}

async fn next(stream: &mut (impl AsyncReadExt + Unpin), decoder: &mut Decoder) -> Result<Record, LinkError> {
    loop {
        if let Some(record) = decoder.next()? {
            return Ok(record);
        }
        if stream.read_buf(decoder.buffer()).await? == 0 {
            return Err(match decoder.is_between() {
                true => LinkError::Ended,
                false => LinkError::Truncated,
            });
        }
    }
}

/// Records that one end has for the other, and what is known of it.
#[derive(Debug)]
struct State {
    /// Records that TLS has not seen.
    out: BytesMut,
    incoming: VecDeque<Bytes>,
    incoming_bytes: usize,
    received: u64,
    carried: Carried,
    asked: u64,
    rtt: Duration,
    heard: Instant,
    /// Since when the peer has something to answer.
    unheard: Option<Instant>,
    /// When it was asked, until it answers.
    question: Option<Instant>,
    /// It has asked.
    answer_due: bool,
}

/// One TLS connection over TCP, attached and welcomed.
pub(crate) struct TcpPath {
    remote: SocketAddr,
    transport: Transport,
    /// The edge's interval between questions on an idle path.
    pings: Option<Duration>,
    reader: tokio::sync::Mutex<(ReadHalf<TlsStream<TcpStream>>, Decoder)>,
    /// With what TLS has taken a part of.
    writer: tokio::sync::Mutex<(WriteHalf<TlsStream<TcpStream>>, BytesMut)>,
    state: Mutex<State>,
    /// There is something in [`State::out`].
    outgoing: Notify,
    /// There is room in it.
    room: Notify,
    readable: Notify,
    /// There is room in [`State::incoming`].
    taken: Notify,
    over: watch::Sender<Option<CloseReason>>,
    /// Nonce of the last challenge that was answered.
    answer: watch::Sender<Vec<u8>>,
}

impl std::fmt::Debug for TcpPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TcpPath")
            .field("remote", &self.remote)
            .field("transport", &self.transport)
            .finish_non_exhaustive()
    }
}

impl TcpPath {
    /// `rtt` is the handshake's; `pings`: the edge's interval between questions on an idle path.
    pub(crate) fn new(
        link: Link,
        (remote, transport): (SocketAddr, Transport),
        rtt: Duration,
        pings: Option<Duration>,
    ) -> Arc<Self> {
        let (reader, writer) = tokio::io::split(link.stream);
        Arc::new(Self {
            remote,
            transport,
            pings,
            reader: tokio::sync::Mutex::new((reader, link.decoder)),
            writer: tokio::sync::Mutex::new((writer, BytesMut::new())),
            state: Mutex::new(State::new(Instant::now(), rtt)),
            outgoing: Notify::new(),
            room: Notify::new(),
            readable: Notify::new(),
            taken: Notify::new(),
            over: watch::Sender::new(None),
            answer: watch::Sender::new(Vec::new()),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The hub's answer to Attach, which leaves when the path is run or finished.
    pub(crate) fn welcome(&self, frame: WelcomeFrame) -> bool {
        self.say(&Record::Control(Control::Welcome(frame)))
    }

    /// About what the network bills for so many bytes of records: with the headers of TLS, TCP and IP of each segment. What the kernel
    /// repeats or acknowledges by itself is not in it.
    fn billed(&self, bytes: usize) -> u64 {
        let headers = TLS_AND_TCP + if self.remote.is_ipv4() { 20 } else { 40 };
        (bytes + bytes.div_ceil(MAX_DATAGRAM) * headers) as u64
    }

    /// Queues what is said rarely; false where it cannot be said.
    fn say(&self, record: &Record) -> bool {
        let said = {
            let mut state = self.state();
            state.out.len() < MAX_ANSWERS && record.encode(&mut state.out).is_ok()
        };
        self.outgoing.notify_one();
        said
    }

    /// Writes what is queued, and goes on.
    async fn write(&self) -> CloseReason {
        let (writer, bytes) = &mut *self.writer.lock().await;
        loop {
            self.fill(bytes);
            let written = match bytes.is_empty() {
                true => {
                    self.outgoing.notified().await;
                    continue;
                }
                false => write(writer, bytes).await,
            };
            if let Err(error) = written {
                return self.broken(&LinkError::Io(error));
            }
        }
    }

    /// Takes what waits, once everything before it is on its way.
    fn fill(&self, bytes: &mut BytesMut) {
        if !bytes.is_empty() {
            return;
        }
        let mut state = self.state();
        if std::mem::take(&mut state.answer_due) {
            // A record without a payload fits.
            let _ = Record::Pong.encode(&mut state.out);
        }
        std::mem::swap(bytes, &mut state.out);
        state.carried.sent += self.billed(bytes.len());
        drop(state);
        self.room.notify_one();
    }

    async fn read(&self, told: &(dyn Fn(Policy) + Send + Sync)) -> CloseReason {
        let (reader, decoder) = &mut *self.reader.lock().await;
        loop {
            let record = match next(reader, decoder).await {
                Ok(record) => record,
                Err(error) => return self.broken(&error),
            };
            self.heard(record.len());
            match record {
                Record::Datagram(datagram) => self.deliver(datagram).await,
                Record::Ping => {
                    self.state().answer_due = true;
                    self.outgoing.notify_one();
                }
                Record::Pong => self.answered(),
                Record::Control(Control::Challenge(nonce)) => {
                    if !self.say(&Record::Control(Control::ChallengeAnswer(nonce))) {
                        return CloseReason::Violation {
                            text: "more challenges than answers are read".to_owned(),
                        };
                    }
                }
                Record::Control(Control::ChallengeAnswer(nonce)) => {
                    self.answer.send_replace(nonce);
                }
                Record::Control(Control::Policy(policy)) => told(policy.into()),
                // What belongs to the beginning.
                Record::Control(_) => {}
                Record::Close(code, text) => return quic::reason(code.into(), &text),
            }
        }
    }

    fn broken(&self, error: &LinkError) -> CloseReason {
        match error {
            LinkError::Record(error) => {
                tracing::warn!(remote = %self.remote, %error, "the peer breaks the rules of a path over TCP");
                CloseReason::Violation {
                    text: error.to_string(),
                }
            }
            error => {
                tracing::info!(remote = %self.remote, %error, "a path over TCP ended");
                match error.is_peers_word() {
                    true => CloseReason::Forgotten,
                    false => CloseReason::LinkLost,
                }
            }
        }
    }

    fn heard(&self, bytes: usize) {
        let mut state = self.state();
        state.received += 1;
        state.carried.received += self.billed(bytes);
        state.heard = Instant::now();
        state.unheard = None;
    }

    fn answered(&self) {
        let mut state = self.state();
        if let Some(asked) = state.question.take() {
            state.rtt = (state.rtt * 7 + asked.elapsed()) / 8;
        }
    }

    /// Waits while the session's task is behind: the kernel's window stops the peer then.
    async fn deliver(&self, datagram: Bytes) {
        loop {
            {
                let mut state = self.state();
                if state.incoming_bytes < RECEIVE_BUFFER {
                    state.incoming_bytes += datagram.len() + size_of::<Bytes>();
                    state.incoming.push_back(datagram);
                    break;
                }
            }
            self.taken.notified().await;
        }
        self.readable.notify_one();
    }

    /// Asks whether the peer is there, when that is in doubt; ends when nothing at all was heard for so long.
    async fn ask(&self) -> CloseReason {
        loop {
            tokio::time::sleep(TICK).await;
            let (now, mut state) = (Instant::now(), self.state());
            if now - state.heard >= SILENT_FOR {
                return CloseReason::LinkLost;
            }
            let asks = state.asks(now, self.pings);
            drop(state);
            if asks {
                self.say(&Record::Ping);
            }
        }
    }

    /// Sends the last word and ends the stream, within a second. After the path was run.
    pub(crate) async fn finish(&self) {
        let last = async {
            let (writer, bytes) = &mut *self.writer.lock().await;
            // What TLS has a part of must be whole, and then there is the last word.
            for _ in 0..2 {
                self.fill(bytes);
                write(writer, bytes).await?;
            }
            writer.shutdown().await
        };
        match timeout(FINISH_WITHIN, last).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(remote = %self.remote, %error, "the last word on a path over TCP"),
            Err(_) => tracing::debug!(remote = %self.remote, "the last word on a path over TCP was not taken"),
        }
    }
}

impl State {
    fn new(now: Instant, rtt: Duration) -> Self {
        Self {
            out: BytesMut::new(),
            incoming: VecDeque::new(),
            incoming_bytes: 0,
            received: 0,
            carried: Carried::default(),
            asked: 0,
            rtt,
            heard: now,
            unheard: None,
            question: None,
            answer_due: false,
        }
    }

    /// Whether to ask now; notes the question.
    fn asks(&mut self, now: Instant, pings: Option<Duration>) -> bool {
        let doubtful = self.unheard.is_some_and(|since| now - since >= TICK);
        let idle = pings.is_some_and(|interval| now - self.heard >= interval);
        // The stream is reliable: one question is enough.
        if self.question.is_some() || !(doubtful || idle) {
            return false;
        }
        self.question = Some(now);
        self.asked += 1;
        true
    }
}

/// Cancel-safe: what is left in `bytes` is what TLS has not taken.
async fn write(writer: &mut WriteHalf<TlsStream<TcpStream>>, bytes: &mut BytesMut) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let written = writer.write(bytes).await?;
        if written == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        bytes.advance(written);
    }
    writer.flush().await
}

impl PathControl for TcpPath {
    fn facts(&self) -> PathFacts {
        PathFacts {
            max_datagram: MAX_DATAGRAM,
            reliable: true,
            ordered: true,
        }
    }

    fn challenge(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let mut answers = self.answer.subscribe();
            let nonce = rand::random::<[u8; 8]>().to_vec();
            let asked = self.say(&Record::Control(Control::Challenge(nonce.clone())));
            if !asked || answers.wait_for(|answer| *answer == nonce).await.is_err() {
                futures::future::pending::<()>().await;
            }
        })
    }

    fn counters(&self) -> Counters {
        let state = self.state();
        Counters {
            received: state.received,
            eliciting: state.asked,
            rtt: state.rtt,
            carried: state.carried,
        }
    }

    fn remote(&self) -> SocketAddr {
        self.remote
    }

    fn transport(&self) -> Transport {
        self.transport.clone()
    }

    fn tell(&self, policy: Policy) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if !self.say(&Record::Control(Control::Policy(policy.into()))) {
                // The path is about to end, and the next one's Attach says it.
                tracing::debug!(remote = %self.remote, "the hub is not told of a policy");
            }
        })
    }

    /// The kernel has the window, and retries by itself.
    fn hint(&self, _: Hint) {}

    fn close(&self, reason: &CloseReason) {
        let first = self.over.send_if_modified(|over| {
            let first = over.is_none();
            if first {
                *over = Some(CloseReason::Local);
            }
            first
        });
        if first {
            let (code, text) = quic::code_of(reason);
            // It is what matters now.
            self.state().out.clear();
            self.say(&Record::Close(code, text.into()));
        }
    }
}

impl PathTransport for TcpPath {
    async fn send(&self, datagram: Bytes) -> Result<(), CloseReason> {
        let record = Record::Datagram(datagram);
        loop {
            {
                let mut state = self.state();
                if state.out.len() < QUEUE {
                    // The path states what fits.
                    let _ = record.encode(&mut state.out);
                    state.unheard.get_or_insert_with(Instant::now);
                    break;
                }
            }
            self.room.notified().await;
        }
        self.outgoing.notify_one();
        Ok(())
    }

    async fn receive(&self) -> Result<Bytes, CloseReason> {
        loop {
            {
                let mut state = self.state();
                if let Some(datagram) = state.incoming.pop_front() {
                    state.incoming_bytes -= datagram.len() + size_of::<Bytes>();
                    drop(state);
                    self.taken.notify_one();
                    return Ok(datagram);
                }
            }
            self.readable.notified().await;
        }
    }

    async fn serve(&self, told: &(dyn Fn(Policy) + Send + Sync)) -> CloseReason {
        tokio::select! {
            reason = self.read(told) => reason,
            reason = self.write() => reason,
            reason = self.ask() => reason,
        }
    }

    async fn closed(&self) -> CloseReason {
        let mut over = self.over.subscribe();
        // The sender lives as long as this does.
        let reason = over.wait_for(Option::is_some).await.map(|reason| reason.clone());
        reason.ok().flatten().unwrap_or(CloseReason::Local)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers of so many ticks, the first a tick after `from`.
    fn ticks(state: &mut State, from: Instant, count: u32, pings: Option<Duration>) -> Vec<bool> {
        (1..=count).map(|tick| state.asks(from + TICK * tick, pings)).collect()
    }

    #[test]
    fn what_was_sent_and_is_not_answered_is_asked_about_once() {
        let now = Instant::now();
        let mut state = State::new(now, Duration::ZERO);
        assert_eq!(ticks(&mut state, now, 10, None), [false; 10], "nothing was sent");
        state.unheard = Some(now);
        assert_eq!(ticks(&mut state, now, 3, None), [true, false, false]);
        assert_eq!(state.asked, 1);
    }

    #[test]
    fn the_edge_asks_on_an_idle_path_again_and_again() {
        let now = Instant::now();
        let mut state = State::new(now, Duration::ZERO);
        let pings = Some(TICK * 3);
        assert_eq!(ticks(&mut state, now, 4, pings), [false, false, true, false]);
        (state.question, state.heard) = (None, now + TICK * 4);
        assert_eq!(ticks(&mut state, now + TICK * 4, 3, pings), [false, false, true]);
    }
}
