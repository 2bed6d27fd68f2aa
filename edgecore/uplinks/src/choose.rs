//! From the kernel's state to the devices that are used as uplinks. Pure.
//!
//! A device leads to the hub when it is up with a carrier, has an address that a hub can answer, and a route to the hub that a socket bound to
//! it meets: in a table that is looked into for every packet, or in one of its own that a rule names for packets from its address
//! ([`Device::sources`]). Nothing is guessed from names or kinds: pods' devices and container bridges have no route to the hub.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::kernel::{Kernel, Link, Route};

/// As many paths as a session of the tunnel may have.
pub const MAX_DEVICES: usize = 8;
/// How long a device that has lost its carrier, address or route stays an uplink: Wi-Fi roams, a modem reconnects. Meanwhile the
/// session sees by itself that nothing comes through.
pub const HOLD: Duration = Duration::from_secs(10);

/// Kinds that ride on another uplink: their packets would be counted, and repaired, twice.
const TUNNELS: [&str; 1] = ["wireguard"];

/// A device that leads to the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its number: one that is plugged in again is another device.
    pub index: u32,
    /// Addresses to send from, at most one a family; none for a family whose route is met by all packets.
    pub sources: Vec<IpAddr>,
}

/// How a device leads to the hub.
struct Way {
    metric: u32,
    sources: Vec<IpAddr>,
}

/// The devices that lead to one of `hubs`, the best route first, at most [`MAX_DEVICES`]. Empty `hubs`: their addresses are not known
/// yet, and a default route must do.
pub fn candidates(kernel: &Kernel, hubs: &[IpAddr]) -> Vec<Device> {
    let mut found: Vec<(u32, Device)> = kernel
        .links
        .iter()
        .filter(|link| may_lead(link))
        .filter_map(|link| {
            let Way { metric, sources } = way(kernel, link, hubs)?;
            let device = Device {
                name: link.name.clone(),
                index: link.index,
                sources,
            };
            Some((metric, device))
        })
        .collect();
    found.sort_by(|one, other| (one.0, &one.1.name).cmp(&(other.0, &other.1.name)));
    found.truncate(MAX_DEVICES);
    found.into_iter().map(|(_, device)| device).collect()
}

/// What to send from over the device of this name, where its route is in a table of its own; see [`Device::sources`].
pub fn sources(kernel: &Kernel, device: &str, hubs: &[IpAddr]) -> Vec<IpAddr> {
    let way = kernel.link(device).and_then(|link| way(kernel, link, hubs));
    way.map(|way| way.sources).unwrap_or_default()
}

fn may_lead(link: &Link) -> bool {
    link.up && link.carrier && !link.loopback && !TUNNELS.contains(&link.kind.as_str())
}

fn way(kernel: &Kernel, link: &Link, hubs: &[IpAddr]) -> Option<Way> {
    let families = [false, true].into_iter();
    let asked = families.filter(|v6| hubs.is_empty() || hubs.iter().any(|hub| hub.is_ipv6() == *v6));
    let mut found: Option<Way> = None;
    for v6 in asked {
        let Some((metric, source)) = way_of_family(kernel, link, hubs, v6) else {
            continue;
        };
        let way = found.get_or_insert(Way {
            metric,
            sources: Vec::new(),
        });
        way.metric = way.metric.min(metric);
        way.sources.extend(source);
    }
    found
}

/// The route's metric, and the address that must be sent from for the route to be met.
fn way_of_family(kernel: &Kernel, link: &Link, hubs: &[IpAddr], v6: bool) -> Option<(u32, Option<IpAddr>)> {
    let leads = |tables: &[u32]| {
        let routes = kernel.routes.iter().filter(|route| {
            tables.contains(&route.table)
                && route.destination.address.is_ipv6() == v6
                && route.hops.iter().any(|hop| hop.link == link.index)
                && leads_to(kernel, route, hubs)
        });
        routes.map(|route| route.metric).min()
    };
    kernel.usable(link.index, v6).next()?;
    if let Some(metric) = leads(&kernel.tables(v6, None, Some(&link.name))) {
        return Some((metric, None));
    }
    kernel.usable(link.index, v6).find_map(|source| {
        let metric = leads(&kernel.tables(v6, Some(source), Some(&link.name)))?;
        Some((metric, Some(source)))
    })
}

fn leads_to(kernel: &Kernel, route: &Route, hubs: &[IpAddr]) -> bool {
    let default = route.destination.is_default();
    if hubs.is_empty() {
        return default;
    }
    hubs.iter()
        .any(|hub| route.destination.covers(*hub) && !(default && is_near(kernel, *hub)))
}

/// A private address on a net that this machine is connected to is not looked for in the internet.
fn is_near(kernel: &Kernel, hub: IpAddr) -> bool {
    let private = match hub {
        IpAddr::V4(hub) => hub.is_private() || hub.is_link_local(),
        IpAddr::V6(hub) => hub.is_unique_local() || hub.is_unicast_link_local(),
    };
    let leads = |index| {
        kernel
            .links
            .iter()
            .any(|link| link.index == index && link.up && link.carrier)
    };
    private
        && kernel.routes.iter().any(|route| {
            !route.destination.is_default()
                && route.destination.covers(hub)
                && route.hops.iter().any(|hop| leads(hop.link))
        })
}

#[derive(Debug)]
struct Held {
    device: Device,
    /// It leads nowhere since.
    lost: Option<Instant>,
}

/// Which devices are bound as uplinks, over time.
///
/// With one device the tunnel follows the machine's routes, whatever they are; from the second on it uses each device by its name, and
/// then stays with devices as long as there is one: going back to the routes would end the session's last path.
#[derive(Debug, Default)]
pub struct Chooser {
    held: BTreeMap<String, Held>,
    /// The order in which they are named.
    order: Vec<String>,
    bound: bool,
}

impl Chooser {
    /// The devices to use now; none: follow the routes. And when to ask again though nothing changes.
    pub fn update(&mut self, now: Instant, kernel: &Kernel, hubs: &[IpAddr]) -> (Vec<Device>, Option<Instant>) {
        self.hold(now, kernel, candidates(kernel, hubs));
        let again = self.held.values().filter_map(|held| held.lost).min();
        let again = again.map(|lost| lost + HOLD);
        if hubs.iter().any(|hub| kernel.is_local(*hub)) {
            // The way to the hub is no device's.
            self.bound = false;
            return (Vec::new(), again);
        }
        self.bound = if self.bound {
            !self.held.is_empty()
        } else {
            self.held.len() > 1
        };
        let devices = self.order.iter().filter_map(|name| self.held.get(name));
        let devices = devices.filter(|_| self.bound).map(|held| held.device.clone());
        (devices.collect(), again)
    }

    fn hold(&mut self, now: Instant, kernel: &Kernel, found: Vec<Device>) {
        self.held.retain(|name, held| {
            let same = |link: &Link| link.up && link.index == held.device.index;
            let lost = held.lost.is_none_or(|lost| now < lost + HOLD);
            lost && kernel.link(name).is_some_and(same)
        });
        for held in self.held.values_mut() {
            let leads = found.iter().any(|device| device.name == held.device.name);
            held.lost = if leads { None } else { held.lost.or(Some(now)) };
        }
        for device in found {
            if self.held.len() < MAX_DEVICES || self.held.contains_key(&device.name) {
                self.order.retain(|name| *name != device.name);
                self.order.push(device.name.clone());
                self.held.insert(device.name.clone(), Held { device, lost: None });
            }
        }
        self.order.retain(|name| self.held.contains_key(name));
    }
}

#[cfg(test)]
#[path = "choose_tests.rs"]
mod tests;
