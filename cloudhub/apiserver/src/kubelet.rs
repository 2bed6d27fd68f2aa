//! The kubelets' HTTP APIs, reached through this API: logs, exec, attach, port-forward, `nodes/proxy`, metrics.
//!
//! * a request → the Node's address and port ([`endpoint`]) → TLS: our client certificate, their CA from a Secret → HTTP/1.1 → the answer,
//!   streamed
//! * an upgrade is passed on; after the kubelet's 101 both connections become pipes ([`splice`])
//! * [`paths`] says which path of the kubelet's API a subresource of a pod is
//!
//! State: the CA as the Secret had it at a resourceVersion, and the pipes ([`Kubelets`] owns their tasks; they end with it). Who may ask is
//! judged before; the caller's credentials never reach the kubelet. A kubelet that cannot be reached is a Status; one that refuses is
//! passed on in its own words.

pub(crate) mod paths;

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::kinds;
use crate::object;
use crate::status::{Details, Status};
use crate::store::{Key, Store, Stored};

/// What a body ends with when it breaks.
pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;
/// A body that is streamed.
pub(crate) type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Error>;

/// TCP and TLS together: on a site's network they take milliseconds, through a busy machine a second.
const DIAL: Duration = Duration::from_secs(10);
/// The head of the answer. The hub itself gives an edge 30 s.
const HEAD: Duration = Duration::from_secs(60);
/// A refusal is a sentence; the real server reads as much of it.
const MAX_REFUSAL: usize = 50_000;
/// Which of a node's addresses is called: kube-apiserver's `--kubelet-preferred-address-types`.
const ADDRESS_TYPES: [&str; 5] = ["Hostname", "InternalDNS", "InternalIP", "ExternalDNS", "ExternalIP"];
/// kubelet's port where the Node names none.
const DEFAULT_PORT: u16 = 10250;
/// Headers of one connection, which mean nothing on the next (RFC 9110 §7.6.1).
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
/// Headers that are for us and not for the kubelet. Encodings: a refusal must be readable here.
const OURS: [HeaderName; 4] = [
    header::AUTHORIZATION,
    header::PROXY_AUTHORIZATION,
    header::COOKIE,
    header::ACCEPT_ENCODING,
];

/// Where a kubelet listens.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Endpoint {
    host: String,
    port: u16,
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.parse() {
            Ok(IpAddr::V6(address)) => write!(f, "[{address}]:{}", self.port),
            _ => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// The kubelets of all nodes.
pub(crate) struct Kubelets {
    store: Store,
    /// The certificate chain that kubelets know this API by, and its key, PEM.
    identity: (String, String),
    /// Namespace and name of the Secret with the CA of the kubelets' serving certificates.
    ca: (String, String),
    /// What follows from the Secret as it was at this resourceVersion.
    trust: Mutex<Option<(u64, TlsConnector)>>,
    /// One a pipe.
    pipes: Mutex<JoinSet<()>>,
}

impl std::fmt::Debug for Kubelets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kubelets").field("ca", &self.ca).finish_non_exhaustive()
    }
}

impl Kubelets {
    /// `identity`: the certificate chain that kubelets know this API by and its key, PEM; `ca`: namespace and name of the Secret whose
    /// `tls.crt` signs the kubelets' certificates.
    pub(crate) fn new(store: Store, identity: (String, String), ca: (String, String)) -> Self {
        Self {
            store,
            identity,
            ca,
            trust: Mutex::default(),
            pipes: Mutex::default(),
        }
    }

    /// A subresource of `pod`: `log`, `exec`, `attach` or `portforward`, with its query parameters.
    ///
    /// # Errors
    /// What the real server refuses before it calls; as [`Self::forward`]; for logs what the kubelet refuses.
    pub(crate) async fn pod(
        &self,
        pod: &Value,
        subresource: &str,
        query: &[(String, String)],
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Status> {
        let query = paths::Query::new(query);
        let is_log = subresource == "log";
        if !(request.method() == Method::GET || request.method() == Method::POST && !is_log) {
            return Err(Status::method_not_allowed());
        }
        let target = match subresource {
            "log" => match paths::log(pod, query)? {
                Some(target) => target,
                None => return Ok(no_content()),
            },
            "portforward" => paths::port_forward(pod, query)?,
            process => paths::process(process, pod, query)?,
        };
        let answer = self.forward(&target.node, request, &target.path).await?;
        if is_log {
            log_answer(answer, object::name(pod)).await
        } else {
            Ok(answer)
        }
    }

    /// Sends `request` to a kubelet as `path_and_query` and gives its answer, whatever it is. An upgrade's pipe is run here. `node` is a
    /// Node's name, also as it may stand in `nodes/NAME/proxy`: `NAME:PORT`, `https:NAME:PORT`. Only the kubelet's own port is reached:
    /// from here one could reach all that the hub can.
    ///
    /// # Errors
    /// 404 without such a Node; 400 for another port; 500 and 503 when its kubelet cannot be reached.
    pub(crate) async fn forward(
        &self,
        node: &str,
        request: Request<Incoming>,
        path_and_query: &str,
    ) -> Result<Response<Body>, Status> {
        let (node, port) = paths::node_of_proxy(node)?;
        let to = endpoint(&self.node(node)?)?;
        if let Some(other) = port.filter(|port| *port != to.port) {
            return Err(Status::bad_request(format!(
                "port {other} of node {node} is not proxied: its kubelet has port {}",
                to.port
            )));
        }
        let connector = self.connector()?;
        self.pass_on((&to, &connector), request, path_and_query).await
    }

    /// GET of something that has at most `limit` bytes.
    ///
    /// # Errors
    /// As [`Self::forward`]; any other answer than 200.
    pub(crate) async fn fetch(&self, node: &str, path: &str, limit: usize) -> Result<Bytes, Status> {
        let (to, connector) = (endpoint(&self.node(node)?)?, self.connector()?);
        fetch(&to, &connector, path, limit).await
    }

    fn node(&self, name: &str) -> Result<Value, Status> {
        let stored = stored(&self.store, "nodes", "", name);
        let stored = stored.ok_or_else(|| Status::not_found("", "nodes", name))?;
        Ok(stored.value())
    }

    /// The TLS client that trusts what the Secret says now.
    fn connector(&self) -> Result<TlsConnector, Status> {
        let (namespace, name) = &self.ca;
        let unusable = |why: &str| {
            let message = format!("kubelets cannot be verified: Secret {namespace}/{name} {why}");
            Status::new(503, "ServiceUnavailable", message)
        };
        let secret = stored(&self.store, "secrets", namespace, name).ok_or_else(|| unusable("is not there"))?;
        let mut trust = self.trust.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((version, connector)) = trust.as_ref()
            && *version == secret.resource_version
        {
            return Ok(connector.clone());
        }
        let value = secret.value();
        let encoded = value
            .pointer("/data/tls.crt")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let pem = STANDARD
            .decode(encoded)
            .map_err(|_| unusable("has a tls.crt that is no base64"))?;
        let roots = roots(&pem).ok_or_else(|| unusable("has no certificate in tls.crt"))?;
        let connector = connector(&self.identity, roots).map_err(Status::internal)?;
        *trust = Some((secret.resource_version, connector.clone()));
        Ok(connector)
    }

    async fn pass_on(
        &self,
        (to, connector): (&Endpoint, &TlsConnector),
        mut request: Request<Incoming>,
        path: &str,
    ) -> Result<Response<Body>, Status> {
        let upgrades = upgrade_of(request.headers()).is_some();
        let caller = upgrades.then(|| hyper::upgrade::on(&mut request));
        let request = outgoing(request, to, path)?;
        let (mut sender, driver) = connect(to, connector).await?;
        let mut response = send(&mut sender, request, to).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let Some(caller) = caller else {
                return Err(Status::internal("the kubelet upgraded a request that is no upgrade"));
            };
            let kubelet = hyper::upgrade::on(&mut response);
            self.keep(splice(caller, kubelet, driver));
            let (parts, _) = response.into_parts();
            return Ok(Response::from_parts(parts, empty()));
        }
        strip(response.headers_mut());
        let (parts, body) = response.into_parts();
        let body = Guarded {
            body,
            _driver: driver,
            _sender: sender,
        };
        Ok(Response::from_parts(parts, body.map_err(Into::into).boxed_unsync()))
    }

    fn keep(&self, pipe: impl Future<Output = ()> + Send + 'static) {
        let mut pipes = self.pipes.lock().unwrap_or_else(PoisonError::into_inner);
        while pipes.try_join_next().is_some() {}
        pipes.spawn(pipe);
    }
}

/// A TLS client that trusts `roots` and shows `identity`.
fn connector((certificate, key): &(String, String), roots: RootCertStore) -> Result<TlsConnector, Error> {
    let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    Ok(TlsConnector::from(Arc::new(config)))
}

/// An object of the core group in the store.
fn stored(store: &Store, plural: &str, namespace: &str, name: &str) -> Option<Arc<Stored>> {
    let row = kinds::row("", "v1", plural)?;
    store.get(&Key::new(row.storage, namespace, name))
}

/// Every certificate in `pem`; None when there is none, or one that cannot be a root.
fn roots(pem: &[u8]) -> Option<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate.ok()?).ok()?;
    }
    (!roots.is_empty()).then_some(roots)
}

/// Where the kubelet of `node` listens.
fn endpoint(node: &Value) -> Result<Endpoint, Status> {
    let addresses = object::items(node, "/status/addresses");
    let of = |kind: &str| {
        let found = addresses
            .iter()
            .find(|address| object::text(address, "/type") == kind)?;
        Some(object::text(found, "/address")).filter(|address| !address.is_empty())
    };
    let Some(host) = ADDRESS_TYPES.into_iter().find_map(of) else {
        let known: Vec<String> = addresses.iter().map(Value::to_string).collect();
        return Err(Status::internal(format!(
            "no preferred addresses found; known addresses: [{}]",
            known.join(" ")
        )));
    };
    let port = node.pointer("/status/daemonEndpoints/kubeletEndpoint/Port");
    let port = port
        .and_then(Value::as_u64)
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port > 0);
    Ok(Endpoint {
        host: host.to_owned(),
        port: port.unwrap_or(DEFAULT_PORT),
    })
}

async fn dial(to: &Endpoint, connector: &TlsConnector) -> Result<TlsStream<TcpStream>, Error> {
    let name = ServerName::try_from(to.host.clone())?;
    let stream = TcpStream::connect((to.host.as_str(), to.port)).await?;
    // What people type into a container goes at once.
    stream.set_nodelay(true)?;
    Ok(connector.connect(name, stream).await?)
}

/// A connection and the task that drives it, which ends when its owner drops it.
async fn connect<B>(to: &Endpoint, connector: &TlsConnector) -> Result<(SendRequest<B>, JoinSet<()>), Status>
where
    B: hyper::body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Error>,
{
    let broken = |why: &dyn std::fmt::Display| Status::internal(format!("error dialing backend: dial tcp {to}: {why}"));
    let stream = timeout(DIAL, dial(to, connector))
        .await
        .map_err(|_| broken(&"i/o timeout"))?
        .map_err(|error| broken(&error))?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| broken(&error))?;
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to a kubelet broke");
        }
    });
    Ok((sender, driver))
}

async fn send<B>(sender: &mut SendRequest<B>, request: Request<B>, to: &Endpoint) -> Result<Response<Incoming>, Status>
where
    B: hyper::body::Body + 'static,
{
    match timeout(HEAD, sender.send_request(request)).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) => Err(Status::internal(format!("the kubelet at {to}: {error}"))),
        Err(_) => Err(Status::new(
            504,
            "Timeout",
            format!("the kubelet at {to} did not answer within {HEAD:?}"),
        )),
    }
}

async fn fetch(to: &Endpoint, connector: &TlsConnector, path: &str, limit: usize) -> Result<Bytes, Status> {
    let request = Request::builder()
        .method(Method::GET)
        .uri(path)
        .body(Empty::<Bytes>::new());
    let request = request.map_err(|error| Status::bad_request(format!("{path}: {error}")))?;
    let (mut sender, _driver) = connect(to, connector).await?;
    let response = send(&mut sender, outgoing(request, to, path)?, to).await?;
    let code = response.status();
    let body = Limited::new(response.into_body(), limit).collect().await;
    let body = body.map_err(|error| Status::internal(format!("the kubelet at {to}: {path}: {error}")))?;
    if code != StatusCode::OK {
        return Err(Status::internal(format!("the kubelet at {to}: {path}: {code}")));
    }
    Ok(body.to_bytes())
}

/// The protocol that `headers` ask to upgrade to.
fn upgrade_of(headers: &HeaderMap) -> Option<&HeaderValue> {
    let named = connection_options(headers).any(|option| option.eq_ignore_ascii_case("upgrade"));
    headers.get(header::UPGRADE).filter(|_| named)
}

fn connection_options(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(header::CONNECTION).into_iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

/// Removes what belongs to one connection.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = connection_options(headers)
        .filter_map(|option| option.parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// The request as the kubelet gets it.
fn outgoing<B>(request: Request<B>, to: &Endpoint, path: &str) -> Result<Request<B>, Status> {
    let bad = |error: &dyn std::fmt::Display| Status::bad_request(format!("{path}: {error}"));
    let (mut parts, body) = request.into_parts();
    let upgrade = upgrade_of(&parts.headers).cloned();
    strip(&mut parts.headers);
    let theirs = |name: &HeaderName| OURS.contains(name) || name.as_str().starts_with("impersonate-");
    let names: Vec<HeaderName> = parts.headers.keys().filter(|name| theirs(name)).cloned().collect();
    for name in names {
        parts.headers.remove(name);
    }
    if let Some(protocol) = upgrade {
        parts
            .headers
            .insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        parts.headers.insert(header::UPGRADE, protocol);
    }
    let host = HeaderValue::try_from(to.to_string()).map_err(|error| bad(&error))?;
    parts.headers.insert(header::HOST, host);
    parts.uri = path.parse().map_err(|error| bad(&error))?;
    parts.version = Version::HTTP_11;
    Ok(Request::from_parts(parts, body))
}

/// Carries bytes in both directions until both are closed, or one breaks.
async fn splice(caller: OnUpgrade, kubelet: OnUpgrade, driver: JoinSet<()>) {
    // The caller's side is there when our 101 has been written.
    let (caller, kubelet) = match tokio::try_join!(caller, kubelet) {
        Ok(both) => both,
        Err(error) => return tracing::debug!(%error, "an upgrade was not completed"),
    };
    let (mut caller, mut kubelet) = (TokioIo::new(caller), TokioIo::new(kubelet));
    if let Err(error) = tokio::io::copy_bidirectional(&mut caller, &mut kubelet).await {
        tracing::debug!(%error, "a session in a container broke");
    }
    drop(driver);
}

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// There are no logs yet.
fn no_content() -> Response<Body> {
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// An answer's body that keeps its connection alive until it has been read, and ends it when nobody reads any more.
struct Guarded {
    body: Incoming,
    _driver: JoinSet<()>,
    _sender: SendRequest<Incoming>,
}

impl hyper::body::Body for Guarded {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A kubelet's answer to a log request: text, or what it refuses as a Status, as in the real server.
async fn log_answer(response: Response<Body>, pod: &str) -> Result<Response<Body>, Status> {
    let code = response.status();
    if (200..=206).contains(&code.as_u16()) {
        let mut answer = Response::new(response.into_body());
        let text = HeaderValue::from_static("text/plain");
        answer.headers_mut().insert(header::CONTENT_TYPE, text);
        return Ok(answer);
    }
    let mut body = response.into_body();
    let mut text = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(Status::internal)?;
        let data = frame.into_data().unwrap_or_default();
        text.extend_from_slice(&data[..data.len().min(MAX_REFUSAL - text.len())]);
    }
    Err(log_refusal(code, &String::from_utf8_lossy(&text), pod))
}

/// `NewGenericServerResponse` of apimachinery, and the two codes that are answered before it.
fn log_refusal(code: StatusCode, text: &str, pod: &str) -> Status {
    if code == StatusCode::INTERNAL_SERVER_ERROR {
        return Status::internal(text);
    }
    if code == StatusCode::BAD_REQUEST {
        return Status::bad_request(text);
    }
    let number = code.as_u16();
    let unknown = if code.is_server_error() {
        format!("an error on the server ({text:?}) has prevented the request from succeeding")
    } else {
        format!("the server responded with the status code {number} but did not return more information")
    };
    let (reason, message) = match code {
        StatusCode::UNAUTHORIZED => (
            "Unauthorized",
            "the server has asked for the client to provide credentials",
        ),
        StatusCode::FORBIDDEN => ("Forbidden", text),
        StatusCode::NOT_FOUND => ("NotFound", "the server could not find the requested resource"),
        StatusCode::UNPROCESSABLE_ENTITY => (
            "Invalid",
            "the server rejected our request due to an error in our request",
        ),
        StatusCode::TOO_MANY_REQUESTS => (
            "TooManyRequests",
            "the server has received too many requests and has asked us to try again later",
        ),
        StatusCode::SERVICE_UNAVAILABLE => (
            "ServiceUnavailable",
            "the server is currently unable to handle the request",
        ),
        StatusCode::GATEWAY_TIMEOUT => (
            "Timeout",
            "the server was unable to return a response in the time allotted, but may still be processing the request",
        ),
        code if code.is_server_error() => ("InternalError", unknown.as_str()),
        _ => ("", unknown.as_str()),
    };
    Status {
        code: number,
        reason,
        message: format!("{message} ( pods/log {pod})"),
        details: Some(Box::new(Details {
            name: pod.to_owned(),
            kind: "pods/log".to_owned(),
            ..Details::default()
        })),
    }
}

#[cfg(test)]
mod tests;
