//! The admin socket: a unix socket of mode 0600. `/healthz`, `/readyz`, `/configz`, `/metrics`, `/debug/nodes`, `/debug/paths`. It reads only.

use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use places::{Place, Places};
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
        let response = answer(request.uri().path(), &pages);
        async move { Ok::<_, Infallible>(response) }
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

fn answer(path: &str, pages: &Pages) -> Response<Full<Bytes>> {
    let (code, text) = match path {
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
        _ => (StatusCode::NOT_FOUND, format!("there is no {path}\n")),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = code;
    if path == "/metrics" {
        let format = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(http::header::CONTENT_TYPE, format);
    }
    response
}
