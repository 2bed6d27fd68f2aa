//! What a guest is made of: base images, our programs for its architecture, disks of files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use kit::process::run;
use kit::{Site, paths};

/// A guest's architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// x86-64.
    Amd64,
    /// ARM64.
    Arm64,
}

impl Arch {
    /// Debian's name.
    #[must_use]
    pub fn debian(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// Rust's static target.
    fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-musl",
            Self::Arm64 => "aarch64-unknown-linux-musl",
        }
    }

    fn strip(self) -> &'static str {
        match self {
            Self::Amd64 => "strip",
            Self::Arm64 => "aarch64-linux-gnu-strip",
        }
    }
}

/// The folder with base.raw, vmlinuz and initrd; made first where it is not there (minutes, once).
///
/// # Errors
/// When it cannot be made.
pub fn base(arch: Arch) -> Result<PathBuf> {
    let make = paths::repository().join("tests/machines/make");
    let done = Command::new(&make)
        .arg(arch.debian())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("run {}", make.display()))?;
    let printed = String::from_utf8_lossy(&done.stdout);
    let Some(folder) = printed.lines().last().filter(|_| done.status.success()) else {
        bail!("{}: {}", make.display(), done.status);
    };
    Ok(PathBuf::from(folder))
}

/// Puts our static programs `names` into `folder`, without debug information: a guest's disk and memory are small. They are what
/// `tests/run` built beside the programs of this machine.
///
/// # Errors
/// When one was not built.
pub fn place_programs(arch: Arch, names: &[&str], folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let here = paths::ours("edgecore");
    let targets = here.parent().and_then(Path::parent).context("the folder of targets")?;
    for name in names {
        let built = targets.join(arch.target()).join("fast").join(name);
        let placed = folder.join(name);
        run(Command::new(arch.strip()).arg("-o").arg(&placed).arg(&built))
            .with_context(|| format!("{}: tests/run builds it", built.display()))?;
    }
    Ok(())
}

/// Puts the images' archives for `arch` into `folder`.
///
/// # Errors
/// When `tests/run` has not built them.
pub fn place_images(arch: Arch, folder: &Path) -> Result<()> {
    for name in ["pause", "demo"] {
        let built = match arch {
            Arch::Amd64 => paths::image(name),
            Arch::Arm64 => paths::cache().join("images-arm64").join(format!("{name}.tar")),
        };
        fs::copy(&built, folder.join(format!("{name}.tar")))
            .with_context(|| format!("{}: tests/run builds it", built.display()))?;
    }
    Ok(())
}

/// A read-only disk with the files of `folder`, which is removed.
///
/// # Errors
/// When mke2fs fails.
pub fn files_disk(site: &Site, name: &str, folder: &Path) -> Result<PathBuf> {
    let size: u64 = files_below(folder)?;
    let disk = site.dir().join(format!("{name}.ext4"));
    // Inodes, tables and rounding up to blocks.
    fs::File::create(&disk)?.set_len(size + size / 8 + 16 * 1024 * 1024)?;
    run(Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-O", "^has_journal", "-d"])
        .arg(folder)
        .arg(&disk))?;
    fs::remove_dir_all(folder)?;
    Ok(disk)
}

/// Bytes of all files below `folder`.
fn files_below(folder: &Path) -> Result<u64> {
    let mut size = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        size += if meta.is_dir() {
            files_below(&entry.path())?
        } else {
            meta.len()
        };
    }
    Ok(size)
}
