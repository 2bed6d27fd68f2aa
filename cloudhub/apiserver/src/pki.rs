//! The API's own certificates, in DATA/pki: the client and serving CA, the key of service account tokens; and kubeconfigs.
//!
//! Made at the first start, then only read. The serving certificate is made at each start, for it names what this start listens
//! on; client certificates are made when they are asked for and nowhere kept but in the kubeconfig.

use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use time::{Duration, OffsetDateTime};

/// A CA outlives the machine.
const CA_DAYS: i64 = 3650;
/// Made anew at each start.
const LEAF_DAYS: i64 = 825;
/// A machine whose clock is behind accepts what was just made.
const BACKDATED: Duration = Duration::hours(1);

/// Why certificates could not be read or made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file.
    #[error("{path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// A certificate could not be made or read.
    #[error("make a certificate")]
    Certificate(#[from] rcgen::Error),
    /// PEM that is none.
    #[error("read PEM")]
    Pem(#[from] rustls_pki_types::pem::Error),
    /// TLS refuses it.
    #[error("set up TLS")]
    Tls(#[from] rustls::Error),
    /// TLS refuses the client CA.
    #[error("set up the client CA")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// A certificate with its key, PEM.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

/// The API's CA and the key of service account tokens.
pub(crate) struct Pki {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) ca: String,
    pub(crate) accounts_key: String,
}

impl std::fmt::Debug for Pki {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pki").finish_non_exhaustive()
    }
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

impl Pki {
    /// Reads DATA/pki, or makes it.
    pub(crate) fn load(data: &Path) -> Result<Self, PkiError> {
        let dir = data.join("pki");
        fs::create_dir_all(&dir).map_err(|source| PkiError::File {
            path: dir.clone(),
            source,
        })?;
        let (certificate_path, key_path) = (dir.join("ca.crt"), dir.join("ca.key"));
        if !certificate_path.exists() || !key_path.exists() {
            let key = KeyPair::generate()?;
            let certificate = ca_params()?.self_signed(&key)?;
            // The certificate last: it says that the key is there.
            write_secret(&key_path, &key.serialize_pem())?;
            write_secret(&certificate_path, &certificate.pem())?;
        }
        let accounts_path = dir.join("sa.key");
        if !accounts_path.exists() {
            write_secret(&accounts_path, &KeyPair::generate()?.serialize_pem())?;
        }
        let (ca, key) = (read(&certificate_path)?, read(&key_path)?);
        let issuer = Issuer::from_ca_cert_pem(&ca, KeyPair::from_pem(&key)?)?;
        Ok(Self {
            issuer,
            ca,
            accounts_key: read(&accounts_path)?,
        })
    }

    /// A client certificate of user `name` in `groups`.
    pub(crate) fn client(&self, name: &str, groups: &[&str]) -> Result<Pair, PkiError> {
        let mut params = leaf_params(Vec::new(), name)?;
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(&params)
    }

    /// The serving certificate for DNS names and addresses.
    pub(crate) fn server(&self, names: &[String]) -> Result<Pair, PkiError> {
        let (mut dns, mut addresses) = (Vec::new(), Vec::new());
        for name in names {
            match name.parse::<IpAddr>() {
                Ok(address) => addresses.push(SanType::IpAddress(address)),
                Err(_) => dns.push(name.clone()),
            }
        }
        let mut params = leaf_params(dns, "kube-apiserver")?;
        params.subject_alt_names.extend(addresses);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(&params)
    }

    fn issue(&self, params: &CertificateParams) -> Result<Pair, PkiError> {
        let key = KeyPair::generate()?;
        Ok(Pair {
            certificate: params.signed_by(&key, &self.issuer)?.pem(),
            key: key.serialize_pem(),
        })
    }

    /// TLS of the listener: a client certificate is optional, but one that is there must be of this CA.
    pub(crate) fn tls(&self, names: &[String]) -> Result<rustls::ServerConfig, PkiError> {
        let pair = self.server(names)?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca.as_bytes())?)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
            .allow_unauthenticated()
            .build()?;
        let chain = CertificateDer::pem_slice_iter(pair.certificate.as_bytes()).collect::<Result<Vec<_>, _>>()?;
        let mut tls = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, PrivateKeyDer::from_pem_slice(pair.key.as_bytes())?)?;
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(tls)
    }

    /// A kubeconfig of `user` for the API at `server`.
    pub(crate) fn kubeconfig(&self, server: &str, user: &str, groups: &[&str]) -> Result<String, PkiError> {
        let pair = self.client(user, groups)?;
        let encode = |pem: &str| STANDARD.encode(pem);
        // JSON is YAML.
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "kedge",
            "clusters": [{"name": "kedge", "cluster": {"server": server, "certificate-authority-data": encode(&self.ca)}}],
            "users": [{"name": user, "user": {"client-certificate-data": encode(&pair.certificate), "client-key-data": encode(&pair.key)}}],
            "contexts": [{"name": "kedge", "context": {"cluster": "kedge", "user": user}}],
        });
        Ok(serde_json::to_string_pretty(&config).expect("JSON values can be written"))
    }
}

fn ca_params() -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, "kedge-api-ca");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::CrlSign,
    ];
    valid(&mut params, CA_DAYS);
    Ok(params)
}

fn leaf_params(dns: Vec<String>, name: &str) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::new(dns)?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    valid(&mut params, LEAF_DAYS);
    Ok(params)
}

fn valid(params: &mut CertificateParams, days: i64) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATED;
    params.not_after = now + Duration::days(days);
}

fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(|source| PkiError::File {
        path: path.to_owned(),
        source,
    })
}

/// Writes a file whole, for its owner alone, on the disk when this returns.
pub(crate) fn write_secret(path: &Path, text: &str) -> Result<(), PkiError> {
    let file = |source| PkiError::File {
        path: path.to_owned(),
        source,
    };
    let partial = path.with_extension("partial");
    // A leftover of a start that was cut off would keep its mode.
    let _ = fs::remove_file(&partial);
    let mut out = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&partial)
        .map_err(file)?;
    out.write_all(text.as_bytes()).map_err(file)?;
    out.sync_all().map_err(file)?;
    fs::rename(&partial, path).map_err(file)?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    fs::File::open(parent).and_then(|dir| dir.sync_all()).map_err(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_second_start_has_the_same_ca_and_keys_are_for_their_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pki::load(dir.path()).unwrap();
        let second = Pki::load(dir.path()).unwrap();
        assert_eq!((&first.ca, &first.accounts_key), (&second.ca, &second.accounts_key));
        let mode = fs::metadata(dir.path().join("pki/ca.key"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        second.tls(&["localhost".into(), "10.96.0.1".into()]).unwrap();
        assert!(
            second
                .kubeconfig("https://h:1", "admin", &["system:masters"])
                .unwrap()
                .contains("current-context")
        );
    }
}
