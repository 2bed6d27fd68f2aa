//! Images: names, credentials, and what the runtime has.

use std::fmt;

use crate::StringMap;

/// Names an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageSpec {
    /// A name, digest or the runtime's id.
    pub image: String,
    /// The name as the pod wrote it.
    pub user_specified: String,
    /// The RuntimeClass handler to pull for.
    pub runtime_handler: String,
    /// For the runtime.
    pub annotations: StringMap,
}

impl From<&str> for ImageSpec {
    fn from(image: &str) -> Self {
        Self {
            image: image.to_owned(),
            user_specified: image.to_owned(),
            ..Self::default()
        }
    }
}

/// Credentials for a registry. Never printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Auth {
    /// Name.
    pub username: String,
    /// Password.
    pub password: String,
    /// base64 of `name:password`, as in a Docker config file.
    pub auth: String,
    /// The registry.
    pub server_address: String,
    /// An OAuth2 refresh token.
    pub identity_token: String,
    /// A bearer token.
    pub registry_token: String,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Auth({} at {:?})", self.username, self.server_address)
    }
}

/// An image that the runtime has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    /// `sha256:…` of its configuration.
    pub id: String,
    /// Names with tags.
    pub repo_tags: Vec<String>,
    /// Names with digests.
    pub repo_digests: Vec<String>,
    /// Bytes, unpacked or packed as the runtime counts.
    pub size: u64,
    /// The numeric user that it runs as.
    pub uid: Option<i64>,
    /// The user by name, where it is no number.
    pub username: String,
    /// Must not be collected.
    pub pinned: bool,
}

/// Space that images or containers take.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FilesystemUsage {
    /// Nanoseconds since 1970.
    pub timestamp: i64,
    /// The mount point, or a folder in the file system.
    pub mountpoint: String,
    /// Bytes.
    pub used_bytes: u64,
    /// Inodes.
    pub inodes_used: u64,
}
