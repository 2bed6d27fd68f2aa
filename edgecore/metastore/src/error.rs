//! What can go wrong, by operation.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a store does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// sled refuses the folder.
    #[error("open the store {path}")]
    Open {
        /// The store's folder.
        path: PathBuf,
        /// sled's reason.
        source: io::Error,
    },
    /// sled panicked while it read the folder.
    #[error("open the store {path}: sled panicked: {message}")]
    Panicked {
        /// The store's folder.
        path: PathBuf,
        /// The panic's text.
        message: String,
    },
    /// sled does not come back from reading the folder: a damaged page can make its search spin.
    #[error("open the store {path}: reading it did not end in {limit:?}")]
    Hung {
        /// The store's folder.
        path: PathBuf,
        /// How long it was waited for.
        limit: Duration,
    },
    /// A record fails its checks.
    #[error("open the store {path}: the record {key} is not valid")]
    Record {
        /// The store's folder.
        path: PathBuf,
        /// The record's key.
        key: String,
        /// What is wrong with it.
        source: ReadError,
    },
    /// A file or folder of the store cannot be made durable.
    #[error("sync {path}")]
    Sync {
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A store that is not valid cannot be renamed.
    #[error("set {path} aside")]
    SetAside {
        /// The store's folder.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A thread cannot be started.
    #[error("start the store's writer")]
    Thread(#[source] io::Error),
}

/// Why a record cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// sled fails.
    #[error("read the store")]
    Io(#[from] io::Error),
    /// The record was written by a newer version.
    #[error("the record's format {0} is not known")]
    Format(u8),
    /// The record is shorter than its header.
    #[error("the record is cut off")]
    Short,
    /// The checksum does not match.
    #[error("the record's checksum does not match")]
    Checksum,
    /// The record cannot be decrypted by this key, or is encrypted and no key is given.
    #[error("the record cannot be decrypted")]
    Decrypt,
    /// The key is not UTF-8.
    #[error("the record's key is not UTF-8")]
    Key,
}

/// Why a batch was not committed.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// A value is larger than [`crate::Options::max_value`].
    #[error("{key}: {size} bytes are more than the {limit} that a record may have")]
    TooLarge {
        /// The record's key.
        key: String,
        /// The value's size, bytes.
        size: usize,
        /// The limit, bytes.
        limit: usize,
    },
    /// The value cannot be encrypted.
    #[error("encrypt {0}")]
    Encrypt(String),
    /// The store has failed or is closed; whether the batch is on the disk is not known.
    #[error("the store is closed")]
    Closed,
}
