//! A CA: made once, kept in a Secret, signs node and serving certificates. ECDSA P-256.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::secrets;
use super::wall_now;

/// A CA outlives the fleet's machines.
const CA_LIFE: Duration = Duration::from_secs(3653 * 86_400);
/// A leaf lives 90 days and is renewed at two thirds.
pub const LEAF_LIFE: Duration = Duration::from_secs(90 * 86_400);
/// Clocks that are behind by less than this still take a fresh certificate.
const BACKDATE: Duration = Duration::from_secs(3600);
/// A CSR for P-256 has under 600 bytes.
const MAX_CSR: usize = 8 * 1024;

/// A CA or a certificate request that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The Secret lacks a value.
    #[error("the Secret has no {0}")]
    Missing(&'static str),
    /// rcgen does not take it.
    #[error("make or read a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The CSR asks for something else than this node may have.
    #[error("certificate request: {0}")]
    Request(String),
    /// rustls does not take what we made.
    #[error("use a certificate")]
    Tls(#[from] rustls::Error),
    /// Not the PEM that was expected.
    #[error("the PEM holds no certificate")]
    Pem,
}

/// A CA.
#[derive(Clone)]
pub struct Authority {
    inner: Arc<Inner>,
}

struct Inner {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("hash", &self.ca_hash()).finish()
    }
}

fn date(since_1970: Duration) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + since_1970
}

impl Authority {
    /// A new CA, valid from a day before `now` for ten years.
    ///
    /// # Errors
    /// No key could be made.
    pub fn generate(name: &str, now: Duration) -> Result<Self, AuthorityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.not_before = date(now.saturating_sub(Duration::from_secs(86_400)));
        params.not_after = date(now + CA_LIFE);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        Self::new(&certificate.pem(), key)
    }

    fn new(pem: &str, key: KeyPair) -> Result<Self, AuthorityError> {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| AuthorityError::Pem)?;
        let issuer = Issuer::from_ca_cert_der(&der, key)?;
        Ok(Self {
            inner: Arc::new(Inner {
                issuer,
                pem: pem.to_owned(),
                der,
            }),
        })
    }

    /// Reads `tls.crt` and `tls.key`.
    ///
    /// # Errors
    /// One is missing or not what its name says.
    pub fn from_secret(secret: &Secret) -> Result<Self, AuthorityError> {
        let pem = secrets::text(secret, "tls.crt").ok_or(AuthorityError::Missing("tls.crt"))?;
        let key = secrets::text(secret, "tls.key").ok_or(AuthorityError::Missing("tls.key"))?;
        Self::new(pem, KeyPair::from_pem(key)?)
    }

    /// A Secret of type kubernetes.io/tls.
    pub fn to_secret(&self, name: &str) -> Secret {
        let key = self.inner.issuer.key().serialize_pem();
        let values = [
            ("tls.crt", self.inner.pem.clone().into_bytes()),
            ("tls.key", key.into_bytes()),
        ];
        let mut secret = secrets::secret(name, values);
        secret.type_ = Some("kubernetes.io/tls".to_owned());
        secret
    }

    /// Its certificate.
    pub fn pem(&self) -> &str {
        &self.inner.pem
    }

    /// Its certificate.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.inner.der
    }

    /// `sha256:<hex>` of its public key (SubjectPublicKeyInfo), for `kedge join --ca-hash`.
    pub fn ca_hash(&self) -> String {
        let spki = x509_parser::parse_x509_certificate(&self.inner.der)
            .map(|(_, certificate)| Sha256::digest(certificate.public_key().raw));
        let mut text = "sha256:".to_owned();
        for byte in spki.as_deref().unwrap_or_default() {
            text.push_str(&format!("{byte:02x}"));
        }
        text
    }

    /// As roots for a verifier.
    ///
    /// # Errors
    /// rustls does not take the certificate.
    pub fn roots(&self) -> Result<rustls::RootCertStore, AuthorityError> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.inner.der.clone())?;
        Ok(roots)
    }

    /// Signs a node's client certificate: only the key is taken from the CSR. Chain as PEM.
    ///
    /// # Errors
    /// The CSR is malformed, its signature is wrong, or it asks for another name or for more than a node may have.
    pub fn sign_node(&self, node: &str, generation: u64, csr: &str, now: Duration) -> Result<String, AuthorityError> {
        let request = read_csr(csr)?;
        judge_request(&request, node)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = node_subject(node);
        let uri = format!("spiffe://{}/node/{node}", tunnel::TRUST_DOMAIN);
        params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.is_ca = IsCa::ExplicitNoCa;
        params.not_before = date(now.saturating_sub(BACKDATE));
        params.not_after = date(now + LEAF_LIFE);
        let mut serial = generation.to_be_bytes().to_vec();
        serial.extend(rand::random::<[u8; 8]>());
        params.serial_number = Some(SerialNumber::from(serial));
        let certificate = params.signed_by(&request.public_key, &self.inner.issuer)?;
        Ok(certificate.pem())
    }

    /// Issues a serving certificate: leaf and CA, so that a joining node can find the CA by its hash.
    fn issue_serving(&self, names: &[SanType], now: Duration) -> Result<CertifiedKey, AuthorityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, tunnel::SERVER_NAME);
        params.subject_alt_names = names.to_vec();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.not_before = date(now.saturating_sub(BACKDATE));
        params.not_after = date(now + LEAF_LIFE);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.inner.issuer)?;
        let chain = vec![certificate.der().clone(), self.inner.der.clone()];
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok(CertifiedKey::from_der(chain, key, &tunnel::tls::provider())?)
    }
}

fn node_subject(node: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "system:nodes");
    subject.push(DnType::CommonName, format!("system:node:{node}"));
    subject
}

fn read_csr(csr: &str) -> Result<CertificateSigningRequestParams, AuthorityError> {
    if csr.len() > MAX_CSR {
        return Err(AuthorityError::Request(format!("more than {MAX_CSR} bytes")));
    }
    CertificateSigningRequestParams::from_pem(csr)
        .map_err(|error| AuthorityError::Request(format!("not a usable PEM request: {error}")))
}

/// A request must be for exactly this node, or for none by name, and ask for nothing more.
fn judge_request(request: &CertificateSigningRequestParams, node: &str) -> Result<(), AuthorityError> {
    let fail = |why: String| Err(AuthorityError::Request(why));
    let params = &request.params;
    let expected = node_subject(node);
    let same = |kind: DnType| params.distinguished_name.get(&kind).map(dn_text) == expected.get(&kind).map(dn_text);
    let empty = params.distinguished_name.iter().next().is_none();
    let exact =
        params.distinguished_name.iter().count() == 2 && same(DnType::CommonName) && same(DnType::OrganizationName);
    if !empty && !exact {
        return fail(format!(
            "its subject must be empty or O=system:nodes, CN=system:node:{node}"
        ));
    }
    if matches!(params.is_ca, IsCa::Ca(_)) {
        return fail("it asks for a CA".to_owned());
    }
    let uri = format!("spiffe://{}/node/{node}", tunnel::TRUST_DOMAIN);
    for name in &params.subject_alt_names {
        match name {
            SanType::URI(found) if found.as_str() == uri => {}
            other => return fail(format!("alternative name {other:?} is not this node's")),
        }
    }
    let foreign = |usage: &&ExtendedKeyUsagePurpose| **usage != ExtendedKeyUsagePurpose::ClientAuth;
    if let Some(usage) = params.extended_key_usages.iter().find(foreign) {
        return fail(format!("extended key usage {usage:?} is not a node's"));
    }
    Ok(())
}

fn dn_text(value: &rcgen::DnValue) -> String {
    match value {
        rcgen::DnValue::Utf8String(text) => text.clone(),
        rcgen::DnValue::PrintableString(text) => text.as_str().to_owned(),
        rcgen::DnValue::Ia5String(text) => text.as_str().to_owned(),
        other => format!("{other:?}"),
    }
}

fn dns_name(name: &str) -> Result<&str, AuthorityError> {
    match rustls_pki_types::DnsName::try_from(name) {
        Ok(_) => Ok(name),
        Err(_) => Err(AuthorityError::Request(format!(
            "{name:?} is neither a DNS name nor an IP address"
        ))),
    }
}

/// A serving certificate that renews itself at two thirds of its life.
pub struct Serving {
    authority: Authority,
    names: Vec<SanType>,
    current: Mutex<(Arc<CertifiedKey>, Duration)>,
}

impl std::fmt::Debug for Serving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Serving")
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

impl Serving {
    /// For [`tunnel::SERVER_NAME`] and these DNS names or IP addresses.
    ///
    /// # Errors
    /// A name is neither, or no certificate can be made.
    pub fn new(authority: Authority, names: &[String]) -> Result<Arc<Self>, AuthorityError> {
        let mut all = vec![SanType::DnsName(tunnel::SERVER_NAME.try_into()?)];
        for name in names {
            all.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(dns_name(name)?.try_into()?),
            });
        }
        let now = wall_now();
        let first = Arc::new(authority.issue_serving(&all, now)?);
        Ok(Arc::new(Self {
            authority,
            names: all,
            current: Mutex::new((first, now + LEAF_LIFE * 2 / 3)),
        }))
    }

    fn current(&self, now: Duration) -> Arc<CertifiedKey> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if now >= current.1 {
            match self.authority.issue_serving(&self.names, now) {
                Ok(fresh) => *current = (Arc::new(fresh), now + LEAF_LIFE * 2 / 3),
                Err(error) => tracing::error!(%error, "could not renew a serving certificate"),
            }
        }
        current.0.clone()
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current(wall_now()))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use tunnel::PeerCertificate;

    use super::*;

    fn request(change: impl FnOnce(&mut CertificateParams)) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name = node_subject("a");
        change(&mut params);
        params
            .serialize_request(&KeyPair::generate().unwrap())
            .unwrap()
            .pem()
            .unwrap()
    }

    pub(crate) fn csr(node: &str) -> String {
        request(|params| params.distinguished_name = node_subject(node))
    }

    pub(crate) fn empty_csr() -> String {
        request(|params| params.distinguished_name = DistinguishedName::new())
    }

    fn signer() -> Authority {
        Authority::generate("t", wall_now()).unwrap()
    }

    #[test]
    fn a_node_certificate_says_node_generation_and_end() {
        let now = wall_now();
        let chain = signer().sign_node("a", 7, &csr("a"), now).unwrap();
        let der = CertificateDer::from_pem_slice(chain.as_bytes()).unwrap();
        let certificate = PeerCertificate::parse(&der).unwrap();
        assert_eq!((certificate.node.as_str(), certificate.generation), ("a", 7));
        assert_eq!(certificate.not_after.as_secs(), (now + LEAF_LIFE).as_secs());
    }

    #[test]
    fn a_request_for_more_than_this_node_is_refused() {
        let authority = signer();
        let hostile: Vec<(&str, String)> = vec![
            ("another node", csr("b")),
            (
                "half a subject",
                request(|p| {
                    p.distinguished_name.remove(DnType::CommonName);
                }),
            ),
            (
                "masters",
                request(|p| p.distinguished_name.push(DnType::OrganizationName, "system:masters")),
            ),
            (
                "a name",
                request(|p| p.subject_alt_names = vec![SanType::DnsName("x".try_into().unwrap())]),
            ),
            (
                "server",
                request(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
            ),
            ("garbage", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n".to_owned()),
            ("too long", "x".repeat(MAX_CSR + 1)),
        ];
        for (case, csr) in hostile {
            assert!(authority.sign_node("a", 1, &csr, wall_now()).is_err(), "{case}");
        }
    }

    #[test]
    fn a_ca_survives_its_secret() {
        let authority = signer();
        let read = Authority::from_secret(&authority.to_secret("ca-x")).unwrap();
        assert_eq!(read.ca_hash(), authority.ca_hash());
        assert_eq!(authority.ca_hash().len(), "sha256:".len() + 64);
        assert!(Authority::from_secret(&secrets::secret("x", [])).is_err());
    }

    #[test]
    fn a_serving_certificate_is_renewed_at_two_thirds() {
        let serving = Serving::new(signer(), &["10.0.0.1".to_owned(), "hub.example".to_owned()]).unwrap();
        let now = wall_now();
        let first = serving.current(now);
        assert!(Arc::ptr_eq(&first, &serving.current(now)));
        let later = serving.current(now + LEAF_LIFE * 2 / 3 + Duration::from_secs(5));
        assert!(!Arc::ptr_eq(&first, &later));
        assert!(Serving::new(signer(), &["not a name".to_owned()]).is_err());
    }
}
