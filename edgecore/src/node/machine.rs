//! What the machine is and has: read from /proc, /sys and /etc. Nothing here fails: what cannot be read is left out.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;

/// Who the machine is; fixed while it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// /etc/machine-id.
    pub machine_id: String,
    /// The firmware's uuid, else the machine id.
    pub system_uuid: String,
    /// New at each boot.
    pub boot_id: String,
    /// `uname -r`.
    pub kernel: String,
    /// PRETTY_NAME of os-release.
    pub os_image: String,
    /// The host name.
    pub hostname: String,
    /// Go's name of the architecture.
    pub architecture: &'static str,
}

/// How much the machine has of something, and has left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Level {
    /// All.
    pub total: u64,
    /// Left.
    pub available: u64,
}

/// What the machine has now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Levels {
    /// Cores that are online.
    pub cpus: u64,
    /// Memory, bytes.
    pub memory: Level,
    /// The file system of the kubelet root, bytes.
    pub disk: Level,
    /// Its inodes.
    pub inodes: Level,
    /// Process ids.
    pub pids: Level,
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// Go's names of the architectures that Kedge is built for.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Reads who the machine is.
pub fn identity() -> Identity {
    let machine_id = read("/etc/machine-id");
    let uuid = read("/sys/class/dmi/id/product_uuid");
    let release = read("/etc/os-release");
    let pretty = release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .unwrap_or("Linux");
    Identity {
        system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
        machine_id,
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        kernel: read("/proc/sys/kernel/osrelease"),
        os_image: pretty.trim_matches('"').to_owned(),
        hostname: nix::unistd::gethostname()
            .unwrap_or_default()
            .to_string_lossy()
            .to_lowercase(),
        architecture: architecture(),
    }
}

/// Reads what the machine has; `root` is a folder on the file system that counts, which need not exist yet.
pub fn levels(root: &Path) -> Levels {
    let (disk, inodes) = file_system(root);
    Levels {
        cpus: cpus(),
        memory: memory(&read("/proc/meminfo")),
        disk,
        inodes,
        pids: pids(),
    }
}

fn cpus() -> u64 {
    let online = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN);
    online.ok().flatten().and_then(|n| u64::try_from(n).ok()).unwrap_or(1)
}

/// /proc/meminfo; available is the kernel's own estimate.
fn memory(meminfo: &str) -> Level {
    let field = |name: &str| -> u64 {
        let line = meminfo
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or_default();
        let kib = line.trim_start_matches(':').trim().trim_end_matches(" kB");
        kib.parse::<u64>().unwrap_or_default().saturating_mul(1024)
    };
    Level {
        total: field("MemTotal"),
        available: field("MemAvailable"),
    }
}

/// Bytes and inodes of the file system that holds `path`, or will once it is made.
pub fn file_system(path: &Path) -> (Level, Level) {
    let Some(stat) = path.ancestors().find_map(|p| nix::sys::statvfs::statvfs(p).ok()) else {
        return Default::default();
    };
    let size = stat.fragment_size();
    let disk = Level {
        total: stat.blocks().saturating_mul(size),
        available: stat.blocks_available().saturating_mul(size),
    };
    let inodes = Level {
        total: stat.files(),
        available: stat.files_available(),
    };
    (disk, inodes)
}

fn pids() -> Level {
    let max = |path| read(path).parse::<u64>().unwrap_or(u64::MAX);
    let total = max("/proc/sys/kernel/pid_max").min(max("/proc/sys/kernel/threads-max"));
    // "0.20 0.18 0.12 1/80 11206": the fourth word is running/all threads.
    let loadavg = read("/proc/loadavg");
    let used = loadavg
        .split(' ')
        .nth(3)
        .and_then(|w| w.split_once('/'))
        .and_then(|(_, all)| all.parse().ok());
    Level {
        total,
        available: total.saturating_sub(used.unwrap_or(0)),
    }
}

/// The machine's own addresses: the one that it would reach `towards` from, else any that is neither loopback nor link-local, else loopback.
/// Sends nothing.
pub fn addresses(towards: Option<SocketAddr>) -> Vec<IpAddr> {
    let far = towards.unwrap_or(SocketAddr::from(([192, 0, 2, 1], 9)));
    if let Some(ip) = source_address(far) {
        return vec![ip];
    }
    let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let v4 = interfaces.filter_map(|i| Some(i.address?.as_sockaddr_in()?.ip()));
    let usable = v4
        .filter(|ip| !ip.is_loopback() && !ip.is_link_local())
        .map(IpAddr::from)
        .next();
    vec![usable.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))]
}

fn source_address(far: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr = if far.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0_u16; 8], 0).into()
    };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(far).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_in_bytes() {
        let level = memory("MemTotal:        8000 kB\nMemFree: 1 kB\nMemAvailable:    500 kB\n");
        assert_eq!(
            level,
            Level {
                total: 8_192_000,
                available: 512_000
            }
        );
        assert_eq!(memory(""), Level::default());
    }

    #[test]
    fn this_machine_has_something_of_everything() {
        let levels = levels(Path::new("/no/such/folder/yet"));
        assert!(
            levels.cpus > 0 && levels.memory.total > 0 && levels.disk.total > 0 && levels.pids.total > 0,
            "{levels:?}"
        );
        assert!(!identity().boot_id.is_empty());
        assert_eq!(addresses(None).len(), 1);
    }
}
