//! The node's certificate files: `client.key`, `client.crt`, `serving-ca.crt` in the pki folder.
//!
//! Certificate and key are two files and change together. The swap: write `client.key.next` and `client.crt.next`, rename the
//! certificate, then rename the key. [`Pki::load`] takes the certificate with whichever of the two keys fits, and ends a swap that
//! a crash cut short. So at every moment one usable pair is there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::sign::SingleCertAndKey;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tunnel::PeerCertificate;
use tunnel::tls::{self, TlsError};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Certificates and keys have a few KiB.
const MAX_FILE: u64 = 256 * 1024;

/// The node's certificate cannot be used or replaced.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file.
    #[error("{operation} {path}")]
    File {
        /// What was tried.
        operation: &'static str,
        /// With which file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// What is in them.
    #[error("use the certificate in {folder}")]
    Certificate {
        /// The pki folder.
        folder: PathBuf,
        /// Cause.
        #[source]
        source: TlsError,
    },
    /// The hub's answer is for another node.
    #[error("the hub signed for node {found}, not for {node}")]
    OtherNode {
        /// This node.
        node: String,
        /// The certificate's.
        found: String,
    },
}

/// A usable certificate and key.
#[derive(Clone, Debug)]
pub struct Identity {
    /// For [`tunnel::EdgeConfig`].
    pub certificate: Arc<SingleCertAndKey>,
    /// The node's name.
    pub node: String,
    /// Start of validity, since 1970.
    pub not_before: Duration,
    /// End of validity, since 1970.
    pub not_after: Duration,
}

/// The pki folder.
#[derive(Clone, Debug)]
pub struct Pki {
    folder: PathBuf,
}

impl Pki {
    /// The folder that `kedge join` filled.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, PkiError> {
        let path = self.path(name);
        read_bounded(&path).map_err(|source| PkiError::File {
            operation: "read",
            path,
            source,
        })
    }

    /// The hub's CA, for [`tunnel::EdgeConfig`].
    ///
    /// # Errors
    /// `serving-ca.crt` cannot be read or holds no certificate.
    pub fn roots(&self) -> Result<Arc<rustls::RootCertStore>, PkiError> {
        let pem = self.read("serving-ca.crt")?;
        let roots = tls::roots_from_pem(&pem).map_err(|source| self.unusable(source))?;
        Ok(Arc::new(roots))
    }

    /// The node's certificate; ends a swap that a crash cut short.
    ///
    /// # Errors
    /// A file cannot be read, or no key fits the certificate.
    pub fn load(&self) -> Result<Identity, PkiError> {
        let chain = self.read("client.crt")?;
        let key = self.read("client.key")?;
        let first = identity(&chain, &key);
        let next = self.path("client.key.next");
        match (first, read_bounded(&next)) {
            (Ok(identity), _) => Ok(identity),
            (Err(first), Ok(key)) => {
                let identity = identity(&chain, &key).map_err(|_| self.unusable(first))?;
                self.rename("client.key.next", "client.key")?;
                Ok(identity)
            }
            (Err(first), Err(_)) => Err(self.unusable(first)),
        }
    }

    /// Certificate and key as PEM; after [`Pki::load`], so that they fit.
    ///
    /// # Errors
    /// As [`Pki::load`].
    pub fn pem(&self) -> Result<(String, String), PkiError> {
        self.load()?;
        let text = |name| Ok(String::from_utf8_lossy(&self.read(name)?).into_owned());
        Ok((text("client.crt")?, text("client.key")?))
    }

    /// Checks a new chain and key and makes them the node's.
    ///
    /// # Errors
    /// They are not this node's or do not fit each other, or the files cannot be written.
    pub fn replace(&self, chain: &str, key: &str, node: &str) -> Result<Identity, PkiError> {
        let identity = identity(chain.as_bytes(), key.as_bytes()).map_err(|source| self.unusable(source))?;
        if identity.node != node {
            return Err(PkiError::OtherNode {
                node: node.to_owned(),
                found: identity.node,
            });
        }
        self.write("client.key.next", key.as_bytes())?;
        self.write("client.crt.next", chain.as_bytes())?;
        self.rename("client.crt.next", "client.crt")?;
        self.rename("client.key.next", "client.key")?;
        Ok(identity)
    }

    fn unusable(&self, source: TlsError) -> PkiError {
        PkiError::Certificate {
            folder: self.folder.clone(),
            source,
        }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), PkiError> {
        let path = self.path(name);
        let written = (|| {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&path)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            File::open(&self.folder)?.sync_all()
        })();
        written.map_err(|source| PkiError::File {
            operation: "write",
            path,
            source,
        })
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), PkiError> {
        let path = self.path(to);
        fs::rename(self.path(from), &path)
            .and_then(|()| File::open(&self.folder)?.sync_all())
            .map_err(|source| PkiError::File {
                operation: "replace",
                path,
                source,
            })
    }
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "more than 256 KiB"));
    }
    Ok(bytes)
}

fn identity(chain: &[u8], key: &[u8]) -> Result<Identity, TlsError> {
    let certificate = tls::identity_from_pem(chain, key)?;
    let der = CertificateDer::from_pem_slice(chain).map_err(|source| TlsError::Pem {
        what: "certificate chain",
        source,
    })?;
    let parsed = PeerCertificate::parse(&der)?;
    let (_, x509) = X509Certificate::from_der(&der).map_err(|error| TlsError::NotANode(error.to_string()))?;
    let not_before = u64::try_from(x509.validity().not_before.timestamp()).unwrap_or(0);
    Ok(Identity {
        certificate,
        node: parsed.node,
        not_before: Duration::from_secs(not_before),
        not_after: parsed.not_after,
    })
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};

    use super::*;

    fn pair(node: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params
            .distinguished_name
            .push(DnType::CommonName, format!("system:node:{node}"));
        let uri = format!("spiffe://kedge.internal/node/{node}");
        params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().unwrap())];
        params.serial_number = Some(vec![7; 16].into());
        let certificate = params.self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn joined() -> (tempfile::TempDir, Pki) {
        let folder = tempfile::tempdir().unwrap();
        let (chain, key) = pair("a");
        fs::write(folder.path().join("client.crt"), &chain).unwrap();
        fs::write(folder.path().join("client.key"), &key).unwrap();
        fs::write(folder.path().join("serving-ca.crt"), &chain).unwrap();
        let pki = Pki::new(folder.path());
        (folder, pki)
    }

    #[test]
    fn a_crash_at_any_step_of_the_swap_leaves_a_usable_pair() {
        let (chain, key) = pair("a");
        for steps in 0..=4 {
            let (folder, pki) = joined();
            let path = |name: &str| folder.path().join(name);
            if steps >= 1 {
                fs::write(path("client.key.next"), &key).unwrap();
            }
            if steps >= 2 {
                fs::write(path("client.crt.next"), &chain).unwrap();
            }
            if steps >= 3 {
                fs::rename(path("client.crt.next"), path("client.crt")).unwrap();
            }
            if steps >= 4 {
                fs::rename(path("client.key.next"), path("client.key")).unwrap();
            }
            assert_eq!(pki.load().unwrap().node, "a", "after {steps} steps");
            pki.replace(&chain, &key, "a").unwrap();
            pki.load().unwrap();
        }
    }

    #[test]
    fn what_is_not_ours_is_not_taken() {
        let (_folder, pki) = joined();
        let (chain, key) = pair("b");
        assert!(matches!(
            pki.replace(&chain, &key, "a"),
            Err(PkiError::OtherNode { .. })
        ));
        let (_, other_key) = pair("a");
        assert!(pki.replace(&chain, &other_key, "b").is_err());
        assert_eq!(pki.load().unwrap().node, "a");
        assert!(pki.roots().is_ok());
        assert!(Pki::new("/nonexistent").load().is_err());
    }
}
