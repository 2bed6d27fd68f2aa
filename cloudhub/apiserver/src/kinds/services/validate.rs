//! Whether a Service makes sense.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};

use super::{
    cluster_ip, cluster_ips, is_external, is_headless, needs_address, needs_health_port, number, service_type, spec,
};
use crate::kinds::fields::{
    complain, is_dns1123_label, is_dns1123_subdomain, is_port, is_port_name, is_qualified_name, labels, one_of,
};
use crate::object::{items, text};
use crate::status::Errors;

const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];
const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];

/// Whether the text looks like an IPv6 address or range.
pub(crate) fn is_ipv6(text: &str) -> bool {
    text.contains(':')
}

/// An address.
pub(super) fn is_ip(errors: &mut Errors, field: &str, value: &Value) {
    if value.as_str().unwrap_or_default().parse::<IpAddr>().is_err() {
        let words = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        errors.invalid(field, value, words);
    }
}

/// A range of addresses.
pub(crate) fn is_cidr(errors: &mut Errors, field: &str, value: &Value) {
    let parsed = value.as_str().unwrap_or_default().split_once('/');
    let right = parsed.is_some_and(|(address, prefix)| {
        let longest = match address.parse() {
            Ok(IpAddr::V4(_)) => 32,
            Ok(IpAddr::V6(_)) => 128,
            Err(_) => return false,
        };
        prefix.parse::<u8>().is_ok_and(|p| p <= longest)
    });
    if !right {
        let words = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
        errors.invalid(field, value, words);
    }
}

/// An address that may be another machine's.
pub(super) fn is_endpoint_ip(errors: &mut Errors, field: &str, value: &Value) {
    let text = value.as_str().unwrap_or_default();
    let Ok(address) = text.parse::<IpAddr>() else { return };
    if address.is_unspecified() {
        errors.invalid(field, value, &format!("may not be unspecified ({text})"));
    }
    if address.is_loopback() {
        let words = "may not be in the loopback range (127.0.0.0/8, ::1/128)";
        errors.invalid(field, value, words);
    }
    let (link_local, link_multicast) = match address {
        IpAddr::V4(v4) => (
            v4.is_link_local(),
            u32::from(v4) >> 8 == u32::from(Ipv4Addr::new(224, 0, 0, 0)) >> 8,
        ),
        IpAddr::V6(v6) => (v6.is_unicast_link_local(), v6.segments()[0] & 0xff0f == 0xff02),
    };
    if link_local {
        let words = "may not be in the link-local range (169.254.0.0/16, fe80::/10)";
        errors.invalid(field, value, words);
    }
    if link_multicast {
        let words = "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)";
        errors.invalid(field, value, words);
    }
}

pub(super) fn service(service: &Value, errors: &mut Errors) {
    by_type(service, errors);
    ports(service, errors);
    labels(errors, "spec.selector", spec(service, "selector"));
    affinity(service, errors);
    if needs_address(service) {
        addresses(service, errors);
    }
    for (index, ip) in items(service, "/spec/externalIPs").iter().enumerate() {
        let field = format!("spec.externalIPs[{index}]");
        is_ip(errors, &field, ip);
        is_endpoint_ip(errors, &field, ip);
    }
    let kind = json!(service_type(service));
    one_of(errors, "spec.type", &kind, &TYPES);
    repeated_ports(service, errors);
    load_balancer(service, errors);
    traffic(service, errors);
}

fn by_type(service: &Value, errors: &mut Errors) {
    let kind = service_type(service);
    if items(service, "/spec/ports").is_empty() && !is_headless(service) && kind != "ExternalName" {
        errors.required("spec.ports", "");
    }
    match kind {
        "LoadBalancer" | "NodePort" if is_headless(service) => {
            let words = format!("may not be set to 'None' for {kind} services");
            errors.invalid("spec.clusterIPs[0]", &json!("None"), &words);
        }
        "ExternalName" => {
            for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                if spec(service, field).is_some_and(|v| *v != json!([])) {
                    errors.forbidden(format!("spec.{field}"), "may not be set for ExternalName services");
                }
            }
            let name = text(service, "/spec/externalName");
            match name.strip_suffix('.').unwrap_or(name) {
                "" => errors.required("spec.externalName", ""),
                name => complain(errors, "spec.externalName", &json!(name), is_dns1123_subdomain(name)),
            }
        }
        _ => {}
    }
}

fn ports(service: &Value, errors: &mut Errors) {
    let ports = items(service, "/spec/ports");
    let mut names = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let field = |name: &str| format!("spec.ports[{index}].{name}");
        match text(port, "/name") {
            "" if ports.len() > 1 => errors.required(field("name"), ""),
            "" => {}
            name => {
                complain(errors, &field("name"), &json!(name), is_dns1123_label(name));
                if !names.insert(name) {
                    errors.duplicate(field("name"), &json!(name));
                }
            }
        }
        let number = number(port, "port");
        complain(errors, &field("port"), &json!(number), is_port(number));
        let protocol = json!(text(port, "/protocol"));
        one_of(errors, &field("protocol"), &protocol, &PROTOCOLS);
        let target = port.get("targetPort").cloned().unwrap_or_default();
        let wrong = match &target {
            Value::String(name) => is_port_name(name),
            other => is_port(other.as_i64().unwrap_or_default()),
        };
        complain(errors, &field("targetPort"), &target, wrong);
        if let Some(protocol) = port.get("appProtocol").and_then(Value::as_str) {
            complain(
                errors,
                &field("appProtocol"),
                &json!(protocol),
                is_qualified_name(protocol),
            );
        }
        if service_type(service) == "ClusterIP" && super::number(port, "nodePort") != 0 {
            let words = "may not be used when `type` is 'ClusterIP'";
            errors.forbidden(field("nodePort"), words);
        }
    }
}

/// One number is there once per protocol, both as port and as node port.
fn repeated_ports(service: &Value, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    let ports = items(service, "/spec/ports");
    for (index, port) in ports.iter().enumerate() {
        let node_port = number(port, "nodePort");
        if node_port != 0 && !seen.insert((text(port, "/protocol"), node_port)) {
            errors.duplicate(format!("spec.ports[{index}].nodePort"), &json!(node_port));
        }
    }
    seen.clear();
    for (index, port) in ports.iter().enumerate() {
        let (protocol, number) = (text(port, "/protocol"), number(port, "port"));
        if !seen.insert((protocol, number)) {
            let value = json!({
                "Name": "", "Protocol": protocol, "AppProtocol": null, "Port": number, "TargetPort": 0, "NodePort": 0
            });
            errors.duplicate(format!("spec.ports[{index}]"), &value);
        }
    }
}

fn affinity(service: &Value, errors: &mut Errors) {
    let affinity = json!(text(service, "/spec/sessionAffinity"));
    one_of(errors, "spec.sessionAffinity", &affinity, &["ClientIP", "None"]);
    if affinity != "ClientIP" {
        return;
    }
    let seconds = service.pointer("/spec/sessionAffinityConfig/clientIP/timeoutSeconds");
    let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
    match seconds.and_then(Value::as_i64) {
        None => errors.required(field, "when session affinity type is ClientIP"),
        Some(1..=86_400) => {}
        Some(seconds) => errors.invalid(field, &json!(seconds), "must be greater than 0 and less than 86400"),
    }
}

fn addresses(service: &Value, errors: &mut Errors) {
    let (one, all) = (cluster_ip(service), cluster_ips(service));
    let field = "spec.clusterIPs";
    match all.first() {
        None if !one.is_empty() => errors.required(field, ""),
        Some(_) if one.is_empty() => {
            errors.invalid(field, &json!(all), "must be empty when `clusterIP` is not specified");
        }
        Some(first) if first != one => {
            errors.invalid(field, &json!(all), "first value must match `clusterIP`");
        }
        _ => {}
    }
    if all.len() > 1 && all.iter().any(|a| a == "None") {
        errors.invalid(field, &json!(all), "'None' must be the first and only value");
    }
    for (index, address) in all.iter().enumerate().filter(|(_, a)| *a != "None") {
        is_ip(errors, &format!("{field}[{index}]"), address);
    }
    if all.len() > 2 {
        errors.invalid(field, &json!(all), "may only hold up to 2 values");
    }
    families(service, errors);
}

/// Only IPv4 is there; a headless Service that picks its endpoints itself may name both.
fn families(service: &Value, errors: &mut Errors) {
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    let policy = spec(service, "ipFamilyPolicy").cloned().unwrap_or_else(|| json!(""));
    one_of(errors, "spec.ipFamilyPolicy", &policy, &policies);
    let families = items(service, "/spec/ipFamilies");
    for (index, family) in families.iter().enumerate() {
        let field = format!("spec.ipFamilies[{index}]");
        one_of(errors, &field, family, &FAMILIES);
        if families[..index].contains(family) {
            errors.duplicate(field, family);
        }
    }
    let both = "must be 'RequireDualStack' or 'PreferDualStack' when multiple";
    if policy == "SingleStack" && families.len() > 1 {
        let words = format!("{both} IP families are specified");
        errors.invalid("spec.ipFamilyPolicy", &policy, &words);
    }
    if policy == "SingleStack" && cluster_ips(service).len() > 1 {
        let words = format!("{both} cluster IPs are specified");
        errors.invalid("spec.ipFamilyPolicy", &policy, &words);
    }
    if is_headless(service) && spec(service, "selector").is_none_or(|s| *s == json!({})) {
        return;
    }
    if policy == "RequireDualStack" {
        let words = "this cluster is not configured for dual-stack services";
        errors.invalid("spec.ipFamilyPolicy", &policy, words);
    }
    for (index, family) in families.iter().enumerate().filter(|(_, f)| *f == "IPv6") {
        let field = format!("spec.ipFamilies[{index}]");
        errors.invalid(field, family, "not configured on this cluster");
    }
}

fn load_balancer(service: &Value, errors: &mut Errors) {
    let words = "may only be used when `type` is 'LoadBalancer'";
    let is_one = service_type(service) == "LoadBalancer";
    let ranges = items(service, "/spec/loadBalancerSourceRanges");
    let field = "spec.LoadBalancerSourceRanges";
    if !ranges.is_empty() && !is_one {
        errors.forbidden(field, words);
    }
    for (index, range) in ranges.iter().enumerate() {
        let range = json!(range.as_str().unwrap_or_default().trim());
        is_cidr(errors, &format!("{field}[{index}]"), &range);
    }
    if !is_one {
        for name in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if spec(service, name).is_some() {
                errors.forbidden(format!("spec.{name}"), words);
            }
        }
    } else if let Some(class) = spec(service, "loadBalancerClass") {
        let wrong = is_qualified_name(class.as_str().unwrap_or_default());
        complain(errors, "spec.loadBalancerClass", class, wrong);
    }
}

fn traffic(service: &Value, errors: &mut Errors) {
    let policies = ["Cluster", "Local"];
    let external = json!(text(service, "/spec/externalTrafficPolicy"));
    let field = "spec.externalTrafficPolicy";
    if is_external(service) {
        one_of(errors, field, &external, &policies);
    } else if external != "" {
        errors.invalid(field, &external, "may only be set for externally-accessible services");
    }
    if let Some(port) = spec(service, "healthCheckNodePort").filter(|p| **p != 0) {
        let field = "spec.healthCheckNodePort";
        if needs_health_port(service) {
            complain(errors, field, port, is_port(port.as_i64().unwrap_or_default()));
        } else {
            let words = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
            errors.invalid(field, port, words);
        }
    }
    if let Some(policy) = spec(service, "internalTrafficPolicy") {
        one_of(errors, "spec.internalTrafficPolicy", policy, &policies);
    }
    if let Some(distribution) = spec(service, "trafficDistribution") {
        let supported = ["PreferClose", "PreferSameZone", "PreferSameNode"];
        one_of(errors, "spec.trafficDistribution", distribution, &supported);
    }
}

pub(super) fn update(service: &Value, current: &Value, errors: &mut Errors) {
    if needs_address(service) && needs_address(current) {
        addresses_stay(service, current, errors);
    }
    let both_balance = service_type(service) == "LoadBalancer" && service_type(current) == "LoadBalancer";
    let class = spec(service, "loadBalancerClass");
    if both_balance && class != spec(current, "loadBalancerClass") {
        let class = class.cloned().unwrap_or_default();
        errors.invalid("spec.loadBalancerClass", &class, "may not change once set");
    }
    let port = |s: &Value| spec(s, "healthCheckNodePort").and_then(Value::as_i64);
    if needs_health_port(service) && needs_health_port(current) && port(service) != port(current) {
        errors.forbidden("spec.healthCheckNodePort", "field is immutable");
    }
}

fn addresses_stay(service: &Value, current: &Value, errors: &mut Errors) {
    let (now, before) = (cluster_ips(service), cluster_ips(current));
    if is_headless(service) && is_headless(current) {
        return;
    }
    if now.is_empty() && !before.is_empty() {
        let words = "primary clusterIP can not be unset";
        errors.invalid("spec.clusterIPs[0]", &json!(now), words);
    }
    for (index, (now_, before)) in now.iter().zip(before).enumerate() {
        if now_ != before {
            let field = format!("spec.clusterIPs[{index}]");
            errors.invalid(field, &json!(now), "may not change once set");
        }
    }
    if is_headless(service) != is_headless(current) {
        return;
    }
    let (now, before) = (items(service, "/spec/ipFamilies"), items(current, "/spec/ipFamilies"));
    if now.len() == before.len() && now != before {
        errors.invalid("spec.ipFamilies[0]", &json!(now), "may not change once set");
    }
}
