//! The admin socket: a unix socket of mode 0600. `/healthz`, `/readyz`, `/configz`, `/metrics`, `/debug/nodes`, `/debug/paths` are
//! read; POST `/redirect` {node, to} sends a session to another hub.

use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use places::{Place, Places};
use serde::Deserialize;
use serde_json::Value;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use crate::links;
use crate::registry::Registry;

/// A whole connection ends within this.
const WITHIN: Duration = Duration::from_secs(30);
/// A request's head arrives within this.
const HEAD_WITHIN: Duration = Duration::from_secs(5);
/// People and their scripts; the oldest goes for a newcomer.
const MAX_CONNECTIONS: usize = 16;

/// What is said here is short, bytes.
const MAX_BODY: usize = 4096;

/// Binds the socket, also where a dead hub has left its file.
///
/// # Errors
/// When the folder cannot be made or the socket not be bound.
pub fn bind(path: &Path) -> Result<UnixListener> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", path.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(|| format!("bind {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// What the pages show.
#[derive(Debug, Clone)]
pub struct Pages {
    /// Which nodes there are.
    pub registry: Registry,
    /// Their sessions.
    pub tunnel: Arc<tunnel::Hub>,
    /// The effective configuration.
    pub config: Value,
}

/// Serves the socket until it is dropped.
pub async fn serve(listener: UnixListener, pages: Pages) {
    let pages = Arc::new(pages);
    let mut tasks = JoinSet::new();
    let places = Places::new(MAX_CONNECTIONS);
    loop {
        tokio::select! {
            biased;
            Some(_) = tasks.join_next() => {}
            accepted = listener.accept() => match accepted {
                // Nobody has to say who he is here, so there is always one to oust.
                Ok((stream, _)) => if let Some(place) = places.take() {
                    tasks.spawn(connection(stream, place, pages.clone()));
                },
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on the admin socket");
                    places.make_room();
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
}

async fn connection(stream: UnixStream, place: Place, pages: Arc<Pages>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let pages = pages.clone();
        async move { Ok::<_, Infallible>(answer(request, &pages).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .serve_connection(TokioIo::new(stream), service);
    // A caller that is slow or breaks off is cut; it is on this machine and may call again.
    tokio::select! {
        () = place.lost() => {}
        _ = tokio::time::timeout(WITHIN, connection) => {}
    }
}

async fn answer(request: Request<Incoming>, pages: &Pages) -> Response<Full<Bytes>> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let (code, text) = match (method, path.as_str()) {
        (Method::POST, "/redirect") => redirect(request.into_body(), &pages.tunnel).await,
        (Method::GET, page) => shown(page, pages),
        (method, path) => (
            StatusCode::METHOD_NOT_ALLOWED,
            format!("{method} of {path} means nothing\n"),
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = code;
    if path == "/metrics" {
        let format = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(http::header::CONTENT_TYPE, format);
    }
    response
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Redirect {
    node: String,
    to: String,
}

async fn redirect(body: Incoming, tunnel: &tunnel::Hub) -> (StatusCode, String) {
    let refused = |why: &dyn std::fmt::Display| (StatusCode::BAD_REQUEST, format!("{why}\n"));
    let body = match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return refused(&error),
    };
    let Redirect { node, to } = match serde_json::from_slice(&body) {
        Ok(redirect) => redirect,
        Err(error) => return refused(&error),
    };
    match to.parse() {
        Ok(to) if tunnel.redirect(&node, &to) => (StatusCode::OK, String::new()),
        Ok(_) => (
            StatusCode::NOT_FOUND,
            format!("node {node:?} has no session with this hub\n"),
        ),
        Err(error) => refused(&error),
    }
}

fn shown(page: &str, pages: &Pages) -> (StatusCode, String) {
    match page {
        "/healthz" => (StatusCode::OK, "ok\n".to_owned()),
        "/readyz" if pages.registry.is_synced() => (StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the API has not been listed yet\n".to_owned(),
        ),
        "/configz" => (StatusCode::OK, pages.config.to_string()),
        "/metrics" => (StatusCode::OK, links::metrics(&pages.tunnel.sessions())),
        "/debug/nodes" => (StatusCode::OK, pages.registry.summary().to_string()),
        "/debug/paths" => (StatusCode::OK, links::report(&pages.tunnel.sessions()).to_string()),
        _ => (StatusCode::NOT_FOUND, format!("there is no {page}\n")),
    }
}
