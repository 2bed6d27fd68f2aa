//! The key that signs tokens: ES256 (RFC 7518 §3.4), its key id as the real server derives it.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// What comes before the point in the SubjectPublicKeyInfo of every P-256 key.
const SPKI: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// A token is a header of the Authorization kind; a longer one is not ours.
const MAX_TOKEN: usize = 16 << 10;

/// Why a token is not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// It is no JWT, or says that someone else issued it.
    Unknown,
    /// It says that we issued it, and we did not.
    Forged,
}

/// A JWT, taken apart and not verified.
struct Parts<'a> {
    signed: &'a str,
    header: Value,
    claims: Value,
    signature: Vec<u8>,
}

fn parts(token: &str) -> Option<Parts<'_>> {
    if token.len() > MAX_TOKEN {
        return None;
    }
    let json = |part: &str| -> Option<Value> { serde_json::from_slice(&BASE64.decode(part).ok()?).ok() };
    let (signed, signature) = token.rsplit_once('.')?;
    let (header, claims) = signed.split_once('.')?;
    Some(Parts {
        signed,
        header: json(header)?,
        claims: json(claims)?,
        signature: BASE64.decode(signature).ok()?,
    })
}

/// Signs and opens tokens.
pub(crate) struct SigningKey {
    pair: EcdsaKeyPair,
    id: String,
    random: SystemRandom,
}

impl SigningKey {
    pub(crate) fn from_pem(pem: &str) -> Result<Self, String> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| format!("the signing key is no PKCS#8 PEM: {error}"))?;
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der(), &random)
            .map_err(|error| format!("the signing key is no EC P-256 key: {error}"))?;
        let mut digest = Sha256::new();
        digest.update(SPKI);
        digest.update(pair.public_key().as_ref());
        let id = BASE64.encode(digest.finalize());
        Ok(Self { pair, id, random })
    }

    /// Compact serialization.
    pub(crate) fn sign(&self, claims: &Value) -> Result<String, String> {
        let header = json!({"alg": "ES256", "kid": self.id});
        let signed = format!(
            "{}.{}",
            BASE64.encode(header.to_string()),
            BASE64.encode(claims.to_string())
        );
        let signature = self
            .pair
            .sign(&self.random, signed.as_bytes())
            .map_err(|error| format!("failed to generate token: {error}"))?;
        Ok(format!("{signed}.{}", BASE64.encode(signature.as_ref())))
    }

    /// The claims of a token that this key signed for `issuer`.
    ///
    /// # Errors
    /// [`Refused`].
    pub(crate) fn open(&self, token: &str, issuer: &str) -> Result<Value, Refused> {
        let parts = parts(token).ok_or(Refused::Unknown)?;
        if parts.claims.get("iss").and_then(Value::as_str) != Some(issuer) {
            return Err(Refused::Unknown);
        }
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.pair.public_key().as_ref());
        let is_ours = parts.header.get("alg").and_then(Value::as_str) == Some("ES256")
            && public.verify(parts.signed.as_bytes(), &parts.signature).is_ok();
        if is_ours {
            Ok(parts.claims)
        } else {
            Err(Refused::Forged)
        }
    }

    /// RFC 7517.
    pub(crate) fn jwk(&self) -> Value {
        // 0x04, x, y
        let (x, y) = self.pair.public_key().as_ref()[1..].split_at(32);
        json!({
            "use": "sig",
            "kty": "EC",
            "kid": self.id,
            "crv": "P-256",
            "alg": "ES256",
            "x": BASE64.encode(x),
            "y": BASE64.encode(y),
        })
    }
}
