//! What the kernel says of its network: the part that decides which devices lead to the hub.

use std::net::IpAddr;

/// `RT_TABLE_MAIN` and `RT_TABLE_DEFAULT`: what a kernel without rules looks into.
const TABLES: [u32; 2] = [254, 253];

/// A network, as in a route or a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// Its address.
    pub address: IpAddr,
    /// Bits of it that count.
    pub length: u8,
}

impl Prefix {
    /// Whether an address is in it.
    pub fn covers(&self, address: IpAddr) -> bool {
        let (own, other, width) = match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => (u128::from(own.to_bits()), u128::from(other.to_bits()), 32),
            (IpAddr::V6(own), IpAddr::V6(other)) => (own.to_bits(), other.to_bits(), 128),
            _ => return false,
        };
        let ignored = width - u32::from(self.length).min(width);
        // A shift by the whole width is none.
        (own ^ other).checked_shr(ignored).unwrap_or(0) == 0
    }

    /// Everything, or one of the halves of it that VPN programs write in its place.
    pub fn is_default(&self) -> bool {
        self.length <= 1
    }
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number; one that is plugged in again has another.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// An administrator's wish.
    pub up: bool,
    /// It can carry packets: operational state up or unknown (RFC 2863), and a carrier.
    pub carrier: bool,
    /// `lo`.
    pub loopback: bool,
    /// `bridge`, `veth`, `wireguard`…; empty for hardware.
    pub kind: String,
}

/// An address of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The device's index.
    pub link: u32,
    /// The address.
    pub address: IpAddr,
    /// A hub elsewhere can answer it: not of link or host scope, not tentative, duplicate or deprecated.
    pub usable: bool,
}

/// Where a route goes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The device's index.
    pub link: u32,
    /// The router; none: on the link.
    pub gateway: Option<IpAddr>,
}

/// A unicast route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its table.
    pub table: u32,
    /// What it leads to.
    pub destination: Prefix,
    /// The lower, the better.
    pub metric: u32,
    /// Several: the kernel spreads flows over them.
    pub hops: Vec<Hop>,
}

/// A rule that says which table is looked into. Only those that ask for a source, an output device, or nothing: those that need a mark or
/// a port are not met by our packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The lower, the earlier.
    pub priority: u32,
    /// For IPv6.
    pub v6: bool,
    /// Only packets from here.
    pub source: Option<Prefix>,
    /// Only packets that must leave by this device.
    pub output: Option<String>,
    /// Where to look.
    pub table: u32,
}

/// The kernel's network at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kernel {
    /// Devices.
    pub links: Vec<Link>,
    /// Addresses.
    pub addresses: Vec<Address>,
    /// Unicast routes whose next hops live.
    pub routes: Vec<Route>,
    /// Rules by priority.
    pub rules: Vec<Rule>,
}

impl Kernel {
    /// The device of this name.
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// Whether this machine itself has the address.
    pub fn is_local(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.addresses.iter().any(|own| own.address == address)
    }

    /// The device's addresses of one family that a hub can answer.
    pub fn usable(&self, link: u32, v6: bool) -> impl Iterator<Item = IpAddr> + '_ {
        let own = self.addresses.iter().filter(move |own| own.link == link && own.usable);
        own.map(|own| own.address)
            .filter(move |address| address.is_ipv6() == v6)
    }

    /// The tables that a packet meets, in order: from `source` (unknown: only rules that do not ask), bound to `device` or to none.
    pub fn tables(&self, v6: bool, source: Option<IpAddr>, device: Option<&str>) -> Vec<u32> {
        let family = || self.rules.iter().filter(|rule| rule.v6 == v6);
        if family().next().is_none() {
            return TABLES.to_vec();
        }
        let meets = |rule: &&Rule| {
            let from = rule
                .source
                .is_none_or(|wanted| source.is_some_and(|source| wanted.covers(source)));
            let by = rule.output.as_deref().is_none_or(|wanted| device == Some(wanted));
            from && by
        };
        family().filter(meets).map(|rule| rule.table).collect()
    }

    /// The route by which the kernel answers `destination` from `source` on a socket bound to nothing; what strict reverse path
    /// filtering asks. `destination` unknown: whatever the default routes lead to.
    pub fn best(&self, source: IpAddr, destination: Option<IpAddr>) -> Option<&Route> {
        let v6 = source.is_ipv6();
        let leads = |route: &&Route| {
            route.destination.address.is_ipv6() == v6
                && match destination {
                    Some(destination) => route.destination.covers(destination),
                    None => route.destination.is_default(),
                }
        };
        self.tables(v6, Some(source), None).into_iter().find_map(|table| {
            let routes = self.routes.iter().filter(|route| route.table == table).filter(leads);
            routes.min_by_key(|route| (u8::MAX - route.destination.length, route.metric))
        })
    }
}
