//! The calls of [`Runtime`] that the fake answers.

use std::collections::VecDeque;
use std::time::Duration;

use async_trait::async_trait;

use super::{FakeContainer, FakeRuntime, FakeSandbox, matches, missing, reason_of};
use crate::container::{
    Container, ContainerConfig, ContainerFilter, ContainerState, ContainerStatus, ExecOutput, Resources, Streams,
};
use crate::error::{Error, ErrorKind, Result};
use crate::events::{Hints, PodHint};
use crate::image::{Auth, FilesystemUsage, Image, ImageSpec};
use crate::runtime::Runtime;
use crate::sandbox::{Sandbox, SandboxConfig, SandboxFilter, SandboxState, SandboxStatus};
use crate::stats::{CgroupDriver, ContainerStats, RuntimeStatus, RuntimeVersion};

#[async_trait]
impl Runtime for FakeRuntime {
    async fn version(&self) -> Result<RuntimeVersion> {
        self.lock().enter("Version", "")?;
        Ok(RuntimeVersion {
            name: "containerd".into(),
            version: "v2.1.9".into(),
            api_version: "v1".into(),
        })
    }

    async fn status(&self) -> Result<RuntimeStatus> {
        self.lock().enter("Status", "")?;
        Ok(RuntimeStatus {
            runtime_ready: true,
            network_ready: true,
            ..RuntimeStatus::default()
        })
    }

    async fn cgroup_driver(&self) -> Result<Option<CgroupDriver>> {
        self.lock().enter("RuntimeConfig", "")?;
        Ok(None)
    }

    fn events(&self) -> Hints {
        self.hints.subscribe()
    }

    async fn run_sandbox(&self, config: &SandboxConfig, handler: &str) -> Result<String> {
        let mut state = self.lock();
        state.enter("RunPodSandbox", &config.metadata.name)?;
        if state.sandboxes.values().any(|s| s.config.metadata == config.metadata) {
            let text = format!(
                "name \"{}_{}\" is reserved",
                config.metadata.name, config.metadata.attempt
            );
            return Err(Error::new(
                "RunPodSandbox",
                &config.metadata.name,
                ErrorKind::AlreadyExists,
                text,
            ));
        }
        let id = state.id("sandbox");
        let host = config.namespaces.network == crate::NamespaceMode::Node;
        let ips = if host {
            Vec::new()
        } else {
            vec![format!("10.244.0.{}", state.next + 1)]
        };
        let status = SandboxStatus {
            id: id.clone(),
            metadata: config.metadata.clone(),
            state: SandboxState::Ready,
            created_at: state.now,
            ips,
            namespaces: config.namespaces.clone(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            runtime_handler: handler.to_owned(),
        };
        state.sandboxes.insert(
            id.clone(),
            FakeSandbox {
                config: config.clone(),
                status,
            },
        );
        Ok(id)
    }

    async fn stop_sandbox(&self, id: &str) -> Result<()> {
        self.lock().enter("StopPodSandbox", id)?;
        self.kill_sandbox(id);
        Ok(())
    }

    async fn remove_sandbox(&self, id: &str) -> Result<()> {
        let mut state = self.lock();
        state.enter("RemovePodSandbox", id)?;
        state.sandboxes.remove(id);
        state.containers.retain(|_, c| c.sandbox_id != id);
        Ok(())
    }

    async fn sandbox_status(&self, id: &str) -> Result<SandboxStatus> {
        let mut state = self.lock();
        state.enter("PodSandboxStatus", id)?;
        state
            .sandboxes
            .get(id)
            .map(|s| s.status.clone())
            .ok_or_else(|| missing("PodSandboxStatus", id))
    }

    async fn list_sandboxes(&self, filter: &SandboxFilter) -> Result<Vec<Sandbox>> {
        let mut state = self.lock();
        state.enter("ListPodSandbox", "")?;
        let wanted = |s: &&FakeSandbox| {
            filter.id.as_ref().is_none_or(|id| *id == s.status.id)
                && filter.state.is_none_or(|state| state == s.status.state)
                && matches(&s.status.labels, &filter.labels)
        };
        let row = |s: &FakeSandbox| Sandbox {
            id: s.status.id.clone(),
            metadata: s.status.metadata.clone(),
            state: s.status.state,
            created_at: s.status.created_at,
            labels: s.status.labels.clone(),
            annotations: s.status.annotations.clone(),
            runtime_handler: s.status.runtime_handler.clone(),
        };
        Ok(state.sandboxes.values().filter(wanted).map(row).collect())
    }

    async fn create_container(
        &self,
        sandbox_id: &str,
        config: &ContainerConfig,
        _sandbox: &SandboxConfig,
    ) -> Result<String> {
        let mut state = self.lock();
        state.enter("CreateContainer", &config.metadata.name)?;
        let ready = state
            .sandboxes
            .get(sandbox_id)
            .is_some_and(|s| s.status.state == SandboxState::Ready);
        if !ready {
            return Err(missing("CreateContainer", sandbox_id));
        }
        let image_ref = match find_image(&state.images, &config.image.image) {
            Some(image) => image.id.clone(),
            None => return Err(missing("CreateContainer", &config.image.image)),
        };
        if state
            .containers
            .values()
            .any(|c| c.sandbox_id == sandbox_id && c.config.metadata == config.metadata)
        {
            let text = format!(
                "name \"{}_{}\" is reserved",
                config.metadata.name, config.metadata.attempt
            );
            return Err(Error::new(
                "CreateContainer",
                &config.metadata.name,
                ErrorKind::AlreadyExists,
                text,
            ));
        }
        let id = state.id("container");
        let status = new_status(&id, config, image_ref, state.now);
        let container = FakeContainer {
            sandbox_id: sandbox_id.to_owned(),
            config: config.clone(),
            status,
            stops: Vec::new(),
        };
        state.containers.insert(id.clone(), container);
        Ok(id)
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        let mut state = self.lock();
        state.enter("StartContainer", id)?;
        let now = state.now;
        let container = state
            .containers
            .get_mut(id)
            .ok_or_else(|| missing("StartContainer", id))?;
        if container.status.state != ContainerState::Created {
            return Err(Error::new(
                "StartContainer",
                id,
                ErrorKind::Other,
                "container is not in created state",
            ));
        }
        (container.status.state, container.status.started_at) = (ContainerState::Running, now);
        let name = container.config.metadata.name.clone();
        if let Some(code) = state.exits_at_start.get_mut(&name).and_then(VecDeque::pop_front) {
            state.end(id, code, reason_of(code));
        }
        drop(state);
        self.hints.send(PodHint::Id(id.to_owned()));
        Ok(())
    }

    async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        let mut state = self.lock();
        state.enter("StopContainer", id)?;
        if let Some(container) = state.containers.get_mut(id) {
            container.stops.push(grace);
        }
        let ended = state.end(
            id,
            if grace.is_zero() { 137 } else { 0 },
            if grace.is_zero() { "Error" } else { "Completed" },
        );
        drop(state);
        if ended {
            self.hints.send(PodHint::Id(id.to_owned()));
        }
        Ok(())
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        let mut state = self.lock();
        state.enter("RemoveContainer", id)?;
        state.containers.remove(id);
        Ok(())
    }

    async fn container_status(&self, id: &str) -> Result<ContainerStatus> {
        let mut state = self.lock();
        state.enter("ContainerStatus", id)?;
        state
            .containers
            .get(id)
            .map(|c| c.status.clone())
            .ok_or_else(|| missing("ContainerStatus", id))
    }

    async fn list_containers(&self, filter: &ContainerFilter) -> Result<Vec<Container>> {
        let mut state = self.lock();
        state.enter("ListContainers", "")?;
        let wanted = |c: &&FakeContainer| {
            filter.id.as_ref().is_none_or(|id| *id == c.status.id)
                && filter.state.is_none_or(|state| state == c.status.state)
                && filter.sandbox_id.as_ref().is_none_or(|id| *id == c.sandbox_id)
                && matches(&c.status.labels, &filter.labels)
        };
        let row = |c: &FakeContainer| Container {
            id: c.status.id.clone(),
            sandbox_id: c.sandbox_id.clone(),
            metadata: c.status.metadata.clone(),
            image: c.status.image.clone(),
            image_ref: c.status.image_ref.clone(),
            state: c.status.state,
            created_at: c.status.created_at,
            labels: c.status.labels.clone(),
            annotations: c.status.annotations.clone(),
        };
        Ok(state.containers.values().filter(wanted).map(row).collect())
    }

    async fn update_resources(&self, id: &str, resources: &Resources) -> Result<()> {
        let mut state = self.lock();
        state.enter("UpdateContainerResources", id)?;
        let container = state
            .containers
            .get_mut(id)
            .ok_or_else(|| missing("UpdateContainerResources", id))?;
        container.status.resources = Some(resources.clone());
        Ok(())
    }

    async fn reopen_log(&self, id: &str) -> Result<()> {
        self.lock().enter("ReopenContainerLog", id)
    }

    async fn exec_sync(&self, id: &str, command: &[String], _timeout: Duration) -> Result<ExecOutput> {
        let mut state = self.lock();
        state.enter("ExecSync", id)?;
        let running = state
            .containers
            .get(id)
            .is_some_and(|c| c.status.state == ContainerState::Running);
        if !running {
            return Err(missing("ExecSync", id));
        }
        let name = state.containers[id].config.metadata.name.clone();
        state
            .exec
            .as_ref()
            .map_or_else(|| Ok(ExecOutput::default()), |handler| handler(&name, command))
    }

    async fn exec_url(&self, id: &str, _command: &[String], _streams: Streams) -> Result<String> {
        self.lock().enter("Exec", id)?;
        Ok(self.stream_url(&format!("exec/{id}")))
    }

    async fn attach_url(&self, id: &str, _streams: Streams) -> Result<String> {
        self.lock().enter("Attach", id)?;
        Ok(self.stream_url(&format!("attach/{id}")))
    }

    async fn port_forward_url(&self, sandbox_id: &str, _ports: &[u16]) -> Result<String> {
        self.lock().enter("PortForward", sandbox_id)?;
        Ok(self.stream_url(&format!("portforward/{sandbox_id}")))
    }

    async fn list_container_stats(&self, filter: &ContainerFilter) -> Result<Vec<ContainerStats>> {
        let mut state = self.lock();
        state.enter("ListContainerStats", "")?;
        let now = state.now;
        let running = state
            .containers
            .values()
            .filter(|c| c.status.state == ContainerState::Running);
        let wanted = running.filter(|c| matches(&c.status.labels, &filter.labels));
        let stats = |c: &FakeContainer| ContainerStats {
            id: c.status.id.clone(),
            metadata: c.status.metadata.clone(),
            labels: c.status.labels.clone(),
            cpu_timestamp: now,
            cpu_usage_core_nanos: Some(1_000_000_000),
            memory_timestamp: now,
            memory_working_set: Some(1 << 20),
            ..ContainerStats::default()
        };
        Ok(wanted.map(stats).collect())
    }

    async fn pull_image(
        &self,
        image: &ImageSpec,
        _auth: Option<&Auth>,
        _sandbox: Option<&SandboxConfig>,
    ) -> Result<String> {
        self.lock().enter("PullImage", &image.image)?;
        if !self.lock().registry.contains(&image.image) {
            let text = format!("failed to resolve reference {:?}: not found", image.image);
            return Err(Error::new("PullImage", &image.image, ErrorKind::NotFound, text));
        }
        if find_image(&self.lock().images, &image.image).is_none() {
            self.add_image(&image.image);
        }
        let state = self.lock();
        let here = find_image(&state.images, &image.image).map(|i| i.id.clone());
        here.ok_or_else(|| missing("PullImage", &image.image))
    }

    async fn image_status(&self, image: &str) -> Result<Option<Image>> {
        let mut state = self.lock();
        state.enter("ImageStatus", image)?;
        Ok(find_image(&state.images, image).cloned())
    }

    async fn list_images(&self) -> Result<Vec<Image>> {
        let mut state = self.lock();
        state.enter("ListImages", "")?;
        Ok(state.images.clone())
    }

    async fn remove_image(&self, image: &str) -> Result<()> {
        let mut state = self.lock();
        state.enter("RemoveImage", image)?;
        state
            .images
            .retain(|i| find_image(std::slice::from_ref(i), image).is_none());
        Ok(())
    }

    async fn image_fs_info(&self) -> Result<Vec<FilesystemUsage>> {
        self.lock().enter("ImageFsInfo", "")?;
        Ok(vec![FilesystemUsage {
            mountpoint: "/".to_owned(),
            ..FilesystemUsage::default()
        }])
    }
}

fn find_image<'a>(images: &'a [Image], name: &str) -> Option<&'a Image> {
    images
        .iter()
        .find(|i| i.id == name || i.repo_tags.iter().chain(&i.repo_digests).any(|n| n == name))
}

fn new_status(id: &str, config: &ContainerConfig, image_ref: String, now: i64) -> ContainerStatus {
    ContainerStatus {
        id: id.to_owned(),
        metadata: config.metadata.clone(),
        state: ContainerState::Created,
        created_at: now,
        started_at: 0,
        finished_at: 0,
        exit_code: 0,
        image: config.image.image.clone(),
        image_ref,
        reason: String::new(),
        message: String::new(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        mounts: config.mounts.clone(),
        log_path: config.log_path.clone(),
        resources: None,
    }
}
