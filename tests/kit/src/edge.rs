//! One edge machine: mount and network namespace, its own containerd, edgecore. It can be reset like a real one.
//!
//! * a *holder* process keeps the mount namespace, with tmpfs where containerd and CNI hard-code `/run/netns` and
//!   `/run/containerd`, its own folder where libcni keeps its results, and a boot id of its own;
//! * everything else of the machine runs inside by `nsenter`;
//! * [`Edge::reset`] kills all of it with the holder, so mounts, netns and `/run` go as they do in a reboot; the disk
//!   (containerd's root, the store, the kubelet folder) stays.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use linkem::run::Emulation;
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde_json::Value;

use crate::clock::{self, Clock};
use crate::containerd::Version;
use crate::hub::Hub;
use crate::paths;
use crate::process::{Daemon, run};
use crate::site::{HUB, JOIN_PORT, Site};
use crate::sweep;
use crate::wait::{State, wait_for};

/// containerd answers within a second on an idle machine.
const CONTAINERD_START: Duration = Duration::from_secs(60);

/// How long the machine's resources stay as they are before they count as settled.
const SETTLED: Duration = Duration::from_secs(2);

/// Amounts, not shares of the test machine, that any machine on which tests can run at all has.
pub(crate) const EVICTION: [(&str, &str); 3] = [
    ("memory.available", "1Mi"),
    ("nodefs.available", "1Mi"),
    ("imagefs.available", "1Mi"),
];

/// A container that containerd has, with its task when there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// containerd's id.
    pub id: String,
    /// The name in the pod's spec; empty for the sandbox.
    pub name: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's uid.
    pub uid: String,
    /// The task's process, when it runs.
    pub pid: Option<u32>,
}

/// One edge machine.
#[derive(Debug)]
pub struct Edge<'a> {
    site: &'a Site,
    /// The node's name.
    pub name: String,
    number: u8,
    dir: PathBuf,
    version: Version,
    fake_clock: bool,
    boot: u32,
    holder: Option<Daemon>,
    containerd: Option<Daemon>,
    edgecore: Option<Daemon>,
}

impl<'a> Edge<'a> {
    /// Makes machine `number` (1, 2, …) with node name `name`, and starts its containerd, Debian's, with Kedge's images.
    ///
    /// # Errors
    /// When a namespace, containerd or an import fails.
    pub fn new(site: &'a Site, number: u8, name: &str) -> Result<Self> {
        Self::above(Version::Debian, site, number, name)
    }

    /// The same above another containerd.
    ///
    /// # Errors
    /// When a namespace, containerd or an import fails.
    pub fn above(version: Version, site: &'a Site, number: u8, name: &str) -> Result<Self> {
        let dir = site.dir().join(format!("e{number}"));
        for folder in ["etc", "cni", "libcni", "kubelet", "pods", "edge", "tmp"] {
            fs::create_dir_all(dir.join(folder))?;
        }
        let mut edge = Self {
            site,
            name: name.to_owned(),
            number,
            dir,
            version,
            fake_clock: false,
            boot: 0,
            holder: None,
            containerd: None,
            edgecore: None,
        };
        edge.boot()?;
        edge.import_images()?;
        Ok(edge)
    }

    fn role(&self) -> String {
        format!("e{}", self.number)
    }

    /// The machine's folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its own address.
    #[must_use]
    pub fn address(&self) -> String {
        format!("10.99.{}.2", self.number)
    }

    /// containerd's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        Version::socket(&self.dir)
    }

    /// edgecore's store.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.dir.join("edge/store")
    }

    /// Where libcni keeps what each sandbox's network is; on the disk.
    #[must_use]
    pub fn cni_results(&self) -> PathBuf {
        self.dir.join("libcni/results")
    }

    /// The name of the machine's network namespace.
    #[must_use]
    pub fn namespace(&self) -> String {
        self.site.namespace(&self.role())
    }

    /// The whole log of edgecore, over all its starts.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("edgecore.log")).unwrap_or_default()
    }

    /// How much there is of what a pod's end must give back: mounts, network namespaces, cgroups, CNI results, address
    /// leases, containers and snapshots.
    ///
    /// # Errors
    /// When containerd does not answer.
    ///
    /// # Panics
    /// When the machine is off.
    pub fn resources(&self) -> Result<BTreeMap<&'static str, usize>> {
        let holder = self.holder.as_ref().expect("the machine is on").pid();
        let count = |dir: PathBuf| fs::read_dir(dir).map_or(0, Iterator::count);
        let mounts = fs::read_to_string(format!("/proc/{holder}/mountinfo"))?;
        let leases = fs::read_dir(self.dir.join("run/cni/kedge"))
            .into_iter()
            .flatten()
            .flatten();
        let is_address = |name: &std::ffi::OsStr| name.to_str().is_some_and(|n| n.parse::<std::net::IpAddr>().is_ok());
        let below: usize = sweep::cgroups(&self.cgroup()).iter().map(|c| sweep::count(c)).sum();
        Ok(BTreeMap::from([
            ("mounts", mounts.lines().count()),
            ("netns", count(format!("/proc/{holder}/root/run/netns").into())),
            ("cgroups", below),
            ("CNI results", count(self.cni_results())),
            ("leases", leases.filter(|e| is_address(&e.file_name())).count()),
            ("containers", self.ctr(&["containers", "ls", "-q"])?.lines().count()),
            ("snapshots", self.ctr(&["snapshots", "ls"])?.lines().count()),
        ]))
    }

    /// [`Edge::resources`] once they have not changed for two seconds: containers of before are removed after the new ones run.
    ///
    /// # Errors
    /// When they still change after `limit`.
    pub fn settled_resources(&self, limit: Duration) -> Result<BTreeMap<&'static str, usize>> {
        let mut last = (self.resources()?, Instant::now());
        let (settled, _) = wait_for("the resources settle", limit, || match self.resources() {
            Ok(now) if now != last.0 => {
                last = (now, Instant::now());
                State::Not(format!("{last:?}"))
            }
            Ok(now) if last.1.elapsed() >= SETTLED => State::Done(now),
            Ok(now) => State::Not(format!("{now:?}")),
            Err(error) => State::Not(error.to_string()),
        })?;
        Ok(settled)
    }

    /// Waits until [`Edge::resources`] are `expected` again.
    ///
    /// # Errors
    /// When they are not after `limit`.
    pub fn wait_resources(&self, expected: &BTreeMap<&'static str, usize>, limit: Duration) -> Result<()> {
        wait_for("nothing more than expected", limit, || match self.resources() {
            Ok(now) if now == *expected => State::Done(()),
            Ok(now) => State::Not(format!("{now:?} instead of {expected:?}")),
            Err(error) => State::Not(error.to_string()),
        })?;
        Ok(())
    }

    /// Leaves of a sandbox's CNI result what a power cut leaves: half of it, or nothing.
    ///
    /// # Errors
    /// When there is no result, or it cannot be cut.
    pub fn damage_cni_result(&self, half: bool) -> Result<()> {
        let mut results: Vec<PathBuf> = fs::read_dir(self.cni_results())?.flatten().map(|e| e.path()).collect();
        results.sort();
        let first = results.first().context("no CNI result is there")?;
        let length = fs::metadata(first)?.len();
        let file = fs::File::options().write(true).open(first)?;
        Ok(file.set_len(if half { length / 2 } else { 0 })?)
    }

    /// The machine's own cgroup.
    #[must_use]
    pub fn cgroup(&self) -> String {
        format!("{}-{}", self.site.id(), self.role())
    }

    /// Powers the machine on: namespaces, an empty `/run`, containerd.
    ///
    /// # Errors
    /// When a part does not start.
    pub fn boot(&mut self) -> Result<()> {
        self.boot += 1;
        let role = self.role();
        self.site.add_namespace(&role)?;
        self.site.wire(&role, self.number)?;
        fs::create_dir_all(self.dir.join("run"))?;
        fs::create_dir_all("/run/containerd")?;
        let boot_id = self.dir.join("run/boot_id");
        fs::write(
            &boot_id,
            format!("{:08x}-0000-4000-8000-{:012x}\n", self.boot, std::process::id()),
        )?;
        fs::create_dir_all("/var/lib/cni")?;
        let script = "mount -t tmpfs tmpfs /run/netns && mount -t tmpfs tmpfs /run/containerd && \
                      mount --bind \"$1\" /var/lib/cni && \
                      mount --bind \"$0\" /proc/sys/kernel/random/boot_id && touch \"$0.up\" && exec sleep infinity";
        let mut command = self.site.command(&role, Path::new("unshare"));
        command
            .args(["--mount", "--propagation", "private", "sh", "-c", script])
            .arg(&boot_id)
            .arg(self.dir.join("libcni"));
        self.holder = Some(Daemon::spawn("holder", &mut command, &self.dir.join("holder.log"))?);
        let up = self.dir.join("run/boot_id.up");
        wait_for("the machine's mount namespace", CONTAINERD_START, || {
            if up.exists() {
                State::Done(())
            } else {
                State::Not(self.holder.as_ref().map(Daemon::tail).unwrap_or_default())
            }
        })?;
        self.start_containerd()
    }

    /// A command that runs on this machine.
    ///
    /// # Panics
    /// When the machine is off.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let pid = self.holder.as_ref().expect("the machine is on").pid();
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={pid}"))
            .args(["--mount", "--net"])
            .arg(program);
        command.env("PATH", self.version.path());
        command
    }

    /// Starts containerd and waits until it answers.
    ///
    /// # Errors
    /// When it does not; the text holds the end of its log.
    pub fn start_containerd(&mut self) -> Result<()> {
        let config = self.dir.join("etc/containerd.toml");
        fs::write(&config, self.version.config(&self.dir, "kedge.dev/pause:1"))?;
        let mut command = self.command(&self.version.program("containerd"));
        command.arg("--config").arg(&config);
        self.containerd = Some(Daemon::spawn(
            "containerd",
            &mut command,
            &self.dir.join("containerd.log"),
        )?);
        wait_for("containerd answers", CONTAINERD_START, || {
            match self.ctr(&["version"]) {
                Ok(_) => State::Done(()),
                Err(error) => State::Not(format!(
                    "{error}\n{}",
                    self.containerd.as_ref().map(Daemon::tail).unwrap_or_default()
                )),
            }
        })?;
        Ok(())
    }

    /// Kills containerd; its shims and containers live on.
    pub fn kill_containerd(&mut self) {
        self.containerd = None;
    }

    fn import_images(&self) -> Result<()> {
        for name in ["pause", "demo"] {
            run(self
                .command(&paths::ours("images"))
                .args(["import", "--namespace", "k8s.io", "--socket"])
                .arg(self.socket())
                .arg(paths::image(name)))?;
        }
        Ok(())
    }

    /// Runs `ctr` in the CRI namespace.
    ///
    /// # Errors
    /// When it fails.
    pub fn ctr(&self, args: &[&str]) -> Result<String> {
        let mut command = self.command(&self.version.program("ctr"));
        run(command
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace", "k8s.io", "--timeout", "10s"])
            .args(args))
    }

    /// What containerd really has: containers of pods, sandboxes left out.
    ///
    /// # Errors
    /// When containerd does not answer.
    pub fn containers(&self) -> Result<Vec<Container>> {
        Ok(self
            .all_containers()?
            .into_iter()
            .filter(|c| !c.name.is_empty())
            .collect())
    }

    /// All that containerd has, sandboxes too.
    ///
    /// # Errors
    /// When containerd does not answer.
    pub fn all_containers(&self) -> Result<Vec<Container>> {
        let tasks: BTreeMap<String, u32> = self
            .ctr(&["tasks", "ls"])?
            .lines()
            .skip(1)
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                let (id, pid, state) = (words.next()?, words.next()?, words.next()?);
                (state == "RUNNING").then_some((id.to_owned(), pid.parse().ok()?))
            })
            .collect();
        let mut found = Vec::new();
        for id in self.ctr(&["containers", "ls", "-q"])?.lines() {
            // One that is removed between list and info is no longer there.
            let Ok(info) = self.ctr(&["containers", "info", id]) else {
                continue;
            };
            let info: Value = serde_json::from_str(&info)?;
            let label = |name: &str| info["Labels"][name].as_str().unwrap_or_default().to_owned();
            found.push(Container {
                id: id.to_owned(),
                name: label("io.kubernetes.container.name"),
                pod: label("io.kubernetes.pod.name"),
                uid: label("io.kubernetes.pod.uid"),
                pid: tasks.get(id).copied(),
            });
        }
        Ok(found)
    }

    /// Waits until a container of pod `pod` runs, and returns it.
    ///
    /// # Errors
    /// After `limit`, with what containerd has.
    pub fn wait_container(&self, pod: &str, limit: Duration) -> Result<Container> {
        let (container, _) = wait_for(&format!("a running container of pod {pod}"), limit, || {
            match self.containers() {
                Ok(all) => match all.iter().find(|c| c.pod == pod && c.pid.is_some()) {
                    Some(container) => State::Done(container.clone()),
                    None => State::Not(format!("{all:?}\n{}", self.tail())),
                },
                Err(error) => State::Not(error.to_string()),
            }
        })?;
        Ok(container)
    }

    /// Joins the node with a token of `hub` and writes edgecore's configuration.
    ///
    /// # Errors
    /// When the token or the join is refused.
    pub fn join(&self, hub: &Hub) -> Result<()> {
        let (token, hash) = hub.token(&self.name)?;
        let (etc, state) = (self.dir.join("etc"), self.dir.join("edge"));
        run(self
            .command(&paths::ours("kedge"))
            .args([
                "join",
                "--hub",
                &format!("{HUB}:{JOIN_PORT}"),
                "--token",
                &token,
                "--ca-hash",
                &hash,
                "--config-dir",
            ])
            .arg(&etc)
            .arg("--state-dir")
            .arg(&state))?;
        self.configure()
    }

    /// Completes the configuration that `kedge join` wrote with this machine's folders.
    fn configure(&self) -> Result<()> {
        let path = self.dir.join("etc/edgecore.yaml");
        let text = fs::read_to_string(&path).context("the edgecore.yaml that kedge join writes")?;
        let mut config: Value = serde_yaml_ng::from_str(&text)?;
        let dir = self.dir.display().to_string();
        config["runDir"] = format!("{dir}/run").into();
        config["adminSocket"] = format!("{dir}/run/edgecore.sock").into();
        config["containerd"] = serde_json::json!({"socket": format!("{dir}/run/containerd.sock")});
        // Whether the test machine's disk is nearly full is not what a test is about; the real kubelet has the same thresholds.
        config["kubelet"] = serde_json::json!({
            "evictionHard": BTreeMap::from(EVICTION),
            "rootDir": format!("{dir}/kubelet"), "podLogsDir": format!("{dir}/pods"), "cgroupRoot": self.cgroup(), "port": 10250,
        });
        config["network"] = serde_json::json!({"cniConfDir": format!("{dir}/cni"), "cniBinDir": paths::cni_plugins()});
        config["apiServer"] = serde_json::json!({"host": HUB, "port": 6443});
        fs::write(&path, serde_yaml_ng::to_string(&config)?)?;
        Ok(())
    }

    /// Starts edgecore.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start(&mut self) -> Result<()> {
        let mut command = if self.fake_clock {
            clock::faked(self, &paths::ours("edgecore"))
        } else {
            self.command(&paths::ours("edgecore"))
        };
        command
            .arg("--config")
            .arg(self.dir.join("etc/edgecore.yaml"))
            .env("RUST_LOG", std::env::var("KEDGE_LOG").unwrap_or_else(|_| "info".into()))
            .env("RUST_BACKTRACE", "1");
        self.edgecore = Some(Daemon::spawn("edgecore", &mut command, &self.dir.join("edgecore.log"))?);
        Ok(())
    }

    /// Sets edgecore's clock; before the first time, it is the test machine's and must be set before edgecore starts.
    ///
    /// # Errors
    /// When the file that holds it cannot be written.
    pub fn set_clock(&mut self, clock: Clock) -> Result<()> {
        self.fake_clock = true;
        clock::set(self, clock)
    }

    /// kill -9 of edgecore.
    pub fn kill(&mut self) {
        self.edgecore = None;
    }

    /// A clean stop of edgecore.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop(&mut self) -> Result<()> {
        match self.edgecore.take() {
            Some(mut edgecore) => edgecore.terminate(Duration::from_secs(20)),
            None => Ok(()),
        }
    }

    /// edgecore's process id.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.edgecore.as_ref().map(Daemon::pid)
    }

    /// Whether edgecore still runs.
    pub fn is_running(&mut self) -> bool {
        self.edgecore.as_mut().is_some_and(Daemon::is_running)
    }

    /// Cuts the power: every process of the machine dies, mounts, namespaces, cgroups and `/run` go.
    pub fn power_off(&mut self) {
        self.edgecore = None;
        self.containerd = None;
        self.kill_all();
        self.holder = None;
        self.site.uplinks().stop(self.number);
        self.site.remove_namespace(&self.role());
        let _ = fs::remove_dir_all(self.dir.join("run"));
    }

    fn kill_all(&self) {
        let Some(holder) = &self.holder else { return };
        let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        let ours = namespace(holder.pid());
        for _ in 0..3 {
            for pid in sweep::pids() {
                if pid != holder.pid() && namespace(pid).is_some() && namespace(pid) == ours {
                    let _ = signal::kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
                }
            }
            for cgroup in sweep::cgroups(&self.cgroup()) {
                sweep::remove_cgroup(&cgroup);
            }
        }
    }

    /// Power off and on again; edgecore is not yet started.
    ///
    /// # Errors
    /// When the machine does not come up.
    pub fn reset(&mut self) -> Result<()> {
        self.power_off();
        self.boot()
    }

    /// The machine's emulated links, each to be killed, restored and counted by its name.
    ///
    /// # Panics
    /// When it is off, or [`Uplinks::give`](crate::uplinks::Uplinks::give) gave it none.
    #[must_use]
    pub fn uplinks(&self) -> Arc<Emulation> {
        let running = self.site.uplinks().running(self.number);
        running.unwrap_or_else(|| panic!("{} has no emulated links", self.name))
    }

    /// Cuts or restores the machine's link.
    ///
    /// # Errors
    /// When iproute2 fails.
    pub fn set_link(&self, up: bool) -> Result<()> {
        self.site.set_link(self.number, up)
    }

    /// The ends of the machine's logs, for error texts.
    #[must_use]
    pub fn tail(&self) -> String {
        let tail = |daemon: &Option<Daemon>| daemon.as_ref().map(Daemon::tail).unwrap_or_default();
        format!("{}\n{}", tail(&self.edgecore), tail(&self.containerd))
    }
}

impl Drop for Edge<'_> {
    fn drop(&mut self) {
        self.power_off();
    }
}
