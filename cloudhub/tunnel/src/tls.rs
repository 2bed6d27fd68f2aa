//! mTLS for the tunnel, over QUIC and over TCP: TLS 1.3 only, ALPN `kedge/1`, no early data, and what a certificate says about its node.
//!
//! The hub requires a certificate from the tunnel CA and asks [`Admission`] after every handshake, resumed ones too, because a
//! resumed session shows the certificate of the first. The edge checks the hub against the serving CA and [`SERVER_NAME`]; a
//! machine that boots in 1970 checks times against a floor ([`ClockFloor`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::Ticketer;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The tunnel's ALPN protocol.
pub const ALPN: &[u8] = b"kedge/1";
/// The name in the hub's tunnel certificate, whatever address it is reached at.
pub const SERVER_NAME: &str = "cloudhub.kedge.internal";
/// The SPIFFE trust domain of node identities.
pub const TRUST_DOMAIN: &str = "kedge.internal";
/// A node certificate is well under 2 KiB.
const MAX_CERTIFICATE: usize = 16 * 1024;

/// TLS material that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Not a PEM certificate chain or key.
    #[error("read the PEM of the {what}")]
    Pem {
        /// Which part.
        what: &'static str,
        /// Cause.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// rustls does not take it.
    #[error("set up TLS")]
    Rustls(#[from] rustls::Error),
    /// No usable root certificates.
    #[error("set up the verifier of the peer's certificate: {0}")]
    Verifier(String),
    /// The certificate is not a node's.
    #[error("the certificate is not a node's: {0}")]
    NotANode(String),
}

/// The one TLS provider.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// What a node's certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCertificate {
    /// The certificate itself.
    pub der: CertificateDer<'static>,
    /// Node name: CN is `system:node:<name>`, the URI SAN `spiffe://kedge.internal/node/<name>`.
    pub node: String,
    /// High 8 bytes of the 16-byte serial number: one more with each renewal.
    pub generation: u64,
    /// End of validity, since 1970.
    pub not_after: Duration,
}

impl PeerCertificate {
    /// Reads a node certificate; who signed it is for the handshake to check.
    ///
    /// # Errors
    /// Says what is missing for a node certificate.
    pub fn parse(der: &[u8]) -> Result<Self, TlsError> {
        let fail = |why: &str| TlsError::NotANode(why.to_owned());
        if der.len() > MAX_CERTIFICATE {
            return Err(fail("more than 16 KiB"));
        }
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| fail("not an X.509 certificate"))?;
        if !rest.is_empty() {
            return Err(fail("bytes after the certificate"));
        }
        let node = subject_node(&certificate)?;
        let spiffe = format!("spiffe://{TRUST_DOMAIN}/node/{node}");
        let names = certificate
            .subject_alternative_name()
            .ok()
            .flatten()
            .ok_or_else(|| fail("no subject alternative name"))?;
        let uris: Vec<&str> = names
            .value
            .general_names
            .iter()
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some(*uri),
                _ => None,
            })
            .collect();
        if uris != [spiffe.as_str()] {
            return Err(fail(&format!("its URI is not {spiffe}")));
        }
        let not_after = certificate.validity().not_after.timestamp();
        Ok(Self {
            der: CertificateDer::from(der.to_vec()),
            generation: generation(certificate.raw_serial())
                .ok_or_else(|| fail("the serial number has more than 16 bytes"))?,
            not_after: Duration::from_secs(u64::try_from(not_after).unwrap_or(0)),
            node,
        })
    }
}

fn subject_node(certificate: &X509Certificate<'_>) -> Result<String, TlsError> {
    let fail = |why: &str| TlsError::NotANode(why.to_owned());
    let subject = certificate.subject();
    let mut organizations = subject.iter_organization().filter_map(|name| name.as_str().ok());
    if (organizations.next(), organizations.next()) != (Some("system:nodes"), None) {
        return Err(fail("its subject is not of O=system:nodes"));
    }
    let mut names = subject.iter_common_name().filter_map(|name| name.as_str().ok());
    match (names.next(), names.next()) {
        (Some(name), None) => name
            .strip_prefix("system:node:")
            .filter(|node| !node.is_empty() && node.len() <= 253)
            .map(str::to_owned)
            .ok_or_else(|| fail("its CN is not system:node:<name>")),
        _ => Err(fail("it has not exactly one CN")),
    }
}

/// High 8 of 16 bytes; DER drops leading zeros and may add one.
fn generation(serial: &[u8]) -> Option<u64> {
    let serial = match serial {
        [0, rest @ ..] => rest,
        all => all,
    };
    if serial.len() > 16 {
        return None;
    }
    let mut padded = [0; 16];
    padded[16 - serial.len()..].copy_from_slice(serial);
    let mut high = [0; 8];
    high.copy_from_slice(&padded[..8]);
    Some(u64::from_be_bytes(high))
}

/// Judges node certificates after the handshake has checked their chain.
pub trait Admission: Send + Sync {
    /// Lets this node in at `now` (since 1970), or says why not: expired, revoked, an older generation than recorded.
    ///
    /// # Errors
    /// The reason, which the edge is told and the hub logs.
    fn admit(&self, certificate: &PeerCertificate, now: Duration) -> Result<(), String>;

    /// Two machines live with this node's identity; both were cut and stay out for a while.
    fn quarantined(&self, node: &str) {
        let _ = node;
    }
}

/// The time that is known to have passed already: a lower bound of the real time, for machines whose clock starts in 1970.
#[derive(Clone, Debug, Default)]
pub struct ClockFloor {
    seconds: Arc<AtomicU64>,
}

impl ClockFloor {
    /// A floor at this time since 1970: the later of the build time and the last time in the store.
    pub fn new(since_1970: Duration) -> Self {
        let floor = Self::default();
        floor.raise(since_1970);
        floor
    }

    /// Raises the floor; it never falls.
    pub fn raise(&self, since_1970: Duration) {
        self.seconds.fetch_max(since_1970.as_secs(), Ordering::Relaxed);
    }

    /// The floor, since 1970.
    pub fn get(&self) -> Duration {
        Duration::from_secs(self.seconds.load(Ordering::Relaxed))
    }
}

/// Checks the hub's certificate at max(clock, floor). Where the clock is behind the floor, time is only a lower bound, so that
/// "not yet valid" says nothing about the certificate: it is then checked at the start of its validity.
#[derive(Debug)]
struct FloorVerifier {
    inner: Arc<WebPkiServerVerifier>,
    floor: ClockFloor,
}

impl ServerCertVerifier for FloorVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let floor = UnixTime::since_unix_epoch(self.floor.get());
        let at = |time| {
            self.inner
                .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, time)
        };
        if now.as_secs() >= floor.as_secs() {
            return at(now);
        }
        match at(floor) {
            Err(rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext { not_before, .. })) => {
                at(not_before)
            }
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Root certificates from PEM (one or more).
///
/// # Errors
/// Not PEM, no certificate in it, or one that rustls does not take.
pub fn roots_from_pem(pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|source| TlsError::Pem {
            what: "root certificates",
            source,
        })?;
        roots.add(certificate)?;
    }
    if roots.is_empty() {
        return Err(TlsError::Verifier("no certificate in the PEM".to_owned()));
    }
    Ok(roots)
}

/// A certificate chain and key from PEM, usable by client ([`rustls::client::ResolvesClientCert`]) and server
/// ([`rustls::server::ResolvesServerCert`]). A rotated certificate is a new `Arc`.
///
/// # Errors
/// Not PEM, or the key does not fit the certificate.
pub fn identity_from_pem(chain: &[u8], key: &[u8]) -> Result<Arc<SingleCertAndKey>, TlsError> {
    let certificates = CertificateDer::pem_slice_iter(chain)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| TlsError::Pem {
            what: "certificate chain",
            source,
        })?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|source| TlsError::Pem {
        what: "private key",
        source,
    })?;
    let certified = CertifiedKey::from_der(certificates, key, &provider())?;
    Ok(Arc::new(SingleCertAndKey::from(certified)))
}

/// The hub's side.
pub(crate) fn server_config(
    certificate: Arc<dyn rustls::server::ResolvesServerCert>,
    client_roots: Arc<RootCertStore>,
) -> Result<rustls::ServerConfig, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(client_roots, provider())
        .build()
        .map_err(|error| TlsError::Verifier(error.to_string()))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.max_early_data_size = 0;
    config.send_tls13_tickets = 1; // an uplink resumes one session at a time
    // A ticket holds what resuming needs, the node's certificate too: rustls' own store would do for 256 uplinks of a whole fleet.
    config.ticketer = Ticketer::new()?;
    Ok(config)
}

/// The edge's side.
pub(crate) fn client_config(
    certificate: Arc<dyn rustls::client::ResolvesClientCert>,
    roots: Arc<RootCertStore>,
    floor: ClockFloor,
) -> Result<rustls::ClientConfig, TlsError> {
    let inner = WebPkiServerVerifier::builder_with_provider(roots, provider())
        .build()
        .map_err(|error| TlsError::Verifier(error.to_string()))?;
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(FloorVerifier { inner, floor }))
        .with_client_cert_resolver(certificate);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_early_data = false;
    Ok(config)
}

/// For HTTPS to the hub's join listener, with no client certificate: the same checks as in the tunnel.
///
/// # Errors
/// The roots cannot be used.
pub fn join_client_config(roots: Arc<RootCertStore>, floor: ClockFloor) -> Result<rustls::ClientConfig, TlsError> {
    let inner = WebPkiServerVerifier::builder_with_provider(roots, provider())
        .build()
        .map_err(|error| TlsError::Verifier(error.to_string()))?;
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(FloorVerifier { inner, floor }))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generation_is_the_high_half_of_the_serial_number() {
        let mut serial = [0; 16];
        serial[7] = 3;
        serial[8] = 0xff;
        assert_eq!(generation(&serial[7..]), Some(3), "leading zeros dropped");
        assert_eq!(generation(&[0, 0xff]), Some(0));
        assert_eq!(generation(&[1; 17]), None);
    }

    #[test]
    fn the_floor_never_falls() {
        let floor = ClockFloor::new(Duration::from_secs(10));
        floor.raise(Duration::from_secs(5));
        assert_eq!(floor.get().as_secs(), 10);
        floor.raise(Duration::from_secs(11));
        assert_eq!(floor.get().as_secs(), 11);
    }

    #[test]
    fn mangled_certificates_are_refused() {
        assert!(PeerCertificate::parse(&[]).is_err());
        assert!(PeerCertificate::parse(&[0x30; 100]).is_err());
        assert!(PeerCertificate::parse(&vec![0x30; MAX_CERTIFICATE + 1]).is_err());
    }
}
