//! A plain HTTP/2 client: what is sent and received is what the scripts say.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

/// A request that takes longer is a fault: nothing here waits for anything.
const LIMIT: Duration = Duration::from_secs(60);

/// One request.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Bytes,
    /// Whether the connection shows the admin's certificate.
    pub(crate) certificate: bool,
    /// How many lines of a watch are read; 0 = the whole body.
    pub(crate) events: usize,
}

/// One answer.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) code: u16,
    pub(crate) content_type: String,
    /// Warning headers, sorted.
    pub(crate) warnings: Vec<String>,
    pub(crate) body: Bytes,
}

/// A connection to one server as the admin; without a certificate there is one a request, since kube-apiserver closes those after
/// a 401.
#[derive(Debug)]
pub(crate) struct Client {
    admin: SendRequest<Full<Bytes>>,
    /// Without a certificate.
    nobody: ClientConfig,
    /// `127.0.0.1:PORT`.
    pub(crate) address: String,
    _connections: JoinSet<hyper::Result<()>>,
}

impl Client {
    /// Connects as `kubeconfig` says.
    pub(crate) async fn connect(kubeconfig: &Path) -> Result<Self> {
        let config: Value = serde_yaml_ng::from_str(&fs::read_to_string(kubeconfig)?)?;
        let text = |pointer: &str| {
            config
                .pointer(pointer)
                .and_then(Value::as_str)
                .context(pointer.to_owned())
        };
        let pem = |pointer: &str| Ok::<_, anyhow::Error>(STANDARD.decode(text(pointer)?)?);
        let address = text("/clusters/0/cluster/server")?
            .trim_start_matches("https://")
            .to_owned();
        let mut roots = RootCertStore::empty();
        for ca in CertificateDer::pem_slice_iter(&pem("/clusters/0/cluster/certificate-authority-data")?) {
            roots.add(ca?)?;
        }
        let chain = CertificateDer::pem_slice_iter(&pem("/users/0/user/client-certificate-data")?)
            .collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(&pem("/users/0/user/client-key-data")?)?;
        let mut connections = JoinSet::new();
        let nobody = config_builder(&roots)?.with_no_client_auth();
        let admin = config_builder(&roots)?.with_client_auth_cert(chain, key)?;
        Ok(Self {
            admin: open(&address, admin, &mut connections).await?,
            nobody,
            address,
            _connections: connections,
        })
    }

    /// Asks once.
    pub(crate) async fn ask(&self, ask: &Ask) -> Result<Reply> {
        let what = format!("{} {} of {}", ask.method, ask.path, self.address);
        let asked = tokio::time::timeout(LIMIT, self.exchange(ask));
        asked
            .await
            .with_context(|| format!("{what} takes too long"))?
            .context(what)
    }

    async fn exchange(&self, ask: &Ask) -> Result<Reply> {
        let mut own = JoinSet::new();
        let mut sender = if ask.certificate {
            self.admin.clone()
        } else {
            open(&self.address, self.nobody.clone(), &mut own).await?
        };
        sender.ready().await?;
        let mut request = Request::builder()
            .method(ask.method.as_str())
            .uri(format!("https://{}{}", self.address, ask.path));
        for (name, value) in &ask.headers {
            request = request.header(name, value);
        }
        let response = sender.send_request(request.body(Full::new(ask.body.clone()))?).await?;
        reply(response, ask.events).await
    }
}

async fn reply(response: Response<Incoming>, events: usize) -> Result<Reply> {
    let texts = |name| response.headers().get_all(name).iter();
    let mut warnings: Vec<_> = texts(header::WARNING)
        .map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
        .collect();
    warnings.sort();
    let content_type = texts(header::CONTENT_TYPE)
        .next()
        .map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
    let (code, mut incoming) = (response.status(), response.into_body());
    let mut body = Vec::new();
    let is_done = |body: &[u8]| events > 0 && code.is_success() && bytes_lines(body) >= events;
    while !is_done(&body)
        && let Some(frame) = incoming.frame().await
    {
        if let Ok(data) = frame?.into_data() {
            body.extend_from_slice(&data);
        }
    }
    if is_done(&body) {
        // What came with the last one is another one.
        let ends: Vec<usize> = (0..body.len()).filter(|at| body[*at] == b'\n').collect();
        body.truncate(ends[events - 1] + 1);
    }
    Ok(Reply {
        code: code.as_u16(),
        content_type: content_type.unwrap_or_default(),
        warnings,
        body: body.into(),
    })
}

fn bytes_lines(body: &[u8]) -> usize {
    body.iter().filter(|byte| **byte == b'\n').count()
}

fn config_builder(
    roots: &RootCertStore,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots.clone()))
}

async fn open(
    address: &str,
    mut config: ClientConfig,
    connections: &mut JoinSet<hyper::Result<()>>,
) -> Result<SendRequest<Full<Bytes>>> {
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(address).await?;
    let stream = TlsConnector::from(Arc::new(config))
        .connect(ServerName::try_from("127.0.0.1")?, stream)
        .await?;
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    connections.spawn(connection);
    Ok(sender)
}
