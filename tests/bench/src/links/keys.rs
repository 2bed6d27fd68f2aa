//! The certificates of a measurement's own installation.

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, SanType, SerialNumber,
};

use super::talk::Keys;
use super::through::node;

type Ca = CertifiedIssuer<'static, KeyPair>;

/// Two CAs, a hub, and so many nodes.
///
/// # Errors
/// When no key can be made.
pub(crate) fn make(nodes: usize) -> Result<Keys> {
    let (serving, tunnel) = (ca("serving")?, ca("tunnel")?);
    let mut hub = CertificateParams::new(vec![tunnel::SERVER_NAME.to_owned()])?;
    hub.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let nodes = (0..nodes).map(|number| signed(node_params(&node(number))?, &tunnel));
    Ok(Keys {
        serving_ca: serving.pem(),
        tunnel_ca: tunnel.pem(),
        hub: signed(hub, &serving)?,
        nodes: nodes.collect::<Result<_>>()?,
    })
}

fn ca(name: &str) -> Result<Ca> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}

fn node_params(node: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    let name = format!("system:node:{node}");
    params.distinguished_name.push(DnType::CommonName, name);
    let uri = format!("spiffe://{}/node/{node}", tunnel::TRUST_DOMAIN);
    params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    // The first generation of the node's identity.
    let mut serial = 1_u64.to_be_bytes().to_vec();
    serial.extend([0x7f; 8]);
    params.serial_number = Some(SerialNumber::from(serial));
    Ok(params)
}

/// The certificate and its key, PEM.
fn signed(params: CertificateParams, ca: &Ca) -> Result<(String, String)> {
    let key = KeyPair::generate()?;
    Ok((params.signed_by(&key, ca)?.pem(), key.serialize_pem()))
}
