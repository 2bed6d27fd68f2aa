//! An end of what Kedge is compared with: one QUIC connection over one link, or TCP, over one link or (MPTCP) over all.
//!
//! Two byte streams each, told apart by their first byte: one for bulk, one for messages, framed by their length. QUIC's bulk goes in datagrams instead.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use nix::sys::socket::{setsockopt, sockopt};
use quinn::congestion::{BbrConfig, ControllerFactory, CubicConfig};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::end::{Counted, End, Mail, lock};
use super::packet;
use super::sink::Arrival;
use super::talk::{Carrier, Keys, Load, Role, now};

/// IPPROTO_MPTCP.
const MPTCP: i32 = 262;
const BULK: u8 = b'b';
const MESSAGES: u8 = b'm';
/// What is written and read at once.
const BLOCK: usize = 64 * 1024;
/// UDP socket buffers, as the tunnel's.
const SOCKET_BUFFER: usize = 4 << 20;

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Arc<Mutex<Box<dyn AsyncWrite + Send + Unpin>>>;

/// Where connections come from.
#[derive(Debug)]
enum Source {
    QuinnHub(quinn::Endpoint),
    QuinnEdge(quinn::Endpoint, SocketAddr),
    TcpHub(TcpListener, String),
    TcpEdge {
        hub: SocketAddr,
        device: Option<String>,
        congestion: String,
        multipath: bool,
    },
}

/// An end.
pub(crate) struct Baseline {
    source: Source,
    is_hub: bool,
    connection: Option<quinn::Connection>,
    bulk: Option<Writer>,
    messages: Option<Writer>,
    counted: Arc<Counted>,
    tasks: JoinSet<()>,
}

impl Baseline {
    /// Opens its socket.
    ///
    /// # Errors
    /// When that fails.
    pub(crate) fn new(role: Role) -> Result<Self> {
        let is_hub = matches!(role, Role::Hub { .. });
        let source = match role {
            Role::Hub {
                listen,
                carrier: Carrier::Quinn { keys, congestion },
            } => Source::QuinnHub(quinn_hub(listen, &keys, &congestion)?),
            Role::Edge {
                hub,
                carrier: Carrier::Quinn { keys, congestion },
                device,
            } => Source::QuinnEdge(quinn_edge(&keys, &congestion, device.as_deref())?, hub),
            Role::Hub {
                listen,
                carrier: Carrier::Tcp { congestion, multipath },
            } => {
                let socket = tcp(&congestion, multipath, None)?;
                socket.set_reuse_address(true)?;
                socket.bind(&listen.into()).with_context(|| format!("bind {listen}"))?;
                socket.listen(8)?;
                Source::TcpHub(TcpListener::from_std(socket.into())?, congestion)
            }
            Role::Edge {
                hub,
                carrier: Carrier::Tcp { congestion, multipath },
                device,
            } => Source::TcpEdge {
                hub,
                device,
                congestion,
                multipath,
            },
            Role::TunnelHub { .. } | Role::TunnelEdge { .. } => bail!("not a baseline"),
        };
        Ok(Self {
            source,
            is_hub,
            connection: None,
            bulk: None,
            messages: None,
            counted: Arc::default(),
            tasks: JoinSet::new(),
        })
    }

    /// Takes one stream into use; the edge has said what it is for, the hub reads it.
    async fn take(
        &mut self,
        kind: Option<u8>,
        mut reader: Reader,
        writer: Box<dyn AsyncWrite + Send + Unpin>,
    ) -> Result<()> {
        let writer = Arc::new(Mutex::new(writer));
        let kind = match kind {
            Some(kind) => {
                writer.lock().await.write_all(&[kind]).await?;
                kind
            }
            None => reader.read_u8().await?,
        };
        let counted = self.counted.clone();
        match kind {
            BULK => {
                self.bulk = Some(writer);
                self.tasks.spawn(drain(reader, counted));
            }
            MESSAGES => {
                self.messages = Some(writer.clone());
                let echo = self.is_hub.then_some(writer);
                self.tasks.spawn(async move {
                    // A broken connection shows as echoes that do not come.
                    let _ = read_messages(reader, echo, counted).await;
                });
            }
            other => bail!("a stream begins with {other}"),
        }
        Ok(())
    }

    async fn connect_quinn(&mut self, connection: quinn::Connection) -> Result<()> {
        for kind in [BULK, MESSAGES] {
            if self.is_hub {
                let (writer, reader) = connection.accept_bi().await?;
                self.take(None, Box::new(reader), Box::new(writer)).await?;
            } else {
                let (writer, reader) = connection.open_bi().await?;
                self.take(Some(kind), Box::new(reader), Box::new(writer)).await?;
            }
        }
        self.connection = Some(connection.clone());
        let counted = self.counted.clone();
        self.tasks.spawn(async move {
            while let Ok(datagram) = connection.read_datagram().await {
                if let Some(arrival) = packet::arrival(&datagram, now()) {
                    lock(&counted.load).add(arrival);
                }
            }
        });
        Ok(())
    }

    async fn connect_tcp(&mut self) -> Result<()> {
        for kind in [BULK, MESSAGES] {
            let (stream, kind) = match &self.source {
                Source::TcpHub(listener, congestion) => {
                    let stream = listener.accept().await?.0;
                    setsockopt(&stream, sockopt::TcpCongestion, &congestion.into())?;
                    (stream, None)
                }
                Source::TcpEdge {
                    hub,
                    device,
                    congestion,
                    multipath,
                } => {
                    let socket = tcp(congestion, *multipath, device.as_deref())?;
                    (connect(socket, *hub).await?, Some(kind))
                }
                _ => bail!("not TCP"),
            };
            stream.set_nodelay(true)?;
            let (reader, writer) = stream.into_split();
            self.take(kind, Box::new(reader), Box::new(writer)).await?;
        }
        Ok(())
    }
}

impl End for Baseline {
    async fn connect(&mut self, _paths: usize) -> Result<()> {
        match &self.source {
            Source::QuinnHub(endpoint) => {
                let incoming = endpoint.accept().await.context("the endpoint is closed")?;
                let connection = incoming.await?;
                self.connect_quinn(connection).await
            }
            Source::QuinnEdge(endpoint, hub) => {
                let connection = endpoint.connect(*hub, tunnel::SERVER_NAME)?.await?;
                self.connect_quinn(connection).await
            }
            Source::TcpHub(..) | Source::TcpEdge { .. } => self.connect_tcp().await,
        }
    }

    fn flood(&mut self, load: Load, until: u64) -> Result<()> {
        if let Some(connection) = self.connection.clone() {
            self.tasks.spawn(async move {
                for number in 0.. {
                    let packet = packet::packet(load, number);
                    if now() >= until || connection.send_datagram_wait(packet).await.is_err() {
                        return;
                    }
                }
            });
            return Ok(());
        }
        let bulk = self.bulk.clone().context("not connected")?;
        self.tasks.spawn(async move {
            let (block, mut bulk) = (vec![0; BLOCK], bulk.lock().await);
            while now() < until && bulk.write_all(&block).await.is_ok() {}
        });
        Ok(())
    }

    fn mail(&self) -> impl Mail + Send + Sync + 'static {
        Letters(self.messages.clone())
    }

    fn counted(&self) -> &Arc<Counted> {
        &self.counted
    }

    fn tasks(&mut self) -> &mut JoinSet<()> {
        &mut self.tasks
    }

    fn stats(&self) -> Value {
        match &self.source {
            Source::TcpEdge { hub, .. } => flow(*hub).unwrap_or_else(|error| json!({"error": format!("{error:#}")})),
            _ => Value::Null,
        }
    }
}

struct Letters(Option<Writer>);

impl Mail for Letters {
    async fn send(&self, message: Bytes) -> Result<()> {
        let writer = self.0.as_ref().context("not connected")?;
        write_message(writer, &message).await
    }
}

async fn write_message(writer: &Writer, message: &[u8]) -> Result<()> {
    let mut framed = Vec::with_capacity(message.len() + 4);
    framed.extend_from_slice(&u32::try_from(message.len())?.to_be_bytes());
    framed.extend_from_slice(message);
    writer.lock().await.write_all(&framed).await?;
    Ok(())
}

async fn read_messages(mut reader: Reader, echo: Option<Writer>, counted: Arc<Counted>) -> Result<()> {
    loop {
        let length = reader.read_u32().await? as usize;
        ensure!(length <= packet::SPEC, "a message of {length} bytes");
        let mut message = vec![0; length];
        reader.read_exact(&mut message).await?;
        match &echo {
            Some(writer) => {
                counted.request(&message);
                write_message(writer, &message).await?;
            }
            None => counted.reply(&message),
        }
    }
}

async fn drain(mut reader: Reader, counted: Arc<Counted>) {
    let mut block = vec![0; BLOCK];
    while let Ok(bytes @ 1..) = reader.read(&mut block).await {
        lock(&counted.load).add(Arrival {
            at: now(),
            sent: 0,
            number: 0,
            bytes: bytes as u32,
        });
    }
}

/// Where the bulk's TCP stands now, as `ss` tells it: what limits a flow is read from its window and its round trips.
fn flow(hub: SocketAddr) -> Result<Value> {
    let port = hub.port().to_string();
    let ss = std::process::Command::new("ss")
        .args(["-tinHO", "state", "established", "dport", "=", &port])
        .output()
        .context("ss")?;
    let text = String::from_utf8(ss.stdout)?;
    let flows = text.lines().map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let field = |name: &str| {
            let value = words.iter().find_map(|word| word.strip_prefix(name))?;
            value.split('/').next()?.parse::<f64>().ok()
        };
        let repeats = words.iter().find_map(|word| word.strip_prefix("retrans:")?.split('/').nth(1)?.parse::<u64>().ok());
        let window = field("cwnd:").zip(field("mss:")).map(|(packets, bytes)| packets * bytes / 1e3);
        let sent = field("bytes_sent:").unwrap_or_default();
        let told = json!({"rttMs": field("rtt:"), "leastMs": field("minrtt:"), "windowKb": window, "repeats": repeats.unwrap_or_default()});
        (sent, told)
    });
    let busiest = flows.max_by(|one, other| one.0.total_cmp(&other.0));
    Ok(busiest.context("no connection")?.1)
}

fn tcp(congestion: &str, multipath: bool, device: Option<&str>) -> Result<Socket> {
    let protocol = if multipath {
        Protocol::from(MPTCP)
    } else {
        Protocol::TCP
    };
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(protocol)).context("a TCP socket")?;
    setsockopt(&socket, sockopt::TcpCongestion, &congestion.into())
        .with_context(|| format!("TCP with {congestion}"))?;
    if let Some(device) = device {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

async fn connect(socket: Socket, hub: SocketAddr) -> Result<TcpStream> {
    // tokio's own connect knows only sockets of its making.
    match socket.connect(&hub.into()) {
        Err(error) if error.raw_os_error() != Some(nix::errno::Errno::EINPROGRESS as i32) => {
            return Err(error).with_context(|| format!("connect to {hub}"));
        }
        _ => {}
    }
    let stream = TcpStream::from_std(socket.into())?;
    stream.writable().await?;
    match stream.take_error()? {
        Some(error) => Err(error).with_context(|| format!("connect to {hub}")),
        None => Ok(stream),
    }
}

fn transport(congestion: &str) -> Result<quinn::TransportConfig> {
    let factory: Arc<dyn ControllerFactory + Send + Sync> = match congestion {
        "cubic" => Arc::new(CubicConfig::default()),
        "bbr" => Arc::new(BbrConfig::default()),
        other => bail!("quinn has no {other}"),
    };
    let mut config = quinn::TransportConfig::default();
    config
        .congestion_controller_factory(factory)
        // What the links carry. Left to itself it takes lost bursts for a black hole, and datagrams of 1380 bytes no longer fit.
        .initial_mtu(1452)
        .min_mtu(1452)
        .datagram_receive_buffer_size(Some(8 << 20));
    Ok(config)
}

fn udp(address: SocketAddr, device: Option<&str>) -> Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    if let Some(device) = device {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    socket.set_nonblocking(true)?;
    socket
        .bind(&address.into())
        .with_context(|| format!("bind {address}"))?;
    Ok(socket.into())
}

fn quinn_hub(listen: SocketAddr, keys: &Keys, congestion: &str) -> Result<quinn::Endpoint> {
    let chain = vec![CertificateDer::from_pem_slice(keys.hub.0.as_bytes())?];
    let key = PrivateKeyDer::from_pem_slice(keys.hub.1.as_bytes())?;
    let mut config = quinn::ServerConfig::with_single_cert(chain, key)?;
    config.transport_config(Arc::new(transport(congestion)?));
    let runtime = Arc::new(quinn::TokioRuntime);
    Ok(quinn::Endpoint::new(
        quinn::EndpointConfig::default(),
        Some(config),
        udp(listen, None)?,
        runtime,
    )?)
}

fn quinn_edge(keys: &Keys, congestion: &str, device: Option<&str>) -> Result<quinn::Endpoint> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(keys.serving_ca.as_bytes())?)?;
    let mut config = quinn::ClientConfig::with_root_certificates(Arc::new(roots))?;
    config.transport_config(Arc::new(transport(congestion)?));
    let (any, runtime) = (SocketAddr::from(([0, 0, 0, 0], 0)), Arc::new(quinn::TokioRuntime));
    let mut endpoint = quinn::Endpoint::new(quinn::EndpointConfig::default(), None, udp(any, device)?, runtime)?;
    endpoint.set_default_client_config(config);
    Ok(endpoint)
}
