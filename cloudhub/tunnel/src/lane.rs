//! Messages that go over a stream, one after another: what is not urgent, so that a reader that falls behind stops its sender.
//!
//! A lane is a stream of [`Purpose::Lane`](crate::driver::stream::Purpose): each message with its length before it (u32, big endian).
//! Lengths are checked before anything is read, and memory grows with what has arrived.

use std::io::{Error, ErrorKind};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::MAX_MESSAGE;

/// Writes one message. Not cancel-safe.
pub(crate) async fn write(lane: &mut (impl AsyncWrite + Unpin), message: &Bytes) -> std::io::Result<()> {
    lane.write_all(&(message.len() as u32).to_be_bytes()).await?;
    lane.write_all(message).await
}

/// Reads the next message; `None` at the end of the lane. Not cancel-safe.
///
/// # Errors
/// The stream broke, or the peer states a length above [`MAX_MESSAGE`].
pub(crate) async fn read(lane: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Option<Bytes>> {
    let mut length = [0; 4];
    if lane.read(&mut length[..1]).await? == 0 {
        return Ok(None);
    }
    lane.read_exact(&mut length[1..]).await?;
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_MESSAGE {
        return Err(Error::new(
            ErrorKind::InvalidData,
            format!("a message of {length} bytes exceeds the limit of {MAX_MESSAGE} bytes"),
        ));
    }
    let mut message = BytesMut::new();
    while message.len() < length {
        let left = length - message.len();
        if lane.take(left as u64).read_buf(&mut message).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(Some(message.freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_come_back_one_by_one() {
        let mut bytes = Vec::new();
        for size in [0, 1, 2000, MAX_MESSAGE] {
            write(&mut bytes, &Bytes::from(vec![7; size])).await.unwrap();
        }
        let mut lane = bytes.as_slice();
        for size in [0, 1, 2000, MAX_MESSAGE] {
            assert_eq!(read(&mut lane).await.unwrap().unwrap().len(), size);
        }
        assert!(read(&mut lane).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_cut_lane_and_an_absurd_length_are_errors() {
        let mut bytes = Vec::new();
        write(&mut bytes, &Bytes::from_static(b"status")).await.unwrap();
        for cut in 1..bytes.len() {
            assert!(read(&mut &bytes[..cut]).await.is_err(), "cut at {cut}");
        }
        let error = read(&mut [0, 1, 0, 1, 0].as_slice()).await.unwrap_err();
        assert!(error.to_string().contains("65537"), "{error}");
    }
}
