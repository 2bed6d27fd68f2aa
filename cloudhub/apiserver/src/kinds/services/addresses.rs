//! Cluster addresses and node ports. What is in use is what the stored Services have: there is no second book to keep right.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use rand::Rng;
use serde_json::{Value, json};

use super::{
    STORAGE, cluster_ip, cluster_ips, is_headless, needs_address, needs_health_port, needs_node_ports, number,
    ports_mut, service_type, spec,
};
use crate::object::{self, items, map};
use crate::status::{Errors, Status};
use crate::store::Store;

/// What Services are given from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ranges {
    network: Ipv4Addr,
    prefix: u8,
    node_ports: RangeInclusive<u16>,
}

impl Default for Ranges {
    fn default() -> Self {
        Self {
            network: Ipv4Addr::new(10, 96, 0, 0),
            prefix: 16,
            node_ports: 30_000..=32_767,
        }
    }
}

impl Ranges {
    /// The usual node ports and the cluster addresses `cidr`, as `10.96.0.0/16`.
    ///
    /// # Errors
    /// What is wrong with `cidr`.
    pub(crate) fn parse(cidr: &str) -> Result<Self, String> {
        let wrong = || format!("{cidr:?} is no range of IPv4 addresses like 10.96.0.0/16");
        let (network, prefix) = cidr.split_once('/').ok_or_else(wrong)?;
        let network: Ipv4Addr = network.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        // Below /12 the set of free addresses would be too large to search, above /30 there is none.
        if !(12..=30).contains(&prefix) {
            return Err(format!("{cidr:?}: the prefix must be between 12 and 30"));
        }
        let mask = u32::MAX << (32 - prefix);
        Ok(Self {
            network: Ipv4Addr::from(u32::from(network) & mask),
            prefix,
            ..Self::default()
        })
    }

    /// The first address: that of the Service `kubernetes`.
    pub(crate) fn first(&self) -> Ipv4Addr {
        self.address(1)
    }

    fn address(&self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network).wrapping_add(offset))
    }

    /// The last offset that may be given: neither the network's nor the broadcast address are.
    fn last(&self) -> u32 {
        (1_u32 << (32 - self.prefix)) - 2
    }

    fn contains(&self, address: Ipv4Addr) -> bool {
        let mask = u32::MAX << (32 - self.prefix);
        u32::from(address) & mask == u32::from(self.network)
    }
}

/// Offsets below this are for those who ask for an address by themselves; given unasked only when all others are used.
fn reserved(size: u32) -> u32 {
    if size <= 16 {
        return 0;
    }
    (size / 16).clamp(16, 256)
}

/// Any number of `low..=high` that is not used, preferably not one of the first ones.
fn pick(low: u32, high: u32, reserved: u32, is_used: impl Fn(u32) -> bool) -> Option<u32> {
    let begin = (low + reserved).min(high);
    let start = rand::rng().random_range(begin..=high);
    let mut candidates = (start..=high).chain(begin..start).chain(low..begin);
    candidates.find(|n| !is_used(*n))
}

/// What the other Services have.
struct Used {
    addresses: BTreeSet<String>,
    ports: BTreeSet<i64>,
}

impl Used {
    fn by_others(store: &Store, service: &Value) -> Self {
        let own = (object::namespace(service), object::name(service));
        let (_, services) = store.list(STORAGE, None, None, usize::MAX);
        let mut used = Self {
            addresses: BTreeSet::new(),
            ports: BTreeSet::new(),
        };
        for stored in services {
            if (stored.key.namespace.as_str(), stored.key.name.as_str()) == own {
                continue;
            }
            let other = stored.value();
            let addresses = cluster_ips(&other).iter().filter_map(Value::as_str);
            used.addresses
                .extend(addresses.chain([cluster_ip(&other)]).map(str::to_owned));
            let ports = items(&other, "/spec/ports").iter();
            used.ports.extend(ports.map(|p| number(p, "nodePort")));
            used.ports.extend(health_port(&other));
        }
        used
    }
}

fn health_port(service: &Value) -> Option<i64> {
    spec(service, "healthCheckNodePort")
        .and_then(Value::as_i64)
        .filter(|p| *p != 0)
}

/// Gives a Service the address and the ports that it needs, or checks those that it asks for. Call it after its defaults and
/// before it is stored, for creations and updates, and hold a lock from here until the store has it: otherwise two Services may
/// get the same.
///
/// # Errors
/// 422 when what it asks for is used or out of range, 500 when nothing is left.
pub(crate) fn allocate(store: &Store, service: &mut Value, ranges: &Ranges) -> Result<(), Status> {
    if !needs_address(service) {
        return Ok(());
    }
    let mut used = Used::by_others(store, service);
    if !is_headless(service) {
        address(service, ranges, &used)?;
    }
    if needs_node_ports(service) {
        node_ports(service, ranges, &mut used)?;
    }
    if needs_health_port(service) {
        let port = health_check_port(service, ranges, &used)?;
        map(service, "spec").insert("healthCheckNodePort".into(), json!(port));
    }
    Ok(())
}

fn refused(service: &Value, field: &str, value: &Value, words: &str) -> Status {
    let mut errors = Errors::default();
    errors.invalid(field, value, words);
    Status::invalid("", "Service", object::name(service), errors)
}

fn address(service: &mut Value, ranges: &Ranges, used: &Used) -> Result<(), Status> {
    let asked = cluster_ip(service).to_owned();
    if asked.is_empty() {
        let last = ranges.last();
        let is_used = |offset| used.addresses.contains(&ranges.address(offset).to_string());
        let Some(offset) = pick(1, last, reserved(last + 2), is_used) else {
            let name = object::name(service);
            let words = format!("failed to allocate a serviceIP for Service {name:?}: range is full");
            return Err(Status::internal(words));
        };
        let given = ranges.address(offset).to_string();
        let spec = map(service, "spec");
        spec.insert("clusterIP".into(), json!(given));
        spec.insert("clusterIPs".into(), json!([given]));
        return Ok(());
    }
    let fault = match asked.parse::<Ipv4Addr>() {
        Ok(address)
            if !ranges.contains(address)
                || address == ranges.network
                || address == ranges.address(ranges.last() + 1) =>
        {
            format!(
                "the provided IP ({address}) is not in the valid range. The range of valid IPs is {}/{}",
                ranges.network, ranges.prefix
            )
        }
        Ok(_) if used.addresses.contains(&asked) => "provided IP is already allocated".to_owned(),
        Ok(_) => return Ok(()),
        Err(_) => "the provided network does not match the current range".to_owned(),
    };
    let value = json!(cluster_ips(service));
    let words = format!("failed to allocate IP {asked}: {fault}");
    Err(refused(service, "spec.clusterIPs", &value, &words))
}

impl Ranges {
    /// Why this node port may not be used.
    fn port_fault(&self, port: i64, used: &Used) -> Option<String> {
        let (low, high) = (self.node_ports.start(), self.node_ports.end());
        if !(i64::from(*low)..=i64::from(*high)).contains(&port) {
            return Some(format!(
                "provided port is not in the valid range. The range of valid ports is {low}-{high}"
            ));
        }
        used.ports
            .contains(&port)
            .then(|| "provided port is already allocated".into())
    }

    fn any_port(&self, used: &Used) -> Option<i64> {
        let (low, high) = (u32::from(*self.node_ports.start()), u32::from(*self.node_ports.end()));
        let reserved = ((high - low + 1) / 32).clamp(16, 128);
        pick(low, high, reserved, |port| used.ports.contains(&i64::from(port))).map(i64::from)
    }
}

fn node_ports(service: &mut Value, ranges: &Ranges, used: &mut Used) -> Result<(), Status> {
    let ports = items(service, "/spec/ports");
    for (index, port) in ports.iter().enumerate() {
        let asked = number(port, "nodePort");
        if asked == 0 {
            continue;
        }
        if let Some(fault) = ranges.port_fault(asked, used) {
            let field = format!("spec.ports[{index}].nodePort");
            return Err(refused(service, &field, &json!(asked), &fault));
        }
    }
    let unasked =
        service_type(service) == "NodePort" || spec(service, "allocateLoadBalancerNodePorts") != Some(&json!(false));
    // One port over several protocols has one node port.
    let mut given: Vec<(i64, i64)> = ports
        .iter()
        .map(|p| (number(p, "port"), number(p, "nodePort")))
        .filter(|(_, node_port)| *node_port != 0)
        .collect();
    // The node ports of this Service itself are not for its other ports.
    used.ports.extend(given.iter().map(|(_, node_port)| *node_port));
    for port in ports_mut(service).filter(|_| unasked) {
        if number(port, "nodePort") != 0 {
            continue;
        }
        let wanted = number(port, "port");
        let known = given.iter().find(|(port, _)| *port == wanted).map(|(_, n)| *n);
        let Some(node_port) = known.or_else(|| ranges.any_port(used)) else {
            return Err(Status::internal("failed to allocate a nodePort: range is full"));
        };
        given.push((wanted, node_port));
        used.ports.insert(node_port);
        port["nodePort"] = json!(node_port);
    }
    Ok(())
}

fn health_check_port(service: &Value, ranges: &Ranges, used: &Used) -> Result<i64, Status> {
    let Some(asked) = health_port(service) else {
        let port = ranges.any_port(used);
        return port.ok_or_else(|| Status::internal("failed to allocate a HealthCheck NodePort 0: range is full"));
    };
    match ranges.port_fault(asked, used) {
        None => Ok(asked),
        Some(fault) => Err(Status::internal(format!(
            "failed to allocate requested HealthCheck NodePort {asked}: {fault}"
        ))),
    }
}
