//! Doors for [`crate::fuzzing`]: credentials.

use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;

use super::authn;
use super::tokens::SigningKey;

/// What opens tokens.
pub struct Tokens(SigningKey);

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens")
    }
}

impl Tokens {
    /// With a key in PEM.
    ///
    /// # Errors
    /// When it is no P-256 key.
    pub fn new(pem: &str) -> Result<Self, String> {
        SigningKey::from_pem(pem).map(Self)
    }

    /// A token of these claims.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn sign(&self, claims: &Value) -> Result<String, String> {
        self.0.sign(claims)
    }

    /// The claims of a token that this key signed for `issuer`.
    pub fn open(&self, token: &str, issuer: &str) -> Option<Value> {
        self.0.open(token, issuer).ok()
    }
}

/// A client certificate, DER.
pub fn certificate(bytes: &[u8]) {
    // A certificate that is none is refused; that is all there is to see.
    let _ = authn::from_certificate(bytes);
}

/// `Name: value` lines: a bearer token and impersonation.
pub fn headers(bytes: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n').take(64) {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        if let (Some(name), Some(value)) = (parts.next(), parts.next())
            && let (Ok(name), Ok(value)) = (
                HeaderName::from_bytes(name),
                HeaderValue::from_bytes(value.trim_ascii()),
            )
        {
            headers.append(name, value);
        }
    }
    let _ = authn::bearer(&headers);
    let _ = authn::wanted(&headers);
}
