//! Mounts on the node: tmpfs for secrets and memory volumes, subPath binds, and their removal.
//!
//! A subPath is walked with openat2(RESOLVE_BENEATH), because a container may put symbolic links into its volume: the walk cannot leave the
//! volume, and the bind mount is made from the file descriptor that it found, so nothing can be swapped in between.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, mkdirat};

/// Mounts a tmpfs on a folder, unless one is there.
///
/// # Errors
/// When the kernel refuses.
pub fn ensure_tmpfs(dir: &Path, size: Option<i64>) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    if is_mount(dir)? {
        return Ok(());
    }
    let options = size.map(|bytes| format!("size={bytes}"));
    mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), options.as_deref()).map_err(io::Error::from)
}

fn is_mount(dir: &Path) -> io::Result<bool> {
    let parent = dir.parent().unwrap_or(dir);
    Ok(fs::metadata(dir)?.dev() != fs::metadata(parent)?.dev())
}

/// Binds `sub` of `volume` onto `target` and returns nothing else than success: `target` is then what the container gets.
///
/// # Errors
/// When the path leaves the volume or the kernel refuses.
pub fn bind_subpath(volume: &Path, sub: &str, target: &Path) -> io::Result<()> {
    let parts: Vec<_> = Path::new(sub).components().collect();
    if !parts
        .iter()
        .all(|c| matches!(c, Component::Normal(_) | Component::CurDir))
    {
        return Err(io::Error::other(format!(
            "subPath {sub:?} must be relative and must not contain '..'"
        )));
    }
    let root = File::open(volume)?;
    let found = if root.metadata()?.is_dir() {
        walk(&root, Path::new(sub))?
    } else {
        OwnedFd::from(root)
    };
    let is_dir = File::from(found.try_clone()?).metadata()?.is_dir();
    unmount(target);
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    if is_dir {
        fs::create_dir_all(target)?;
    } else {
        File::create(target)?;
    }
    let source = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
    mount(
        Some(&source),
        target,
        None::<&str>,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None::<&str>,
    )
    .map_err(io::Error::from)
}

fn beneath(flags: OFlag) -> OpenHow {
    OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS)
}

/// Opens a path inside the volume, making the folders that are not there.
fn walk(root: &File, sub: &Path) -> io::Result<OwnedFd> {
    let mut so_far = PathBuf::new();
    let permissions = root.metadata()?.permissions();
    for part in sub.components() {
        let parent = if so_far.as_os_str().is_empty() {
            PathBuf::from(".")
        } else {
            so_far.clone()
        };
        so_far.push(part);
        match openat2(root, &so_far, beneath(OFlag::O_PATH)) {
            Ok(_) => {}
            Err(Errno::ENOENT) => {
                let folder = openat2(root, &parent, beneath(OFlag::O_PATH | OFlag::O_DIRECTORY))?;
                mkdirat(&folder, Path::new(part.as_os_str()), Mode::from_bits_truncate(0o750))?;
                // As kubelet: who may write into the volume may write into its folders.
                let made = openat2(root, &so_far, beneath(OFlag::O_RDONLY | OFlag::O_DIRECTORY))?;
                File::from(made).set_permissions(permissions.clone())?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    if so_far.as_os_str().is_empty() {
        so_far.push(".");
    }
    Ok(openat2(root, &so_far, beneath(OFlag::O_PATH))?)
}

fn unmount(target: &Path) {
    // EINVAL: not a mount. Anything else shows again when the folder is removed.
    let _ = umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
}

/// All mount points below a folder, deepest first.
///
/// # Errors
/// When /proc cannot be read.
pub fn below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let mut found: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|path| PathBuf::from(unescape(path)))
        .filter(|path| path.starts_with(dir))
        .collect();
    found.sort_by_key(|p| std::cmp::Reverse(p.components().count()));
    Ok(found)
}

/// mountinfo writes spaces and the like as `\040`.
fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let code = bytes
            .get(at + 1..at + 4)
            .and_then(|d| std::str::from_utf8(d).ok())
            .and_then(|d| u8::from_str_radix(d, 8).ok());
        match (bytes[at], code) {
            (b'\\', Some(byte)) => {
                out.push(byte);
                at += 4;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Unmounts everything below a folder.
///
/// # Errors
/// When a mount stays: then nothing below may be deleted, since it might be somebody's data.
pub fn unmount_below(dir: &Path) -> io::Result<()> {
    for _ in 0..8 {
        let mounts = below(dir)?;
        if mounts.is_empty() {
            return Ok(());
        }
        for target in mounts {
            unmount(&target);
        }
    }
    match below(dir)?.first() {
        None => Ok(()),
        Some(stuck) => Err(io::Error::other(format!("{} stays mounted", stuck.display()))),
    }
}

/// Removes a pod's folder with everything in it, after its mounts.
///
/// # Errors
/// When something stays.
pub fn remove_all(dir: &Path) -> io::Result<()> {
    unmount_below(dir)?;
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_out_of_the_volume_is_not_followed() {
        let dir = tempfile::tempdir().expect("dir");
        std::os::unix::fs::symlink("/etc", dir.path().join("out")).expect("link");
        std::os::unix::fs::symlink("../..", dir.path().join("up")).expect("link");
        std::os::unix::fs::symlink("a", dir.path().join("in")).expect("link");
        let root = File::open(dir.path()).expect("open");
        assert!(walk(&root, Path::new("a/b")).is_ok());
        assert!(dir.path().join("a/b").is_dir());
        assert!(walk(&root, Path::new("in/b")).is_ok());
        for bad in ["out/passwd", "up/x", "out"] {
            assert!(walk(&root, Path::new(bad)).is_err(), "{bad}");
        }
        assert!(bind_subpath(dir.path(), "../x", &dir.path().join("t")).is_err());
    }

    #[test]
    fn mountinfo_escapes_are_read() {
        assert_eq!(unescape(r"/a\040b\134c"), "/a b\\c");
        assert_eq!(unescape(r"/a\04"), "/a\\04");
    }
}
