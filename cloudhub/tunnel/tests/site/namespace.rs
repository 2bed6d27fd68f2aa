//! A network namespace for a test, what blocks UDP in it, and a proxy.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};

use super::soon;

/// Runs a test on a thread of its own, in a namespace where there is loopback and nothing else.
pub(crate) fn isolated(test: impl AsyncFnOnce() + Send) {
    LazyLock::force(&LOG);
    let run = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("root may leave its network");
        command(Command::new("ip").args(["link", "set", "lo", "up"]), "");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(test());
    };
    let ended = std::thread::scope(|scope| scope.spawn(run).join());
    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// From now on UDP gets lost without a word.
pub(crate) fn block_udp() {
    let rules = "add table inet site
        add chain inet site input { type filter hook input priority 0; }
        add rule inet site input meta l4proto udp drop\n";
    command(Command::new("nft").args(["-f", "-"]), rules);
}

pub(crate) fn unblock_udp() {
    command(Command::new("nft").args(["delete", "table", "inet", "site"]), "");
}

/// From now on loopback is a link of 10 Mbit/s with a queue of 50 ms.
pub(crate) fn slow_down() {
    command(Command::new("ip").args(["link", "set", "lo", "mtu", "1500"]), "");
    let rate = "qdisc add dev lo root tbf rate 10mbit burst 10kb latency 50ms";
    command(Command::new("tc").args(rate.split(' ')), "");
}

/// In this thread's namespace.
pub(super) fn command(command: &mut Command, input: &str) {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    child
        .stdin
        .take()
        .expect("it is piped")
        .write_all(input.as_bytes())
        .expect("its input");
    let output = child.wait_with_output().expect("its end");
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// Debian's squid on 127.0.0.1:3128.
pub(crate) struct Squid {
    child: Child,
    dir: tempfile::TempDir,
}

impl Squid {
    /// `access`: its `http_access` lines.
    pub(crate) async fn start(access: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // It gives up root.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let at = dir.path().display();
        let config = format!(
            "http_port 127.0.0.1:3128\n{access}\nvisible_hostname proxy.test\npid_filename {at}/pid\ncoredump_dir {at}\n\
             access_log stdio:{at}/access.log\ncache_log {at}/cache.log\ncache deny all\nnetdb_filename none\npinger_enable off\n\
             shutdown_lifetime 0 seconds\n"
        );
        let file = dir.path().join("squid.conf");
        std::fs::write(&file, config).unwrap();
        let child = Command::new("squid")
            .args(["-N", "-f"])
            .arg(&file)
            .spawn()
            .expect("squid is installed");
        let squid = Self { child, dir };
        soon("squid", async {
            while tokio::net::TcpStream::connect("127.0.0.1:3128").await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        squid
    }

    pub(crate) fn proxy(&self) -> tunnel::Proxy {
        "http://127.0.0.1:3128".parse().unwrap()
    }

    /// `http_access` lines that want the user robot with this password; `dir` for the hashes.
    pub(crate) fn password(dir: &Path, password: &str) -> String {
        let hash = Command::new("openssl").args(["passwd", "-apr1", password]).output();
        let hash = hash.expect("openssl is installed").stdout;
        let users = dir.join("users");
        std::fs::write(&users, [b"robot:", hash.as_slice()].concat()).unwrap();
        // squid's helper gives up root.
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        format!(
            "auth_param basic program /usr/lib/squid/basic_ncsa_auth {}\nacl known proxy_auth REQUIRED\nhttp_access allow known\n\
             http_access deny all",
            users.display()
        )
    }

    /// Who asked it for what.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("access.log")).unwrap_or_default()
    }
}

impl Drop for Squid {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What all tests of this program have logged. Installed before the first of them begins: what is logged first on a thread without a
/// subscriber would never be logged again.
static LOG: LazyLock<Arc<Mutex<Vec<u8>>>> = LazyLock::new(|| {
    let text = Arc::<Mutex<Vec<u8>>>::default();
    let to = text.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || Into(to.clone()));
    tracing::subscriber::set_global_default(subscriber.finish()).expect("it is the only one");
    text
});

struct Into(Arc<Mutex<Vec<u8>>>);

impl Write for Into {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What was logged.
pub(crate) fn logged() -> String {
    String::from_utf8_lossy(&LOG.lock().unwrap()).into_owned()
}
