//! Joining again with the old key, for a node whose certificate ran out while it was away. Pure but for the signatures.
//!
//! What counts: the old certificate is from our tunnel CA, its key signed the new request, it ran out at most [`GRACE`] ago, and
//! the node is neither revoked nor known with a later certificate. A replayed request gives nothing new: the certificate is for
//! the key of its CSR.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use std::sync::Arc;
use tunnel::PeerCertificate;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::authority::Authority;
use super::join::{JoinError, RejoinRequest};
use super::nodes::NodeRecord;

/// How long after its end a certificate still proves who its node is.
pub const GRACE: Duration = Duration::from_secs(365 * 86_400);

fn refuse<T>(why: &str) -> Result<T, JoinError> {
    Err(JoinError::Proof(why.to_owned()))
}

/// The node that the request proves to be.
///
/// # Errors
/// What is wrong with the proof.
pub(super) fn prove(request: &RejoinRequest, tunnel: &Authority, now: Duration) -> Result<PeerCertificate, JoinError> {
    let Ok(der) = CertificateDer::from_pem_slice(request.certificate.as_bytes()) else {
        return refuse("it is not PEM");
    };
    let certificate = PeerCertificate::parse(&der).map_err(|error| JoinError::Proof(error.to_string()))?;
    if now > certificate.not_after + GRACE {
        return refuse("it ran out more than 365 days ago: join with a new token");
    }
    if !is_signed_by(&der, certificate.not_after, tunnel)? {
        return refuse("it is not from this hub's CA");
    }
    if !has_signed(&der, request) {
        return refuse("its key has not signed the request");
    }
    Ok(certificate)
}

/// Judged just before its end, where time is no reason to refuse it.
fn is_signed_by(der: &CertificateDer<'_>, not_after: Duration, tunnel: &Authority) -> Result<bool, JoinError> {
    let roots = Arc::new(tunnel.roots()?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, tunnel::tls::provider())
        .build()
        .map_err(|error| JoinError::Proof(error.to_string()))?;
    let then = UnixTime::since_unix_epoch(not_after.saturating_sub(Duration::from_secs(1)));
    Ok(verifier.verify_client_cert(der, &[], then).is_ok())
}

fn has_signed(der: &CertificateDer<'_>, request: &RejoinRequest) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else {
        return false;
    };
    let Ok(signature) = STANDARD.decode(&request.signature) else {
        return false;
    };
    let key = &certificate.public_key().subject_public_key.data;
    ring::signature::UnparsedPublicKey::new(&ring::signature::ECDSA_P256_SHA256_ASN1, key.as_ref())
        .verify(request.csr.as_bytes(), &signature)
        .is_ok()
}

/// Whether the record lets this certificate's node have the next one.
///
/// # Errors
/// The node is revoked, or has had a later certificate.
pub(super) fn judge(certificate: &PeerCertificate, record: &NodeRecord) -> Result<(), JoinError> {
    if record.revoked {
        return Err(JoinError::Revoked {
            node: certificate.node.clone(),
        });
    }
    if certificate.generation < record.generation {
        return refuse("the node has had a later one");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, KeyPair, SigningKey};

    use super::super::authority::LEAF_LIFE;
    use super::*;

    const THEN: Duration = Duration::from_secs(1_800_000_000);

    fn csr(key: &KeyPair) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.serialize_request(key).unwrap().pem().unwrap()
    }

    fn request(authority: &Authority, signer: Option<&KeyPair>) -> RejoinRequest {
        let old = KeyPair::generate().unwrap();
        let certificate = authority.sign_node("a", 3, &csr(&old), THEN).unwrap();
        let csr = csr(&KeyPair::generate().unwrap());
        let signature = signer.unwrap_or(&old).sign(csr.as_bytes()).unwrap();
        RejoinRequest {
            certificate,
            csr,
            signature: STANDARD.encode(signature),
        }
    }

    #[test]
    fn the_old_key_proves_the_node_until_a_year_after_its_end() {
        let authority = Authority::generate("t", THEN).unwrap();
        let request = request(&authority, None);
        let end = THEN + LEAF_LIFE;
        let certificate = prove(&request, &authority, end + Duration::from_secs(5)).unwrap();
        assert_eq!((certificate.node.as_str(), certificate.generation), ("a", 3));
        let late = prove(&request, &authority, end + GRACE + Duration::from_secs(5));
        assert!(late.unwrap_err().to_string().contains("365 days"));
    }

    #[test]
    fn strangers_and_other_keys_prove_nothing() {
        let authority = Authority::generate("t", THEN).unwrap();
        let stranger = Authority::generate("t", THEN).unwrap();
        assert!(prove(&request(&stranger, None), &authority, THEN).is_err());
        let other = KeyPair::generate().unwrap();
        assert!(prove(&request(&authority, Some(&other)), &authority, THEN).is_err());
        let mut garbage = request(&authority, None);
        garbage.signature = "!".to_owned();
        assert!(prove(&garbage, &authority, THEN).is_err());
        garbage.certificate = "x".to_owned();
        assert!(prove(&garbage, &authority, THEN).is_err());
    }

    #[test]
    fn a_revoked_or_older_certificate_gets_no_next_one() {
        let authority = Authority::generate("t", THEN).unwrap();
        let certificate = prove(&request(&authority, None), &authority, THEN).unwrap();
        let record = |generation, revoked| NodeRecord {
            generation,
            revoked,
            ..NodeRecord::default()
        };
        assert!(judge(&certificate, &record(3, false)).is_ok());
        assert!(judge(&certificate, &record(4, false)).is_err());
        assert!(judge(&certificate, &record(3, true)).is_err());
    }
}
