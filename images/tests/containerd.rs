//! Both images, built from nothing, imported into a real, private containerd (Debian's 1.6), seen by `ctr` and by CRI, and run: no
//! registry is there, and the sandbox is `kedge.dev/pause:1`.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cri::{
    ContainerConfig, ContainerMetadata, CriRuntime, ImageSpec, NamespaceMode, NamespaceOptions, Runtime, SandboxConfig,
    SandboxMetadata,
};
use images::Containerd;

fn cache() -> PathBuf {
    let home = std::env::var("HOME").unwrap_or_else(|_| "/root".to_owned());
    std::env::var("KEDGE_CACHE").map_or_else(|_| Path::new(&home).join(".cache/kedge"), PathBuf::from)
}

fn debian(path: &str) -> PathBuf {
    cache().join("debian/usr").join(path)
}

/// A containerd of this test's own, killed when dropped.
struct Daemon {
    dir: PathBuf,
    child: Child,
}

impl Daemon {
    fn start(dir: &Path) -> Self {
        std::fs::create_dir_all(dir.join("cni")).unwrap();
        let config = format!(
            "version = 2\nroot = \"{d}/root\"\nstate = \"{d}/state\"\n[grpc]\naddress = \"{d}/c.sock\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\nrestrict_oom_score_adj = true\nsandbox_image = \"kedge.dev/pause:1\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"{bin}\"\nconf_dir = \"{d}/cni\"\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{d}/opt\"\n",
            d = dir.display(),
            bin = debian("lib/cni").display(),
        );
        std::fs::write(dir.join("config.toml"), config).unwrap();
        let path = format!(
            "{}:{}:/usr/sbin:/usr/bin:/sbin:/bin",
            debian("bin").display(),
            debian("sbin").display()
        );
        let child = Command::new(debian("bin/containerd"))
            .arg("--config")
            .arg(dir.join("config.toml"))
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.join("log")).unwrap())
            .spawn()
            .unwrap();
        Self {
            dir: dir.to_owned(),
            child,
        }
    }

    async fn ready(&self, runtime: &CriRuntime) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while let Err(error) = runtime.version().await {
            assert!(
                Instant::now() < deadline,
                "containerd never answered: {error}\n{}",
                std::fs::read_to_string(self.dir.join("log")).unwrap()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn ctr(&self, args: &[&str]) -> String {
        let output = Command::new(debian("bin/ctr"))
            .arg("--address")
            .arg(self.dir.join("c.sock"))
            .args(["-n", "k8s.io"])
            .args(args)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Builds the archives with `images/make`.
fn archives(out: &Path) -> [PathBuf; 2] {
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/make"))
        .arg(out)
        .env("IMAGES_BIN", env!("CARGO_BIN_EXE_images"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    ["pause.tar", "demo.tar"].map(|name| out.join(name))
}

async fn until<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(done) = check().await {
            return done;
        }
        assert!(Instant::now() < deadline, "{what} never came");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn imported_images_are_seen_and_run_without_a_registry() {
    let dir = tempfile::tempdir().unwrap();
    let archives = archives(&dir.path().join("images"));
    let daemon = Daemon::start(dir.path());
    let (runtime, _pump) = CriRuntime::new(&dir.path().join("c.sock"));
    daemon.ready(&runtime).await;
    let client = Containerd::new(&dir.path().join("c.sock"), "k8s.io").unwrap();
    for archive in archives.iter().chain(&archives) {
        client.import(archive).await.unwrap();
    }
    // The lease is gone; what a garbage collection leaves is what the record refers to.
    daemon.ctr(&["leases", "create", "--id", "collect"]);
    daemon.ctr(&["leases", "delete", "--sync", "collect"]);
    let listed = daemon.ctr(&["images", "check"]);
    for name in ["kedge.dev/pause:1", "kedge.dev/demo:1"] {
        let line = listed
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_else(|| panic!("{name} in {listed}"));
        assert!(line.contains("complete"), "{line}");
        let image = until(name, async || runtime.image_status(name).await.unwrap()).await;
        assert!(image.repo_tags.contains(&name.to_owned()), "{image:?}");
    }
    run_a_container(&runtime, dir.path()).await;
    let listed = client.list().await.unwrap();
    assert!(listed.iter().all(|image| image.ours), "{listed:?}");
    assert_eq!(
        client.prune(&["kedge.dev/pause:1".to_owned()]).await.unwrap(),
        ["kedge.dev/demo:1"]
    );
    assert!(
        client
            .prune(&["kedge.dev/pause:1".to_owned()])
            .await
            .unwrap()
            .is_empty()
    );
}

async fn run_a_container(runtime: &CriRuntime, dir: &Path) {
    let cgroup = format!("kedge-images-test-{}", std::process::id());
    let logs = dir.join("logs");
    std::fs::create_dir_all(&logs).unwrap();
    let namespaces = NamespaceOptions {
        network: NamespaceMode::Node,
        ..NamespaceOptions::default()
    };
    let sandbox = SandboxConfig {
        metadata: SandboxMetadata {
            name: "demo".to_owned(),
            namespace: "default".to_owned(),
            uid: cgroup.clone(),
            attempt: 0,
        },
        log_directory: logs.display().to_string(),
        cgroup_parent: format!("/{cgroup}"),
        namespaces: namespaces.clone(),
        ..SandboxConfig::default()
    };
    let id = runtime.run_sandbox(&sandbox, "").await.unwrap();
    let mut config = ContainerConfig {
        metadata: ContainerMetadata {
            name: "main".to_owned(),
            attempt: 0,
        },
        image: ImageSpec {
            image: "kedge.dev/demo:1".to_owned(),
            ..ImageSpec::default()
        },
        command: ["sh", "-c", "echo it runs; exec sleep 1000"].map(str::to_owned).into(),
        log_path: "main.log".to_owned(),
        ..ContainerConfig::default()
    };
    config.security.namespaces = namespaces;
    let container = runtime.create_container(&id, &config, &sandbox).await.unwrap();
    runtime.start_container(&container).await.unwrap();
    let log = logs.join("main.log");
    until("the log", async || {
        std::fs::read_to_string(&log)
            .ok()
            .filter(|text| text.contains("it runs"))
    })
    .await;
    let words = ["kedge-demo-is-there", "/bin/kedge-demo"];
    let test = format!("test -x {} && echo {}", words[1], words[0]);
    let command = ["sh", "-c", &test].map(str::to_owned);
    let output = runtime
        .exec_sync(&container, &command, Duration::from_secs(10))
        .await
        .unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains(words[0]), "{output:?}");
    let begun = Instant::now();
    runtime.stop_container(&container, Duration::ZERO).await.unwrap();
    runtime.remove_container(&container).await.unwrap();
    runtime.stop_sandbox(&id).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(8), "pause ends on SIGTERM");
    runtime.remove_sandbox(&id).await.unwrap();
    remove_cgroups(&cgroup);
}

/// Removes the cgroup in every hierarchy: this one when it is version 1, one when it is version 2.
fn remove_cgroups(name: &str) {
    let root = Path::new("/sys/fs/cgroup");
    let below = std::fs::read_dir(root).unwrap().flatten().map(|entry| entry.path());
    for hierarchy in below.chain([root.to_owned()]) {
        let _ = std::fs::remove_dir(hierarchy.join(name));
    }
}
