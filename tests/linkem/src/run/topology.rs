//! Namespaces, devices, addresses, routes and the router's NAT, by iproute2 and nft.
//!
//! ```text
//! edge                                            router                                        hub
//! NAME  10.90.i.2 ─TUN─ emulator ─TUN─ 10.90.i.1  NAME │ NAT │ hub 192.0.2.x ─────veth───── lemN  its ONE address
//! default via each NAME, metric 100 × i           198.18.x.x: one public address a link
//! ```

use std::fs;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::sched::{CloneFlags, setns};

use super::scenario::{EdgeSpec, HubSpec, Scenario};
use super::sys;
use crate::Family;

/// What the namespaces made here begin with, before the process's id.
const PREFIX: &str = "lem";
/// Packets that a device holds for the emulator: 30 ms at 1 Gbit/s.
const DEVICE_QUEUE: u32 = 2500;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Runs `work` on a thread inside network namespace `name`: what it opens is there.
///
/// # Errors
/// When there is no such namespace or it cannot be entered.
///
/// # Panics
/// With what `work` panics with.
pub fn inside<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
    let path = Path::new("/run/netns").join(name);
    let run = || -> Result<T> {
        let namespace = fs::File::open(&path).with_context(|| format!("{}", path.display()))?;
        setns(namespace, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {name}"))?;
        Ok(work())
    };
    thread::scope(|scope| scope.spawn(run).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The edge's and the router's device of a link.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) edge: OwnedFd,
    pub(crate) router: OwnedFd,
}

/// The two counts of packets that the kernel dropped before the emulator read them: up, down.
pub(crate) type Missed = [u64; 2];

#[derive(Debug)]
struct Uplink {
    name: String,
    /// From 1.
    index: usize,
    family: Family,
    mtu: u32,
}

/// All of it; what was made is removed on drop.
#[derive(Debug)]
pub(crate) struct Topology {
    pub(crate) edge: String,
    pub(crate) router: String,
    pub(crate) hub: String,
    made: Vec<String>,
    number: u8,
    hub_spec: HubSpec,
    edge_spec: EdgeSpec,
    uplinks: Vec<Uplink>,
}

impl Topology {
    /// Makes what `scenario` asks for, after sweeping what killed emulators left.
    ///
    /// # Errors
    /// When not root, a name is taken, or iproute2 or nft fail.
    pub(crate) fn build(scenario: &Scenario) -> Result<(Self, Vec<Pair>)> {
        sweep();
        let names = &scenario.namespaces;
        let ours = || {
            format!(
                "{PREFIX}{}-{}",
                std::process::id(),
                NEXT.fetch_add(1, Ordering::Relaxed)
            )
        };
        let prefix = names.prefix.clone().unwrap_or_else(ours);
        let uplinks = scenario.links.iter().enumerate().map(|(at, link)| Uplink {
            name: link.name.clone(),
            index: at + 1,
            family: link.family,
            mtu: link.mtu,
        });
        let mut topology = Self {
            edge: names.edge.clone().unwrap_or_else(|| format!("{prefix}-edge")),
            router: format!("{prefix}-router"),
            hub: names.hub.clone().unwrap_or_else(|| format!("{prefix}-hub")),
            made: Vec::new(),
            number: names.number,
            hub_spec: scenario.hub.clone(),
            edge_spec: scenario.edge.clone(),
            uplinks: uplinks.collect(),
        };
        topology.add_namespaces(names.edge.is_none(), names.hub.is_none())?;
        let pairs = topology.add_devices()?;
        topology.set_up_hub().context("the hub's side")?;
        topology.set_up_router().context("the router")?;
        topology.set_up_edge().context("the edge's side")?;
        Ok((topology, pairs))
    }

    fn add_namespaces(&mut self, edge: bool, hub: bool) -> Result<()> {
        let wanted = [
            (true, self.router.clone()),
            (edge, self.edge.clone()),
            (hub, self.hub.clone()),
        ];
        for (_, name) in wanted.into_iter().filter(|(make, _)| *make) {
            run(Command::new("ip").args(["netns", "add", &name]), "")?;
            ip(&name, &["link set dev lo up".into()])?;
            self.made.push(name);
        }
        Ok(())
    }

    fn add_devices(&self) -> Result<Vec<Pair>> {
        let open = |namespace: &str, uplink: &Uplink| -> Result<OwnedFd> {
            let name = &uplink.name;
            inside(namespace, || sys::tun(name))?.with_context(|| format!("make TUN device {name} in {namespace}"))
        };
        let pair = |uplink| {
            Ok(Pair {
                edge: open(&self.edge, uplink)?,
                router: open(&self.router, uplink)?,
            })
        };
        self.uplinks.iter().map(pair).collect()
    }

    fn has_ipv6(&self) -> bool {
        self.uplinks.iter().any(|uplink| uplink.family.has_ipv6())
    }

    /// The hub's device of this emulation.
    pub(crate) fn hub_device(&self) -> String {
        format!("{PREFIX}{}", self.number)
    }

    fn gateway(&self) -> String {
        format!("192.0.2.{}", self.number + 1)
    }

    fn gateway6(&self) -> String {
        format!("2001:db8:fffe:{:x}::1", self.number)
    }

    /// 2048 public addresses: 256 for each of 8 links.
    fn public_block(&self) -> String {
        let first = u32::from(self.number) * 2048;
        format!("198.{}.{}.0/21", 18 + (first >> 16), (first >> 8) & 255)
    }

    /// The public address of uplink `index` (from 1) after `rebinds`; it comes again after 254.
    fn public(&self, index: usize, rebinds: u32) -> String {
        let third = u32::from(self.number) * 8 + index as u32 - 1;
        format!("198.{}.{}.{}", 18 + (third >> 8), third & 255, rebinds % 254 + 1)
    }

    fn prefix6(&self) -> String {
        format!("fd90:0:{:x}", self.number)
    }

    fn set_up_hub(&self) -> Result<()> {
        let (device, HubSpec { address, address6 }) = (self.hub_device(), &self.hub_spec);
        // One whose emulator was killed goes in the kernel's own time.
        let _ = ip(&self.hub, &[format!("link del dev {device}")]);
        ip(
            &self.hub,
            &[format!(
                "link add {device} type veth peer name hub netns {}",
                self.router
            )],
        )?;
        if !self.has_ipv6() {
            set(&self.hub, &format!("ipv6/conf/{device}/disable_ipv6"), "1")?;
        }
        let mut lines = vec![format!("link set dev {device} up txqueuelen {DEVICE_QUEUE}")];
        let known = run(Command::new("ip").args(["-n", &self.hub, "-o", "addr", "show"]), "")?;
        let has = |address: &str| known.contains(&format!(" {address}/"));
        if !has(&address.to_string()) {
            lines.push(format!("addr add {address}/32 dev {device}"));
        }
        lines.push(format!("route add {} dev {device} src {address}", self.gateway()));
        lines.push(format!(
            "route add {} via {} dev {device} src {address}",
            self.public_block(),
            self.gateway()
        ));
        if self.has_ipv6() {
            if !has(&address6.to_string()) {
                lines.push(format!("addr add {address6}/128 dev {device} nodad"));
            }
            lines.push(format!("route add {}/128 dev {device}", self.gateway6()));
            lines.push(format!(
                "route add {}::/48 via {} dev {device} src {address6}",
                self.prefix6(),
                self.gateway6()
            ));
        }
        ip(&self.hub, &lines)
    }

    fn set_up_router(&self) -> Result<()> {
        let HubSpec { address, address6 } = &self.hub_spec;
        set(&self.router, "ipv4/ip_forward", "1")?;
        set(&self.router, "ipv4/conf/all/rp_filter", "0")?;
        let mut lines = vec![
            format!("addr add {}/32 dev hub", self.gateway()),
            format!("link set dev hub up txqueuelen {DEVICE_QUEUE}"),
            format!("route add {address} dev hub src {}", self.gateway()),
            // What comes for a mapping that is gone gets no answer.
            format!("route add blackhole {}", self.public_block()),
        ];
        if self.has_ipv6() {
            set(&self.router, "ipv6/conf/all/forwarding", "1")?;
            lines.push(format!("addr add {}/128 dev hub nodad", self.gateway6()));
            lines.push(format!("route add {address6}/128 dev hub"));
        } else {
            set(&self.router, "ipv6/conf/hub/disable_ipv6", "1")?;
        }
        for uplink in &self.uplinks {
            let (name, index) = (&uplink.name, uplink.index);
            set(&self.router, &format!("ipv4/conf/{name}/rp_filter"), "0")?;
            self.prepare(&self.router, uplink)?;
            if uplink.family.has_ipv4() {
                lines.push(format!("addr add 10.90.{index}.1/24 dev {name}"));
            }
            lines.push(format!(
                "link set dev {name} up mtu {} txqueuelen {DEVICE_QUEUE}",
                uplink.mtu
            ));
            if uplink.family.has_ipv6() {
                lines.push(format!("addr add {}:{index}::1/64 dev {name} nodad", self.prefix6()));
            }
        }
        ip(&self.router, &lines)?;
        self.nft(FIREWALL)?;
        self.uplinks.iter().try_for_each(|uplink| self.map(uplink, 0))
    }

    /// A device says nothing of its own accord where it has no IPv6: each packet on the link is somebody's.
    fn prepare(&self, namespace: &str, uplink: &Uplink) -> Result<()> {
        let Uplink { name, family, .. } = uplink;
        set(
            namespace,
            &format!("ipv6/conf/{name}/disable_ipv6"),
            if family.has_ipv6() { "0" } else { "1" },
        )?;
        ip(namespace, &[format!("link set dev {name} addrgenmode none")])
    }

    fn set_up_edge(&self) -> Result<()> {
        let filter = self.edge_spec.rp_filter.to_string();
        set(&self.edge, "ipv4/conf/all/rp_filter", &filter)?;
        for uplink in &self.uplinks {
            let Uplink {
                name,
                index,
                family,
                mtu,
            } = uplink;
            set(&self.edge, &format!("ipv4/conf/{name}/rp_filter"), &filter)?;
            self.prepare(&self.edge, uplink)?;
            let mut lines = vec![format!("link set dev {name} mtu {mtu} txqueuelen {DEVICE_QUEUE}")];
            if family.has_ipv4() {
                lines.extend(self.address("add", uplink, 0));
            }
            ip(&self.edge, &lines)?;
            self.raise(index - 1)?;
        }
        Ok(())
    }

    /// Adds or deletes (`verb`) the address that the edge has on `uplink` after `changes`, with its rule.
    fn address(&self, verb: &str, uplink: &Uplink, changes: u32) -> Vec<String> {
        let Uplink { name, index, .. } = uplink;
        let address = format!("10.90.{index}.{}", changes % 250 + 2);
        let mut lines = vec![format!("addr {verb} {address}/24 dev {name}")];
        if self.edge_spec.source_rules {
            let (table, preference) = (100 + index, 1000 + index);
            lines.push(format!("rule {verb} from {address} lookup {table} pref {preference}"));
        }
        lines
    }

    /// Takes the edge's address on uplink `at` (from 0) away and gives another: the `changes`th time. A device that was down is up then.
    ///
    /// # Errors
    /// When the uplink has no IPv4, or iproute2 fails.
    pub(crate) fn readdress(&self, at: usize, changes: u32) -> Result<()> {
        let uplink = self.uplinks.get(at).context("no such uplink")?;
        ensure!(uplink.family.has_ipv4(), "{}: it has no IPv4 address", uplink.name);
        // First without: a second address of the same network would go with the first.
        let mut lines = self.address("del", uplink, changes - 1);
        lines.extend(self.address("add", uplink, changes));
        ip(&self.edge, &lines)?;
        self.raise(at)
    }

    /// Takes the edge's device of uplink `at` (from 0) down; its routes go with it.
    ///
    /// # Errors
    /// When iproute2 fails.
    pub(crate) fn lower(&self, at: usize) -> Result<()> {
        let uplink = self.uplinks.get(at).context("no such uplink")?;
        ip(&self.edge, &[format!("link set dev {} down", uplink.name)])
    }

    /// Takes it up again, with its routes.
    ///
    /// # Errors
    /// When iproute2 fails.
    pub(crate) fn raise(&self, at: usize) -> Result<()> {
        let Uplink {
            name, index, family, ..
        } = self.uplinks.get(at).context("no such uplink")?;
        let metric = 100 * index;
        let mut lines = vec![format!("link set dev {name} up")];
        if family.has_ipv4() {
            let route = format!("route replace default via 10.90.{index}.1 dev {name}");
            lines.push(format!("{route} metric {metric}"));
            if self.edge_spec.source_rules {
                lines.push(format!("{route} table {}", 100 + index));
            }
        }
        if family.has_ipv6() {
            let prefix = format!("{}:{index}", self.prefix6());
            lines.push(format!("addr replace {prefix}::2/64 dev {name} nodad"));
            lines.push(format!(
                "route replace default via {prefix}::1 dev {name} metric {metric}"
            ));
        }
        ip(&self.edge, &lines)
    }

    /// Makes the router forget the mappings of uplink `at` (from 0), and show another address and other ports: the `rebinds`th time.
    ///
    /// # Errors
    /// When the uplink has no NAT, or nft fails.
    pub(crate) fn rebind(&self, at: usize, rebinds: u32) -> Result<()> {
        let uplink = self.uplinks.get(at).context("no such uplink")?;
        ensure!(uplink.family.has_ipv4(), "{}: IPv6 has no NAT", uplink.name);
        self.map(uplink, rebinds)
    }

    /// Conntrack's zone is part of a mapping's key: in a new zone there is no old mapping.
    fn map(&self, uplink: &Uplink, rebinds: u32) -> Result<()> {
        let Uplink { name, index, .. } = uplink;
        let (zone, public) = (*index as u32 * 256 + rebinds % 254, self.public(*index, rebinds));
        let port = 20_000 + rebinds % 40 * 1000;
        let table = format!("table ip link{index}");
        self.nft(&format!(
            "{table}\ndelete {table}\n{table} {{\n chain zone {{\n  type filter hook prerouting priority raw; policy accept;\n  \
             iifname \"{name}\" ct zone set {zone}\n  iifname \"hub\" ip daddr {public} ct zone set {zone}\n }}\n chain nat {{\n  \
             type nat hook postrouting priority srcnat; policy accept;\n  \
             oifname \"hub\" ip saddr 10.90.{index}.0/24 meta l4proto {{ tcp, udp }} snat to {public}:{port}-{}\n  \
             oifname \"hub\" ip saddr 10.90.{index}.0/24 snat to {public}\n }}\n}}\n",
            port + 999
        ))
    }

    fn nft(&self, rules: &str) -> Result<()> {
        run(
            Command::new("ip").args(["netns", "exec", &self.router, "nft", "-f", "-"]),
            rules,
        )?;
        Ok(())
    }

    /// Removes the namespaces that were made, and what is in them; again is fine.
    pub(crate) fn remove(&self) {
        for name in &self.made {
            remove_namespace(name);
        }
    }

    /// Packets that the kernel dropped before the emulator read them.
    ///
    /// # Errors
    /// When a namespace cannot be entered.
    pub(crate) fn missed(&self) -> Result<Vec<Missed>> {
        let table = |namespace| inside(namespace, || fs::read_to_string("/proc/thread-self/net/dev"));
        let (edge, router) = (table(&self.edge)??, table(&self.router)??);
        Ok(self
            .uplinks
            .iter()
            .map(|u| [dropped(&edge, &u.name), dropped(&router, &u.name)])
            .collect())
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        self.remove();
    }
}

/// From the hub only answers pass, as with every NAT. What conntrack refuses (a wrong checksum) would pass with its private address.
const FIREWALL: &str = "table inet router {\n chain forward {\n  type filter hook forward priority 0; policy drop;\n  ct state invalid drop\n  oifname \"hub\" accept\n  \
                        ct state established,related accept\n }\n}\n";

/// The packets that device `name` was to send and dropped, in the text of `/proc/net/dev`.
fn dropped(table: &str, name: &str) -> u64 {
    let line = table
        .lines()
        .find_map(|line| line.trim_start().strip_prefix(name)?.strip_prefix(':'));
    // Eight columns of what was received; then bytes, packets, errors, drops of what was sent.
    line.and_then(|columns| columns.split_whitespace().nth(11)?.parse().ok())
        .unwrap_or_default()
}

/// Removes namespaces of emulators that are no more.
fn sweep() {
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            remove_namespace(&name);
        }
    }
}

fn remove_namespace(name: &str) {
    // Already gone is what is wanted.
    let _ = run(Command::new("ip").args(["netns", "del", name]), "");
}

/// Sets `net.PATH` in `namespace`.
fn set(namespace: &str, path: &str, value: &str) -> Result<()> {
    let file = format!("/proc/sys/net/{path}");
    inside(namespace, || fs::write(&file, value))?.with_context(|| format!("set {file} in {namespace}"))
}

/// Runs lines of iproute2 in `namespace`; the first that fails ends it.
fn ip(namespace: &str, lines: &[String]) -> Result<()> {
    let text = lines.join("\n") + "\n";
    run(Command::new("ip").args(["-n", namespace, "-batch", "-"]), &text).map(drop)
}

/// Runs a command with `input`, and returns what it printed.
fn run(command: &mut Command, input: &str) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {command:?}"))?;
    let mut stdin = child.stdin.take().ok_or_else(|| anyhow!("a piped stdin"))?;
    // One that ends before it has read all says why on its stderr.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}: {}\n{input}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_read_from_the_right_column() {
        let table = "Inter-|   Receive\n face |bytes\n    lo: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n   lte: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n";
        assert_eq!(dropped(table, "lte"), 12);
        assert_eq!(dropped(table, "wifi"), 0);
    }
}
