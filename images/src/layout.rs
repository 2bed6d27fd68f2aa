//! Reads an OCI archive back. What is in it is not trusted: sizes are bounded, and every blob is checked against its digest.

use std::collections::BTreeMap;
use std::io::Read;

use bytes::Bytes;
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest, MediaType};

use crate::archive::{NAME_ANNOTATION, hex_sha256};

/// Descriptions are a few kilobytes; containerd's own limit for them is 8 MiB.
const MAX_DESCRIPTION: usize = 4 * 1024 * 1024;
/// An archive is held in memory while it is imported.
const MAX_ARCHIVE: u64 = 512 * 1024 * 1024;

/// An archive is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// It is no tar archive.
    #[error("read the archive")]
    Tar(#[source] std::io::Error),
    /// A description in it is no JSON of its kind.
    #[error("{path} is not what OCI says")]
    Describe {
        /// Which.
        path: String,
        /// Why.
        source: serde_json::Error,
    },
    /// A part is not there, or not what its digest says, or too large.
    #[error("{path}: {reason}")]
    Bad {
        /// Which.
        path: String,
        /// What is wrong.
        reason: String,
    },
}

fn bad(path: impl Into<String>, reason: impl Into<String>) -> LayoutError {
    LayoutError::Bad {
        path: path.into(),
        reason: reason.into(),
    }
}

/// A blob whose bytes match its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// `sha256:…`.
    pub digest: String,
    /// Its media type.
    pub media_type: String,
    /// Its bytes.
    pub bytes: Bytes,
}

/// One image of one platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The image's full name.
    pub name: String,
    /// Its manifest.
    pub manifest: Blob,
    /// Its config.
    pub config: Blob,
    /// Its layers, lowest first.
    pub layers: Vec<Blob>,
}

impl Layout {
    /// Reads an archive with exactly one image, which has a name.
    ///
    /// # Errors
    /// When it is no such archive, or a blob is missing, too large, or not what its digest says.
    pub fn read(archive: &[u8]) -> Result<Self, LayoutError> {
        let files = files(archive)?;
        let index: ImageIndex = {
            let bytes = files
                .get("index.json")
                .ok_or_else(|| bad("index.json", "is missing: no OCI archive"))?;
            parse("index.json", bytes)?
        };
        let [target] = index.manifests().as_slice() else {
            return Err(bad(
                "index.json",
                format!("has {} images, not one", index.manifests().len()),
            ));
        };
        let name = target.annotations().as_ref().and_then(|all| all.get(NAME_ANNOTATION));
        let name = name
            .ok_or_else(|| bad("index.json", format!("no annotation {NAME_ANNOTATION}")))?
            .clone();
        if *target.media_type() != MediaType::ImageManifest {
            return Err(bad(
                "index.json",
                format!("{} is no OCI image manifest", target.media_type()),
            ));
        }
        let manifest = take(&files, target)?;
        let parsed: ImageManifest = parse(&manifest.digest, &manifest.bytes)?;
        let config = take(&files, parsed.config())?;
        let layers = parsed
            .layers()
            .iter()
            .map(|layer| take(&files, layer))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            name,
            manifest,
            config,
            layers,
        })
    }
}

/// The regular files of the archive.
fn files(archive: &[u8]) -> Result<BTreeMap<String, Bytes>, LayoutError> {
    if archive.len() as u64 > MAX_ARCHIVE {
        return Err(bad(
            "the archive",
            format!("has {} bytes, more than {MAX_ARCHIVE}", archive.len()),
        ));
    }
    let mut files = BTreeMap::new();
    let mut tar = tar::Archive::new(archive);
    for entry in tar.entries().map_err(LayoutError::Tar)? {
        let entry = entry.map_err(LayoutError::Tar)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let path = entry.path().map_err(LayoutError::Tar)?.display().to_string();
        let path = path.trim_start_matches("./").to_owned();
        // No more than the archive holds can come of it: entries are not sparse here.
        let mut bytes = Vec::new();
        entry
            .take(archive.len() as u64)
            .read_to_end(&mut bytes)
            .map_err(LayoutError::Tar)?;
        files.insert(path, Bytes::from(bytes));
    }
    Ok(files)
}

fn parse<T: serde::de::DeserializeOwned>(path: &str, bytes: &[u8]) -> Result<T, LayoutError> {
    if bytes.len() > MAX_DESCRIPTION {
        return Err(bad(
            path,
            format!("has {} bytes, more than {MAX_DESCRIPTION}", bytes.len()),
        ));
    }
    serde_json::from_slice(bytes).map_err(|source| LayoutError::Describe {
        path: path.to_owned(),
        source,
    })
}

fn take(files: &BTreeMap<String, Bytes>, wanted: &Descriptor) -> Result<Blob, LayoutError> {
    let digest = wanted.digest().to_string();
    let Some(hex) = digest.strip_prefix("sha256:") else {
        return Err(bad(digest, "is not a SHA-256 digest"));
    };
    let path = format!("blobs/sha256/{hex}");
    // Cloning is cheap, and one blob may be there twice.
    let bytes = files.get(&path).cloned().ok_or_else(|| bad(&path, "is missing"))?;
    if bytes.len() as u64 != wanted.size() {
        return Err(bad(&path, format!("has {} bytes, not {}", bytes.len(), wanted.size())));
    }
    if hex_sha256(&bytes) != hex {
        return Err(bad(&path, "is not what its digest says"));
    }
    Ok(Blob {
        digest,
        media_type: wanted.media_type().to_string(),
        bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::Architecture;
    use crate::recipe;

    #[test]
    fn a_changed_byte_is_seen_or_harmless_and_nothing_panics() {
        let archive = recipe::pause(vec![7; 3000], Architecture::Amd64).archive().unwrap();
        let whole = Layout::read(&archive).unwrap();
        for at in (0..archive.len()).step_by(7) {
            let mut changed = archive.clone();
            changed[at] ^= 0x55;
            if let Ok(layout) = Layout::read(&changed) {
                assert_eq!(layout.manifest, whole.manifest, "byte {at}");
                assert_eq!(layout.layers, whole.layers, "byte {at}");
            }
        }
        for length in (0..archive.len() - 1024).step_by(101) {
            Layout::read(&archive[..length]).unwrap_err();
        }
    }

    #[test]
    fn what_is_no_archive_says_so() {
        let error = Layout::read(b"").unwrap_err();
        assert!(error.to_string().contains("index.json"), "{error}");
    }
}
