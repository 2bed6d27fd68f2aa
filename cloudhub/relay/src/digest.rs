//! Hashes of objects and of sets of objects.

use std::borrow::Borrow;
use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};
use wire::proto::Key;

/// SHA-256.
pub type Digest = [u8; 32];

/// SHA-256 of an object's bytes as they go to the edge.
#[must_use]
pub fn object_version(object: &[u8]) -> Digest {
    Sha256::digest(object).into()
}

/// What identifies one state of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// metadata.uid.
    pub uid: String,
    /// SHA-256 of its bytes.
    pub version: Digest,
}

fn hash(key: &(String, String, String), entry: &Entry) -> Digest {
    let mut hash = Sha256::new();
    for part in [&key.0, &key.1, &key.2, &entry.uid] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.update(entry.version);
    hash.finalize().into()
}

/// The first 8 bytes of an entry's hash: what Hello's `have` and SnapshotSent's `drop` hold. Two objects that share one
/// are told apart by the digest of the whole set, which then does not match.
pub(crate) fn short(key: &(String, String, String), entry: &Entry) -> u64 {
    let hash = hash(key, entry);
    u64::from_le_bytes([hash[0], hash[1], hash[2], hash[3], hash[4], hash[5], hash[6], hash[7]])
}

/// Digest over the set, sorted by kind, namespace and name.
pub(crate) fn set<'a, E: Borrow<Entry>>(entries: impl Iterator<Item = (&'a (String, String, String), E)>) -> Digest {
    let sorted: BTreeMap<_, _> = entries.collect();
    let mut all = Sha256::new();
    for (key, entry) in sorted {
        all.update(hash(key, entry.borrow()));
    }
    all.finalize().into()
}

pub(crate) fn triple(key: &Key) -> (String, String, String) {
    (key.kind.clone(), key.namespace.clone(), key.name.clone())
}

pub(crate) fn wire_key(key: &(String, String, String)) -> Key {
    Key {
        kind: key.0.clone(),
        namespace: key.1.clone(),
        name: key.2.clone(),
    }
}
