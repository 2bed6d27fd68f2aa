//! The admin socket: a unix socket of mode 0600 that tells the machine's owner how edgecore is.
//!
//! `/healthz` the process serves; `/readyz` the runtime and its network are up; `/metrics`; `/configz`; `/debug/NAME` for each source that the
//! app registered. It reads only. At most [`MAX_CONNECTIONS`] callers at once; one that is slow is cut.

use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use places::{Place, Places};
use serde_json::Value;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::kubelet_api::answer::{self, Body};
use crate::node::NodeInfo;

/// People and their scripts; the oldest goes for a newcomer.
const MAX_CONNECTIONS: usize = 16;
/// A request's head has to arrive within this.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// A whole connection ends within this.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(60);

/// What a debug page shows.
pub type Source = Box<dyn Fn() -> Value + Send + Sync>;

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("the admin socket {path}")]
pub struct AdminError {
    path: PathBuf,
    source: std::io::Error,
}

/// What the pages show.
pub struct Pages {
    /// The effective configuration.
    pub config: Value,
    /// Whether the node is ready.
    pub node: watch::Receiver<Arc<NodeInfo>>,
    /// More of `/metrics`.
    pub metrics: crate::metrics::Source,
    /// `/debug/NAME`.
    pub debug: Vec<(&'static str, Source)>,
}

impl std::fmt::Debug for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pages").finish_non_exhaustive()
    }
}

/// The bound socket.
#[derive(Debug)]
pub struct Admin {
    listener: UnixListener,
    pages: Arc<Pages>,
}

impl Admin {
    /// Binds the socket, in the place of one that a dead process left.
    ///
    /// # Errors
    /// When the folder or the socket cannot be made.
    pub fn bind(path: &Path, pages: Pages) -> Result<Self, AdminError> {
        let bind = || {
            if let Some(dir) = path.parent() {
                std::fs::create_dir_all(dir)?;
            }
            if path.exists() {
                std::fs::remove_file(path)?;
            }
            let listener = UnixListener::bind(path)?;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
            Ok(listener)
        };
        let listener = bind().map_err(|source| AdminError {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            listener,
            pages: Arc::new(pages),
        })
    }

    /// Serves until dropped.
    pub async fn run(self) -> Infallible {
        let mut connections = JoinSet::new();
        let places = Places::new(MAX_CONNECTIONS);
        loop {
            // Both arms are cancel safe.
            tokio::select! {
                biased;
                Some(_) = connections.join_next() => {}
                accepted = self.listener.accept() => match accepted {
                    // Nobody has to say who he is here, so there is always one to oust.
                    Ok((stream, _)) => if let Some(place) = places.take() {
                        connections.spawn(serve(stream, place, self.pages.clone()));
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
}

async fn serve(stream: UnixStream, place: Place, pages: Arc<Pages>) {
    let service = service_fn(|request: Request<Incoming>| {
        let response = page(&pages, &request);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .keep_alive(false);
    let connection = http.serve_connection(TokioIo::new(stream), service);
    // Neither a broken nor a slow caller is ours to report.
    tokio::select! {
        () = place.lost() => {}
        _ = tokio::time::timeout(CONNECTION_DEADLINE, connection) => {}
    }
}

fn page<B>(pages: &Pages, request: &Request<B>) -> Response<Body> {
    if request.method() != Method::GET {
        return answer::text(StatusCode::METHOD_NOT_ALLOWED, "only GET is allowed");
    }
    match request.uri().path() {
        "/healthz" => answer::text(StatusCode::OK, "ok"),
        "/readyz" if pages.node.borrow().ready => answer::text(StatusCode::OK, "ok"),
        "/readyz" => answer::text(
            StatusCode::SERVICE_UNAVAILABLE,
            "the container runtime or its network is not ready",
        ),
        "/metrics" => answer::metrics(pages.metrics.with_process()),
        "/configz" => answer::json(&pages.config),
        path => match pages
            .debug
            .iter()
            .find(|(name, _)| path.strip_prefix("/debug/") == Some(name))
        {
            Some((_, source)) => answer::json(&source()),
            None => answer::text(StatusCode::NOT_FOUND, "there is no such page"),
        },
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn the_socket_is_private_takes_a_dead_ones_place_and_answers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/edgecore.sock");
        let (node, receiver) = watch::channel(Arc::new(NodeInfo::default()));
        let pages = |node| Pages {
            config: "c".into(),
            node,
            metrics: crate::metrics::Source::new(|| "uplinks 3\n".to_owned()),
            debug: vec![("pods", Box::new(|| "p".into()))],
        };
        drop(Admin::bind(&path, pages(receiver.clone())).unwrap());
        let admin = Admin::bind(&path, pages(receiver)).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut tasks = JoinSet::new();
        tasks.spawn(admin.run());
        let get = async |page: &str| {
            let mut stream = UnixStream::connect(&path).await.unwrap();
            stream
                .write_all(format!("GET {page} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
                .await
                .unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        assert!(get("/readyz").await.starts_with("HTTP/1.1 503"));
        node.send_replace(Arc::new(NodeInfo {
            ready: true,
            ..NodeInfo::default()
        }));
        for page in ["/healthz", "/readyz", "/metrics", "/configz", "/debug/pods"] {
            assert!(get(page).await.starts_with("HTTP/1.1 200"), "{page}");
        }
        assert!(get("/metrics").await.ends_with("\nuplinks 3\n"));
        assert!(get("/debug/none").await.starts_with("HTTP/1.1 404"));
    }
}
