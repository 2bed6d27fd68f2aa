//! Networks for tests, written as short as `ip` would.

use std::net::IpAddr;

use crate::kernel::{Address, Hop, Kernel, Link, Prefix, Route, Rule};

pub(crate) const MAIN: u32 = 254;

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn prefix(text: &str) -> Prefix {
    match text.split_once('/') {
        Some((address, length)) => Prefix {
            address: ip(address),
            length: length.parse().unwrap(),
        },
        None => Prefix {
            address: ip(text),
            length: if text.contains(':') { 128 } else { 32 },
        },
    }
}

/// A kernel with `lo` and the rules that it starts with.
pub(crate) fn machine() -> Kernel {
    let mut kernel = Kernel::default();
    kernel.links.push(Link {
        index: 1,
        name: "lo".to_owned(),
        up: true,
        carrier: true,
        loopback: true,
        kind: String::new(),
    });
    for v6 in [false, true] {
        for (priority, table) in [(0, 255), (32_766, MAIN), (32_767, 253)] {
            kernel.rules.push(Rule {
                priority,
                v6,
                source: None,
                output: None,
                table,
            });
        }
    }
    kernel
}

impl Kernel {
    /// A device that is up, with its addresses.
    pub(crate) fn device(mut self, name: &str, addresses: &[&str]) -> Self {
        let index = self.links.iter().map(|link| link.index).max().unwrap_or(0) + 1;
        self.links.push(Link {
            index,
            name: name.to_owned(),
            up: true,
            carrier: true,
            loopback: false,
            kind: String::new(),
        });
        self.addresses.extend(addresses.iter().map(|address| Address {
            link: index,
            address: ip(address),
            usable: !address.starts_with("fe80"),
        }));
        self
    }

    /// A route in table `table`.
    pub(crate) fn route(mut self, to: &str, device: &str, (metric, table): (u32, u32)) -> Self {
        let link = self.link(device).unwrap().index;
        let destination = prefix(to);
        let gateway = destination.is_default().then(|| {
            if destination.address.is_ipv6() {
                ip("fe80::1")
            } else {
                ip("192.0.2.1")
            }
        });
        self.routes.push(Route {
            table,
            destination,
            metric,
            hops: vec![Hop { link, gateway }],
        });
        self
    }

    /// A default route of IPv4 in the main table.
    pub(crate) fn out(self, device: &str, metric: u32) -> Self {
        self.route("0.0.0.0/0", device, (metric, MAIN))
    }

    /// `ip rule add from SOURCE lookup TABLE`
    pub(crate) fn from(mut self, source: &str, table: u32) -> Self {
        let source = prefix(source);
        self.rules.push(Rule {
            priority: 1000,
            v6: source.address.is_ipv6(),
            source: Some(source),
            output: None,
            table,
        });
        self.rules.sort_by_key(|rule| rule.priority);
        self
    }

    /// `ip rule add oif DEVICE lookup TABLE`
    pub(crate) fn out_by(mut self, device: &str, table: u32) -> Self {
        self.rules.push(Rule {
            priority: 1001,
            v6: false,
            source: None,
            output: Some(device.to_owned()),
            table,
        });
        self.rules.sort_by_key(|rule| rule.priority);
        self
    }

    /// Changes a device.
    pub(crate) fn change(mut self, device: &str, change: impl FnOnce(&mut Link)) -> Self {
        change(self.links.iter_mut().find(|link| link.name == device).unwrap());
        self
    }

    /// Takes a device away, and all that hangs on it.
    pub(crate) fn without(mut self, device: &str) -> Self {
        let index = self.link(device).unwrap().index;
        self.links.retain(|link| link.index != index);
        self.addresses.retain(|address| address.link != index);
        self.routes.retain(|route| route.hops[0].link != index);
        self
    }
}
