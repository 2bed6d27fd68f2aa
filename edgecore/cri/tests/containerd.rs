//! The client against a real, private containerd (the one that the test command unpacks, Debian's 1.6): what it is, how it is, and that a
//! restart of it is survived.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cri::{ContainerFilter, CriRuntime, ErrorKind, PodHint, Runtime, SandboxFilter};

/// A containerd of this test's own, killed when dropped.
struct Containerd {
    dir: PathBuf,
    child: Child,
}

fn debian() -> PathBuf {
    let home = std::env::var("HOME").unwrap_or_else(|_| "/root".to_owned());
    let cache = std::env::var("KEDGE_CACHE").unwrap_or_else(|_| format!("{home}/.cache/kedge"));
    Path::new(&cache).join("debian/usr")
}

impl Containerd {
    fn start(dir: &Path) -> Self {
        let cni = dir.join("cni");
        std::fs::create_dir_all(&cni).unwrap();
        let config = format!(
            "version = 2\nroot = \"{d}/root\"\nstate = \"{d}/state\"\n[grpc]\naddress = \"{d}/c.sock\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\nrestrict_oom_score_adj = true\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"{bin}\"\nconf_dir = \"{d}/cni\"\n\
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
            .env(
                "PATH",
                format!(
                    "{}:{}:/usr/bin:/bin",
                    debian().join("bin").display(),
                    debian().join("sbin").display()
                ),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self {
            dir: dir.to_owned(),
            child,
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("c.sock")
    }

    /// Waits until it answers.
    async fn ready(&self, runtime: &CriRuntime) -> cri::RuntimeVersion {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match runtime.version().await {
                Ok(version) => return version,
                Err(error) if Instant::now() > deadline => {
                    panic!(
                        "containerd never answered: {error}\n{}",
                        std::fs::read_to_string(self.dir.join("log")).unwrap()
                    )
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // It may be dead already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn version_status_and_lists_are_told_and_a_restart_is_survived() {
    let dir = tempfile::tempdir().unwrap();
    let containerd = Containerd::start(dir.path());
    let (runtime, pump) = CriRuntime::new(&containerd.socket());
    let mut tasks = tokio::task::JoinSet::new();
    let mut hints = runtime.events();
    tasks.spawn(pump.run());

    let version = containerd.ready(&runtime).await;
    an_empty_runtime(&runtime, &version).await;

    drop(containerd);
    assert_eq!(runtime.version().await.unwrap_err().kind, ErrorKind::Unavailable);
    let relist = tokio::time::timeout(Duration::from_secs(10), hints.next()).await;
    assert_eq!(relist.expect("a broken stream asks for a relist"), PodHint::Relist);
    let again = Containerd::start(dir.path());
    assert_eq!(again.ready(&runtime).await, version);
}

/// What a containerd with nothing in it answers.
async fn an_empty_runtime(runtime: &CriRuntime, version: &cri::RuntimeVersion) {
    assert_eq!(version.name, "containerd");
    assert_eq!(version.api_version, "v1");
    let status = runtime.status().await.unwrap();
    assert!(status.runtime_ready);
    assert!(!status.network_ready, "there is no CNI configuration: {status:?}");
    assert!(status.message.contains("NetworkReady"), "{}", status.message);
    assert!(
        runtime
            .list_sandboxes(&SandboxFilter::default())
            .await
            .unwrap()
            .is_empty()
    );
    assert!(
        runtime
            .list_containers(&ContainerFilter::default())
            .await
            .unwrap()
            .is_empty()
    );
    assert!(runtime.list_images().await.unwrap().is_empty());
    assert_eq!(runtime.image_status("kedge.dev/none:1").await.unwrap(), None);
    assert_eq!(
        runtime.container_status("none").await.unwrap_err().kind,
        ErrorKind::NotFound
    );
    runtime.stop_container("none", Duration::ZERO).await.unwrap();
    runtime.stop_sandbox("none").await.unwrap();
    runtime.remove_sandbox("none").await.unwrap();
    assert!(!runtime.image_fs_info().await.unwrap().is_empty());
    if version.version.starts_with("1.6") {
        assert_eq!(runtime.cgroup_driver().await.unwrap(), None);
    }
}
