//! Files that change together: kubelet's atomic writer.
//!
//! ```text
//! volume/..2026_11_25_06_04_05.1234/   the files
//! volume/..data  -> ..2026_…           swapped by rename
//! volume/key     -> ..data/key         what a container reads
//! ```
//! A reader of `key` sees the old content or the new, and two keys of one folder never mix for who opens `..data` once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path};

use super::Owner;

/// One file.
#[derive(Clone, PartialEq, Eq)]
pub struct File {
    /// Its content. May be secret: never printed.
    pub bytes: Vec<u8>,
    /// Its mode.
    pub mode: u32,
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "File({} bytes, {:o})", self.bytes.len(), self.mode)
    }
}

/// Files by relative path.
pub type Payload = BTreeMap<String, File>;

/// Whether a path stays inside: relative, no `..`, and not one of the writer's own names.
pub fn is_safe(path: &str) -> bool {
    let mut parts = Path::new(path).components();
    !path.is_empty()
        && !path.starts_with("..")
        && path.len() < 4096
        && parts.all(|c| matches!(c, Component::Normal(name) if name.len() < 256))
}

/// Makes `dir` hold exactly `payload`. Returns whether anything changed.
///
/// # Errors
/// When the disk refuses, or a path is not safe.
pub fn write(dir: &Path, payload: &Payload, owner: Owner) -> io::Result<bool> {
    if let Some(bad) = payload.keys().find(|p| !is_safe(p)) {
        return Err(io::Error::other(format!(
            "invalid path {bad:?}: it must be relative and must not contain '..'"
        )));
    }
    let data = dir.join("..data");
    let before = fs::read_link(&data).ok();
    if before.is_some() && is_current(&data, payload, owner)? {
        return Ok(false);
    }
    let name = stamp();
    let fresh = dir.join(&name);
    fs::create_dir(&fresh)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755))?;
    for (path, file) in payload {
        let target = fresh.join(path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&target, &file.bytes)?;
        fs::set_permissions(&target, fs::Permissions::from_mode(owner.mode(file.mode)))?;
    }
    owner.apply(&fresh, false)?;
    let swap = dir.join("..data_tmp");
    let _ = fs::remove_file(&swap);
    symlink(&name, &swap)?;
    fs::rename(&swap, &data)?;
    link_names(dir, payload)?;
    if let Some(old) = before {
        fs::remove_dir_all(dir.join(old)).or_else(|e| {
            if e.kind() == io::ErrorKind::NotFound {
                Ok(())
            } else {
                Err(e)
            }
        })?;
    }
    Ok(true)
}

fn stamp() -> String {
    let at = time::OffsetDateTime::now_utc();
    format!(
        "..{:04}_{:02}_{:02}_{:02}_{:02}_{:02}.{:010}",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second(),
        rand::random::<u32>()
    )
}

/// The names that containers see: one link for each first part of a path; those of files that are gone are removed.
fn link_names(dir: &Path, payload: &Payload) -> io::Result<()> {
    let wanted: BTreeSet<&str> = payload.keys().filter_map(|p| p.split('/').next()).collect();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !wanted.contains(name.as_ref()) {
            fs::remove_file(entry.path())?;
        }
    }
    for name in wanted {
        let link = dir.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(format!("..data/{name}"), &link)?;
        }
    }
    Ok(())
}

fn is_current(data: &Path, payload: &Payload, owner: Owner) -> io::Result<bool> {
    let mut count = 0;
    let mut folders = vec![data.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
                continue;
            }
            count += 1;
            let path = entry.path();
            let relative = path.strip_prefix(data).unwrap_or(&path).to_string_lossy().into_owned();
            let Some(file) = payload.get(&relative) else {
                return Ok(false);
            };
            let mode = entry.metadata()?.permissions().mode() & 0o7777;
            if mode != owner.mode(file.mode) || fs::read(&path)? != file.bytes {
                return Ok(false);
            }
        }
    }
    Ok(count == payload.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        files
            .iter()
            .map(|(path, text)| {
                (
                    (*path).to_owned(),
                    File {
                        bytes: text.as_bytes().to_vec(),
                        mode: 0o644,
                    },
                )
            })
            .collect()
    }

    #[test]
    fn replaces_all_files_at_once_and_drops_what_is_gone() {
        let dir = tempfile::tempdir().expect("dir");
        let read = |p: &str| fs::read_to_string(dir.path().join(p)).ok();
        assert!(write(dir.path(), &payload(&[("a", "1"), ("d/e", "2")]), Owner::default()).expect("write"));
        assert_eq!((read("a"), read("d/e")), (Some("1".into()), Some("2".into())));
        assert!(!write(dir.path(), &payload(&[("a", "1"), ("d/e", "2")]), Owner::default()).expect("same"));
        assert!(write(dir.path(), &payload(&[("a", "3")]), Owner::default()).expect("change"));
        assert_eq!((read("a"), read("d/e")), (Some("3".into()), None));
        let left = fs::read_dir(dir.path()).expect("dir").count();
        assert_eq!(left, 3, "a, ..data and one dated folder");
    }

    #[test]
    fn refuses_paths_that_leave_the_volume() {
        let dir = tempfile::tempdir().expect("dir");
        for bad in ["../x", "/etc/x", "a/../../x", "..data", ""] {
            assert!(
                write(dir.path(), &payload(&[(bad, "")]), Owner::default()).is_err(),
                "{bad}"
            );
        }
    }
}
