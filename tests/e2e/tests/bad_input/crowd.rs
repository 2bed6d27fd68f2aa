//! Many connections that say nothing or next to nothing, kept up while a test looks at who else is served.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use kit::Site;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme};

/// An answer that comes later than this is none.
pub(crate) const ANSWER: Duration = Duration::from_secs(20);
/// Most connections at once: ports for outgoing connections are 28000, and a closed one keeps its for a minute.
const MOST: u64 = 16_000;
/// Files that a test needs beside its crowd.
const OTHER_FILES: u64 = 1000;
/// Who does something costs more than who does not; still more than any listener has places for.
const BUSY: usize = 5000;
/// How often the crowd looks round, says its byte and replaces those whom the listener has cut.
const ROUND: Duration = Duration::from_millis(100);
/// Newcomers a round: a crowd, not a flood of SYNs.
const NEWCOMERS: usize = 50;

/// Bytes without sense, the same at each run.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// The first bytes of a TLS 1.2 record with a handshake message in it, as a client sends them.
pub(crate) fn client_hello() -> Vec<u8> {
    let body = noise(7, 250);
    let mut bytes = vec![0x16, 3, 1, 1, 0, 1, 0, 0, 252, 3, 3];
    bytes.extend(body);
    bytes
}

/// As many files as this machine lets a process have.
pub(crate) fn raise_file_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("more files");
}

/// How many connections this process can hold.
pub(crate) fn size() -> usize {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    let size = soft.saturating_sub(OTHER_FILES).min(MOST);
    assert!(size >= 1000, "{soft} open files are too few for a crowd");
    usize::try_from(size).expect("it is small")
}

/// What each of a crowd does once it is connected.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Habit {
    /// Nothing.
    Silent,
    /// A byte of its hello a round.
    Dawdles,
    /// It ends the handshake, begins a request and says no more.
    ShakesHands,
}

impl Habit {
    /// How many do so.
    pub(crate) fn crowd(self) -> usize {
        match self {
            Self::Silent => size(),
            Self::Dawdles | Self::ShakesHands => BUSY.min(size()),
        }
    }
}

/// How it went.
#[derive(Debug, Default)]
pub(crate) struct Siege {
    /// Connections made.
    pub(crate) opened: usize,
    /// Of them, those that the listener closed.
    pub(crate) closed: usize,
}

/// Does `work` while a crowd stands at `address`.
pub(crate) fn besiege(site: &Site, address: SocketAddr, habit: Habit, work: impl FnOnce()) -> Siege {
    let stop = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (all_are_there, ready) = mpsc::channel();
        let crowd = scope.spawn(move || site.inside("hub", || stand(address, habit, stop, &all_are_there)));
        ready.recv().expect("the crowd stands");
        {
            // Also when `work` panics: the crowd's thread is waited for.
            let _stop = StopAtEnd(stop);
            work();
        }
        crowd.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Tells a crowd to go when it is dropped.
pub(crate) struct StopAtEnd<'a>(pub(crate) &'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn stand(address: SocketAddr, habit: Habit, stop: &AtomicBool, ready: &mpsc::Sender<()>) -> Siege {
    let (tls, hello) = (client_config(), client_hello());
    let mut siege = Siege::default();
    let mut held: Vec<(TcpStream, usize)> = Vec::new();
    let open = |siege: &mut Siege| {
        siege.opened += 1;
        let stream =
            TcpStream::connect_timeout(&address, ANSWER).unwrap_or_else(|e| panic!("{address}: {siege:?}: {e}"));
        if matches!(habit, Habit::ShakesHands) {
            shake_hands(&stream, &tls);
        }
        stream.set_nonblocking(true).expect("a mode");
        (stream, 0)
    };
    for _ in 0..habit.crowd() {
        held.push(open(&mut siege));
    }
    ready.send(()).expect("the test waits");
    while !stop.load(Ordering::Relaxed) {
        if matches!(habit, Habit::Dawdles) {
            for (stream, said) in &mut held {
                // One that has been cut is found below.
                *said += stream
                    .write(&hello[*said..*said + usize::from(*said < hello.len())])
                    .unwrap_or(0);
            }
        }
        let before = held.len();
        held.retain(|(stream, _)| is_open(stream));
        siege.closed += before - held.len();
        for _ in 0..NEWCOMERS.min(habit.crowd() - held.len()) {
            held.push(open(&mut siege));
        }
        std::thread::sleep(ROUND);
    }
    siege
}

fn is_open(mut stream: &TcpStream) -> bool {
    match stream.read(&mut [0; 4096]) {
        Ok(read) => read > 0,
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    }
}

/// The handshake and half a request; a listener that has no place for it cuts it at any moment.
fn shake_hands(mut stream: &TcpStream, tls: &Arc<ClientConfig>) {
    stream.set_read_timeout(Some(ANSWER)).expect("a timeout");
    let name = ServerName::try_from("anybody").expect("a name");
    let mut connection = ClientConnection::new(tls.clone(), name).expect("a connection");
    let mut session = rustls::Stream::new(&mut connection, &mut stream);
    let _ = session.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ");
}

/// TLS without a certificate of its own, which believes any server.
fn client_config() -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().expect("versions");
    let mut config = builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Blind(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

/// Believes any certificate.
#[derive(Debug)]
pub(crate) struct Blind(pub(crate) Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Blind {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
