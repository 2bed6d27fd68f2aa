//! A certificate that ran out: the join listener gives the next one to who has the old key.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{KeyPair, SigningKey};
use rustls_pki_types::ServerName;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tunnel::tls;

use super::{ANSWER_WITHIN, Identity, RenewError, Rotation, exchange, exchange_error, request};

/// Gets a certificate for a new key from the join listener, and swaps the files.
///
/// # Errors
/// The hub does not answer or refuses (a year has passed, the node is revoked), or the files cannot be written.
pub async fn rejoin(rotation: &Rotation, node: &str) -> Result<Identity, RenewError> {
    let (certificate, old_key) = rotation.pki.pem()?;
    let key = KeyPair::generate()?;
    let csr = request(&key, node)?;
    let signature = KeyPair::from_pem(&old_key)?.sign(csr.as_bytes())?;
    let body = serde_json::json!({
        "certificate": certificate, "csr": csr, "signature": STANDARD.encode(signature),
    });
    let chain = timeout(ANSWER_WITHIN, ask(rotation, body.to_string()))
        .await
        .map_err(|_| exchange_error("no answer in time"))??;
    Ok(rotation.pki.replace(&chain, &key.serialize_pem(), node)?)
}

async fn ask(rotation: &Rotation, body: String) -> Result<String, RenewError> {
    let roots = rotation.pki.roots()?;
    let config = tls::join_client_config(roots, rotation.floor.clone()).map_err(exchange_error)?;
    let stream = TcpStream::connect(&rotation.join_address)
        .await
        .map_err(exchange_error)?;
    let name = ServerName::try_from(tunnel::SERVER_NAME).map_err(exchange_error)?;
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .map_err(exchange_error)?;
    exchange::post(stream, "/v1/rejoin", "application/json", body).await
}
