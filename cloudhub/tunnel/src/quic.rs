//! A path over one QUIC connection.
//!
//! - small urgent and interactive messages go as DATAGRAM frames (no head of line, but may be lost)
//! - everything else goes over *lanes*: one unidirectional stream a priority, opened when first needed; a lane is a priority byte,
//!   then messages, each with its length (u32, big endian). A reader that falls behind stops its lane by flow control
//! - byte streams are bidirectional streams; the edge's first one carries session control (`frame`)
//!
//! A peer that breaks these rules loses the path, never the process: lengths are checked before anything is read, and memory
//! grows with what has arrived.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use quinn::{Connection, ConnectionError, RecvStream, SendStream, VarInt};
use tokio::sync::{Mutex, watch};

use crate::MAX_MESSAGE;
use crate::frame::{self, Control, FrameError};
use crate::path::{Counters, PathFacts, PathTransport, Sink};
use crate::session::ByteStream;
use crate::types::{CloseReason, Priority};

/// Longest text of a goodbye or refusal, in bytes.
const MAX_TEXT: usize = 256;

/// Application error codes of CONNECTION_CLOSE.
mod code {
    pub(super) const GOODBYE: u32 = 1;
    pub(super) const REPLACED: u32 = 2;
    pub(super) const REFUSED: u32 = 3;
    pub(super) const REVOKED: u32 = 4;
    pub(super) const DEAD: u32 = 5;
}

/// Closes a connection with the code and text of the reason.
pub(crate) fn close(connection: &Connection, reason: &CloseReason) {
    let (code, text) = match reason {
        CloseReason::LinkLost => (code::DEAD, ""),
        CloseReason::PeerGoodbye { text } => (code::GOODBYE, text.as_str()),
        CloseReason::Local => (code::GOODBYE, ""),
        CloseReason::Replaced => (code::REPLACED, ""),
        CloseReason::Refused { reason, .. } => (code::REFUSED, reason.as_str()),
        CloseReason::Revoked => (code::REVOKED, ""),
    };
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    connection.close(VarInt::from_u32(code), &text.as_bytes()[..end]);
}

/// What the end of a connection means for the session.
pub(crate) fn reason_of(error: &ConnectionError) -> CloseReason {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            let text = String::from_utf8_lossy(&close.reason[..close.reason.len().min(MAX_TEXT)]).into_owned();
            match u32::try_from(close.error_code.into_inner()) {
                Ok(code::GOODBYE) => CloseReason::PeerGoodbye { text },
                Ok(code::REPLACED) => CloseReason::Replaced,
                Ok(code::REVOKED) => CloseReason::Revoked,
                Ok(code::REFUSED) => CloseReason::Refused {
                    reason: text,
                    current_epoch: None,
                },
                _ => CloseReason::LinkLost,
            }
        }
        ConnectionError::LocallyClosed => CloseReason::Local,
        _ => CloseReason::LinkLost,
    }
}

/// One QUIC connection, attached and welcomed.
pub(crate) struct QuicPath {
    connection: Connection,
    lanes: [Mutex<Option<SendStream>>; 4],
    control_writer: Mutex<SendStream>,
    control_reader: Mutex<RecvStream>,
    /// Nonce of the last challenge that was answered.
    answer: watch::Sender<Vec<u8>>,
}

impl std::fmt::Debug for QuicPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QuicPath")
            .field("remote", &self.connection.remote_address())
            .finish_non_exhaustive()
    }
}

impl QuicPath {
    /// `control` is the stream on which Attach and Welcome went.
    pub(crate) fn new(connection: Connection, control: (SendStream, RecvStream)) -> Arc<Self> {
        Arc::new(Self {
            connection,
            lanes: Default::default(),
            control_writer: Mutex::new(control.0),
            control_reader: Mutex::new(control.1),
            answer: watch::Sender::new(Vec::new()),
        })
    }

    /// Answers challenges and notes answers.
    async fn receive_control(&self) -> CloseReason {
        let mut reader = self.control_reader.lock().await;
        loop {
            match frame::read(&mut *reader).await {
                Ok(Control::Challenge(nonce)) => {
                    let answer = Control::ChallengeAnswer(nonce);
                    let mut writer = self.control_writer.lock().await;
                    if frame::write(&mut *writer, answer).await.is_err() {
                        return self.end_of_stream().await;
                    }
                }
                Ok(Control::ChallengeAnswer(nonce)) => {
                    self.answer.send_replace(nonce);
                }
                // A newer end may say what we do not know.
                Ok(_) | Err(FrameError::Unknown) => {}
                Err(_) => return self.end_of_stream().await,
            }
        }
    }

    fn end(&self, error: ConnectionError) -> CloseReason {
        reason_of(&error)
    }

    /// Why the path ended, where only a stream error is at hand.
    async fn end_of_stream(&self) -> CloseReason {
        match self.connection.close_reason() {
            Some(error) => reason_of(&error),
            None => {
                // The peer stopped or reset a lane, which no honest peer does.
                tracing::warn!(remote = %self.connection.remote_address(), "peer broke a message lane");
                close(&self.connection, &CloseReason::LinkLost);
                CloseReason::LinkLost
            }
        }
    }

    fn fits_datagram(&self, priority: Priority, message: &Bytes) -> bool {
        priority <= Priority::Interactive
            && self
                .connection
                .max_datagram_size()
                .is_some_and(|max| message.len() < max)
    }

    /// Returns false when the message must go over a lane.
    async fn send_datagram(&self, priority: Priority, message: &Bytes) -> Result<bool, CloseReason> {
        if !self.fits_datagram(priority, message) {
            return Ok(false);
        }
        let mut datagram = BytesMut::with_capacity(message.len() + 1);
        datagram.extend_from_slice(&[priority.index() as u8]);
        datagram.extend_from_slice(message);
        match self.connection.send_datagram_wait(datagram.freeze()).await {
            Ok(()) => Ok(true),
            Err(quinn::SendDatagramError::ConnectionLost(error)) => Err(self.end(error)),
            // The path's MTU shrank meanwhile, or the peer takes no datagrams.
            Err(_) => Ok(false),
        }
    }

    async fn send_on_lane(&self, priority: Priority, message: Bytes) -> Result<(), CloseReason> {
        let mut lane = self.lanes[priority.index()].lock().await;
        let stream = match &mut *lane {
            Some(stream) => stream,
            empty => {
                let stream = self.connection.open_uni().await.map_err(|error| self.end(error))?;
                // Byte streams have 0: normal messages share with them, so that no copy starves status, nor bulk anyone.
                let _ = stream.set_priority(2 - i32::from(priority.index() as u8));
                let stream = empty.insert(stream);
                if stream.write_all(&[priority.index() as u8]).await.is_err() {
                    return Err(self.end_of_stream().await);
                }
                stream
            }
        };
        let length = Bytes::copy_from_slice(&(message.len() as u32).to_be_bytes());
        if stream.write_all_chunks(&mut [length, message]).await.is_err() {
            return Err(self.end_of_stream().await);
        }
        Ok(())
    }

    async fn receive_datagrams(&self, sink: &dyn Sink) -> CloseReason {
        loop {
            let mut datagram = match self.connection.read_datagram().await {
                Ok(datagram) => datagram,
                Err(error) => return self.end(error),
            };
            let Some(priority) = datagram.first().copied().and_then(Priority::from_index) else {
                continue;
            };
            let _ = datagram.split_to(1);
            if !sink.deliver(priority, datagram).await {
                return self.closed().await;
            }
        }
    }

    async fn receive_lanes(&self, sink: &dyn Sink) -> CloseReason {
        let mut readers = FuturesUnordered::new();
        loop {
            tokio::select! {
                stream = self.connection.accept_uni() => match stream {
                    Ok(stream) => readers.push(read_lane(stream, sink)),
                    Err(error) => return self.end(error),
                },
                Some(end) = readers.next() => match end {
                    LaneEnd::Finished => {}
                    LaneEnd::SessionOver => return self.closed().await,
                    LaneEnd::Broken => return self.end_of_stream().await,
                },
            }
        }
    }
}

/// How a lane ended.
enum LaneEnd {
    Finished,
    SessionOver,
    Broken,
}

async fn read_lane(mut stream: RecvStream, sink: &dyn Sink) -> LaneEnd {
    let mut head = [0; 1];
    if stream.read_exact(&mut head).await.is_err() {
        return LaneEnd::Broken;
    }
    let Some(priority) = Priority::from_index(head[0]) else {
        return LaneEnd::Broken;
    };
    loop {
        let mut length = [0; 4];
        match stream.read_exact(&mut length).await {
            Ok(()) => {}
            Err(quinn::ReadExactError::FinishedEarly(0)) => return LaneEnd::Finished,
            Err(_) => return LaneEnd::Broken,
        }
        let Some(message) = read_message(&mut stream, u32::from_be_bytes(length)).await else {
            return LaneEnd::Broken;
        };
        if !sink.deliver(priority, message).await {
            return LaneEnd::SessionOver;
        }
    }
}

/// Reads a message; memory grows with what arrives, not with the length that the peer states.
async fn read_message(stream: &mut RecvStream, length: u32) -> Option<Bytes> {
    let length = usize::try_from(length).ok().filter(|length| *length <= MAX_MESSAGE)?;
    let mut message = BytesMut::new();
    while message.len() < length {
        let chunk = stream.read_chunk(length - message.len(), true).await.ok()??.bytes;
        if message.is_empty() && chunk.len() == length {
            return Some(chunk);
        }
        message.extend_from_slice(&chunk);
    }
    Some(message.freeze())
}

impl PathTransport for QuicPath {
    fn facts(&self) -> PathFacts {
        PathFacts {
            max_frame: MAX_MESSAGE,
            reliable: false,
            ordered: false,
        }
    }

    fn send(&self, priority: Priority, message: Bytes) -> BoxFuture<'_, Result<(), CloseReason>> {
        Box::pin(async move {
            if self.send_datagram(priority, &message).await? {
                return Ok(());
            }
            self.send_on_lane(priority, message).await
        })
    }

    fn receive<'a>(&'a self, sink: &'a dyn Sink) -> BoxFuture<'a, CloseReason> {
        Box::pin(async move {
            tokio::select! {
                reason = self.receive_datagrams(sink) => reason,
                reason = self.receive_lanes(sink) => reason,
                reason = self.receive_control() => reason,
            }
        })
    }

    fn open_stream(&self) -> BoxFuture<'_, Result<ByteStream, CloseReason>> {
        Box::pin(async move {
            match self.connection.open_bi().await {
                Ok((writer, reader)) => Ok(ByteStream::new(reader, writer)),
                Err(error) => Err(self.end(error)),
            }
        })
    }

    fn accept_stream(&self) -> BoxFuture<'_, Result<ByteStream, CloseReason>> {
        Box::pin(async move {
            match self.connection.accept_bi().await {
                Ok((writer, reader)) => Ok(ByteStream::new(reader, writer)),
                Err(error) => Err(self.end(error)),
            }
        })
    }

    fn challenge(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let mut answers = self.answer.subscribe();
            let nonce = rand::random::<[u8; 8]>().to_vec();
            let question = Control::Challenge(nonce.clone());
            let sent = frame::write(&mut *self.control_writer.lock().await, question).await;
            let answered = answers.wait_for(|answer| *answer == nonce);
            if sent.is_err() || answered.await.is_err() {
                futures::future::pending::<()>().await;
            }
        })
    }

    fn counters(&self) -> Counters {
        let stats = self.connection.stats();
        let sent = stats.frame_tx;
        Counters {
            received: stats.udp_rx.datagrams,
            eliciting: sent.ping
                + sent.stream
                + sent.datagram
                + sent.max_data
                + sent.max_stream_data
                + sent.max_streams_bidi
                + sent.max_streams_uni
                + sent.new_connection_id
                + sent.retire_connection_id
                + sent.reset_stream
                + sent.stop_sending
                + sent.path_challenge,
            rtt: stats.path.rtt,
        }
    }

    fn close(&self, reason: &CloseReason) {
        close(&self.connection, reason);
    }

    fn closed(&self) -> BoxFuture<'_, CloseReason> {
        Box::pin(async move { reason_of(&self.connection.closed().await) })
    }
}
