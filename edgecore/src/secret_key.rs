//! The key that the store's values are encrypted with: 32 random bytes in a file of mode 0600, made on first use.
//!
//! It is kept apart from the store, so that a copy of the store alone gives no secrets away. A lost key makes the store unreadable: it is set
//! aside and the node resyncs from the hub.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or made.
    #[error("the store's key {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no key.
    #[error("the store's key {path} has {length} bytes and must have 32: move it away to start with a new store")]
    Length {
        /// The file.
        path: PathBuf,
        /// Its length.
        length: usize,
    },
}

/// Reads the key, or makes it where there is none.
///
/// # Errors
/// When the file cannot be read or made, or has another length.
pub fn load_or_make(path: &Path) -> Result<[u8; 32], KeyError> {
    let io = |source| KeyError::Io {
        path: path.to_owned(),
        source,
    };
    match std::fs::read(path) {
        Ok(bytes) => bytes.as_slice().try_into().map_err(|_| KeyError::Length {
            path: path.to_owned(),
            length: bytes.len(),
        }),
        Err(error) if error.kind() == ErrorKind::NotFound => make(path).map_err(io),
        Err(error) => Err(io(error)),
    }
}

fn make(path: &Path) -> std::io::Result<[u8; 32]> {
    let key: [u8; 32] = rand::random();
    let dir = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(dir)?;
    let temporary = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(&key)?;
    // Durable before anything is encrypted with it: a key lost to a power cut would lose the store.
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    File::open(dir)?.sync_all()?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_for_nobody_else_to_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etc/store.key");
        let key = load_or_make(&path).unwrap();
        assert_eq!(load_or_make(&path).unwrap(), key);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, "short").unwrap();
        assert!(load_or_make(&path).unwrap_err().to_string().contains("has 5 bytes"));
    }
}
