//! `kedge reset`: forget the identity, the store and the configuration of this machine.
//!
//! Containers are edgecore's: stop it and remove its pods first (`kubectl drain`, `kubectl delete node`), since what runs stays.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where edgecore.yaml is
    #[arg(long, default_value = "/etc/kedge")]
    config_dir: PathBuf,
    /// Where the store and the certificates are
    #[arg(long, default_value = "/var/lib/kedge/edge")]
    state_dir: PathBuf,
    /// edgecore's admin socket
    #[arg(long, default_value = "/run/kedge/edgecore.sock")]
    admin_socket: PathBuf,
    /// Really do it
    #[arg(long)]
    yes: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if UnixStream::connect(&args.admin_socket).is_ok() {
        bail!("edgecore runs ({} answers): stop it first", args.admin_socket.display());
    }
    // Only what is Kedge's own: a mistaken --state-dir must not cost a disk.
    let ours = [
        args.state_dir.join("pki"),
        args.state_dir.join("store"),
        args.config_dir.join("edgecore.yaml"),
        args.config_dir.join("store.key"),
    ];
    let present: Vec<&PathBuf> = ours.iter().filter(|path| path.exists()).collect();
    if present.is_empty() {
        println!("nothing to forget: this machine has not joined");
        return Ok(());
    }
    if !args.yes {
        for path in present {
            println!("would remove {}", path.display());
        }
        bail!("nothing was removed; --yes removes it");
    }
    for path in present {
        remove(path).with_context(|| format!("remove {}", path.display()))?;
        println!("removed {}", path.display());
    }
    Ok(())
}

fn remove(path: &Path) -> std::io::Result<()> {
    if path.symlink_metadata()?.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kedges_own_files_go_and_only_when_told() {
        let folder = tempfile::tempdir().unwrap();
        let mut args = Args {
            config_dir: folder.path().to_owned(),
            state_dir: folder.path().to_owned(),
            admin_socket: folder.path().join("no.sock"),
            yes: false,
        };
        assert!(run(&args).is_ok(), "nothing to do");
        fs::create_dir(folder.path().join("pki")).unwrap();
        fs::write(folder.path().join("edgecore.yaml"), "x").unwrap();
        fs::write(folder.path().join("mine"), "x").unwrap();
        assert!(run(&args).is_err());
        assert!(folder.path().join("pki").exists());
        args.yes = true;
        run(&args).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
