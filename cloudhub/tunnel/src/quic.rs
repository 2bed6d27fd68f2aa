//! A path over one QUIC connection.
//!
//! - what the bond writes goes as DATAGRAM frames (RFC 9221): nothing waits for what was lost before it, and the bond repairs
//! - the edge's first stream carries the control frames of the path (`frame`); there are no other streams

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use quinn::{Connection, ConnectionError, RecvStream, SendDatagramError, SendStream, VarInt};
use tokio::sync::{Mutex, watch};

use crate::bond::Policy;
use crate::congestion::controller::Told;
use crate::frame::{self, Control, FrameError, WelcomeFrame};
use crate::meter::Carried;
use crate::path::{Counters, Hint, PathControl, PathFacts, PathTransport, Transport};
use crate::transport::{DATAGRAM_SEND_BUFFER, SEND_WINDOW};
use crate::types::{CloseReason, HubAddresses};

/// Longest text of a goodbye or refusal, in bytes.
const MAX_TEXT: usize = HubAddresses::MAX_TEXT;

/// Application error codes of CONNECTION_CLOSE, and of what closes a path over TCP.
mod code {
    pub(super) const GOODBYE: u8 = 1;
    pub(super) const REPLACED: u8 = 2;
    pub(super) const REFUSED: u8 = 3;
    pub(super) const REVOKED: u8 = 4;
    pub(super) const DEAD: u8 = 5;
    pub(super) const VIOLATION: u8 = 6;
    pub(super) const REDIRECTED: u8 = 7;
}

/// The code and the text that tell a peer the reason.
pub(crate) fn code_of(reason: &CloseReason) -> (u8, Vec<u8>) {
    let addresses;
    let (code, text) = match reason {
        CloseReason::LinkLost | CloseReason::Forgotten => (code::DEAD, ""),
        CloseReason::PeerGoodbye { text } => (code::GOODBYE, text.as_str()),
        CloseReason::Local => (code::GOODBYE, ""),
        CloseReason::Replaced => (code::REPLACED, ""),
        CloseReason::Refused { reason, .. } => (code::REFUSED, reason.as_str()),
        CloseReason::Redirected { to } => {
            addresses = to.to_string();
            (code::REDIRECTED, addresses.as_str())
        }
        CloseReason::Revoked => (code::REVOKED, ""),
        CloseReason::Violation { text } => (code::VIOLATION, text.as_str()),
    };
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    (code, text.as_bytes()[..end].to_vec())
}

/// What a peer tells by them.
pub(crate) fn reason(code: u64, text: &[u8]) -> CloseReason {
    let text = String::from_utf8_lossy(&text[..text.len().min(MAX_TEXT)]).into_owned();
    match u8::try_from(code) {
        Ok(code::GOODBYE) => CloseReason::PeerGoodbye { text },
        Ok(code::REPLACED) => CloseReason::Replaced,
        Ok(code::REVOKED) => CloseReason::Revoked,
        Ok(code::VIOLATION) => CloseReason::Violation { text },
        Ok(code::REDIRECTED) => match text.parse() {
            Ok(to) => CloseReason::Redirected { to },
            // Nowhere else to go: the edge looks for its hub as after any end.
            Err(_) => CloseReason::Forgotten,
        },
        Ok(code::REFUSED) => CloseReason::Refused {
            reason: text,
            current_epoch: None,
        },
        // Given up by the peer, or dropped by a process that ends in a hurry: the session is another matter.
        _ => CloseReason::LinkLost,
    }
}

/// Closes a connection with the code and text of the reason.
pub(crate) fn close(connection: &Connection, reason: &CloseReason) {
    let (code, text) = code_of(reason);
    connection.close(VarInt::from_u32(code.into()), &text);
}

/// What the end of a connection means for the session: silence says nothing of the other end, anything else is its word.
pub(crate) fn reason_of(error: &ConnectionError) -> CloseReason {
    match error {
        ConnectionError::ApplicationClosed(close) => reason(close.error_code.into_inner(), &close.reason),
        ConnectionError::LocallyClosed => CloseReason::Local,
        ConnectionError::TimedOut => CloseReason::LinkLost,
        _ => CloseReason::Forgotten,
    }
}

/// One QUIC connection, attached and welcomed.
pub(crate) struct QuicPath {
    connection: Connection,
    told: Told,
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
    /// `control` is the stream on which Attach and Welcome went, `told` what the connection's congestion controller listens to.
    pub(crate) fn new(connection: Connection, told: Told, control: (SendStream, RecvStream)) -> Arc<Self> {
        Arc::new(Self {
            connection,
            told,
            control_writer: Mutex::new(control.0),
            control_reader: Mutex::new(control.1),
            answer: watch::Sender::new(Vec::new()),
        })
    }

    /// The hub's answer to Attach; false when it could not be written.
    pub(crate) async fn welcome(&self, frame: WelcomeFrame) -> bool {
        let mut writer = self.control_writer.lock().await;
        frame::write(&mut *writer, Control::Welcome(frame)).await.is_ok()
    }

    /// With the headers of UDP and IP.
    fn billed(&self, udp: quinn::UdpStats) -> u64 {
        let headers = if self.connection.remote_address().is_ipv4() {
            28
        } else {
            48
        };
        udp.bytes + udp.datagrams * headers
    }

    /// Why the path ended, where only a stream error is at hand.
    fn end_of_control(&self) -> CloseReason {
        match self.connection.close_reason() {
            Some(error) => reason_of(&error),
            None => {
                // The peer stopped or reset the stream, or what it says is no frame: no honest peer does.
                tracing::warn!(remote = %self.connection.remote_address(), "peer broke a path's control stream");
                close(&self.connection, &CloseReason::LinkLost);
                CloseReason::LinkLost
            }
        }
    }
}

impl PathControl for QuicPath {
    fn facts(&self) -> PathFacts {
        PathFacts {
            max_datagram: self.connection.max_datagram_size().unwrap_or(0),
            reliable: false,
            ordered: false,
        }
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
            carried: Carried {
                sent: self.billed(stats.udp_tx),
                received: self.billed(stats.udp_rx),
            },
        }
    }

    fn remote(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    fn transport(&self) -> Transport {
        Transport::Quic
    }

    fn hint(&self, hint: Hint) {
        if self.told.tell(hint) {
            // The congestion window has just opened, and quinn looks at it only when it is woken: this wakes it and changes nothing.
            self.connection.set_send_window(SEND_WINDOW);
        }
    }

    fn tell(&self, policy: Policy) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let mut writer = self.control_writer.lock().await;
            if let Err(error) = frame::write(&mut *writer, Control::Policy(policy.into())).await {
                // The path is about to end, and the next one's Attach says it.
                tracing::debug!(%error, "the hub is not told of a policy");
            }
        })
    }

    fn close(&self, reason: &CloseReason) {
        close(&self.connection, reason);
    }
}

impl PathTransport for QuicPath {
    async fn send(&self, datagram: Bytes) -> Result<(), CloseReason> {
        let queued = || DATAGRAM_SEND_BUFFER.saturating_sub(self.connection.datagram_send_buffer_space());
        self.told.room(datagram.len(), queued).await;
        match self.connection.send_datagram_wait(datagram).await {
            Ok(()) => Ok(()),
            Err(SendDatagramError::ConnectionLost(error)) => Err(reason_of(&error)),
            // The path's MTU shrank since it was asked: the bond sees a loss, and cuts smaller.
            Err(SendDatagramError::TooLarge) => Ok(()),
            Err(SendDatagramError::UnsupportedByPeer | SendDatagramError::Disabled) => Err(CloseReason::LinkLost),
        }
    }

    async fn receive(&self) -> Result<Bytes, CloseReason> {
        self.connection.read_datagram().await.map_err(|error| reason_of(&error))
    }

    async fn serve(&self, told: &(dyn Fn(Policy) + Send + Sync)) -> CloseReason {
        let mut reader = self.control_reader.lock().await;
        loop {
            match frame::read(&mut *reader).await {
                Ok(Control::Challenge(nonce)) => {
                    let answer = Control::ChallengeAnswer(nonce);
                    let mut writer = self.control_writer.lock().await;
                    if frame::write(&mut *writer, answer).await.is_err() {
                        return self.end_of_control();
                    }
                }
                Ok(Control::ChallengeAnswer(nonce)) => {
                    self.answer.send_replace(nonce);
                }
                Ok(Control::Policy(policy)) => told(policy.into()),
                // A newer end may say what we do not know.
                Ok(_) | Err(FrameError::Unknown) => {}
                Err(_) => return self.end_of_control(),
            }
        }
    }

    async fn closed(&self) -> CloseReason {
        reason_of(&self.connection.closed().await)
    }
}
