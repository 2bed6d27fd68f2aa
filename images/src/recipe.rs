//! What Kedge's own images hold.

use crate::archive::{Architecture, Entry, Image};

/// The sandbox's image.
pub const PAUSE: &str = "kedge.dev/pause:1";
/// The image to try a node with: a shell, its tools, and a tiny HTTP server.
pub const DEMO: &str = "kedge.dev/demo:1";

/// The applets of Debian 12's busybox-static. A fixed list, so that an image for another machine can be built here.
const APPLETS: &str = include_str!("applets.txt");

/// `kedge.dev/pause:1`: one static binary.
#[must_use]
pub fn pause(pause: Vec<u8>, architecture: Architecture) -> Image {
    Image {
        name: PAUSE.to_owned(),
        architecture,
        entries: vec![Entry::file("pause", pause, 0o755)],
        entrypoint: vec!["/pause".to_owned()],
        command: Vec::new(),
        user: Some("65535:65535".to_owned()),
    }
}

/// `kedge.dev/demo:1`: busybox with its applets, and `kedge-demo`, which runs when the pod names no command.
#[must_use]
pub fn demo(demo: Vec<u8>, busybox: Vec<u8>, architecture: Architecture) -> Image {
    let mut entries: Vec<Entry> = [
        "bin", "dev", "etc", "home", "proc", "root", "sys", "usr", "usr/bin", "var",
    ]
    .into_iter()
    .map(|path| Entry::folder(path, 0o755))
    .collect();
    entries.push(Entry::folder("tmp", 0o1777));
    entries.push(Entry::file("bin/busybox", busybox, 0o755));
    entries.push(Entry::file("bin/kedge-demo", demo, 0o755));
    entries.extend(
        APPLETS
            .lines()
            .map(|name| Entry::link(format!("bin/{name}"), "busybox")),
    );
    entries.push(Entry::link("usr/bin/env".to_owned(), "/bin/busybox"));
    let passwd = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
    entries.push(Entry::file("etc/passwd", passwd.as_bytes().to_vec(), 0o644));
    let group = "root:x:0:\nnogroup:x:65534:\n";
    entries.push(Entry::file("etc/group", group.as_bytes().to_vec(), 0o644));
    Image {
        name: DEMO.to_owned(),
        architecture,
        entries,
        entrypoint: Vec::new(),
        command: vec!["/bin/kedge-demo".to_owned()],
        user: None,
    }
}
