//! Raw CRI: the same pods on the same containerd without us. What we need on top of it is ours to answer for.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use cri::{
    ContainerConfig, ContainerMetadata, CriRuntime, ImageSpec, Runtime as _, SandboxConfig, SandboxMetadata, StringMap,
};

/// Where raw pods' logs go, and the cgroup that they lie under.
#[derive(Debug)]
pub(crate) struct Raw {
    runtime: Arc<CriRuntime>,
    logs: std::path::PathBuf,
    cgroup: String,
}

impl Raw {
    /// Over the containerd at `socket`. edgecore leaves these pods alone: they do not have its label.
    pub(crate) fn new(socket: &Path, dir: &Path, cgroup: &str) -> Self {
        let (runtime, _pump) = CriRuntime::new(socket);
        Self {
            runtime: Arc::new(runtime),
            logs: dir.join("raw"),
            cgroup: format!("/{cgroup}/raw"),
        }
    }

    /// RunPodSandbox, CreateContainer and StartContainer of `count` pods, all at once: each from the first call.
    ///
    /// # Errors
    /// When the runtime refuses one.
    pub(crate) async fn start(&self, count: usize) -> Result<Vec<Duration>> {
        let start = Instant::now();
        let pods = (0..count).map(|n| async move {
            let sandbox = self.pod(&format!("raw-{n}")).await?;
            Ok::<_, anyhow::Error>((sandbox, start.elapsed()))
        });
        let started = futures::future::join_all(pods).await;
        let mut took = Vec::new();
        for pod in started {
            let (sandbox, time) = pod?;
            took.push(time);
            self.runtime.stop_sandbox(&sandbox).await?;
            self.runtime.remove_sandbox(&sandbox).await?;
        }
        Ok(took)
    }

    async fn pod(&self, name: &str) -> Result<String> {
        let logs = self.logs.join(name);
        fs::create_dir_all(&logs).with_context(|| format!("make {}", logs.display()))?;
        let uid = format!("{name}-{}", std::process::id());
        let sandbox = SandboxConfig {
            metadata: SandboxMetadata {
                name: name.to_owned(),
                namespace: "raw".to_owned(),
                uid: uid.clone(),
                attempt: 0,
            },
            hostname: name.to_owned(),
            log_directory: logs.display().to_string(),
            labels: StringMap::from([("app".to_owned(), "raw".to_owned())]),
            cgroup_parent: format!("{}/{uid}", self.cgroup),
            ..SandboxConfig::default()
        };
        let container = ContainerConfig {
            metadata: ContainerMetadata {
                name: "main".to_owned(),
                attempt: 0,
            },
            image: ImageSpec {
                image: "kedge.dev/demo:1".to_owned(),
                ..ImageSpec::default()
            },
            log_path: "main.log".to_owned(),
            ..ContainerConfig::default()
        };
        let id = self.runtime.run_sandbox(&sandbox, "").await?;
        let container = self.runtime.create_container(&id, &container, &sandbox).await?;
        self.runtime.start_container(&container).await?;
        Ok(id)
    }
}
