//! The join listener: HTTPS with the serving CA's certificate, no client certificate, one path, small bounds.
//!
//! `POST /v1/join` (JSON, [`super::JoinRequest`]) → 200 [`super::JoinAnswer`] or a Status-like `{"reason", "message"}`;
//! `POST /v1/rejoin` (JSON, [`super::RejoinRequest`]) → 200 PEM chain. Who asks for the tunnel instead (ALPN), as an edge whose site blocks UDP, is
//! handed over to it. Anybody can reach it, so: TLS 1.3 only, [`MAX_CONNECTIONS`] at once (the oldest goes for a newcomer), [`CONNECTION_WITHIN`] each, [`MAX_BODY`] bytes.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use places::{Place, Places};
use rustls::server::Acceptor;
use serde::de::DeserializeOwned;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tunnel::TcpDoor;

use super::authority::{AuthorityError, Serving};
use super::{Identity, JoinError, JoinRequest, stopped};

/// A request with a CSR has about 1 KiB.
const MAX_BODY: usize = 64 * 1024;
/// Joins are rare and short; more than this at once is an attack or a factory.
const MAX_CONNECTIONS: usize = 1024;
/// A handshake, a request and its answer over a bad link.
const CONNECTION_WITHIN: Duration = Duration::from_secs(30);
/// Headers of a slow writer.
const HEADERS_WITHIN: Duration = Duration::from_secs(10);

/// The join listener could not start.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The TCP socket.
    #[error("listen for joins on {address}")]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// The serving certificate.
    #[error("set up the join listener's TLS")]
    Tls(#[from] AuthorityError),
}

/// The join listener.
pub struct JoinListener {
    listener: TcpListener,
    local_addr: SocketAddr,
    shared: Arc<Shared>,
    tunnel: Option<TcpDoor>,
}

impl std::fmt::Debug for JoinListener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinListener")
            .field("local_addr", &self.local_addr)
            .finish_non_exhaustive()
    }
}

struct Shared {
    identity: Arc<Identity>,
    tls: Arc<rustls::ServerConfig>,
    tunnel_addresses: Vec<String>,
}

impl JoinListener {
    /// Binds; `tunnel_addresses` are told to nodes that join, `host:port` each.
    ///
    /// # Errors
    /// The address cannot be bound, or TLS cannot be set up.
    pub async fn bind(
        address: SocketAddr,
        identity: Arc<Identity>,
        certificate: Arc<Serving>,
        tunnel_addresses: Vec<String>,
    ) -> Result<Self, ListenError> {
        let bind = |source| ListenError::Bind { address, source };
        let mut tls = rustls::ServerConfig::builder_with_provider(tunnel::tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(AuthorityError::from)?
            .with_no_client_auth()
            .with_cert_resolver(certificate);
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let listener = TcpListener::bind(address).await.map_err(bind)?;
        Ok(Self {
            local_addr: listener.local_addr().map_err(bind)?,
            listener,
            tunnel: None,
            shared: Arc::new(Shared {
                identity,
                tls: Arc::new(tls),
                tunnel_addresses,
            }),
        })
    }

    /// Hands over who asks for the tunnel.
    #[must_use]
    pub fn shared_with(self, tunnel: TcpDoor) -> Self {
        Self {
            tunnel: Some(tunnel),
            ..self
        }
    }

    /// The bound address.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Serves until `stop`.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut connections = JoinSet::new();
        let places = Places::new(places::within_files(MAX_CONNECTIONS));
        loop {
            tokio::select! {
                biased;
                () = stopped(&mut stop) => return,
                Some(_) = connections.join_next() => {}
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, remote)) => match places.take() {
                        Some(place) => {
                            let ends = (self.shared.clone(), self.tunnel.clone());
                            connections.spawn(serve(ends, stream, remote, place));
                        }
                        None => tracing::warn!(%remote, "too many joins at once: dropped a connection"),
                    },
                    Err(error) => {
                        // Out of file descriptors, most likely.
                        tracing::warn!(%error, "accept a join connection");
                        places.make_room();
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
            }
        }
    }
}

async fn serve((shared, tunnel): (Arc<Shared>, Option<TcpDoor>), stream: TcpStream, remote: SocketAddr, place: Place) {
    let connection = async {
        let begun = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        if let Some(tunnel) = tunnel
            && TcpDoor::is_for(&begun.client_hello())
        {
            tunnel.take(begun, remote);
            return Ok(());
        }
        let stream = begun.into_stream(shared.tls.clone()).await?;
        let service = service_fn(|request| answer(&shared, remote, &place, request));
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(HEADERS_WITHIN)
            .keep_alive(false)
            .max_headers(32)
            .max_buf_size(32 * 1024);
        http.serve_connection(TokioIo::new(stream), service)
            .await
            .map_err(std::io::Error::other)
    };
    let ended = tokio::select! {
        biased;
        () = place.lost() => return tracing::debug!(%remote, "a join connection is closed for a newcomer's"),
        ended = timeout(CONNECTION_WITHIN, connection) => ended,
    };
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%remote, %error, "a join connection broke"),
        Err(_) => tracing::debug!(%remote, "a join connection took too long"),
    }
}

async fn answer(
    shared: &Shared,
    remote: SocketAddr,
    place: &Place,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(match (request.method(), request.uri().path()) {
        (&Method::POST, "/v1/join") => match read(request.into_body(), place).await {
            Ok(request) => join(shared, remote, &request).await,
            Err(refusal) => refusal,
        },
        (&Method::POST, "/v1/rejoin") => match read(request.into_body(), place).await {
            Ok(request) => match shared.identity.rejoin(&request) {
                Ok(chain) => respond(StatusCode::OK, "application/x-pem-file", chain),
                Err(error) => log_refusal(remote, "", &error),
            },
            Err(refusal) => refusal,
        },
        (&Method::GET, "/healthz") => respond(StatusCode::OK, "text/plain", "ok"),
        _ => refuse(
            StatusCode::NOT_FOUND,
            "NotFound",
            "this listener has POST /v1/join and /v1/rejoin only",
        ),
    })
}

/// Reads a JSON body, or gives the refusal. Whoever has sent a whole one is not cut while it is answered: his token is used up then.
async fn read<T: DeserializeOwned>(body: Incoming, place: &Place) -> Result<T, Response<Full<Bytes>>> {
    let body = match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => {
            let message = format!("the body could not be read, at most {MAX_BODY} bytes: {error}");
            return Err(refuse(StatusCode::PAYLOAD_TOO_LARGE, "BadBody", &message));
        }
    };
    place.keep();
    serde_json::from_slice(&body).map_err(|error| {
        refuse(
            StatusCode::BAD_REQUEST,
            "BadBody",
            &format!("not such a request: {error}"),
        )
    })
}

async fn join(shared: &Shared, remote: SocketAddr, request: &JoinRequest) -> Response<Full<Bytes>> {
    match shared.identity.join(request, &shared.tunnel_addresses).await {
        Ok(answer) => {
            let body = serde_json::to_vec(&answer).unwrap_or_default();
            respond(StatusCode::OK, "application/json", body)
        }
        Err(error) => log_refusal(remote, request.node.as_deref().unwrap_or_default(), &error),
    }
}

fn log_refusal(remote: SocketAddr, node: &str, error: &JoinError) -> Response<Full<Bytes>> {
    let node: String = node.chars().take(80).collect();
    let source = std::error::Error::source(error).map(ToString::to_string);
    tracing::warn!(%remote, node, reason = error.reason(), %error, ?source, "refused a join");
    let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    refuse(status, error.reason(), &error.to_string())
}

fn refuse(status: StatusCode, reason: &str, message: &str) -> Response<Full<Bytes>> {
    let body = serde_json::json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "code": status.as_u16(), "reason": reason, "message": message,
    });
    respond(status, "application/json", body.to_string())
}

fn respond(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let kind = header::HeaderValue::from_static(kind);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
