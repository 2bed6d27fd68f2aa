//! The client against real, private containerds, Debian's 1.6 and a 2.x: what they are, how they are, and that a restart of them is survived.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::time::Duration;

use cri::{CgroupDriver, ContainerFilter, CriRuntime, ErrorKind, PodHint, Runtime, SandboxFilter};
use kit::containerd::{Private, Version};

const PAUSE: &str = "kedge.dev/pause:1";

#[tokio::test]
async fn version_status_and_lists_are_told_and_a_restart_is_survived_by_1_6() {
    is_told_and_survived(Version::Debian).await;
}

#[tokio::test]
async fn version_status_and_lists_are_told_and_a_restart_is_survived_by_2() {
    is_told_and_survived(Version::Two).await;
}

async fn is_told_and_survived(which: Version) {
    let dir = tempfile::tempdir().unwrap();
    let containerd = Private::start(which, dir.path(), PAUSE).unwrap();
    let (runtime, pump) = CriRuntime::new(&containerd.socket());
    let mut tasks = tokio::task::JoinSet::new();
    let mut hints = runtime.events();
    tasks.spawn(pump.run());

    let version = runtime.version().await.unwrap();
    an_empty_runtime(&runtime, &version).await;

    drop(containerd);
    assert_eq!(runtime.version().await.unwrap_err().kind, ErrorKind::Unavailable);
    let relist = tokio::time::timeout(Duration::from_secs(10), hints.next()).await;
    assert_eq!(relist.expect("a broken stream asks for a relist"), PodHint::Relist);
    let _again = Private::start(which, dir.path(), PAUSE).unwrap();
    assert_eq!(runtime.version().await.unwrap(), version);
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
    // 1.6 has no such call, and no handlers to tell.
    let old = version.version.starts_with("1.6");
    assert!(old || version.version.starts_with("v2."), "{version:?}");
    let driver = runtime.cgroup_driver().await.unwrap();
    assert_eq!(driver, (!old).then_some(CgroupDriver::Cgroupfs));
    assert_eq!(status.handlers.iter().any(|name| name == "runc"), !old, "{status:?}");
}
