//! Both images, built from nothing, imported into a real, private containerd (Debian's 1.6, and a 2.x), seen by `ctr` and by CRI, and run: no
//! registry is there, and the sandbox is `kedge.dev/pause:1`.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cri::{
    ContainerConfig, ContainerMetadata, CriRuntime, ImageSpec, NamespaceMode, NamespaceOptions, Runtime, SandboxConfig,
    SandboxMetadata,
};
use images::Containerd;
use kit::containerd::{Private, Version};

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
async fn imported_images_are_seen_and_run_without_a_registry_by_1_6() {
    are_seen_and_run(Version::Debian).await;
}

#[tokio::test]
async fn imported_images_are_seen_and_run_without_a_registry_by_2() {
    are_seen_and_run(Version::Two).await;
}

async fn are_seen_and_run(version: Version) {
    let dir = tempfile::tempdir().unwrap();
    let archives = archives(&dir.path().join("images"));
    let daemon = Private::start(version, dir.path(), "kedge.dev/pause:1").unwrap();
    let (runtime, _pump) = CriRuntime::new(&daemon.socket());
    let client = Containerd::new(&daemon.socket(), "k8s.io").unwrap();
    for archive in archives.iter().chain(&archives) {
        client.import(archive).await.unwrap();
    }
    // The lease is gone; what a garbage collection leaves is what the record refers to.
    daemon.ctr(&["leases", "create", "--id", "collect"]).unwrap();
    daemon.ctr(&["leases", "delete", "--sync", "collect"]).unwrap();
    let listed = daemon.ctr(&["images", "check"]).unwrap();
    for name in ["kedge.dev/pause:1", "kedge.dev/demo:1"] {
        let line = listed
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_else(|| panic!("{name} in {listed}"));
        assert!(line.contains("complete"), "{line}");
        let image = until(name, async || runtime.image_status(name).await.unwrap()).await;
        assert!(image.repo_tags.contains(&name.to_owned()), "{image:?}");
    }
    run_a_container(&runtime, dir.path(), version).await;
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

async fn run_a_container(runtime: &CriRuntime, dir: &Path, version: Version) {
    let cgroup = format!("kedge-images-test-{}-{version:?}", std::process::id());
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
