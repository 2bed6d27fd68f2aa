//! One test's world: a folder, a hub namespace, edge namespaces, and the wires between them.
//!
//! The hub is 10.98.0.1; edge N is 10.99.N.2 on its veth pair, whose hub end is 10.99.N.1. On the hub's end only the join port, the tunnel
//! port and the API port (which pods use) pass: what is not declared must not be needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use crate::process::run;
use crate::sweep;
use crate::uplinks::Uplinks;

/// Prefix of everything that the kit makes on the machine: folders, namespaces, cgroups.
pub const PREFIX: &str = "kt";

/// The hub's one address, whatever edge looks at it.
pub const HUB: &str = "10.98.0.1";
/// Ports of the hub that an edge may reach.
pub const JOIN_PORT: u16 = 6444;
/// The embedded API's port.
pub const API_PORT: u16 = 6443;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// One test's folder and namespaces; all removed on drop.
#[derive(Debug)]
pub struct Site {
    id: String,
    dir: PathBuf,
    uplinks: Uplinks,
}

impl Site {
    /// Makes the folder and the hub's namespace, after sweeping what dead tests left.
    ///
    /// # Errors
    /// When not root, or iproute2 or nft fail.
    pub fn new() -> Result<Self> {
        sweep::sweep();
        let id = format!(
            "{PREFIX}{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let dir = PathBuf::from("/tmp").join(&id);
        fs::create_dir_all(&dir).context("make the site's folder")?;
        let site = Self {
            id,
            dir,
            uplinks: Uplinks::default(),
        };
        site.add_namespace("hub")?;
        run(Command::new("ip").args([
            "-n",
            &site.namespace("hub"),
            "addr",
            "add",
            &format!("{HUB}/32"),
            "dev",
            "lo",
        ]))?;
        Ok(site)
    }

    /// Its name: prefix, process id, number.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its folder; short, because unix socket paths are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The name of namespace `role`.
    #[must_use]
    pub fn namespace(&self, role: &str) -> String {
        format!("{}-{role}", self.id)
    }

    /// A command that runs inside namespace `role`.
    #[must_use]
    pub fn command(&self, role: &str, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.namespace(role)))
            .arg(program);
        command
    }

    /// Runs `work` on a thread inside namespace `role`: what it connects to or binds is there.
    ///
    /// # Panics
    /// When the namespace cannot be entered, or with what `work` panics with.
    pub fn inside<T: Send>(&self, role: &str, work: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.namespace(role));
        let run = || {
            let namespace = fs::File::open(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).expect("root may enter a namespace");
            work()
        };
        let ended = std::thread::scope(|scope| scope.spawn(run).join());
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    pub(crate) fn add_namespace(&self, role: &str) -> Result<()> {
        let name = self.namespace(role);
        run(Command::new("ip").args(["netns", "add", &name]))?;
        run(Command::new("ip").args(["-n", &name, "link", "set", "lo", "up"]))?;
        Ok(())
    }

    pub(crate) fn remove_namespace(&self, role: &str) {
        // Already gone is fine: the caller wants it gone.
        let _ = run(Command::new("ip").args(["netns", "del", &self.namespace(role)]));
    }

    /// The emulated links of the edges that have some.
    #[must_use]
    pub fn uplinks(&self) -> &Uplinks {
        &self.uplinks
    }

    /// Joins edge `number`'s namespace to the hub's, by its emulated links or else by a wire, with the filter on the hub's end.
    ///
    /// # Errors
    /// When iproute2 or nft fail.
    pub fn wire(&self, role: &str, number: u8) -> Result<()> {
        if let Some(device) = self.uplinks.start(self, role, number)? {
            return self.filter(&device);
        }
        let (hub, edge) = (self.namespace("hub"), self.namespace(role));
        let link = format!("e{number}");
        // The kernel takes a dead machine's namespace, and with it the old pair, down in its own time.
        let _ = run(Command::new("ip").args(["-n", &hub, "link", "del", &link]));
        run(Command::new("ip").args([
            "-n", &hub, "link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &edge,
        ]))?;
        for (ns, dev, host) in [(&hub, link.as_str(), 1), (&edge, "eth0", 2)] {
            run(Command::new("ip").args([
                "-n",
                ns,
                "addr",
                "add",
                &format!("10.99.{number}.{host}/24"),
                "dev",
                dev,
            ]))?;
            run(Command::new("ip").args(["-n", ns, "link", "set", dev, "up"]))?;
        }
        run(Command::new("ip").args([
            "-n",
            &edge,
            "route",
            "add",
            "default",
            "via",
            &format!("10.99.{number}.1"),
        ]))?;
        self.filter(&link)
    }

    fn filter(&self, link: &str) -> Result<()> {
        let hub = self.namespace("hub");
        let rules = format!(
            "table inet kedge_{link}\ndelete table inet kedge_{link}\ntable inet kedge_{link} {{\n chain in {{\n  type filter hook input priority 0; policy accept;\n  iifname != \"{link}\" accept\n  \
             ct state established,related accept\n  meta l4proto {{ tcp, udp }} th dport {JOIN_PORT} accept\n  tcp dport {API_PORT} accept\n  \
             icmp type echo-request accept\n  counter drop\n }}\n}}\n"
        );
        let file = self.dir.join(format!("{link}.nft"));
        fs::write(&file, rules)?;
        run(Command::new("ip").args(["netns", "exec", &hub, "nft", "-f"]).arg(&file))?;
        Ok(())
    }

    /// Cuts or restores edge `number`'s wire, or all its emulated links.
    ///
    /// # Errors
    /// When iproute2 fails.
    pub fn set_link(&self, number: u8, up: bool) -> Result<()> {
        if self.uplinks.set_all(number, up)? {
            return Ok(());
        }
        let state = if up { "up" } else { "down" };
        run(Command::new("ip").args([
            "-n",
            &self.namespace("hub"),
            "link",
            "set",
            &format!("e{number}"),
            state,
        ]))?;
        Ok(())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.uplinks.stop_all();
        if std::thread::panicking() || std::env::var_os("KEDGE_KEEP").is_some() {
            let kept = PathBuf::from("/tmp").join(format!("kept-{}", self.id));
            sweep::remove_site(&self.id, Some(&kept));
            eprintln!("logs kept in {}", kept.display());
        } else {
            sweep::remove_site(&self.id, None);
        }
    }
}
