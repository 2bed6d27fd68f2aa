//! Byte streams of a bond as tokio reads and writes them.
//!
//! A stream begins with one byte that says what it is for ([`Purpose`]); the rest is its owner's. Dropping the writer finishes its
//! direction, dropping the reader tells the peer to stop.

use std::io::{Error, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Driver, State};
use crate::bond::{Read, SendError, StreamId};
use crate::clock::boottime;
use crate::types::Priority;

/// What a stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Whatever the application wants.
    Bytes,
    /// Messages of one priority, one after another.
    Lane(Priority),
}

impl Purpose {
    /// The first byte of the stream.
    pub(crate) fn byte(self) -> u8 {
        match self {
            Self::Bytes => 0,
            Self::Lane(priority) => 1 + priority.index() as u8,
        }
    }

    /// What a first byte says; `None` when nothing that we know.
    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        match byte.checked_sub(1) {
            None => Some(Self::Bytes),
            Some(index) => Priority::from_index(index).map(Self::Lane),
        }
    }

    /// How urgent its bytes are.
    fn priority(self) -> Priority {
        match self {
            Self::Bytes => Priority::Interactive,
            Self::Lane(priority) => priority,
        }
    }
}

#[derive(Debug)]
struct Handle {
    driver: Arc<Driver>,
    id: StreamId,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.driver.change().streams.remove(&self.id);
        self.driver.room.notify_waiters();
    }
}

/// What the peer writes.
#[derive(Debug)]
pub(crate) struct Reader(Arc<Handle>);

/// What the peer reads.
#[derive(Debug)]
pub(crate) struct Writer(Arc<Handle>);

/// Both ends of a stream that the bond knows.
fn halves(driver: &Arc<Driver>, id: StreamId) -> (Reader, Writer) {
    let handle = Arc::new(Handle {
        driver: driver.clone(),
        id,
    });
    (Reader(handle.clone()), Writer(handle))
}

impl Driver {
    /// Opens a stream; waits while as many are open as the peer allows. The peer sees it at once. Not for a session that is over:
    /// it would wait for ever.
    pub(crate) async fn open_stream(self: &Arc<Self>, purpose: Purpose) -> (Reader, Writer) {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if let Some(id) = self.try_open(purpose) {
                return halves(self, id);
            }
            room.await;
        }
    }

    fn try_open(&self, purpose: Purpose) -> Option<StreamId> {
        let mut state = self.change();
        let own = purpose == Purpose::Bytes;
        if own && state.streams.values().filter(|waiting| waiting.own).count() >= self.max_own {
            return None;
        }
        let id = state.bond.open_stream(purpose.priority())?;
        let waiting = super::Waiting {
            own,
            ..super::Waiting::default()
        };
        state.streams.insert(id, waiting);
        // A new stream takes its first byte.
        let _ = state.bond.write(boottime(), id, &[purpose.byte()]);
        Some(id)
    }

    /// The next stream of the peer. For one caller at a time.
    pub(crate) async fn accept_stream(self: &Arc<Self>) -> (Reader, Writer) {
        let id = self.next_stream().await;
        halves(self, id)
    }
}

fn over() -> Error {
    Error::new(ErrorKind::ConnectionAborted, "the session is over")
}

impl State {
    fn read(&mut self, id: StreamId, buf: &mut ReadBuf<'_>, waker: &Waker) -> Poll<std::io::Result<()>> {
        let reset = self.streams.get(&id).is_some_and(|waiting| waiting.reset);
        match self.bond.read(id, buf.remaining()) {
            Read::Bytes(bytes) => buf.put_slice(&bytes),
            Read::End if reset => {
                return Poll::Ready(Err(Error::new(
                    ErrorKind::ConnectionReset,
                    "the peer gave the stream up",
                )));
            }
            Read::End => {}
            Read::Blocked if self.over => return Poll::Ready(Err(over())),
            Read::Blocked => {
                if let Some(waiting) = self.streams.get_mut(&id) {
                    waiting.reader = Some(waker.clone());
                }
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }

    fn write(&mut self, id: StreamId, data: &[u8], waker: &Waker) -> Poll<std::io::Result<usize>> {
        if self.over {
            return Poll::Ready(Err(over()));
        }
        match self.bond.write(boottime(), id, data) {
            Ok(0) if !data.is_empty() => {
                if let Some(waiting) = self.streams.get_mut(&id) {
                    waiting.writer = Some(waker.clone());
                }
                Poll::Pending
            }
            Ok(written) => Poll::Ready(Ok(written)),
            Err(SendError::StreamOver | _) => Poll::Ready(Err(Error::new(
                ErrorKind::BrokenPipe,
                "the stream takes nothing any more",
            ))),
        }
    }
}

impl AsyncRead for Reader {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        self.0.driver.change().read(self.0.id, buf, cx.waker())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.driver.change().bond.stop(self.0.id, 0);
    }
}

impl AsyncWrite for Writer {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<std::io::Result<usize>> {
        self.0.driver.change().write(self.0.id, data, cx.waker())
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.0.driver.change().bond.finish(boottime(), self.0.id);
        Poll::Ready(Ok(()))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.driver.change().bond.finish(boottime(), self.0.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_purpose_has_a_byte_of_its_own() {
        let all = Priority::ALL.map(Purpose::Lane);
        for purpose in all.into_iter().chain([Purpose::Bytes]) {
            assert_eq!(Purpose::from_byte(purpose.byte()), Some(purpose));
        }
        assert_eq!(Purpose::from_byte(5), None);
        assert_eq!(Purpose::from_byte(255), None);
    }
}
