//! A recorded watch feed in the place of a Kubernetes API: what a real kube-apiserver said of one edge, multiplied, and answered
//! from memory, so that a hub of 10 000 edges can be measured on a machine that could not run an API of 10 000 nodes.
//!
//! - [`recording`]: a real kube-apiserver → templates → [`objects`]
//! - hub → TLS (HTTP/2 for watches) → [`serve`] → [`objects`] → event lines → hub
//! - [`Feed::set`]: a change, as if somebody had written it
//!
//! State: [`objects::Objects`]. The feed has a runtime of its own, so that its tasks do not queue behind ten thousand edges'; it ends
//! with [`Feed`]. A connection that breaks ends alone.

mod objects;
pub(super) mod recording;
mod serve;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use kit::Site;
use kit::pki::{Authority, write_kubeconfig};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use objects::{Kind, Objects, Refused, id};

/// Another port than the API's that was recorded.
const PORT: u16 = 7443;
/// A sixtieth of all watches is told each time how far it is: each of them once a minute, as kube-apiserver does.
const BOOKMARKS: Duration = Duration::from_secs(1);
/// Streams of one connection, as kube-apiserver allows.
const STREAMS: u32 = 250;

/// A running feed.
#[derive(Debug)]
pub(super) struct Feed {
    objects: Objects,
    /// For the hub.
    pub(super) kubeconfig: PathBuf,
    _tasks: JoinSet<()>,
    _runtime: Runtime,
}

impl Feed {
    /// Serves `objects` in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When no certificate can be made, or the port is taken.
    pub(super) fn start(site: &Site, objects: Objects) -> Result<Self> {
        let ca = Authority::new("feed-ca")?;
        let address = Ipv4Addr::LOCALHOST.to_string();
        let tls = acceptor(&ca.server(&["feed"], &[&address])?)?;
        let url = format!("https://{address}:{PORT}");
        let pair = ca.client("kedge:cloudhub", &[])?;
        let kubeconfig = write_kubeconfig(site.dir(), "feed", &url, &ca.certificate, &pair)?;
        // Half of the machine at most: the hub is what is measured.
        let threads = (std::thread::available_parallelism()?.get() / 2).max(1);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("feed")
            .enable_all()
            .build()
            .context("start the feed's runtime")?;
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)));
        let listener = listener.context("listen for the hub")?;
        let mut tasks = JoinSet::new();
        tasks.spawn_on(accept(listener, tls, objects.clone()), runtime.handle());
        tasks.spawn_on(bookmarks(objects.clone()), runtime.handle());
        Ok(Self {
            objects,
            kubeconfig,
            _tasks: tasks,
            _runtime: runtime,
        })
    }

    /// A new `data.value` in ConfigMap `name` of namespace default: its watches are told before this returns.
    ///
    /// # Errors
    /// When there is no such ConfigMap.
    pub(super) fn set(&self, name: &str, value: &str) -> Result<()> {
        let kind = Kind::of("configmaps").context("the feed has ConfigMaps")?;
        let changed = self.objects.change(kind, &id("default", name), |object| {
            object["data"]["value"] = value.into();
            Ok(())
        });
        match changed {
            Ok(_) => Ok(()),
            Err(Refused::Missing | Refused::Conflict) => anyhow::bail!("the feed has no ConfigMap {name}"),
        }
    }
}

/// HTTP/2 and HTTP/1.1 as the hub likes. Clients show certificates in vain: nobody is refused here.
fn acceptor((chain, key): &(String, String)) -> Result<TlsAcceptor> {
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
    let mut tls = rustls::ServerConfig::builder_with_provider(tunnel::tls::provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(tls)))
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, objects: Objects) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let (tls, objects) = (tls.clone(), objects.clone());
                    connections.spawn(async move {
                        if let Err(error) = connection(stream, tls, objects).await {
                            tracing::debug!(%error, "a connection to the feed broke");
                        }
                    });
                }
                Err(error) => {
                    tracing::error!(%error, "the feed cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
}

async fn connection(stream: tokio::net::TcpStream, tls: TlsAcceptor, objects: Objects) -> Result<()> {
    stream.set_nodelay(true)?;
    let stream = tls.accept(stream).await?;
    let service = service_fn(move |request| serve::answer(objects.clone(), request));
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http2().max_concurrent_streams(STREAMS);
    let served = server.serve_connection(TokioIo::new(stream), service).await;
    served.map_err(|error| anyhow::anyhow!(error))
}

async fn bookmarks(objects: Objects) {
    loop {
        tokio::time::sleep(BOOKMARKS).await;
        objects.bookmark();
    }
}
