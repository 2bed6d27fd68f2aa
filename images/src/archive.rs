//! Builds an OCI image archive: one gzipped layer, config, manifest, index.
//!
//! Reproducible: entries are sorted, times are zero, owners are root, and no map with more than one entry is serialised.

use std::collections::HashMap;
use std::io::Write;

use flate2::{Compression, GzBuilder};
use oci_spec::image::{
    Arch, ConfigBuilder, Descriptor, Digest, ImageConfigurationBuilder, ImageIndexBuilder, ImageManifestBuilder,
    MediaType, Os, RootFsBuilder,
};
use sha2::Digest as _;

/// The annotation by which `ctr` and we find the name of an image in an archive.
pub const NAME_ANNOTATION: &str = "io.containerd.image.name";

/// An image could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A part of it does not fit the OCI image format.
    #[error("describe image {image}")]
    Describe {
        /// The image.
        image: String,
        /// Why.
        source: oci_spec::OciSpecError,
    },
    /// A file of it cannot be put into the layer.
    #[error("pack {path} into image {image}")]
    Pack {
        /// The image.
        image: String,
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

/// A processor architecture that Kedge runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// x86-64.
    Amd64,
    /// ARM64.
    Arm64,
}

impl Architecture {
    /// The one that this is compiled for.
    #[must_use]
    pub fn native() -> Self {
        if cfg!(target_arch = "aarch64") {
            Self::Arm64
        } else {
            Self::Amd64
        }
    }

    fn oci(self) -> Arch {
        match self {
            Self::Amd64 => Arch::Amd64,
            Self::Arm64 => Arch::ARM64,
        }
    }
}

impl std::str::FromStr for Architecture {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "amd64" | "x86_64" => Ok(Self::Amd64),
            "arm64" | "aarch64" => Ok(Self::Arm64),
            _ => Err(format!("{text:?} is no architecture that Kedge builds: amd64 or arm64")),
        }
    }
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Content {
    Folder,
    File(Vec<u8>),
    Link(String),
}

/// One file, folder or symbolic link of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    path: String,
    mode: u32,
    content: Content,
}

impl Entry {
    /// A file; `path` is relative to the image's root.
    #[must_use]
    pub fn file(path: &str, content: Vec<u8>, mode: u32) -> Self {
        Self {
            path: path.to_owned(),
            mode,
            content: Content::File(content),
        }
    }

    /// A folder.
    #[must_use]
    pub fn folder(path: &str, mode: u32) -> Self {
        Self {
            path: format!("{path}/"),
            mode,
            content: Content::Folder,
        }
    }

    /// A symbolic link to `target`.
    #[must_use]
    pub fn link(path: String, target: &str) -> Self {
        Self {
            path,
            mode: 0o777,
            content: Content::Link(target.to_owned()),
        }
    }

    fn append<W: Write>(&self, layer: &mut tar::Builder<W>) -> std::io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_mode(self.mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        match &self.content {
            Content::Folder => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_size(0);
                layer.append_data(&mut header, &self.path, std::io::empty())
            }
            Content::File(bytes) => {
                header.set_entry_type(tar::EntryType::Regular);
                header.set_size(bytes.len() as u64);
                layer.append_data(&mut header, &self.path, bytes.as_slice())
            }
            Content::Link(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                layer.append_link(&mut header, &self.path, target)
            }
        }
    }
}

/// An image to be built.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its full name, `domain/path:tag`.
    pub name: String,
    /// What its binaries run on.
    pub architecture: Architecture,
    /// Its files.
    pub entries: Vec<Entry>,
    /// What a pod's `args` follow.
    pub entrypoint: Vec<String>,
    /// What runs when the pod says nothing.
    pub command: Vec<String>,
    /// Whom it runs as; none: root.
    pub user: Option<String>,
}

/// A blob with its digest in hexadecimal.
struct Blob {
    hex: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        Self {
            hex: hex_sha256(&bytes),
            bytes,
        }
    }

    fn descriptor(&self, media_type: MediaType) -> Result<Descriptor, oci_spec::OciSpecError> {
        let digest: Digest = format!("sha256:{}", self.hex).parse()?;
        Ok(Descriptor::new(media_type, self.bytes.len() as u64, digest))
    }
}

/// SHA-256 in hexadecimal.
pub(crate) fn hex_sha256(bytes: &[u8]) -> String {
    sha2::Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

impl Image {
    /// Builds the archive.
    ///
    /// # Errors
    /// When a path or a name is none.
    pub fn archive(&self) -> Result<Vec<u8>, BuildError> {
        let layer = self.layer()?;
        let diff_id = format!("sha256:{}", hex_sha256(&layer));
        let packed = Blob::new(self.packed("layer.tar", || gzip(&layer))?);
        let (config, manifest, index) = self.describe(&packed, diff_id).map_err(|source| BuildError::Describe {
            image: self.name.clone(),
            source,
        })?;
        let mut entries = vec![
            Entry::folder("blobs", 0o755),
            Entry::folder("blobs/sha256", 0o755),
            Entry::file("index.json", index, 0o644),
            Entry::file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(), 0o644),
        ];
        let blobs = [packed, config, manifest].into_iter();
        entries.extend(blobs.map(|blob| Entry::file(&format!("blobs/sha256/{}", blob.hex), blob.bytes, 0o644)));
        self.tar(&entries)
    }

    fn packed<T>(&self, path: &str, pack: impl FnOnce() -> std::io::Result<T>) -> Result<T, BuildError> {
        pack().map_err(|source| BuildError::Pack {
            image: self.name.clone(),
            path: path.to_owned(),
            source,
        })
    }

    fn layer(&self) -> Result<Vec<u8>, BuildError> {
        self.tar(&self.entries)
    }

    fn tar(&self, entries: &[Entry]) -> Result<Vec<u8>, BuildError> {
        let mut sorted: Vec<&Entry> = entries.iter().collect();
        sorted.sort_by(|a, b| a.path.cmp(&b.path));
        let mut builder = tar::Builder::new(Vec::new());
        for entry in sorted {
            self.packed(&entry.path, || entry.append(&mut builder))?;
        }
        self.packed("the end", || builder.into_inner())
    }

    /// Config, manifest and index of the one layer.
    fn describe(&self, layer: &Blob, diff_id: String) -> Result<(Blob, Blob, Vec<u8>), oci_spec::OciSpecError> {
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let mut run = ConfigBuilder::default().env(vec![format!("PATH={path}")]);
        if !self.entrypoint.is_empty() {
            run = run.entrypoint(self.entrypoint.clone());
        }
        if !self.command.is_empty() {
            run = run.cmd(self.command.clone());
        }
        if let Some(user) = &self.user {
            run = run.user(user.clone());
        }
        let config = ImageConfigurationBuilder::default()
            .architecture(self.architecture.oci())
            .os(Os::Linux)
            .config(run.build()?)
            .rootfs(RootFsBuilder::default().typ("layers").diff_ids(vec![diff_id]).build()?)
            .build()?;
        let config = Blob::new(serde_json::to_vec(&config)?);
        let manifest = ImageManifestBuilder::default()
            .schema_version(2_u32)
            .media_type(MediaType::ImageManifest)
            .config(config.descriptor(MediaType::ImageConfig)?)
            .layers(vec![layer.descriptor(MediaType::ImageLayerGzip)?])
            .build()?;
        let manifest = Blob::new(serde_json::to_vec(&manifest)?);
        let mut target = manifest.descriptor(MediaType::ImageManifest)?;
        target.set_annotations(Some(HashMap::from([(NAME_ANNOTATION.to_owned(), self.name.clone())])));
        let index = ImageIndexBuilder::default()
            .schema_version(2_u32)
            .media_type(MediaType::ImageIndex)
            .manifests(vec![target])
            .build()?;
        Ok((config, manifest, serde_json::to_vec(&index)?))
    }
}

/// Gzip without a name or a time in its header.
fn gzip(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::new(6));
    encoder.write_all(bytes)?;
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;
    use crate::recipe;

    #[test]
    fn the_same_input_gives_the_same_bytes() {
        let build = |busybox: &[u8]| {
            let mut image = recipe::demo(b"demo".to_vec(), busybox.to_vec(), Architecture::Amd64);
            let there = image.archive().unwrap();
            image.entries.reverse();
            assert_eq!(there, image.archive().unwrap(), "the order of entries says nothing");
            there
        };
        assert_eq!(build(b"busybox"), build(b"busybox"));
        assert_ne!(build(b"busybox"), build(b"another"));
    }

    /// The digest is part of what users see: it changes on purpose only (a new oci-spec, flate2 or list of applets).
    #[test]
    fn the_digest_of_a_fixed_input_is_known() {
        let archive = recipe::pause(b"pause".to_vec(), Architecture::Amd64).archive().unwrap();
        let layout = Layout::read(&archive).unwrap();
        assert_eq!(layout.name, recipe::PAUSE);
        assert_eq!(
            layout.config.digest,
            "sha256:280f7a2ed5ebe318fe853ecfe22e2b671b3f725f75f774294c84af8c8afb6c97",
            "{}",
            String::from_utf8_lossy(&layout.config.bytes)
        );
    }

    #[test]
    fn what_is_written_is_read_back() {
        let image = recipe::demo(b"demo".to_vec(), b"busybox".to_vec(), Architecture::Arm64);
        let layout = Layout::read(&image.archive().unwrap()).unwrap();
        assert_eq!(layout.layers.len(), 1);
        let mut layer = tar::Archive::new(flate2::read::GzDecoder::new(layout.layers[0].bytes.as_ref()));
        let paths: Vec<String> = layer
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert!(paths.contains(&"bin/sh".to_owned()) && paths.contains(&"bin/kedge-demo".to_owned()));
        assert!(paths.iter().position(|p| p == "bin/").unwrap() < paths.iter().position(|p| p == "bin/sh").unwrap());
    }
}
