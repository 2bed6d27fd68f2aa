//! A private containerd with one busybox image, for tests that need real containers.

#![allow(dead_code, reason = "each test uses a part")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cri::{CriRuntime, Runtime};
use sha2::{Digest, Sha256};

/// The image: everything is busybox, the pause too.
pub(crate) const IMAGE: &str = "kedge.dev/test-busybox:1";

/// A containerd of this test's own, killed when dropped.
pub(crate) struct Containerd {
    dir: PathBuf,
    child: Child,
}

fn debian() -> PathBuf {
    let home = std::env::var("HOME").unwrap_or_else(|_| "/root".to_owned());
    let cache = std::env::var("KEDGE_CACHE").unwrap_or_else(|_| format!("{home}/.cache/kedge"));
    Path::new(&cache).join("debian/usr")
}

fn path() -> String {
    format!(
        "{}:{}:/usr/sbin:/usr/bin:/sbin:/bin",
        debian().join("bin").display(),
        debian().join("sbin").display()
    )
}

impl Containerd {
    /// Starts it in `dir` and imports the image.
    pub(crate) async fn start(dir: &Path) -> (Self, CriRuntime) {
        std::fs::create_dir_all(dir.join("net.d")).unwrap();
        let config = format!(
            "version = 2\nroot = \"{d}/root\"\nstate = \"{d}/state\"\n[grpc]\naddress = \"{d}/c.sock\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\nrestrict_oom_score_adj = true\nsandbox_image = \"{IMAGE}\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"{bin}\"\nconf_dir = \"{d}/net.d\"\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{d}/opt\"\n",
            d = dir.display(),
            bin = debian().join("lib/cni").display(),
        );
        std::fs::write(dir.join("config.toml"), config).unwrap();
        let binary = debian().join("bin/containerd");
        assert!(binary.exists(), "{} is missing: tests/run unpacks it", binary.display());
        let log = std::fs::File::create(dir.join("log")).unwrap();
        let child = Command::new(binary)
            .arg("--config")
            .arg(dir.join("config.toml"))
            .env("PATH", path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let containerd = Self {
            dir: dir.to_owned(),
            child,
        };
        let (runtime, _pump) = CriRuntime::new(&containerd.socket());
        containerd.ready(&runtime).await;
        containerd.import();
        (containerd, runtime)
    }

    /// Its socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("c.sock")
    }

    async fn ready(&self, runtime: &CriRuntime) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(error) = runtime.version().await {
            let log = || std::fs::read_to_string(self.dir.join("log")).unwrap();
            assert!(
                Instant::now() < deadline,
                "containerd never answered: {error}\n{}",
                log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn import(&self) {
        let archive = self.dir.join("image.tar");
        image(&self.dir, &archive);
        let output = Command::new(debian().join("bin/ctr"))
            .args(["--address"])
            .arg(self.socket())
            .args(["-n", "k8s.io", "images", "import"])
            .arg(&archive)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // It may be dead already.
        let _ = self.child.kill();
        let _ = self.child.wait();
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
