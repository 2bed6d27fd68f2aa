//! Trust by a CA's hash: a machine that joins knows nothing of the hub but `sha256:<hex>` of the serving CA's public key
//! (SubjectPublicKeyInfo). The hub sends its CA with its certificate; the CA must have that hash and must have signed it.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};

fn ca_hash(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let digest = Sha256::digest(parsed.public_key().raw);
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Some(format!("sha256:{hex}"))
}

/// `sha256:<hex>` of a PEM certificate's public key.
pub(crate) fn ca_hash_of_pem(pem: &str) -> Result<String> {
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).context("not a PEM certificate")?;
    ca_hash(&certificate).context("not an X.509 certificate")
}

/// Checks the form of `--ca-hash`.
pub(crate) fn parse_hash(text: &str) -> Result<String, String> {
    let hex = text.strip_prefix("sha256:").unwrap_or_default();
    if hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("it must be sha256: and 64 hexadecimal digits, as 'kedge token create' prints it".to_owned())
    }
}

/// Takes a server whose chain holds the CA with this hash.
#[derive(Debug)]
pub(crate) struct PinnedVerifier {
    hash: String,
    provider: Arc<CryptoProvider>,
}

impl PinnedVerifier {
    pub(crate) fn new(hash: String) -> Result<Self> {
        if let Err(why) = parse_hash(&hash) {
            bail!("--ca-hash: {why}");
        }
        Ok(Self {
            hash,
            provider: Arc::new(rustls::crypto::ring::default_provider()),
        })
    }

    fn verifier(&self, chain: &[CertificateDer<'_>]) -> Result<Arc<WebPkiServerVerifier>, Error> {
        let ca = chain
            .iter()
            .find(|certificate| ca_hash(certificate).as_ref() == Some(&self.hash))
            .ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| Error::General(error.to_string()))
    }
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verifier = self.verifier(intermediates)?;
        let at = |time| verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, time);
        match at(now) {
            // A machine whose clock starts in 1970: the hash says who it is, and the certificate is not too old.
            Err(Error::InvalidCertificate(CertificateError::NotValidYetContext { not_before, .. })) => at(not_before),
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
