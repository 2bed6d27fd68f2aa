//! `kedge join`: this machine makes its key, shows its token to the hub, and keeps what comes back.
//!
//! Written, each file whole or not at all: `STATE/pki/{client.key, client.crt, serving-ca.crt, tunnel-ca.crt}` and
//! `CONFIG/edgecore.yaml` (its other fields are kept). The configuration comes last: without it edgecore does not start.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde::Deserialize;
use serde_yaml_ng::{Mapping, Value};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::files;
use crate::pinned::{PinnedVerifier, parse_hash};
use crate::token::is_node_name;

/// The hub's name in its certificate, whatever address it is reached at.
const SERVER_NAME: &str = "cloudhub.kedge.internal";
/// Over a bad link; the hub gives a connection 30 s.
const DONE_WITHIN: Duration = Duration::from_secs(30);
/// Certificates and addresses have under 8 KiB.
const MAX_ANSWER: usize = 256 * 1024;
/// A configuration file.
const MAX_CONFIG: u64 = 1024 * 1024;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The hub's join listener, HOST:PORT
    #[arg(long)]
    hub: String,
    /// The token that 'kedge token create' printed
    #[arg(long)]
    token: String,
    /// Hash of the hub's CA that 'kedge token create' printed
    #[arg(long, value_parser = parse_hash)]
    ca_hash: String,
    /// This node's name [default: the one that the token was made for]
    #[arg(long)]
    node: Option<String>,
    /// Where edgecore.yaml goes
    #[arg(long, default_value = "/etc/kedge")]
    config_dir: PathBuf,
    /// Where the store and the certificates go
    #[arg(long, default_value = "/var/lib/kedge/edge")]
    state_dir: PathBuf,
    /// Join again although this machine has joined
    #[arg(long)]
    force: bool,
}

/// What the hub answers.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    node: String,
    certificate: String,
    #[serde(rename = "servingCA")]
    serving_ca: String,
    #[serde(rename = "tunnelCA")]
    tunnel_ca: String,
    tunnel_addresses: Vec<String>,
    server_name: String,
}

/// What the hub answers when it refuses.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Refusal {
    reason: String,
    message: String,
}

pub(crate) async fn run(args: Args) -> Result<()> {
    let pki = args.state_dir.join("pki");
    let certificate = pki.join("client.crt");
    if certificate.exists() && !args.force {
        bail!(
            "this machine has joined already ({} is there): 'kedge reset' forgets that, --force joins again",
            certificate.display()
        );
    }
    if let Some(node) = args.node.as_deref().filter(|node| !is_node_name(node)) {
        bail!(
            "--node {node:?} must be a DNS subdomain: lower case letters, digits, '-' and '.', at most 63 characters"
        );
    }
    let key = KeyPair::generate().context("make this node's key")?;
    let request = serde_json::json!({
        "token": args.token,
        "node": args.node,
        "csr": csr(&key, args.node.as_deref())?,
        "bootId": std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim(),
    });
    let answer = timeout(DONE_WITHIN, ask(&args, request.to_string()))
        .await
        .map_err(|_| {
            anyhow!(
                "the hub at {} did not answer within {} s",
                args.hub,
                DONE_WITHIN.as_secs()
            )
        })??;
    if args.node.as_ref().is_some_and(|node| *node != answer.node) {
        bail!("the hub answered for node {} instead", answer.node);
    }
    files::make_dir(&pki)?;
    files::write(&pki.join("client.key"), key.serialize_pem().as_bytes(), 0o600)?;
    files::write(&pki.join("serving-ca.crt"), answer.serving_ca.as_bytes(), 0o644)?;
    files::write(&pki.join("tunnel-ca.crt"), answer.tunnel_ca.as_bytes(), 0o644)?;
    files::write(&certificate, answer.certificate.as_bytes(), 0o644)?;
    let config = args.config_dir.join("edgecore.yaml");
    write_config(&config, &args, &answer)?;
    println!(
        "this machine is node {} now; start edgecore with --config {}",
        answer.node,
        config.display()
    );
    Ok(())
}

/// A request for a client certificate; its subject is empty when the name is for the hub to say.
fn csr(key: &KeyPair, node: Option<&str>) -> Result<String> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if let Some(node) = node {
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params
            .distinguished_name
            .push(DnType::CommonName, format!("system:node:{node}"));
    }
    let request = params.serialize_request(key).context("make a certificate request")?;
    request.pem().context("write the certificate request")
}

async fn connect(args: &Args) -> Result<TlsStream<TcpStream>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedVerifier::new(args.ca_hash.clone())?))
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let stream = TcpStream::connect(&args.hub)
        .await
        .with_context(|| format!("connect to the hub at {}", args.hub))?;
    let name = ServerName::try_from(SERVER_NAME)?;
    TlsConnector::from(Arc::new(tls))
        .connect(name, stream)
        .await
        .with_context(|| {
            format!("the hub at {} does not prove that it has the CA of --ca-hash: is the hash right, and is this a join listener?", args.hub)
        })
}

async fn ask(args: &Args, body: String) -> Result<Answer> {
    let stream = connect(args).await?;
    let broke = || format!("the connection to the hub at {} broke", args.hub);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .with_context(broke)?;
    let request = Request::post("/v1/join")
        .header(header::HOST, SERVER_NAME)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))?;
    let exchange = async {
        let response = sender.send_request(request).await.with_context(broke)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| anyhow!("read the hub's answer: {error}"))?;
        Ok::<_, anyhow::Error>((status, body.to_bytes()))
    };
    // The connection only moves bytes: how it ends, the exchange learns.
    let driver = async {
        let _ = connection.await;
        std::future::pending().await
    };
    let (status, body) = tokio::select! {
        answer = exchange => answer?,
        never = driver => never,
    };
    if status == StatusCode::OK {
        return serde_json::from_slice(&body).context("the hub's answer is not one to a join");
    }
    let refusal: Refusal = serde_json::from_slice(&body).unwrap_or_default();
    bail!(
        "the hub refused ({}): {} [HTTP {status}]",
        refusal.reason,
        refusal.message
    )
}

/// Sets what the join decided; other fields of a file that is there stay.
fn write_config(path: &Path, args: &Args, answer: &Answer) -> Result<()> {
    let mut config = if path.exists() {
        let bytes = files::read(path, MAX_CONFIG)?;
        serde_yaml_ng::from_slice(&bytes).with_context(|| format!("{} is not a YAML mapping", path.display()))?
    } else {
        Mapping::new()
    };
    let addresses = if answer.tunnel_addresses.is_empty() {
        vec![args.hub.clone()]
    } else {
        answer.tunnel_addresses.clone()
    };
    let hub = serde_yaml_ng::to_value(serde_json::json!({
        "addresses": addresses, "serverName": answer.server_name, "joinAddress": args.hub,
    }))?;
    let state = args.state_dir.display().to_string();
    let fields = [
        ("apiVersion", Value::from("kedge.dev/v1alpha1")),
        ("kind", Value::from("EdgecoreConfig")),
        ("nodeName", Value::from(answer.node.as_str())),
        ("stateDir", Value::from(state)),
        ("hub", hub),
    ];
    for (key, value) in fields {
        config.insert(Value::from(key), value);
    }
    files::make_dir(path.parent().unwrap_or(Path::new(".")))?;
    files::write(path, serde_yaml_ng::to_string(&config)?.as_bytes(), 0o644)
}
