//! rtnetlink messages (rtnetlink(7)) into [`Kernel`]. What a message has beside what is asked here is skipped, whatever it is: kernels add
//! attributes with every release. What is too short is skipped whole.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::kernel::{Address, Hop, Kernel, Link, Prefix, Route, Rule};

/// Message types: `RTM_NEW…` is what a dump answers with, `RTM_GET…` asks.
pub(crate) mod message {
    pub(crate) const ERROR: u16 = 2;
    pub(crate) const DONE: u16 = 3;
    pub(crate) const NEW_LINK: u16 = 16;
    pub(crate) const NEW_ADDRESS: u16 = 20;
    pub(crate) const NEW_ROUTE: u16 = 24;
    pub(crate) const NEW_RULE: u16 = 32;
}

/// Bytes of `nlmsghdr`.
pub(crate) const HEADER: usize = 16;
/// Bytes of `ifinfomsg`, `ifaddrmsg`, `rtmsg`, `fib_rule_hdr`.
pub(crate) const LINK_HEADER: usize = 16;
pub(crate) const ADDRESS_HEADER: usize = 8;
pub(crate) const ROUTE_HEADER: usize = 12;
pub(crate) const RULE_HEADER: usize = 12;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// One message of a datagram.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) body: &'a [u8],
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Takes `length` bytes off, and what pads them to four.
fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let taken = rest.get(..length)?;
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some(taken)
}

/// The messages of a datagram, up to one that is cut off.
pub(crate) fn messages(mut rest: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = u32_at(rest, 0)? as usize;
        let message = take(&mut rest, length)?;
        Some(Message {
            kind: u16_at(message, 4)?,
            flags: u16_at(message, 6)?,
            sequence: u32_at(message, 8)?,
            body: message.get(HEADER..)?,
        })
    })
}

/// Attributes: type without its flags, value.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let attribute = take(&mut rest, length)?;
        Some((u16_at(attribute, 2)? & 0x3fff, attribute.get(4..)?))
    })
}

fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

fn address(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).into()),
        _ => None,
    }
}

/// 1 for IPv6, none for what is neither.
fn is_v6(family: u8) -> Option<bool> {
    match family {
        AF_INET => Some(false),
        AF_INET6 => Some(true),
        _ => None,
    }
}

fn unspecified(v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    }
}

/// Adds what a message of a dump says.
pub(crate) fn add(message: Message<'_>, to: &mut Kernel) {
    let body = message.body;
    match message.kind {
        message::NEW_LINK => to.links.extend(link(body)),
        message::NEW_ADDRESS => to.addresses.extend(own_address(body)),
        message::NEW_ROUTE => to.routes.extend(route(body)),
        message::NEW_RULE => to.rules.extend(rule(body)),
        _ => {}
    }
}

fn link(body: &[u8]) -> Option<Link> {
    const IFF_UP: u32 = 1;
    const IFF_LOOPBACK: u32 = 8;
    const IFLA_IFNAME: u16 = 3;
    const IFLA_OPERSTATE: u16 = 16;
    const IFLA_LINKINFO: u16 = 18;
    const IFLA_INFO_KIND: u16 = 1;
    const IFLA_CARRIER: u16 = 33;
    const OPER_UNKNOWN: u8 = 0;
    const OPER_UP: u8 = 6;

    let flags = u32_at(body, 8)?;
    let mut link = Link {
        index: u32_at(body, 4)?,
        name: String::new(),
        up: flags & IFF_UP != 0,
        carrier: true,
        loopback: flags & IFF_LOOPBACK != 0,
        kind: String::new(),
    };
    for (kind, value) in attributes(body.get(LINK_HEADER..)?) {
        match (kind, value) {
            (IFLA_IFNAME, value) => link.name = text(value),
            (IFLA_OPERSTATE, [state, ..]) => link.carrier &= matches!(*state, OPER_UNKNOWN | OPER_UP),
            (IFLA_CARRIER, [carrier, ..]) => link.carrier &= *carrier != 0,
            (IFLA_LINKINFO, info) => {
                let kind = attributes(info).find(|(kind, _)| *kind == IFLA_INFO_KIND);
                link.kind = kind.map(|(_, value)| text(value)).unwrap_or_default();
            }
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some(link)
}

fn own_address(body: &[u8]) -> Option<Address> {
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    const IFA_FLAGS: u16 = 8;
    const SCOPE_LINK: u8 = 253;
    /// Duplicate, deprecated, tentative.
    const UNUSABLE: u32 = 0x08 | 0x20 | 0x40;

    let [family, _, flags, scope, ..] = *body else {
        return None;
    };
    is_v6(family)?;
    let mut flags = u32::from(flags);
    // Of a point-to-point link IFA_ADDRESS is the peer's, and IFA_LOCAL ours; most IPv6 addresses have no IFA_LOCAL.
    let (mut given, mut local) = (None, None);
    for (kind, value) in attributes(body.get(ADDRESS_HEADER..)?) {
        match kind {
            IFA_ADDRESS => given = address(value),
            IFA_LOCAL => local = address(value),
            IFA_FLAGS => flags = u32_at(value, 0)?,
            _ => {}
        }
    }
    let address = local.or(given)?;
    let self_assigned = matches!(address, IpAddr::V4(v4) if v4.is_link_local());
    Some(Address {
        link: u32_at(body, 4)?,
        address,
        usable: scope < SCOPE_LINK && flags & UNUSABLE == 0 && !self_assigned,
    })
}

fn route(body: &[u8]) -> Option<Route> {
    const RTN_UNICAST: u8 = 1;
    const RTM_F_CLONED: u32 = 0x200;
    const RTNH_DEAD: u32 = 1 | 16;
    const RTA_DST: u16 = 1;
    const RTA_OIF: u16 = 4;
    const RTA_GATEWAY: u16 = 5;
    const RTA_PRIORITY: u16 = 6;
    const RTA_MULTIPATH: u16 = 9;
    const RTA_TABLE: u16 = 15;
    const RTA_VIA: u16 = 18;

    let [family, length, _, _, table, _, _, kind, ..] = *body else {
        return None;
    };
    let (v6, flags) = (is_v6(family)?, u32_at(body, 8)?);
    if kind != RTN_UNICAST || flags & (RTM_F_CLONED | RTNH_DEAD) != 0 {
        return None;
    }
    let (mut destination, mut metric, mut table) = (unspecified(v6), 0, u32::from(table));
    let (mut device, mut gateway, mut hops) = (None, None, Vec::new());
    for (kind, value) in attributes(body.get(ROUTE_HEADER..)?) {
        match kind {
            RTA_DST => destination = address(value)?,
            RTA_OIF => device = u32_at(value, 0),
            RTA_GATEWAY => gateway = address(value),
            RTA_VIA => gateway = address(value.get(2..)?),
            RTA_PRIORITY => metric = u32_at(value, 0)?,
            RTA_TABLE => table = u32_at(value, 0)?,
            RTA_MULTIPATH => hops = several(value),
            _ => {}
        }
    }
    hops.extend(device.map(|link| Hop { link, gateway }));
    let destination = Prefix {
        address: destination,
        length,
    };
    (!hops.is_empty()).then_some(Route {
        table,
        destination,
        metric,
        hops,
    })
}

/// `rtnexthop`s that live.
fn several(mut rest: &[u8]) -> Vec<Hop> {
    const DEAD: u8 = 1 | 16;
    const RTA_GATEWAY: u16 = 5;
    let hops = std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let hop = take(&mut rest, length)?;
        let gateway = attributes(hop.get(8..)?).find(|(kind, _)| *kind == RTA_GATEWAY);
        let hop_flags = *hop.get(2)?;
        let next = Hop {
            link: u32_at(hop, 4)?,
            gateway: gateway.and_then(|(_, value)| address(value)),
        };
        Some((next, hop_flags & DEAD == 0))
    });
    hops.filter_map(|(hop, lives)| lives.then_some(hop)).collect()
}

fn rule(body: &[u8]) -> Option<Rule> {
    const TO_TABLE: u8 = 1;
    const INVERT: u32 = 2;
    const FRA_SRC: u16 = 2;
    const FRA_PRIORITY: u16 = 6;
    const FRA_TABLE: u16 = 15;
    const FRA_OIFNAME: u16 = 17;
    const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
    /// FRA_DST, IIFNAME, FWMARK, FWMASK, TUN_ID, L3MDEV, UID_RANGE, IP_PROTO, SPORT_RANGE, DPORT_RANGE.
    const CONDITIONS: [u16; 10] = [1, 3, 10, 16, 12, 19, 20, 22, 23, 24];

    let [family, _, source_length, tos, table, _, _, action, ..] = *body else {
        return None;
    };
    let v6 = is_v6(family)?;
    if action != TO_TABLE || tos != 0 || u32_at(body, 8)? & INVERT != 0 {
        return None;
    }
    let mut rule = Rule {
        priority: 0,
        v6,
        source: None,
        output: None,
        table: u32::from(table),
    };
    for (kind, value) in attributes(body.get(RULE_HEADER..)?) {
        match kind {
            FRA_SRC => {
                rule.source = Some(Prefix {
                    address: address(value)?,
                    length: source_length,
                });
            }
            FRA_PRIORITY => rule.priority = u32_at(value, 0)?,
            FRA_TABLE => rule.table = u32_at(value, 0)?,
            FRA_OIFNAME => rule.output = Some(text(value)),
            // Present with -1 where nothing is suppressed.
            FRA_SUPPRESS_PREFIXLEN if u32_at(value, 0)? != u32::MAX => return None,
            kind if CONDITIONS.contains(&kind) => return None,
            _ => {}
        }
    }
    Some(rule)
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
