//! Connections for watches. A hub watches each Secret and ConfigMap of its nodes by name, as a node: thousands of watches that
//! are silent nearly always. Over HTTP/1.1 each would be a TLS connection at both ends; over HTTP/2 a hundred share one.
//!
//! Which of the two it is, ALPN decides: an API behind a proxy that speaks HTTP/1.1 alone costs a connection a watch, and works.

use std::sync::{Arc, Mutex, PoisonError};

use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ClientBuilder, ConfigExt as _};
use tower::ServiceExt as _;

/// Watches on one connection. Servers and proxies allow 100 streams at least as a rule (RFC 9113 §6.5.2 recommends no less).
const PER_CONNECTION: usize = 100;

/// Why no client can be made of a configuration.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// A watch's place on a connection; the place is free again when this is dropped.
#[derive(Debug)]
pub struct Place {
    _held: Arc<()>,
}

struct Connection {
    client: kube::Client,
    places: Arc<()>,
}

impl Connection {
    fn used(&self) -> usize {
        Arc::strong_count(&self.places) - 1
    }
}

/// All connections for watches.
pub struct Watches {
    config: kube::Config,
    connections: Mutex<Vec<Connection>>,
}

impl std::fmt::Debug for Watches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watches").finish_non_exhaustive()
    }
}

impl Watches {
    /// None is opened before the first watch.
    pub fn new(config: kube::Config) -> Self {
        Self {
            config,
            connections: Mutex::default(),
        }
    }

    /// A client with room for one more watch.
    ///
    /// # Errors
    /// The configuration's certificates or keys make no sense.
    pub fn place(&self) -> Result<(kube::Client, Place), Error> {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let roomy = connections.iter().position(|c| c.used() < PER_CONNECTION);
        let at = match roomy {
            Some(at) => at,
            None => {
                connections.push(Connection {
                    client: client(&self.config)?,
                    places: Arc::default(),
                });
                connections.len() - 1
            }
        };
        let taken = (
            connections[at].client.clone(),
            Place {
                _held: connections[at].places.clone(),
            },
        );
        // Those that nobody uses any more are closed; the first stays.
        let mut index = 0;
        connections.retain(|c| {
            index += 1;
            index == 1 || c.used() > 0
        });
        Ok(taken)
    }
}

/// A client with a connection pool of its own, which offers HTTP/2 before HTTP/1.1.
fn client(config: &kube::Config) -> Result<kube::Client, Error> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    let mut tls = config.rustls_client_config()?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new()).build(HttpsConnector::from((tcp, tls)));
    let namespace = config.default_namespace.clone();
    let builder = ClientBuilder::new(http.map_err(Error::from), namespace).with_layer(&config.base_uri_layer());
    Ok(match config.auth_layer()? {
        Some(auth) => builder.with_layer(&auth).build(),
        None => builder.build(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_hundred_watches_share_a_connection_and_an_empty_one_goes() {
        let config = kube::Config::new(http::Uri::from_static("https://127.0.0.1:1"));
        let watches = Watches::new(config);
        let mut places: Vec<Place> = (0..2 * PER_CONNECTION + 1)
            .map(|_| watches.place().expect("a client").1)
            .collect();
        let open = |watches: &Watches| watches.connections.lock().expect("lock").len();
        assert_eq!(open(&watches), 3);
        places.truncate(PER_CONNECTION);
        places.push(watches.place().expect("a client").1);
        assert_eq!(open(&watches), 2);
        places.clear();
        let _one = watches.place().expect("a client");
        assert_eq!(open(&watches), 1);
    }
}
