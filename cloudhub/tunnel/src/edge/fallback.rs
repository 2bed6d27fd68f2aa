//! The way to the hub for sites that block UDP: TLS over TCP, through an HTTP proxy where one is named.
//!
//! - [`Dialler::dial_any`]: QUIC, and beside it, when it is overdue or has failed, TCP; whichever is up first
//! - [`Dialler::dial_tcp`]: all ports of the hub at once, the first that shows the hub's certificate
//! - [`keep`]: a path over TCP in a running session, for as long as QUIC does not work over its uplink

pub(super) mod keep;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::{Either, select};
use futures::stream::FuturesUnordered;
use rustls_pki_types::ServerName;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::Uplink;
use super::dial::{self, AttemptError, Dialled, Dialler, HANDSHAKE_WITHIN, refused, welcome_of};
use super::lookup::look_up;
use super::race::{order, race};
use crate::frame::{Attach, Control};
use crate::path::Transport;
use crate::proxy::{self, Proxy};
use crate::quic;
use crate::records::Record;
use crate::tcp::{self, Link, LinkError, TcpPath};
use crate::tls::ALPN;
use crate::types::{CloseReason, Welcome};

/// How long QUIC has an uplink for itself: a handshake over a bad link takes two round trips and one packet that is sent again. With a
/// handshake over TCP and an Attach, a session at a site that blocks UDP is up within 5 s.
const FALLBACK_AFTER: Duration = Duration::from_millis(1500);

/// Where the hub is reached over TCP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fallback {
    /// Ports of the hub's hosts, tried all at once; 0 = that of the address itself. Without any there is no fallback.
    pub ports: Vec<u16>,
    /// The proxy through which the site lets people out; it looks up the hub's name.
    pub proxy: Option<Proxy>,
}

impl Fallback {
    /// The hub at `address`, `host:port`, on each of the ports.
    fn targets(&self, address: &str) -> Vec<String> {
        let (host, own) = address.rsplit_once(':').unwrap_or((address, ""));
        let mut targets: Vec<String> = Vec::new();
        for port in &self.ports {
            let target = match port {
                0 => format!("{host}:{own}"),
                port => format!("{host}:{port}"),
            };
            if !targets.contains(&target) {
                targets.push(target);
            }
        }
        targets
    }
}

/// A connection over TCP that has shown the hub's certificate.
pub(super) struct Connected {
    pub(super) remote: SocketAddr,
    transport: Transport,
    link: Link,
    rtt: Duration,
}

impl Dialler {
    /// A connection to the hub's address of this turn, over QUIC or, where that does not work, over TCP.
    pub(super) async fn dial_any(&self, uplink: &Uplink, turn: usize) -> Result<Dialled, AttemptError> {
        let mut quic = Box::pin(self.dial(uplink, turn));
        if self.config.fallback.ports.is_empty() {
            return quic.await;
        }
        let failed = match timeout(FALLBACK_AFTER, &mut quic).await {
            Ok(Ok(dialled)) => return Ok(dialled),
            Ok(Err(error @ AttemptError::Fatal(_))) => return Err(error),
            Ok(Err(error)) => Some(error),
            Err(_) => None,
        };
        let tcp = Box::pin(self.dial_tcp(uplink, turn));
        let both = |quic, tcp| AttemptError::Both {
            quic: Box::new(quic),
            tcp: Box::new(tcp),
        };
        if let Some(failed) = failed {
            return tcp.await.map_err(|error| both(failed, error));
        }
        match select(quic, tcp).await {
            Either::Left((Ok(dialled), _)) | Either::Right((Ok(dialled), _)) => Ok(dialled),
            Either::Left((Err(error @ AttemptError::Fatal(_)), _)) => Err(error),
            Either::Left((Err(failed), tcp)) => tcp.await.map_err(|error| both(failed, error)),
            Either::Right((Err(failed), quic)) => quic.await.map_err(|error| both(error, failed)),
        }
    }

    /// A connection over TCP to the hub's address of this turn, on whichever of its ports there is a hub.
    pub(super) async fn dial_tcp(&self, uplink: &Uplink, turn: usize) -> Result<Dialled, AttemptError> {
        let (hub, round) = self.hub(uplink, turn);
        let targets = self.config.fallback.targets(hub);
        let dials = targets.iter().map(|target| async move {
            let connected = timeout(HANDSHAKE_WITHIN, self.connect(uplink, target, round)).await;
            connected.unwrap_or_else(|_| Err(format!("{target} does not answer")))
        });
        let mut dials: FuturesUnordered<_> = dials.collect();
        let mut failed = Vec::new();
        while let Some(connected) = dials.next().await {
            match connected {
                Ok(connected) => {
                    return Ok(Dialled {
                        uplink: uplink.clone(),
                        hub: hub.to_owned(),
                        over: dial::Connected::Tcp(Box::new(connected)),
                    });
                }
                Err(why) => failed.push(why),
            }
        }
        Err(AttemptError::Fallback(failed.join(", ")))
    }

    /// One target, `host:port`; the error names it.
    async fn connect(&self, uplink: &Uplink, target: &str, round: usize) -> Result<Connected, String> {
        let proxy = self.config.fallback.proxy.as_ref();
        let first_hop = proxy.map_or(target, Proxy::authority);
        let addresses = look_up(first_hop, uplink).await.map_err(|error| error.to_string())?;
        let fail = |error: &dyn std::fmt::Display| match proxy {
            Some(proxy) => format!("{target} through the proxy {proxy}: {error}"),
            None => format!("{target}: {error}"),
        };
        let opened = race(order(addresses, round), |remote| async move {
            let stream = open(remote, uplink).await;
            let stream = stream.map_err(|error| AttemptError::Fallback(format!("{remote}: {error}")))?;
            Ok((remote, stream))
        });
        let (remote, mut stream) = opened.await.map_err(|error| fail(&error))?;
        if let Some(proxy) = proxy {
            proxy::connect(proxy, &mut stream, target)
                .await
                .map_err(|error| fail(&error))?;
        }
        let since = Instant::now();
        let name = ServerName::try_from(self.config.server_name.clone()).map_err(|error| fail(&error))?;
        let connecting = TlsConnector::from(self.tls.clone()).connect(name, stream);
        let stream = connecting.await.map_err(|error| fail(&error))?;
        if stream.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(fail(&"it is not the tunnel's end"));
        }
        Ok(Connected {
            remote,
            transport: proxy.map_or(Transport::Tcp, |proxy| Transport::TcpVia(proxy.authority().to_owned())),
            link: Link::new(stream),
            rtt: since.elapsed(),
        })
    }
}

/// A TCP connection from the device of the uplink, where one is named (SO_BINDTODEVICE).
async fn open(remote: SocketAddr, uplink: &Uplink) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(remote), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(device) = &uplink.device {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&uplink.source(remote).into())?;
    let stream = TcpSocket::from_std_stream(socket.into()).connect(remote).await?;
    tcp::tune(&stream)?;
    Ok(stream)
}

impl Connected {
    /// Attach out, Welcome or Refused back.
    pub(super) async fn exchange(
        self,
        attach: Attach,
        pings: Duration,
    ) -> Result<(Arc<TcpPath>, Welcome), AttemptError> {
        let Self {
            remote,
            transport,
            mut link,
            rtt,
        } = self;
        let answer = match link.write(&Record::Control(Control::Attach(attach))).await {
            Ok(()) => link.read().await,
            Err(error) => Err(error),
        };
        let fail = |why: String| AttemptError::Connection { remote, why };
        match answer {
            Ok(Record::Control(answer)) => {
                let welcome = welcome_of(answer, remote)?;
                Ok((TcpPath::new(link, (remote, transport), rtt, Some(pings)), welcome))
            }
            Ok(Record::Close(code, text)) => Err(match quic::reason(code.into(), &text) {
                CloseReason::Refused { reason, .. } => refused(reason),
                CloseReason::Revoked => refused("the node's identity was revoked".to_owned()),
                reason => fail(reason.to_string()),
            }),
            Ok(_) => Err(fail("the hub's first record is neither Welcome nor Refused".to_owned())),
            // In TLS 1.3 the hub's verdict on our certificate comes after our side of the handshake is done.
            Err(LinkError::Io(error)) if is_alert(&error) => {
                Err(refused(format!("the hub does not take our certificate: {error}")))
            }
            Err(error) => Err(fail(error.to_string())),
        }
    }
}

fn is_alert(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    matches!(inner, Some(rustls::Error::AlertReceived(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_port_of_the_hub_is_a_target_once() {
        let fallback = |ports: &[u16]| Fallback {
            ports: ports.to_vec(),
            proxy: None,
        };
        let both = fallback(&[0, 6444, 443]).targets("hub.example:6444");
        assert_eq!(both, ["hub.example:6444", "hub.example:443"]);
        assert_eq!(fallback(&[443]).targets("[2001:db8::1]:6444"), ["[2001:db8::1]:443"]);
    }
}
