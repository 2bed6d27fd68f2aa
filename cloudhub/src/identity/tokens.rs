//! Join tokens: `[a-z0-9]{6}.[a-z0-9]{16}`, one node, one use, one hour; the hub keeps a hash. Pure.
//!
//! Secret join-NODE, labelled with the token's public part ([`ID_LABEL`]): `hash` (hex SHA-256 of the token), `expires` (seconds since 1970), `labels` (JSON), and once spent
//! `spent` (seconds since 1970). `kedge token create` writes it (installer/src/token.rs), this file judges it.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use sha2::{Digest, Sha256};

use super::secrets;

/// Why a token is not taken. `reason()` is the CamelCase word.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a token at all.
    #[error("a join token looks like abcdef.0123456789abcdef")]
    Malformed,
    /// No token like this was made.
    #[error("there is no such join token: make one with 'kedge token create NODE'")]
    Nobodys,
    /// No token was made for this node.
    #[error("there is no join token for node {node}: make one with 'kedge token create {node}'")]
    Unknown {
        /// The node's name.
        node: String,
    },
    /// It is not this node's.
    #[error("this token is not for node {node}")]
    OtherNode {
        /// The node's name.
        node: String,
    },
    /// It is too old.
    #[error("the token expired: make a new one with 'kedge token create {node}'")]
    Expired {
        /// The node's name.
        node: String,
    },
    /// It was used.
    #[error("the token was used already: make a new one with 'kedge token create {node}'")]
    Spent {
        /// The node's name.
        node: String,
    },
}

impl TokenError {
    /// The CamelCase word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed => "TokenMalformed",
            Self::Unknown { .. } | Self::Nobodys => "TokenUnknown",
            Self::OtherNode { .. } => "TokenForOtherNode",
            Self::Expired { .. } => "TokenExpired",
            Self::Spent { .. } => "TokenSpent",
        }
    }
}

/// Name of the Secret of a node's token.
pub fn secret_name(node: &str) -> String {
    format!("join-{node}")
}

/// The node of a token's Secret.
pub fn node_of(secret: &Secret) -> Option<&str> {
    secrets::name(secret).strip_prefix("join-")
}

/// Label of a token's Secret: the public part of the token, before the dot.
pub const ID_LABEL: &str = "kedge.dev/join-token";

/// Selects the Secret of a well-formed token.
pub fn selector(token: &str) -> String {
    format!("{ID_LABEL}={}", token.split('.').next().unwrap_or_default())
}

/// Hex SHA-256.
pub fn hash(token: &str) -> String {
    Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether the text has the form of a token.
pub fn is_well_formed(token: &str) -> bool {
    let part = |text: &str, length: usize| {
        text.len() == length
            && text
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    token
        .split_once('.')
        .is_some_and(|(id, secret)| part(id, 6) && part(secret, 16))
}

/// Judges a token against the node's Secret.
///
/// # Errors
/// Why it is not taken.
pub fn judge(token: &str, node: &str, secret: Option<&Secret>, now: Duration) -> Result<(), TokenError> {
    let node = node.to_owned();
    if !is_well_formed(token) {
        return Err(TokenError::Malformed);
    }
    let Some(secret) = secret else {
        return Err(TokenError::Unknown { node });
    };
    // Hashes, so that the time of the comparison tells nothing of the token.
    if secrets::text(secret, "hash") != Some(hash(token).as_str()) {
        return Err(TokenError::OtherNode { node });
    }
    if secrets::value(secret, "spent").is_some() {
        return Err(TokenError::Spent { node });
    }
    let expires = secrets::text(secret, "expires").and_then(|text| text.parse::<u64>().ok());
    if expires.is_none_or(|expires| now.as_secs() >= expires) {
        return Err(TokenError::Expired { node });
    }
    Ok(())
}

/// The Secret after its token was used.
pub fn spend(mut secret: Secret, now: Duration) -> Secret {
    let spent = ByteString(now.as_secs().to_string().into_bytes());
    secret.data.get_or_insert_default().insert("spent".to_owned(), spent);
    secret
}

/// The labels that the node is to have.
pub fn labels(secret: &Secret) -> BTreeMap<String, String> {
    secrets::text(secret, "labels")
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) const TOKEN: &str = "abc123.0123456789abcdef";

    pub(crate) fn token_secret(node: &str, expires: u64) -> Secret {
        let values = [
            ("hash", hash(TOKEN).into_bytes()),
            ("expires", expires.to_string().into_bytes()),
            ("labels", br#"{"zone":"dock"}"#.to_vec()),
        ];
        let mut secret = secrets::secret(&secret_name(node), values);
        let labels = secret.metadata.labels.get_or_insert_default();
        labels.insert(ID_LABEL.to_owned(), "abc123".to_owned());
        secret
    }

    #[test]
    fn a_token_is_judged_with_its_reason() {
        let at = Duration::from_secs;
        let secret = token_secret("a", 100);
        assert_eq!(judge(TOKEN, "a", Some(&secret), at(99)), Ok(()));
        let reason = |token, secret: Option<&Secret>, now| judge(token, "a", secret, now).unwrap_err().reason();
        assert_eq!(reason(TOKEN, Some(&secret), at(100)), "TokenExpired");
        assert_eq!(reason(TOKEN, None, at(0)), "TokenUnknown");
        assert_eq!(
            reason("abc123.0123456789abcdeg", Some(&secret), at(0)),
            "TokenForOtherNode"
        );
        assert_eq!(reason(TOKEN, Some(&spend(secret.clone(), at(5))), at(6)), "TokenSpent");
        for token in [
            "",
            "abc123",
            "ABC123.0123456789abcdef",
            "abc123.0123456789abcdef0",
            "abc.123.0123456789abcdef",
        ] {
            assert_eq!(reason(token, Some(&secret), at(0)), "TokenMalformed", "{token}");
        }
        assert_eq!(labels(&secret)["zone"], "dock");
    }

    #[test]
    fn a_secret_without_an_end_is_expired() {
        let secret = secrets::secret("join-a", [("hash", hash(TOKEN).into_bytes())]);
        assert!(judge(TOKEN, "a", Some(&secret), Duration::ZERO).is_err());
    }
}
