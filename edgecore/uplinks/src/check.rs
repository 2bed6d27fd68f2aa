//! What keeps a device from being an uplink, and the commands that put it right: `kedge check`.
//!
//! Two things do, silently. A device without a route of its own is not used. One with a route, but whose answers the kernel throws away
//! because it would itself answer over another device (RFC 3704 §2.2, `rp_filter` 1), is used, and nothing ever comes back.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use crate::choose::{Device, candidates};
use crate::kernel::{Kernel, Link, Route};

/// `net.ipv4.conf.*.rp_filter`.
const STRICT: u8 = 1;
/// Tables that the commands name begin here.
const FIRST_TABLE: u32 = 100;
/// A metric behind those that DHCP clients and network managers give.
const LAST_METRIC: u32 = 1000;
/// Kinds of devices on whose nets machines talk to themselves.
const INNER: [&str; 9] = [
    "bridge",
    "dummy",
    "geneve",
    "ipvlan",
    "macvlan",
    "tun",
    "vrf",
    "vxlan",
    "wireguard",
];

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// This is right.
    Good(String),
    /// This is worth a look.
    Warning(String),
    /// This uplink does not work; with the fix.
    Bad(String),
}

/// What is checked.
#[derive(Debug)]
pub struct Question<'a> {
    /// The kernel's network.
    pub kernel: &'a Kernel,
    /// The hub's addresses, as far as they are known.
    pub hubs: &'a [IpAddr],
    /// Devices that the configuration lists as uplinks; none: they are found.
    pub listed: &'a [String],
    /// How strictly each device filters: [`rp_filters`].
    pub rp_filters: BTreeMap<String, u8>,
}

/// `rp_filter` of each device, the larger of its own and that of `all`, from /proc/sys of the calling thread's namespace.
///
/// # Errors
/// When a file of /proc/sys cannot be read.
pub fn rp_filters(kernel: &Kernel) -> io::Result<BTreeMap<String, u8>> {
    let one = |name: &str| {
        let file = Path::new("/proc/sys/net/ipv4/conf").join(name).join("rp_filter");
        let text = fs::read_to_string(file)?;
        text.trim().parse::<u8>().map_err(io::Error::other)
    };
    let all = one("all")?;
    let mut filters = BTreeMap::new();
    for link in &kernel.links {
        match one(&link.name) {
            Ok(own) => drop(filters.insert(link.name.clone(), own.max(all))),
            // It is gone, or IPv4 does not know it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filters)
}

impl Question<'_> {
    /// A line for each uplink, and for each device that could be one.
    pub fn findings(&self) -> Vec<Finding> {
        if self.listed.is_empty() && self.hubs.iter().any(|hub| self.kernel.is_local(*hub)) {
            return vec![Finding::Good(
                "the hub is on this machine: no uplinks are needed".to_owned(),
            )];
        }
        let used = self.used();
        let mut findings: Vec<Finding> = match used.as_slice() {
            // Packets leave by the best route, and answers come back there.
            [only] if self.listed.is_empty() => vec![Finding::Good(format!(
                "one uplink, {}: the routes are followed",
                only.name
            ))],
            used => used.iter().map(|device| self.judge(device)).collect(),
        };
        findings.extend(self.without_route(&used));
        if used.is_empty() && self.listed.is_empty() {
            findings.push(Finding::Warning("no device leads to the hub now".to_owned()));
        }
        findings
    }

    fn used(&self) -> Vec<Device> {
        let mut used = candidates(self.kernel, self.hubs);
        used.retain(|device| self.listed.is_empty() || self.listed.contains(&device.name));
        used
    }

    fn judge(&self, device: &Device) -> Finding {
        // There is no such filter for IPv6.
        let asked = self.hubs.is_empty() || self.hubs.iter().any(IpAddr::is_ipv4);
        let mut addresses = self.kernel.usable(device.index, false).filter(|_| asked);
        match addresses.find(|address| self.hears(device, *address).is_none()) {
            Some(address) if self.rp_filters.get(&device.name) == Some(&STRICT) => {
                Finding::Bad(self.strict(device, address))
            }
            _ => Finding::Good(format!("uplink {}: the hub's answers reach it", device.name)),
        }
    }

    /// The route by which the kernel would answer the hub from this address, when it is by this device.
    fn hears(&self, device: &Device, address: IpAddr) -> Option<&Route> {
        let hub = self.hubs.iter().find(|hub| hub.is_ipv4()).copied();
        let route = self.kernel.best(address, hub)?;
        route.hops.iter().any(|hop| hop.link == device.index).then_some(route)
    }

    fn strict(&self, device: &Device, address: IpAddr) -> String {
        let name = &device.name;
        let gateway = self
            .gateway(device)
            .map_or_else(String::new, |gateway| format!(" via {gateway}"));
        let table = self.free_table(device.index);
        format!(
            "uplink {name}: the kernel drops what the hub answers over it (rp_filter is 1, strict, and the best route from {address} \
             to the hub is another device's). Either: sysctl -w net.ipv4.conf.{}.rp_filter=2. Or give it a route of its own: \
             ip route add default{gateway} dev {name} table {table} && ip rule add from {address} lookup {table}",
            name.replace('.', "/")
        )
    }

    fn gateway(&self, device: &Device) -> Option<IpAddr> {
        let hops = self
            .kernel
            .routes
            .iter()
            .filter(|route| route.destination.is_default())
            .flat_map(|route| &route.hops);
        let ours = hops.filter(|hop| hop.link == device.index);
        ours.filter_map(|hop| hop.gateway).find(IpAddr::is_ipv4)
    }

    /// A table that has no routes and that no rule names; others for other devices.
    fn free_table(&self, index: u32) -> u32 {
        let taken = |table: &u32| {
            let routes = self.kernel.routes.iter().any(|route| route.table == *table);
            routes || self.kernel.rules.iter().any(|rule| rule.table == *table)
        };
        let mut table = FIRST_TABLE + index % 100;
        while taken(&table) {
            table += 100;
        }
        table
    }

    fn without_route(&self, used: &[Device]) -> Vec<Finding> {
        if !self.listed.is_empty() {
            let unused = self
                .listed
                .iter()
                .filter(|name| used.iter().all(|device| device.name != **name));
            return unused.map(|name| self.listed_without_route(name)).collect();
        }
        let links = self
            .kernel
            .links
            .iter()
            .filter(|link| link.up && link.carrier && !link.loopback && !INNER.contains(&link.kind.as_str()));
        let unused = links.filter(|link| used.iter().all(|device| device.index != link.index));
        unused.filter_map(|link| self.unlisted_without_route(link)).collect()
    }

    fn listed_without_route(&self, name: &str) -> Finding {
        let Some(link) = self.kernel.link(name) else {
            return Finding::Warning(format!("uplink {name}: there is no such device now"));
        };
        let fix = match self.an_address(link) {
            _ if !link.up => format!("it is down: ip link set {name} up"),
            _ if !link.carrier => return Finding::Warning(format!("uplink {name}: it has no carrier now")),
            None => format!("it has no address: ip addr add ADDRESS/LENGTH dev {name}, or let DHCP give it one"),
            Some(address) => format!("no route to the hub is its own: {}", route_fix(name, address)),
        };
        Finding::Bad(format!("uplink {name}: {fix}"))
    }

    fn unlisted_without_route(&self, link: &Link) -> Option<Finding> {
        let (name, address) = (&link.name, self.an_address(link)?);
        Some(Finding::Warning(format!(
            "{name} ({address}) has no route of its own to the hub, so it is no uplink. If it leads there: {}",
            route_fix(name, address)
        )))
    }

    fn an_address(&self, link: &Link) -> Option<IpAddr> {
        let usable = |v6| self.kernel.usable(link.index, v6).next();
        usable(false).or_else(|| usable(true))
    }
}

fn route_fix(name: &str, address: IpAddr) -> String {
    let family = if address.is_ipv6() { " -6" } else { "" };
    format!("ip{family} route add default via GATEWAY dev {name} metric {LAST_METRIC}")
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
