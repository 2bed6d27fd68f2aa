//! A private containerd with one busybox image, for tests that need real containers.

#![allow(dead_code, reason = "each test uses a part")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use cri::CriRuntime;
use kit::containerd::{Private, Version};
use sha2::{Digest, Sha256};

/// The image: everything is busybox, the pause too.
pub(crate) const IMAGE: &str = "kedge.dev/test-busybox:1";

/// A containerd of this test's own with the image, killed when dropped.
pub(crate) struct Containerd(Private);

impl Containerd {
    /// Starts it in `dir` and imports the image.
    pub(crate) fn start(version: Version, dir: &Path) -> (Self, CriRuntime) {
        let private = Private::start(version, dir, IMAGE).unwrap();
        let archive = dir.join("image.tar");
        image(dir, &archive);
        private.ctr(&["images", "import", archive.to_str().unwrap()]).unwrap();
        let (runtime, _pump) = CriRuntime::new(&private.socket());
        (Self(private), runtime)
    }

    /// Its socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.0.socket()
    }

    /// Task ids with their processes.
    pub(crate) fn tasks(&self) -> BTreeMap<String, String> {
        let text = self.0.ctr(&["tasks", "ls"]).unwrap();
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        text.lines()
            .skip(1)
            .map(words)
            .filter(|w| w.len() >= 2)
            .map(|w| (w[0].clone(), w[1].clone()))
            .collect()
    }
}

/// Writes an OCI archive with the system's tar: one layer, which is busybox under the names that the tests use.
fn image(dir: &Path, archive: &Path) {
    let root = dir.join("layer");
    std::fs::create_dir_all(root.join("bin")).unwrap();
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for name in ["sh", "sleep", "echo", "cat"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    let layer = dir.join("layer.tar");
    tar(&root, &layer);
    let oci = dir.join("oci");
    let blobs = oci.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| -> (String, usize) {
        let name = Sha256::digest(bytes)
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect::<String>();
        std::fs::write(blobs.join(&name), bytes).unwrap();
        (format!("sha256:{name}"), bytes.len())
    };
    let (layer, layer_size) = put(&std::fs::read(&layer).unwrap());
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
        "config": {"Entrypoint": ["/bin/sleep", "100000"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [layer]},
    });
    let (config, config_size) = put(config.to_string().as_bytes());
    let kind = |k: &str| format!("application/vnd.oci.image.{k}");
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": kind("manifest.v1+json"),
        "config": {"mediaType": kind("config.v1+json"), "digest": config, "size": config_size},
        "layers": [{"mediaType": kind("layer.v1.tar"), "digest": layer, "size": layer_size}],
    });
    let (manifest, manifest_size) = put(manifest.to_string().as_bytes());
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [{
        "mediaType": kind("manifest.v1+json"), "digest": manifest, "size": manifest_size,
        "annotations": {"io.containerd.image.name": IMAGE},
    }]});
    std::fs::write(oci.join("index.json"), index.to_string()).unwrap();
    std::fs::write(oci.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    tar(&oci, archive);
}

fn tar(folder: &Path, archive: &Path) {
    let status = Command::new("tar")
        .arg("-C")
        .arg(folder)
        .arg("-cf")
        .arg(archive)
        .arg(".")
        .status()
        .unwrap();
    assert!(status.success());
}
