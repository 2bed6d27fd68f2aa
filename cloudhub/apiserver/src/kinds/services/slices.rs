//! EndpointSlice.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::validate::{is_endpoint_ip, is_ip, is_ipv6};
use crate::kinds::fields::{
    complain, is_dns1123_label, is_dns1123_subdomain, is_label_value, is_qualified_name, one_of,
};
use crate::kinds::{Row, Strategy, column};
use crate::object::{items, text};
use crate::status::Errors;

pub(super) const ROW: Row = Row {
    group: "discovery.k8s.io",
    version: "v1",
    kind: "EndpointSlice",
    plural: "endpointslices",
    singular: "endpointslice",
    short_names: &[],
    categories: &[],
    namespaced: true,
    storage: "endpointslices",
    status: false,
    scale: false,
    generation: true,
    selectable: &[],
    columns: &[column("AddressType"), column("Ports"), column("Endpoints")],
    strategy: &Slices,
};

const ENDPOINTS: usize = 1000;
const ADDRESSES: usize = 100;
const PORTS: usize = 20_000;
const HINTS: usize = 8;
/// Items that a cell names; of the others it says how many.
const SHOWN: usize = 3;

#[derive(Debug)]
struct Slices;

impl Strategy for Slices {
    fn default(&self, object: &mut Value) {
        let ports = object.get_mut("ports").and_then(Value::as_array_mut);
        for port in ports.into_iter().flatten().filter_map(Value::as_object_mut) {
            crate::object::default(port, "name", "");
            crate::object::default(port, "protocol", "TCP");
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        drop_topology(object);
    }

    fn prepare_update(&self, object: &mut Value, _current: &Value) {
        drop_topology(object);
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        match text(object, "/addressType") {
            "" => errors.required("addressType", ""),
            kind => one_of(errors, "addressType", &json!(kind), &["FQDN", "IPv4", "IPv6"]),
        }
        ports(items(object, "/ports"), errors);
        let endpoints = items(object, "/endpoints");
        if endpoints.len() > ENDPOINTS {
            errors.too_many("endpoints", endpoints.len(), ENDPOINTS);
            return;
        }
        for (index, endpoint) in endpoints.iter().enumerate() {
            let field = format!("endpoints[{index}]");
            addresses(text(object, "/addressType"), endpoint, &field, errors);
            names(endpoint, &field, errors);
            hints(endpoint, &field, errors);
        }
    }

    fn validate_update(&self, object: &Value, current: &Value, errors: &mut Errors) {
        if text(object, "/addressType") != text(current, "/addressType") {
            errors.invalid("addressType", &object["addressType"], "field is immutable");
        }
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        let deprecated = text(object, "/addressType") == "FQDN";
        let words = "spec.addressType: FQDN endpoints are deprecated".to_owned();
        deprecated.then_some(words).into_iter().collect()
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
        let ports = items(object, "/ports").iter().map(|p| match p.get("port") {
            Some(Value::Number(number)) => number.to_string(),
            _ => p.get("name").and_then(Value::as_str).unwrap_or("*").to_owned(),
        });
        let endpoints = items(object, "/endpoints").iter();
        let addresses = endpoints.flat_map(|e| items(e, "/addresses"));
        let addresses = addresses.map(|a| a.as_str().unwrap_or_default().to_owned());
        vec![
            json!(text(object, "/addressType")),
            json!(some(ports.collect())),
            json!(some(addresses.collect())),
        ]
    }
}

/// The field of an older version of the API.
fn drop_topology(slice: &mut Value) {
    let endpoints = slice.get_mut("endpoints").and_then(Value::as_array_mut);
    for endpoint in endpoints.into_iter().flatten().filter_map(Value::as_object_mut) {
        endpoint.shift_remove("deprecatedTopology");
    }
}

fn some(list: Vec<String>) -> String {
    if list.is_empty() {
        return "<unset>".into();
    }
    match list.split_at_checked(SHOWN) {
        Some((shown, [_, ..])) => format!("{} + {} more...", shown.join(","), list.len() - SHOWN),
        _ => list.join(","),
    }
}

fn ports(ports: &[Value], errors: &mut Errors) {
    if ports.len() > PORTS {
        errors.too_many("ports", ports.len(), PORTS);
        return;
    }
    let mut seen = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let field = |name: &str| format!("ports[{index}].{name}");
        let name = text(port, "/name");
        if !name.is_empty() {
            complain(errors, &field("name"), &json!(name), is_dns1123_label(name));
        }
        if !seen.insert(name) {
            errors.duplicate(field("name"), &json!(name));
        }
        let protocol = json!(text(port, "/protocol"));
        one_of(errors, &field("protocol"), &protocol, &["SCTP", "TCP", "UDP"]);
        if let Some(protocol) = port.get("appProtocol").and_then(Value::as_str) {
            complain(
                errors,
                &field("appProtocol"),
                &json!(protocol),
                is_qualified_name(protocol),
            );
        }
    }
}

fn addresses(kind: &str, endpoint: &Value, field: &str, errors: &mut Errors) {
    let field = format!("{field}.addresses");
    let addresses = items(endpoint, "/addresses");
    if addresses.is_empty() {
        errors.required(field.as_str(), "must contain at least 1 address");
    }
    if addresses.len() > ADDRESSES {
        errors.too_many(field.as_str(), addresses.len(), ADDRESSES);
    }
    for (index, address) in addresses.iter().enumerate() {
        let item = format!("{field}[{index}]");
        let text = address.as_str().unwrap_or_default();
        match kind {
            "IPv4" | "IPv6" => {
                is_ip(errors, &item, address);
                if is_ipv6(text) != (kind == "IPv6") {
                    errors.invalid(field.as_str(), address, &format!("must be an {kind} address"));
                }
                is_endpoint_ip(errors, &item, address);
            }
            "FQDN" => complain(errors, &item, address, is_dns1123_subdomain(text)),
            _ => {}
        }
    }
}

fn names(endpoint: &Value, field: &str, errors: &mut Errors) {
    if let Some(node) = endpoint.get("nodeName").and_then(Value::as_str) {
        let wrong = is_dns1123_subdomain(node);
        complain(errors, &format!("{field}.nodeName"), &json!(node), wrong);
    }
    if let Some(host) = endpoint.get("hostname").and_then(Value::as_str) {
        let wrong = is_dns1123_label(host);
        complain(errors, &format!("{field}.hostname"), &json!(host), wrong);
    }
}

fn hints(endpoint: &Value, field: &str, errors: &mut Errors) {
    for (list, is_name) in [
        ("forZones", is_label_value as fn(&str) -> Vec<String>),
        ("forNodes", is_dns1123_subdomain),
    ] {
        let hints = items(endpoint, &format!("/hints/{list}"));
        let field = format!("{field}.hints.{list}");
        if hints.len() > HINTS {
            errors.too_many(field, hints.len(), HINTS);
            return;
        }
        let mut seen = BTreeSet::new();
        for (index, hint) in hints.iter().enumerate() {
            let (item, name) = (format!("{field}[{index}].name"), text(hint, "/name"));
            if !seen.insert(name) {
                errors.duplicate(item.as_str(), &json!(name));
            }
            complain(errors, &item, &json!(name), is_name(name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(object: &Value) -> Vec<String> {
        let mut errors = Errors::default();
        Slices.validate(object, &mut errors);
        let causes = errors.causes().iter();
        causes.map(|c| format!("{}: {}", c.field, c.message)).collect()
    }

    #[test]
    fn ports_get_a_name_and_a_protocol() {
        let mut slice =
            json!({"addressType": "IPv4", "ports": [{"port": 6443}], "endpoints": [{"addresses": ["10.0.0.1"]}]});
        Strategy::default(&Slices, &mut slice);
        assert_eq!(slice["ports"], json!([{"port": 6443, "name": "", "protocol": "TCP"}]));
        assert!(faults(&slice).is_empty());
        assert_eq!(Slices.cells(&slice), ["IPv4", "6443", "10.0.0.1"]);
    }

    #[test]
    fn addresses_are_of_the_type_that_the_slice_says() {
        let slice = json!({"addressType": "IPv4", "endpoints": [{"addresses": ["::2", "127.0.0.1", "x"]}, {}]});
        assert_eq!(
            faults(&slice),
            [
                "endpoints[0].addresses: Invalid value: \"::2\": must be an IPv4 address",
                "endpoints[0].addresses[1]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
                "endpoints[0].addresses[2]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                "endpoints[1].addresses: Required value: must contain at least 1 address",
            ]
        );
        assert_eq!(faults(&json!({})), ["addressType: Required value"]);
    }

    #[test]
    fn a_cell_names_three() {
        let slice = json!({"endpoints": [{"addresses": ["a", "b"]}, {"addresses": ["c", "d", "e"]}]});
        assert_eq!(Slices.cells(&slice), ["", "<unset>", "a,b,c + 2 more..."]);
    }
}
