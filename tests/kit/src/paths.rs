//! Where the kit finds binaries, and where it keeps what should outlive a clone.

use std::env;
use std::path::{Path, PathBuf};

/// Version of the control plane that `tests/kube/go.mod` pins.
pub const KUBERNETES: &str = "v1.36.3";
/// Version of containerd that `tests/kube/containerd/go.mod` pins.
pub const CONTAINERD: &str = "v2.1.9";
/// Version of metrics-server that `tests/kube/metrics-server/go.mod` pins.
pub const METRICS_SERVER: &str = "v0.9.0";

/// `$KEDGE_CACHE`, by default `~/.cache/kedge`.
#[must_use]
pub fn cache() -> PathBuf {
    env::var_os("KEDGE_CACHE").map_or_else(
        || PathBuf::from(env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache/kedge"),
        PathBuf::from,
    )
}

/// A binary of the real control plane: from `$KUBEBUILDER_ASSETS`, else from the cache that `tests/run` fills.
#[must_use]
pub fn kube(name: &str) -> PathBuf {
    env::var_os("KUBEBUILDER_ASSETS")
        .map(|dir| PathBuf::from(dir).join(name))
        .filter(|path| path.exists())
        .unwrap_or_else(|| cache().join("kube").join(KUBERNETES).join(name))
}

/// One of our own binaries: from `$KEDGE_BIN`, else from the folder of the running test's own build.
///
/// # Panics
/// When the test binary has no path of its own, which does not happen on Linux.
#[must_use]
pub fn ours(name: &str) -> PathBuf {
    if let Some(dir) = env::var_os("KEDGE_BIN") {
        return PathBuf::from(dir).join(name);
    }
    let test = env::current_exe().expect("/proc/self/exe is there");
    let deps = test.parent().expect("a test binary lies in a folder");
    deps.parent().unwrap_or(deps).join(name)
}

/// The root of Debian's unpacked containerd, runc and CNI plugins.
#[must_use]
pub fn debian() -> PathBuf {
    cache().join("debian")
}

/// The folder of the newer containerd's programs.
#[must_use]
pub fn containerd_two() -> PathBuf {
    cache().join("containerd").join(CONTAINERD)
}

/// metrics-server.
#[must_use]
pub fn metrics_server() -> PathBuf {
    cache()
        .join("metrics-server")
        .join(METRICS_SERVER)
        .join("metrics-server")
}

/// The root of a package of Debian's that is unpacked alone: `docker-registry`.
#[must_use]
pub fn unpacked(package: &str) -> PathBuf {
    cache().join("unpacked").join(package)
}

/// The folder of Debian's CNI plugins.
#[must_use]
pub fn cni_plugins() -> PathBuf {
    debian().join("usr/lib/cni")
}

/// The images archive `name` (`pause` or `demo`) that `tests/run` builds.
#[must_use]
pub fn image(name: &str) -> PathBuf {
    cache().join("images").join(format!("{name}.tar"))
}

/// The repository's root.
#[must_use]
pub fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}
