//! exec, attach and port-forward: the runtime gives a one-time URL on loopback, and from there on we only carry bytes.
//!
//! * A request must be an upgrade: SPDY/3.1, or a WebSocket that offers a protocol the runtime speaks (v1-v4). Where v4 is among several offers it
//!   is passed on alone. One that offers nothing but v5, or SPDY inside a WebSocket, is refused before anything starts, so that kubectl falls back.
//! * The runtime's answer, 101 or not, is the caller's answer. After a 101 both connections become byte pipes, half-closed separately; those of
//!   SPDY are pipes of frames ([`spdy`]).

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use http::header::{CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::answer::{Body, Refusal, empty, full};
use super::spdy;

/// The runtime answers on loopback.
const DEADLINE: Duration = Duration::from_secs(30);
/// A refusal of the runtime is a sentence.
const MAX_REFUSAL: usize = 64 * 1024;
/// What the runtime's WebSocket speaks, best first.
const SPOKEN: [&str; 6] = [
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
];
/// What is answered to an offer that nobody here speaks.
const V5_ONLY: &str = "unable to upgrade: none of the offered subprotocols is supported by this node (supported: v4.channel.k8s.io and older, SPDY/3.1)";

/// Two connections that became pipes.
pub struct Pipe {
    caller: OnUpgrade,
    runtime: OnUpgrade,
    is_spdy: bool,
    /// The connection to the runtime, which has to be driven until it has become a pipe.
    driver: Driver,
}

impl std::fmt::Debug for Pipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipe").finish_non_exhaustive()
    }
}

/// A connection to the runtime while it is still HTTP.
type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;
type AskError = Box<dyn std::error::Error + Send + Sync>;

impl Pipe {
    /// Carries bytes until both directions are closed, or one breaks.
    pub async fn run(self) {
        let both = futures::future::try_join(self.caller, self.runtime);
        let (upgraded, ()) = futures::future::join(both, self.driver).await;
        let (caller, runtime) = match upgraded {
            Ok(both) => both,
            Err(error) => return tracing::debug!(%error, "an upgrade was not completed"),
        };
        let (mut caller, mut runtime) = (TokioIo::new(caller), TokioIo::new(runtime));
        let carried = if self.is_spdy {
            spdy::carry(caller, runtime).await
        } else {
            let copied = tokio::io::copy_bidirectional(&mut caller, &mut runtime).await;
            copied.map(drop)
        };
        if let Err(error) = carried {
            tracing::debug!(%error, "a stream broke");
        }
    }
}

/// The WebSocket protocol to pass on; None for SPDY.
///
/// # Errors
/// When the request is no upgrade, or offers nothing that the runtime speaks.
pub fn negotiate(headers: &HeaderMap) -> Result<Option<HeaderValue>, Refusal> {
    let Some(upgrade) = headers.get(UPGRADE).and_then(|v| v.to_str().ok()) else {
        return Err(Refusal::text(StatusCode::BAD_REQUEST, "Upgrade request required"));
    };
    if !upgrade.eq_ignore_ascii_case("websocket") {
        return Ok(None);
    }
    let offers: Vec<&str> = headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(str::trim)
        .collect();
    if offers.is_empty() {
        return Ok(None);
    }
    match SPOKEN.iter().find(|spoken| offers.contains(spoken)) {
        Some(spoken) => Ok(Some(HeaderValue::from_static(spoken))),
        None => Err(Refusal::text(StatusCode::FORBIDDEN, V5_ONLY)),
    }
}

/// Sends the caller's request on to `url`, and gives the runtime's answer, with the pipe where it is a 101.
///
/// # Errors
/// When the runtime cannot be reached.
pub async fn pass_on(
    mut request: Request<Incoming>,
    url: &str,
    protocol: Option<HeaderValue>,
) -> Result<(Response<Body>, Option<Pipe>), Refusal> {
    let broken = |error: &dyn std::fmt::Display| {
        Refusal::text(
            StatusCode::INTERNAL_SERVER_ERROR,
            &format!("the runtime's stream {url}: {error}"),
        )
    };
    let uri: Uri = url.parse().map_err(|e| broken(&e))?;
    let Some(authority) = uri.authority().filter(|_| uri.scheme_str() == Some("http")) else {
        return Err(broken(
            &"only plain http on loopback is supported: switch enable_tls_streaming off",
        ));
    };
    let caller = hyper::upgrade::on(&mut request);
    let mut outgoing = Request::builder()
        .method(request.method().clone())
        .uri(uri.path_and_query().map_or("/", |p| p.as_str()));
    if let Some(headers) = outgoing.headers_mut() {
        *headers = headers_to_runtime(request.headers(), request.method(), protocol);
        headers.insert(HOST, HeaderValue::from_str(authority.as_str()).map_err(|e| broken(&e))?);
    }
    let outgoing = outgoing.body(empty()).map_err(|e| broken(&e))?;
    let answer = tokio::time::timeout(DEADLINE, ask(authority.as_str(), outgoing))
        .await
        .map_err(|e| broken(&e))?;
    let (mut answer, driver) = answer.map_err(|e| broken(&e))?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        let runtime = hyper::upgrade::on(&mut answer);
        let protocol = answer.headers().get(UPGRADE);
        let is_spdy = protocol.is_some_and(|name| name.as_bytes().eq_ignore_ascii_case(b"SPDY/3.1"));
        let (parts, _) = answer.into_parts();
        return Ok((
            Response::from_parts(parts, empty()),
            Some(Pipe {
                caller,
                runtime,
                is_spdy,
                driver,
            }),
        ));
    }
    let refusal = tokio::time::timeout(DEADLINE, refusal(answer, driver))
        .await
        .map_err(|e| broken(&e))?;
    Ok((refusal.map_err(|e| broken(&e))?, None))
}

/// The runtime's answer that is no upgrade, whole.
async fn refusal(answer: Response<Incoming>, driver: Driver) -> Result<Response<Body>, AskError> {
    let (mut parts, body) = answer.into_parts();
    let body = Limited::new(body, MAX_REFUSAL).collect();
    let body = match futures::future::select(std::pin::pin!(body), driver).await {
        futures::future::Either::Left((body, _)) => body?,
        futures::future::Either::Right(((), body)) => body.await?,
    };
    parts.headers.remove(http::header::TRANSFER_ENCODING);
    parts.headers.remove(CONNECTION);
    Ok(Response::from_parts(parts, full(body.to_bytes())))
}

/// All of the caller's headers but those that speak of its own connection; repeated ones stay repeated.
fn headers_to_runtime(from: &HeaderMap, method: &Method, protocol: Option<HeaderValue>) -> HeaderMap {
    let dropped: [HeaderName; 4] = [
        HOST,
        http::header::TRANSFER_ENCODING,
        http::header::CONTENT_LENGTH,
        http::header::AUTHORIZATION,
    ];
    let mut headers = HeaderMap::with_capacity(from.len());
    for (name, value) in from.iter().filter(|(name, _)| !dropped.contains(name)) {
        headers.append(name, value.clone());
    }
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    if method == Method::POST {
        headers.insert(http::header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    if let Some(protocol) = protocol {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    headers
}

/// One request on a connection of its own, with that connection's driver.
async fn ask(address: &str, request: Request<Body>) -> Result<(Response<Incoming>, Driver), AskError> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let mut driver: Driver = Box::pin(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "the connection to the runtime broke");
        }
    });
    let mut answer = std::pin::pin!(sender.send_request(request));
    // The connection makes progress only while it is polled; it may end before its answer is taken.
    let answer = tokio::select! {
        answer = &mut answer => answer?,
        () = &mut driver => { driver = Box::pin(std::future::ready(())); answer.await? }
    };
    Ok((answer, driver))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(protocols: &[&str]) -> Result<Option<HeaderValue>, Refusal> {
        let mut headers = HeaderMap::new();
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        protocols
            .iter()
            .for_each(|p| _ = headers.append(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_str(p).unwrap()));
        negotiate(&headers)
    }

    #[test]
    fn v4_is_chosen_among_several_and_v5_alone_is_refused() {
        assert_eq!(
            offer(&["v5.channel.k8s.io, v4.channel.k8s.io, v3.channel.k8s.io"])
                .unwrap()
                .unwrap(),
            "v4.channel.k8s.io"
        );
        assert_eq!(
            offer(&["v5.channel.k8s.io", "v4.channel.k8s.io"]).unwrap().unwrap(),
            "v4.channel.k8s.io"
        );
        assert_eq!(
            offer(&["base64.channel.k8s.io"]).unwrap().unwrap(),
            "base64.channel.k8s.io"
        );
        assert_eq!(offer(&["v5.channel.k8s.io"]).unwrap_err().status, StatusCode::FORBIDDEN);
        assert_eq!(
            offer(&["SPDY/3.1+portforward.k8s.io"]).unwrap_err().status,
            StatusCode::FORBIDDEN
        );
    }

    #[test]
    fn spdy_passes_and_no_upgrade_is_refused() {
        let mut headers = HeaderMap::new();
        assert_eq!(negotiate(&headers).unwrap_err().status, StatusCode::BAD_REQUEST);
        headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
        assert_eq!(negotiate(&headers).unwrap(), None);
        for version in ["v4.channel.k8s.io", "v3.channel.k8s.io"] {
            headers.append("x-stream-protocol-version", HeaderValue::from_static(version));
        }
        let sent = headers_to_runtime(&headers, &Method::POST, None);
        assert_eq!(sent.get_all("x-stream-protocol-version").iter().count(), 2);
    }
}
