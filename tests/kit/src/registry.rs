//! A registry of one image on a machine's loopback, without TLS, as containerd takes it there. It goes with the machine.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;

use crate::paths;
use crate::process::run;

/// The image's name there.
pub const IMAGE: &str = "127.0.0.1:5000/demo:latest";

/// Serves the demo image in network namespace `namespace` until that is gone or the process ends.
///
/// # Errors
/// When the archive cannot be unpacked into `dir`, or the port not be bound.
pub fn serve(namespace: &str, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    run(Command::new("tar")
        .arg("-xf")
        .arg(paths::image("demo"))
        .arg("-C")
        .arg(dir))?;
    let (netns, dir) = (PathBuf::from("/run/netns").join(namespace), dir.to_owned());
    let (bound, is_bound) = std::sync::mpsc::sync_channel(1);
    // A thread of its own: it alone lives in that namespace.
    thread::spawn(move || match bind(&netns) {
        Ok(listener) => {
            let _ = bound.send(Ok(()));
            for stream in listener.incoming().flatten() {
                // A caller that goes away is its own business.
                let _ = answer(&stream, &dir);
            }
        }
        Err(error) => _ = bound.send(Err(error)),
    });
    is_bound.recv().context("the registry's thread ended")?
}

fn bind(netns: &Path) -> Result<TcpListener> {
    setns(File::open(netns)?, CloneFlags::CLONE_NEWNET)?;
    Ok(TcpListener::bind("127.0.0.1:5000")?)
}

fn answer(mut stream: &TcpStream, dir: &Path) -> Result<()> {
    let mut head = BufReader::new(stream);
    let mut request = String::new();
    head.read_line(&mut request)?;
    let mut line = String::new();
    while head.read_line(&mut line)? > 2 {
        line.clear();
    }
    let mut words = request.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let found = match path.split('/').collect::<Vec<_>>().as_slice() {
        ["", "v2", ""] => Some(("application/json".to_owned(), b"{}".to_vec())),
        ["", "v2", "demo", "manifests", reference] => manifest(dir, reference),
        ["", "v2", "demo", "blobs", digest] => {
            blob(dir, digest).map(|bytes| ("application/octet-stream".to_owned(), bytes))
        }
        _ => None,
    };
    let Some((kind, body)) = found else {
        stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
        return Ok(());
    };
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )?;
    if method != "HEAD" {
        stream.write_all(&body)?;
    }
    Ok(())
}

fn blob(dir: &Path, digest: &str) -> Option<Vec<u8>> {
    let hash = digest
        .strip_prefix("sha256:")
        .filter(|h| h.chars().all(|c| c.is_ascii_hexdigit()))?;
    fs::read(dir.join("blobs/sha256").join(hash)).ok()
}

fn manifest(dir: &Path, reference: &str) -> Option<(String, Vec<u8>)> {
    let digest = if reference.starts_with("sha256:") {
        reference.to_owned()
    } else {
        let index: Value = serde_json::from_slice(&fs::read(dir.join("index.json")).ok()?).ok()?;
        index["manifests"][0]["digest"].as_str()?.to_owned()
    };
    let bytes = blob(dir, &digest)?;
    let content: Value = serde_json::from_slice(&bytes).ok()?;
    let otherwise = "application/vnd.oci.image.manifest.v1+json";
    Some((content["mediaType"].as_str().unwrap_or(otherwise).to_owned(), bytes))
}
