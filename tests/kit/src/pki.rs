//! Certificates and kubeconfigs for the real control plane.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};

/// A certificate authority in memory.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate, PEM.
    pub certificate: String,
    /// Its key, PEM.
    pub key: String,
}

impl Authority {
    /// Makes a CA with common name `name`.
    ///
    /// # Errors
    /// When the key cannot be made.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::CrlSign,
        ];
        let pair = KeyPair::generate()?;
        let certificate = params.self_signed(&pair)?.pem();
        let key = pair.serialize_pem();
        Ok(Self {
            issuer: Issuer::new(params, pair),
            certificate,
            key,
        })
    }

    /// Issues a client certificate for user `name` of `groups`: (chain, key), PEM.
    ///
    /// # Errors
    /// When the key cannot be made.
    pub fn client(&self, name: &str, groups: &[&str]) -> Result<(String, String)> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(&mut params)
    }

    /// Issues a serving certificate for DNS names and addresses: (chain, key), PEM.
    ///
    /// # Errors
    /// When a name is not valid or the key cannot be made.
    pub fn server(&self, names: &[&str], addresses: &[&str]) -> Result<(String, String)> {
        let mut params = CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>())?;
        params
            .distinguished_name
            .push(DnType::CommonName, names.first().copied().unwrap_or("server"));
        for address in addresses {
            params.subject_alt_names.push(SanType::IpAddress(address.parse()?));
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(&mut params)
    }

    fn issue(&self, params: &mut CertificateParams) -> Result<(String, String)> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &self.issuer)?.pem(), key.serialize_pem()))
    }
}

/// Writes certificate and key as `NAME.crt` and `NAME.key` under `dir`.
///
/// # Errors
/// When the files cannot be written.
pub fn write_pair(dir: &Path, name: &str, (certificate, key): &(String, String)) -> Result<()> {
    fs::write(dir.join(format!("{name}.crt")), certificate)?;
    fs::write(dir.join(format!("{name}.key")), key)?;
    Ok(())
}

/// Writes a kubeconfig with everything inline and returns its path.
///
/// # Errors
/// When the file cannot be written.
pub fn write_kubeconfig(
    dir: &Path,
    name: &str,
    server: &str,
    ca: &str,
    (certificate, key): &(String, String),
) -> Result<PathBuf> {
    let path = dir.join(format!("{name}.kubeconfig"));
    let b64 = |text: &str| STANDARD.encode(text);
    fs::write(
        &path,
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: main\ncontexts:\n- name: main\n  context: {{cluster: main, user: main}}\n\
             clusters:\n- name: main\n  cluster: {{server: '{server}', certificate-authority-data: {}}}\n\
             users:\n- name: main\n  user: {{client-certificate-data: {}, client-key-data: {}}}\n",
            b64(ca),
            b64(certificate),
            b64(key)
        ),
    )?;
    Ok(path)
}
