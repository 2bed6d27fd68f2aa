//! The hub's end of paths over TCP, for sites that block UDP.
//!
//! - [`Listeners`] (TCP addresses of the hub's own), and [`TcpDoor`] for whoever shares a port with the tunnel → [`Door`] (bounded) →
//!   [`serve`], one task a connection → handshake (mTLS) → [`Admission`](crate::Admission) → Attach → the session, as over QUIC
//!
//! State: the [`Places`] of all of them. Who has not attached loses his to a newcomer when they are short, and has the deadlines of a
//! QUIC connection. What is no Attach is answered with the reason; nobody else notices.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use places::{Place, Places};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_rustls::{Accept, StartHandshake, TlsAcceptor};

use super::newcomer::{self, Attached};
use super::{ATTACH_WITHIN, HANDSHAKE_WITHIN, HubError, Shared, attach, reason_of, run, wall_now};
use crate::frame::Control;
use crate::path::Transport;
use crate::records::Record;
use crate::tcp::{self, Link, TcpPath};
use crate::tls::{ALPN, PeerCertificate};
use crate::types::CloseReason;

/// Paths over TCP at once, and whoever wants to be one: a few thousand robots at sites that block UDP. Each costs about 50 KiB.
const MAX_CONNECTIONS: usize = 8192;
/// Connections that wait for a task.
const BACKLOG: usize = 64;
/// Out of file descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// One that comes.
enum Arrival {
    /// It has said nothing.
    Fresh(TcpStream),
    /// Its ClientHello asks for the tunnel.
    Begun(Box<StartHandshake<TcpStream>>),
}

/// Hands over connections that came to somebody else's port and ask for the tunnel.
#[derive(Clone, Debug)]
pub struct TcpDoor(mpsc::Sender<(Arrival, SocketAddr)>);

impl std::fmt::Debug for Arrival {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Arrival")
    }
}

impl TcpDoor {
    /// Whether this ClientHello asks for the tunnel (ALPN, RFC 7301).
    pub fn is_for(hello: &rustls::server::ClientHello<'_>) -> bool {
        hello.alpn().is_some_and(|mut names| names.any(|name| name == ALPN))
    }

    /// Takes a connection whose ClientHello was read. It is dropped where too many come at once, or the hub is shut down.
    pub fn take(&self, begun: StartHandshake<TcpStream>, remote: SocketAddr) {
        if self.0.try_send((Arrival::Begun(Box::new(begun)), remote)).is_err() {
            tracing::warn!(%remote, "too many connections for the tunnel at once: dropped one");
        }
    }
}

/// The task of all paths over TCP, and the door to it.
pub(super) struct Door {
    sender: mpsc::Sender<(Arrival, SocketAddr)>,
    arrivals: mpsc::Receiver<(Arrival, SocketAddr)>,
    places: Places,
}

impl Door {
    pub(super) fn new() -> Self {
        let (sender, arrivals) = mpsc::channel(BACKLOG);
        Self {
            sender,
            arrivals,
            places: Places::new(places::within_files(MAX_CONNECTIONS)),
        }
    }

    pub(super) fn door(&self) -> TcpDoor {
        TcpDoor(self.sender.clone())
    }

    /// Accepts on a listener of the hub's own.
    pub(super) fn listen(&self, listener: TcpListener) -> impl Future<Output = ()> + Send + use<> {
        accept(listener, self.sender.clone(), self.places.clone())
    }

    /// Serves until the hub is gone, and then what is there.
    pub(super) async fn run(mut self, shared: Arc<Shared>, tls: Arc<rustls::ServerConfig>) {
        let mut connections = JoinSet::new();
        let stop = shared.stop.clone();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(_) = connections.join_next() => {}
                Some((arrival, remote)) = self.arrivals.recv() => match self.places.take() {
                    Some(place) => {
                        connections.spawn(serve(arrival, remote, (shared.clone(), tls.clone()), place));
                    }
                    None => tracing::warn!(%remote, "all places for paths over TCP are taken: dropped a connection"),
                },
            }
        }
        while connections.join_next().await.is_some() {}
    }
}

/// Binds a listener of the hub's own, and says where.
pub(super) fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), HubError> {
    let listener = std::net::TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok((TcpListener::from_std(listener)?, address))
    });
    listener.map_err(|source| HubError::BindTcp { address, source })
}

async fn accept(listener: TcpListener, to: mpsc::Sender<(Arrival, SocketAddr)>, places: Places) {
    loop {
        match listener.accept().await {
            Ok((stream, remote)) => {
                if to.send((Arrival::Fresh(stream), remote)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "accept a path over TCP");
                places.make_room();
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One connection, from its handshake to its end.
async fn serve(
    arrival: Arrival,
    remote: SocketAddr,
    (shared, tls): (Arc<Shared>, Arc<rustls::ServerConfig>),
    place: Place,
) {
    let welcomed = tokio::select! {
        biased;
        () = place.lost() => return tracing::debug!(%remote, "a connection for the tunnel is closed for a newcomer's"),
        () = shared.stop.cancelled() => return,
        welcomed = begin(arrival, remote, &shared, tls) => welcomed,
    };
    let Some((link, newcomer, session, rtt)) = welcomed else {
        return;
    };
    place.keep();
    let path = TcpPath::new(link, (remote, Transport::Tcp), rtt, None);
    let welcomed = path.welcome((&shared.welcome()).into());
    run(&shared, &path, newcomer.path, session, welcomed).await;
    path.finish().await;
}

type Begun = (Link, Attached, (Arc<crate::session::Inner>, bool), Duration);

/// Everything before Welcome.
async fn begin(
    arrival: Arrival,
    remote: SocketAddr,
    shared: &Arc<Shared>,
    tls: Arc<rustls::ServerConfig>,
) -> Option<Begun> {
    let since = Instant::now();
    let link = match timeout(HANDSHAKE_WITHIN, shake_hands(arrival, tls)).await {
        Ok(Ok(link)) => link,
        Ok(Err(error)) => {
            tracing::info!(%remote, %error, "a handshake over TCP failed");
            return None;
        }
        Err(_) => {
            tracing::debug!(%remote, "a handshake over TCP took too long");
            return None;
        }
    };
    let rtt = since.elapsed();
    let certificate = newcomer::certificate(link.stream.get_ref().1.peer_certificates()).and_then(|certificate| {
        shared.admission.admit(&certificate, wall_now())?;
        Ok(certificate)
    });
    let certificate = match certificate {
        Ok(certificate) => certificate,
        Err(reason) => {
            tracing::warn!(%remote, reason, "a node was not let in");
            refuse(link, reason).await;
            return None;
        }
    };
    attached(link, remote, shared, &certificate)
        .await
        .map(|(link, newcomer, session)| (link, newcomer, session, rtt))
}

async fn attached(
    mut link: Link,
    remote: SocketAddr,
    shared: &Arc<Shared>,
    certificate: &PeerCertificate,
) -> Option<(Link, Attached, (Arc<crate::session::Inner>, bool))> {
    let node = &certificate.node;
    let newcomer = match timeout(ATTACH_WITHIN, link.read()).await {
        Ok(Ok(Record::Control(first))) => newcomer::read(first, node, remote),
        Ok(Ok(_)) => Err("the first record is not Attach".to_owned()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no Attach in time".to_owned()),
    };
    let newcomer = match newcomer {
        Ok(newcomer) => newcomer,
        Err(error) => {
            tracing::info!(node, %remote, error, "no usable Attach");
            refuse(link, error).await;
            return None;
        }
    };
    match attach(shared, &newcomer, certificate).await {
        Ok(session) => Some((link, newcomer, session)),
        Err(refusal) => {
            tracing::warn!(node, %remote, reason = refusal.reason, "refused a session");
            let reason = reason_of(&refusal);
            // What says the epoch; the reason alone follows where it cannot be written.
            if let Ok(Err(error)) =
                timeout(ATTACH_WITHIN, link.write(&Record::Control(Control::Refused(refusal)))).await
            {
                tracing::debug!(%remote, %error, "a refusal was not taken");
            }
            link.refuse(&reason).await;
            None
        }
    }
}

async fn refuse(link: Link, reason: String) {
    let refused = CloseReason::Refused {
        reason,
        current_epoch: None,
    };
    link.refuse(&refused).await;
}

async fn shake_hands(arrival: Arrival, tls: Arc<rustls::ServerConfig>) -> std::io::Result<Link> {
    let accept: Accept<TcpStream> = match arrival {
        Arrival::Fresh(stream) => TlsAcceptor::from(tls).accept(stream),
        Arrival::Begun(begun) => begun.into_stream(tls),
    };
    let stream = accept.await?;
    let (socket, connection) = stream.get_ref();
    if connection.alpn_protocol() != Some(ALPN) {
        return Err(std::io::Error::other("the client does not ask for the tunnel"));
    }
    tcp::tune(socket)?;
    Ok(Link::new(stream))
}
