//! A pod's volumes on the node's disk, and what of them each container gets.
//!
//! * `setup` makes them all, `refresh` brings configMap, secret, projected and downwardAPI up to date; both may be repeated;
//! * the bytes come from the store (`objects`), the downward API (`env`) and tokens that the caller fetched;
//! * `cleanup` unmounts first and deletes after, never through a mount.
//!
//! Blocking: callers run it outside the async workers.

pub mod atomic;
pub mod mounts;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use atomic::{File, Payload};

use super::api::{
    ConfigMapVolume, Container, DownwardVolume, HostPath, KeyToPath, Pod, ProjectedVolume, TokenProjection, Volume,
};
use super::env::{self, EnvError, Facts};
use super::expand::expand;
use super::files::PodDir;
use super::objects::{self, Kind, ObjectError, Objects};

/// defaultMode where the API server gave none.
const DEFAULT_MODE: u32 = 0o644;

/// Tokens by (volume, path), as the caller got them.
pub type Tokens = BTreeMap<(String, String), String>;

/// Why a volume cannot be made; the text goes into FailedMount.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// Its ConfigMap or Secret.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// A downward API field.
    #[error(transparent)]
    Downward(#[from] EnvError),
    /// A key that `items` names.
    #[error("references non-existent config key: {0}")]
    Key(String),
    /// hostPath's type.
    #[error("hostPath type check failed: {0}")]
    HostPath(String),
    /// Not on this node yet.
    #[error("volume kind is not supported by this node")]
    Unsupported,
    /// No token.
    #[error("failed to fetch token: {0}")]
    Token(String),
    /// The disk or the kernel.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Who may read a volume: fsGroup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Owner {
    /// The group.
    pub group: Option<u32>,
}

impl Owner {
    fn of(pod: &Pod) -> Self {
        let group = pod.spec.security_context.fs_group.and_then(|g| u32::try_from(g).ok());
        Self { group }
    }

    /// A projected file's mode: with a group, the group may read it too.
    pub fn mode(self, mode: u32) -> u32 {
        if self.group.is_some() { mode | 0o440 } else { mode }
    }

    /// Gives a tree to the group. `write`: with the right to write.
    fn apply(self, path: &Path, write: bool) -> io::Result<()> {
        let Some(group) = self.group else { return Ok(()) };
        let meta = fs::symlink_metadata(path)?;
        std::os::unix::fs::lchown(path, None, Some(group))?;
        if meta.is_symlink() {
            return Ok(());
        }
        let bits = if write { 0o660 } else { 0o440 };
        let extra = if meta.is_dir() { 0o2110 } else { 0 };
        let mode = meta.permissions().mode() & 0o7777 | bits | extra;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        if meta.is_dir() {
            for entry in fs::read_dir(path)? {
                self.apply(&entry?.path(), write)?;
            }
        }
        Ok(())
    }
}

/// What volumes are made from.
#[derive(Debug)]
pub struct Source<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Its folders.
    pub dir: &'a PodDir,
    /// ConfigMaps and Secrets.
    pub objects: &'a dyn Objects,
    /// The downward API.
    pub facts: &'a Facts,
    /// Service account tokens.
    pub tokens: &'a Tokens,
}

impl Source<'_> {
    /// Makes all volumes; the error names the volume.
    ///
    /// # Errors
    /// The first volume that cannot be made.
    pub fn setup(&self) -> Result<(), (String, VolumeError)> {
        for volume in &self.pod.spec.volumes {
            self.one(volume).map_err(|error| (volume.name.clone(), error))?;
        }
        Ok(())
    }

    /// Whether nothing that a volume needs is missing here. Tokens count as had: they are asked for while other things are made.
    pub fn is_whole(&self) -> bool {
        self.pod.spec.volumes.iter().all(|volume| {
            if let Some(v) = &volume.host_path {
                return v.r#type.as_deref().unwrap_or_default().is_empty();
            }
            volume.empty_dir.is_some() || matches!(self.content(volume), Ok(_) | Err(VolumeError::Token(_)))
        })
    }

    /// Brings the volumes with API content up to date. One that cannot be keeps what it has.
    pub fn refresh(&self) -> Vec<(String, VolumeError)> {
        let dynamic = |v: &&Volume| {
            v.config_map.is_some() || v.secret.is_some() || v.projected.is_some() || v.downward_api.is_some()
        };
        let all = self.pod.spec.volumes.iter().filter(dynamic);
        all.filter_map(|v| self.one(v).err().map(|error| (v.name.clone(), error)))
            .collect()
    }

    fn one(&self, volume: &Volume) -> Result<(), VolumeError> {
        let owner = Owner::of(self.pod);
        if let Some(v) = &volume.empty_dir {
            return Ok(self.empty_dir(&volume.name, v, owner)?);
        }
        if let Some(v) = &volume.host_path {
            return check_host_path(v);
        }
        let (plugin, tmpfs, payload) = self.content(volume)?;
        let target = self.dir.volume(plugin, &volume.name);
        fs::create_dir_all(&target)?;
        if tmpfs {
            mounts::ensure_tmpfs(&target, None)?;
        }
        fs::set_permissions(
            &target,
            fs::Permissions::from_mode(if owner.group.is_some() { 0o2777 } else { 0o777 }),
        )?;
        atomic::write(&target, &payload, owner)?;
        Ok(())
    }

    /// What the files of a volume with API content hold: its plugin's name, whether it is kept in memory, the files.
    fn content(&self, volume: &Volume) -> Result<(&'static str, bool, Payload), VolumeError> {
        Ok(if let Some(v) = &volume.config_map {
            let mode = v.default_mode.unwrap_or(DEFAULT_MODE);
            (
                "configmap",
                false,
                self.keys(Kind::ConfigMap, (&v.name, v.optional), &v.items, mode)?,
            )
        } else if let Some(v) = &volume.secret {
            let mode = v.default_mode.unwrap_or(DEFAULT_MODE);
            (
                "secret",
                true,
                self.keys(Kind::Secret, (&v.secret_name, v.optional), &v.items, mode)?,
            )
        } else if let Some(v) = &volume.projected {
            ("projected", true, self.projected(&volume.name, v)?)
        } else if let Some(v) = &volume.downward_api {
            let mode = v.default_mode.unwrap_or(DEFAULT_MODE);
            ("downward-api", true, self.downward(v, mode)?)
        } else {
            return Err(VolumeError::Unsupported);
        })
    }

    fn empty_dir(&self, name: &str, v: &super::api::EmptyDir, owner: Owner) -> io::Result<()> {
        let target = self.dir.volume("empty-dir", name);
        let fresh = !target.exists();
        if v.medium == "Memory" {
            let limit = v
                .size_limit
                .as_deref()
                .and_then(|t| t.parse::<super::quantity::Quantity>().ok());
            mounts::ensure_tmpfs(&target, limit.map(super::quantity::Quantity::value).filter(|n| *n > 0))?;
        } else {
            fs::create_dir_all(&target)?;
        }
        fs::set_permissions(&target, fs::Permissions::from_mode(0o777))?;
        let everything = self.pod.spec.security_context.fs_group_change_policy.as_deref() != Some("OnRootMismatch");
        if fresh || everything {
            owner.apply(&target, true)?;
        }
        Ok(())
    }

    fn keys(
        &self,
        kind: Kind,
        (name, optional): (&str, bool),
        items: &[KeyToPath],
        mode: u32,
    ) -> Result<Payload, VolumeError> {
        let data = match objects::data(self.objects, kind, &self.pod.metadata.namespace, name) {
            Ok(data) => data,
            Err(ObjectError::NotFound { .. }) if optional => return Ok(Payload::new()),
            Err(error) => return Err(error.into()),
        };
        if items.is_empty() {
            return Ok(data
                .into_iter()
                .map(|(key, bytes)| (key, File { bytes, mode }))
                .collect());
        }
        let mut payload = Payload::new();
        for item in items {
            match data.get(&item.key) {
                Some(bytes) => {
                    let file = File {
                        bytes: bytes.clone(),
                        mode: item.mode.unwrap_or(mode),
                    };
                    payload.insert(item.path.clone(), file);
                }
                None if optional => {}
                None => return Err(VolumeError::Key(item.key.clone())),
            }
        }
        Ok(payload)
    }

    fn downward(&self, v: &DownwardVolume, mode: u32) -> Result<Payload, VolumeError> {
        let mut payload = Payload::new();
        for item in &v.items {
            let text = if let Some(reference) = &item.field_ref {
                env::field(self.pod, self.facts, &reference.field_path)?
            } else if let Some(reference) = &item.resource_field_ref {
                env::resource(self.pod, None, self.facts, reference)?
            } else {
                continue;
            };
            let file = File {
                bytes: text.into_bytes(),
                mode: item.mode.unwrap_or(mode),
            };
            payload.insert(item.path.clone(), file);
        }
        Ok(payload)
    }

    fn projected(&self, volume: &str, v: &ProjectedVolume) -> Result<Payload, VolumeError> {
        let mode = v.default_mode.unwrap_or(DEFAULT_MODE);
        let mut payload = Payload::new();
        for source in &v.sources {
            if let Some(ConfigMapVolume {
                name, optional, items, ..
            }) = &source.config_map
            {
                payload.extend(self.keys(Kind::ConfigMap, (name, *optional), items, mode)?);
            }
            if let Some(secret) = &source.secret {
                payload.extend(self.keys(Kind::Secret, (&secret.name, secret.optional), &secret.items, mode)?);
            }
            if let Some(downward) = &source.downward_api {
                payload.extend(self.downward(downward, mode)?);
            }
            if let Some(token) = &source.service_account_token {
                payload.insert(token.path.clone(), self.token(volume, token, mode)?);
            }
        }
        Ok(payload)
    }

    fn token(&self, volume: &str, wanted: &TokenProjection, mode: u32) -> Result<File, VolumeError> {
        let token = self
            .tokens
            .get(&(volume.to_owned(), wanted.path.clone()))
            .ok_or_else(|| VolumeError::Token("none was issued yet and the hub is out of reach".to_owned()))?;
        // With a group the token is for that group alone, as in kubelet.
        let mode = if Owner::of(self.pod).group.is_some() {
            0o600
        } else {
            mode
        };
        Ok(File {
            bytes: token.clone().into_bytes(),
            mode,
        })
    }
}

fn check_host_path(v: &HostPath) -> Result<(), VolumeError> {
    let path = Path::new(&v.path);
    let wrong = |what: &str| Err(VolumeError::HostPath(format!("{} is not {what}", v.path)));
    let kind = v.r#type.as_deref().unwrap_or_default();
    match kind {
        "DirectoryOrCreate" if !path.exists() => {
            fs::create_dir_all(path)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        }
        "FileOrCreate" if !path.exists() => {
            fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o644))?;
        }
        _ => {}
    }
    let meta = fs::metadata(path);
    let is = |test: fn(&fs::Metadata) -> bool| meta.as_ref().is_ok_and(test);
    match kind {
        "DirectoryOrCreate" | "Directory" if !is(fs::Metadata::is_dir) => wrong("a directory"),
        "FileOrCreate" | "File" if !is(fs::Metadata::is_file) => wrong("a file"),
        "Socket" if !is(|m| m.file_type().is_socket()) => wrong("a socket"),
        "CharDevice" if !is(|m| m.file_type().is_char_device()) => wrong("a character device"),
        "BlockDevice" if !is(|m| m.file_type().is_block_device()) => wrong("a block device"),
        _ => Ok(()),
    }
}

/// Where a volume is on the node; for hostPath the path itself.
fn path_of(dir: &PodDir, volume: &Volume) -> Option<PathBuf> {
    if let Some(v) = &volume.host_path {
        return Some(PathBuf::from(&v.path));
    }
    let plugin = if volume.empty_dir.is_some() {
        "empty-dir"
    } else if volume.config_map.is_some() {
        "configmap"
    } else if volume.secret.is_some() {
        "secret"
    } else if volume.projected.is_some() {
        "projected"
    } else if volume.downward_api.is_some() {
        "downward-api"
    } else {
        return None;
    };
    Some(dir.volume(plugin, &volume.name))
}

/// A container's mounts and devices, with subPaths bound.
///
/// # Errors
/// A volume that the pod does not have, or a subPath that cannot be used.
pub fn container_mounts(
    pod: &Pod,
    container: &Container,
    dir: &PodDir,
    env: &[(String, String)],
) -> io::Result<(Vec<cri::Mount>, Vec<cri::Device>)> {
    let mut found = (Vec::new(), Vec::new());
    for (index, mount) in container.volume_mounts.iter().enumerate() {
        let volume = pod.spec.volumes.iter().find(|v| v.name == mount.name);
        let mut source = volume.and_then(|v| path_of(dir, v)).ok_or_else(|| {
            io::Error::other(format!(
                "cannot find volume \"{}\" to mount into container \"{}\"",
                mount.name, container.name
            ))
        })?;
        if let Some(device) = device(
            volume.and_then(|v| v.host_path.as_ref()),
            &mount.mount_path,
            mount.read_only,
        ) {
            found.1.push(device);
            continue;
        }
        let lookup = |name: &str| env.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        let sub = if mount.sub_path_expr.is_empty() {
            mount.sub_path.clone()
        } else {
            expand(&mount.sub_path_expr, lookup)
        };
        if !sub.is_empty() {
            let target = dir
                .root
                .join("volume-subpaths")
                .join(&mount.name)
                .join(&container.name)
                .join(index.to_string());
            mounts::bind_subpath(&source, &sub, &target)?;
            source = target;
        } else if volume.is_some_and(|v| v.host_path.is_some()) && !source.exists() {
            // As kubelet does for a hostPath without a type.
            fs::create_dir_all(&source)?;
        }
        found.0.push(cri::Mount {
            container_path: absolute(&mount.mount_path),
            host_path: source.display().to_string(),
            readonly: mount.read_only,
            recursive_read_only: mount.recursive_read_only.as_deref() == Some("Enabled"),
            selinux_relabel: false,
            propagation: match mount.mount_propagation.as_deref() {
                Some("HostToContainer") => cri::MountPropagation::HostToContainer,
                Some("Bidirectional") => cri::MountPropagation::Bidirectional,
                _ => cri::MountPropagation::Private,
            },
        });
    }
    Ok(found)
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    }
}

/// A hostPath that is declared to be a device gives the device, with its cgroup rights: a bind mount alone could not be opened.
fn device(volume: Option<&HostPath>, path: &str, read_only: bool) -> Option<cri::Device> {
    let volume = volume.filter(|v| matches!(v.r#type.as_deref(), Some("CharDevice" | "BlockDevice")))?;
    Some(cri::Device {
        container_path: absolute(path),
        host_path: volume.path.clone(),
        permissions: if read_only { "r" } else { "rw" }.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::objects::MapObjects;
    use super::*;
    use serde_json::json;

    fn setup(volumes: serde_json::Value, objects: &MapObjects, root: &Path) -> (Pod, PodDir) {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"a": "b"}},
            "spec": {"volumes": volumes, "containers": [{"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/v", "subPath": "x"}]}]}}))
        .expect("pod");
        let dir = PodDir::new(root, &root.join("logs"), &pod);
        objects.put("ConfigMap", "n", "cm", &json!({"data": {"a": "1", "b": "2"}}));
        (pod, dir)
    }

    #[test]
    fn a_config_map_volume_follows_its_object() {
        let root = tempfile::tempdir().expect("dir");
        let objects = MapObjects::default();
        let volume = json!([{"name": "v", "configMap": {"name": "cm", "items": [{"key": "a", "path": "d/x", "mode": 256}]}},
            {"name": "w", "configMap": {"name": "none", "optional": true}}, {"name": "e", "emptyDir": {}}]);
        let (pod, dir) = setup(volume, &objects, root.path());
        let (facts, tokens) = (Facts::default(), Tokens::new());
        let source = Source {
            pod: &pod,
            dir: &dir,
            objects: &objects,
            facts: &facts,
            tokens: &tokens,
        };
        source.setup().expect("setup");
        let file = dir.volume("configmap", "v").join("d/x");
        assert_eq!(fs::read_to_string(&file).expect("read"), "1");
        assert_eq!(fs::metadata(&file).expect("meta").permissions().mode() & 0o777, 0o400);
        objects.put("ConfigMap", "n", "cm", &json!({"data": {"a": "3"}}));
        assert!(source.refresh().is_empty());
        assert_eq!(fs::read_to_string(&file).expect("read"), "3");
        objects.remove("ConfigMap", "n", "cm");
        let errors = source.refresh();
        assert_eq!(errors[0].1.to_string(), "configmap \"cm\" not found");
        assert_eq!(fs::read_to_string(&file).expect("read"), "3", "what it has is kept");
    }

    #[test]
    fn host_paths_are_checked_by_type() {
        let root = tempfile::tempdir().expect("dir");
        let path = |name: &str| root.path().join(name).display().to_string();
        let check = |p: &str, t: &str| {
            check_host_path(&HostPath {
                path: p.into(),
                r#type: Some(t.into()),
            })
        };
        assert!(check(&path("d"), "Directory").is_err());
        assert!(check(&path("d"), "DirectoryOrCreate").is_ok());
        assert!(check(&path("d"), "Directory").is_ok());
        assert!(check(&path("d"), "File").is_err());
        assert!(check(&path("f"), "FileOrCreate").is_ok());
        assert!(check("/dev/null", "CharDevice").is_ok());
        assert!(check(&path("f"), "Socket").is_err());
        assert!(check(&path("none"), "").is_ok());
    }
}
