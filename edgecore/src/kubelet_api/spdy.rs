//! The bytes of a SPDY/3.1 connection between a caller and the runtime, frame by frame.
//!
//! * runtime → caller: each frame as it is, answers to PINGs between two
//! * caller → runtime: each frame as it is; but while the runtime's words wait for the link, a PING of the caller's is answered here
//!
//! kubectl pings every 5 s. The runtime closes its socket as soon as a process has ended, with megabytes of its output still in the kernel, and
//! a word that comes to the closed socket resets it: what a slow link had not taken by then would be lost, and kubectl, which sees the streams
//! end, would call that success. While nothing waits PINGs go through, for the runtime ends what is silent for hours.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::FutureExt as _;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::io::{BufReader, split};
use tokio::sync::mpsc;

/// Of a control frame: version, type, flags, length; of a data frame: stream, flags, length (SPDY draft 3.1, 2.2).
const HEADER: usize = 8;
/// The type of a PING (2.6.5); behind its header comes a number of four bytes, odd where the caller asks.
const PING: u16 = 6;
/// What is read at once.
const PIECE: usize = 32 * 1024;
/// Answers that wait until the runtime's frame has passed. One who asks more often hears less.
const ANSWERS: usize = 4;

type Answer = [u8; HEADER + 4];

/// Carries frames until both directions are closed, or one breaks.
///
/// # Errors
/// What broke it. A runtime that no longer reads is still heard to its end.
pub(super) async fn carry(
    caller: impl AsyncRead + AsyncWrite + Unpin,
    runtime: impl AsyncRead + AsyncWrite + Unpin,
) -> io::Result<()> {
    let (from_caller, to_caller) = split(caller);
    let (from_runtime, to_runtime) = split(runtime);
    let (answers, answered) = mpsc::channel(ANSWERS);
    let busy = AtomicBool::new(false);
    let down = pass_down(
        BufReader::with_capacity(PIECE, from_caller),
        to_runtime,
        &answers,
        &busy,
    );
    let up = pass_up(
        BufReader::with_capacity(PIECE, from_runtime),
        to_caller,
        answered,
        &busy,
    );
    tokio::try_join!(down, up).map(drop)
}

async fn pass_down(
    mut caller: impl AsyncBufRead + Unpin,
    mut runtime: impl AsyncWrite + Unpin,
    answers: &mpsc::Sender<Answer>,
    busy: &AtomicBool,
) -> io::Result<()> {
    while !caller.fill_buf().await?.is_empty() {
        let header = read_header(&mut caller).await?;
        let sent = if is_ping(&header) {
            let mut ping = [0; HEADER + 4];
            ping[..HEADER].copy_from_slice(&header);
            caller.read_exact(&mut ping[HEADER..]).await?;
            if busy.load(Ordering::Relaxed) && ping[HEADER + 3] % 2 == 1 {
                let _ = answers.try_send(ping);
                continue;
            }
            runtime.write_all(&ping).await
        } else {
            match pass(&mut caller, &mut runtime, header).await? {
                Passed::Whole => Ok(()),
                Passed::Refused(error) => Err(error),
            }
        };
        if let Err(error) = sent {
            tracing::debug!(%error, "the runtime no longer reads");
            return Ok(());
        }
    }
    // One that is gone already hears nothing.
    let _ = runtime.shutdown().await;
    Ok(())
}

async fn pass_up(
    mut runtime: impl AsyncBufRead + Unpin,
    mut caller: impl AsyncWrite + Unpin,
    mut answers: mpsc::Receiver<Answer>,
    busy: &AtomicBool,
) -> io::Result<()> {
    loop {
        while let Ok(answer) = answers.try_recv() {
            caller.write_all(&answer).await?;
        }
        let ready = runtime.fill_buf().now_or_never();
        let is_over = match ready {
            Some(read) => read?.is_empty(),
            None => {
                caller.flush().await?;
                busy.store(false, Ordering::Relaxed);
                tokio::select! {
                    read = runtime.fill_buf() => read?.is_empty(),
                    Some(answer) = answers.recv() => {
                        caller.write_all(&answer).await?;
                        continue;
                    }
                }
            }
        };
        busy.store(true, Ordering::Relaxed);
        if is_over {
            return caller.shutdown().await;
        }
        let header = read_header(&mut runtime).await?;
        if let Passed::Refused(error) = pass(&mut runtime, &mut caller, header).await? {
            return Err(error);
        }
    }
}

async fn read_header(from: &mut (impl AsyncRead + Unpin)) -> io::Result<[u8; HEADER]> {
    let mut header = [0; HEADER];
    from.read_exact(&mut header).await?;
    Ok(header)
}

fn is_ping(header: &[u8; HEADER]) -> bool {
    let is_control = header[0] & 0x80 != 0;
    is_control && u16::from_be_bytes([header[2], header[3]]) == PING && length(header) == 4
}

/// Of what follows the header.
fn length(header: &[u8; HEADER]) -> usize {
    u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize
}

/// Whether the receiver took it.
enum Passed {
    Whole,
    Refused(io::Error),
}

/// A frame with this header; the error is that of reading.
async fn pass(
    from: &mut (impl AsyncBufRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    header: [u8; HEADER],
) -> io::Result<Passed> {
    let mut left = length(&header);
    let mut piece = header.to_vec();
    loop {
        if left > 0 {
            let bytes = from.fill_buf().await?;
            if bytes.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let count = bytes.len().min(left);
            piece.extend_from_slice(&bytes[..count]);
            from.consume(count);
            left -= count;
        }
        if let Err(error) = to.write_all(&piece).await {
            return Ok(Passed::Refused(error));
        }
        if left == 0 {
            return Ok(Passed::Whole);
        }
        piece.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{DuplexStream, duplex};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::timeout;

    use super::*;

    fn data(bytes: &[u8]) -> Vec<u8> {
        let length = (bytes.len() as u32).to_be_bytes();
        [&[0, 0, 0, 1, 0], &length[1..], bytes].concat()
    }

    fn ping(number: u8) -> Answer {
        [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, number]
    }

    async fn read(from: &mut (impl AsyncRead + Unpin), count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        let read = timeout(Duration::from_secs(10), from.read_exact(&mut bytes)).await;
        read.unwrap().unwrap();
        bytes
    }

    /// A caller and a runtime with little room between them, and what carries.
    fn ends() -> (DuplexStream, DuplexStream, tokio::task::JoinHandle<io::Result<()>>) {
        let (caller, near) = duplex(1000);
        let (far, runtime) = duplex(1000);
        #[expect(clippy::disallowed_methods, reason = "a test has no supervisor")]
        let carries = tokio::spawn(carry(near, far));
        (caller, runtime, carries)
    }

    #[tokio::test]
    async fn frames_pass_as_they_are_however_they_are_cut_and_each_end_closes_for_itself() {
        let (mut caller, mut runtime, carries) = ends();
        let syn = [0x80, 3, 0, 1, 0, 0, 0, 3, 7, 8, 9].to_vec();
        let frames = [syn, data(b""), data(&[5; 400]), ping(1).to_vec(), data(b"end")].concat();
        for byte in &frames {
            caller.write_all(&[*byte]).await.unwrap();
        }
        caller.shutdown().await.unwrap();
        assert_eq!(read(&mut runtime, frames.len()).await, frames);
        assert_eq!(runtime.read(&mut [0; 1]).await.unwrap(), 0);
        runtime.write_all(&frames).await.unwrap();
        drop(runtime);
        assert_eq!(read(&mut caller, frames.len()).await, frames);
        assert_eq!(caller.read(&mut [0; 1]).await.unwrap(), 0);
        carries.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_ping_is_answered_here_between_two_frames_while_the_runtimes_words_wait() {
        let (mut caller, mut runtime, _carries) = ends();
        let (first, second) = (data(&[1; 2500]), data(&[2; 2500]));
        let both = [first.as_slice(), second.as_slice()].concat();
        let say = runtime.write_all(&both);
        let hear = async {
            // It has begun, and waits for us.
            let mut heard = read(&mut caller, 1).await;
            caller.write_all(&ping(7)).await.unwrap();
            caller.write_all(&data(b"x")).await.unwrap();
            tokio::task::yield_now().await;
            heard.extend(read(&mut caller, both.len() + ping(7).len() - 1).await);
            heard
        };
        let (said, heard) = tokio::join!(say, hear);
        said.unwrap();
        assert_eq!(heard, [first.as_slice(), &ping(7), &second].concat());
        assert_eq!(read(&mut runtime, 9).await, data(b"x"), "the runtime was not asked");
        // Its own question is the caller's to answer, and one in silence the runtime's.
        for number in [2, 9] {
            caller.write_all(&ping(number)).await.unwrap();
            assert_eq!(read(&mut runtime, 12).await, ping(number));
        }
    }

    #[tokio::test]
    async fn what_a_runtime_said_before_it_closed_arrives_though_the_caller_pings_meanwhile() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut runtime, _) = listener.accept().await.unwrap();
        let (mut caller, far) = duplex(1000);
        let said = data(&vec![3; 1 << 20]);
        let told = async {
            runtime.write_all(&said).await.unwrap();
            drop(runtime);
        };
        let heard = async {
            let mut heard = read(&mut caller, 1).await;
            // As much as the kernel holds, and the rest is not said before some of it was read.
            heard.extend(read(&mut caller, said.len() / 2).await);
            caller.write_all(&ping(1)).await.unwrap();
            heard.extend(read(&mut caller, said.len() - heard.len()).await);
            heard
        };
        let both = async { tokio::join!(told, heard).1 };
        tokio::select! {
            heard = both => assert!(heard == said, "something else arrived"),
            carried = carry(far, near) => panic!("it ended before all was heard: {carried:?}"),
        }
    }
}
