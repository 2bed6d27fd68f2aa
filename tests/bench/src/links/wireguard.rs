//! boringtun, userspace WireGuard, between two namespaces: set up through its own socket, so that nothing else must be installed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use kit::process::run;

const PORT: u16 = 51820;
/// Both ends, and what inner TCP of WireGuard has left of 1500 bytes.
const MTU: &str = "1420";
/// How long it may take to listen to its socket.
const START: Duration = Duration::from_secs(10);

/// One end: its process, its device.
#[derive(Debug)]
pub(crate) struct WireGuard {
    process: Child,
    device: String,
}

/// Where `tests/bench/run` has installed it.
pub(crate) fn program() -> PathBuf {
    let cache = std::env::var_os("KEDGE_CACHE").map(PathBuf::from);
    cache
        .unwrap_or_else(|| "/root/.cache/kedge".into())
        .join("tools/bin/boringtun-cli")
}

impl WireGuard {
    /// A tunnel between `(namespace, inner address)` of the hub, which the edge reaches at `203.0.113.1`, and of the edge.
    ///
    /// # Errors
    /// When boringtun does not run or take its configuration.
    pub(crate) fn pair(hub: (&str, &str), edge: (&str, &str)) -> Result<[Self; 2]> {
        let [hub, edge] = [Self::start(hub, "hub")?, Self::start(edge, "edge")?];
        let [hub_key, edge_key] = [hub.own_key()?, edge.own_key()?];
        hub.tell(&format!("set=1\npublic_key={edge_key}\nallowed_ip=0.0.0.0/0\n"))?;
        edge.tell(&format!(
            "set=1\npublic_key={hub_key}\nendpoint=203.0.113.1:{PORT}\nallowed_ip=0.0.0.0/0\n"
        ))?;
        Ok([hub, edge])
    }

    fn start((namespace, address): (&str, &str), end: &str) -> Result<Self> {
        let device = format!("bt{}-{end}", std::process::id() % 100_000);
        let process = Command::new("ip")
            .args(["netns", "exec", namespace])
            .arg(program())
            .args(["--foreground", "--disable-drop-privileges", &device])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start boringtun-cli")?;
        let end = Self { process, device };
        let secret: [u8; 32] = rand::random();
        let secret: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let begun = Instant::now();
        while let Err(error) = end.tell(&format!("set=1\nprivate_key={secret}\nlisten_port={PORT}\n")) {
            ensure!(begun.elapsed() < START, "boringtun does not listen: {error:#}");
            thread::sleep(Duration::from_millis(50));
        }
        let ip = |text: &str| run(Command::new("ip").args(["-n", namespace]).args(text.split(' '))).map(drop);
        let device = &end.device;
        ip(&format!("address add {address} dev {device}"))?;
        ip(&format!("link set {device} mtu {MTU} up"))?;
        Ok(end)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    fn own_key(&self) -> Result<String> {
        let answer = self.tell("get=1\n")?;
        let key = answer.iter().find_map(|line| line.strip_prefix("own_public_key="));
        Ok(key.with_context(|| format!("its own key in {answer:?}"))?.to_owned())
    }

    /// The lines of its answer.
    fn tell(&self, text: &str) -> Result<Vec<String>> {
        let mut socket = UnixStream::connect(format!("/var/run/wireguard/{}.sock", self.device))?;
        socket.set_read_timeout(Some(START))?;
        socket.write_all(format!("{text}\n").as_bytes())?;
        let mut answer = Vec::new();
        for line in BufReader::new(socket).lines() {
            let line = line?;
            match line.strip_prefix("errno=") {
                Some("0") => return Ok(answer),
                Some(error) => bail!("errno {error}"),
                None => answer.push(line),
            }
        }
        bail!("no answer")
    }
}

impl Drop for WireGuard {
    fn drop(&mut self) {
        // `ip netns exec` has become boringtun.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_file(format!("/var/run/wireguard/{}.sock", self.device));
    }
}
