//! Service and EndpointSlice. Addresses and node ports are given by [`allocate`]; nothing routes them yet.

mod addresses;
mod slices;
mod validate;

use serde_json::{Value, json};

pub(crate) use addresses::{Ranges, allocate};
pub(super) use validate::{is_cidr, is_ipv6};

use super::{Row, Strategy, column, wide};
use crate::object::{default, items, map, text};
use crate::status::Errors;

pub(super) const ROWS: &[Row] = &[
    Row {
        group: "",
        version: "v1",
        kind: "Service",
        plural: "services",
        singular: "service",
        short_names: &["svc"],
        categories: &["all"],
        namespaced: true,
        storage: STORAGE,
        status: true,
        scale: false,
        generation: false,
        selectable: &[("spec.clusterIP", "/spec/clusterIP"), ("spec.type", "/spec/type")],
        columns: &[
            column("Type"),
            column("Cluster-IP"),
            column("External-IP"),
            column("Port(s)"),
            wide("Selector"),
        ],
        strategy: &Services,
    },
    slices::ROW,
];

const STORAGE: &str = "services";
const CLIENT_IP_SECONDS: i64 = 10_800;

#[derive(Debug)]
struct Services;

impl Strategy for Services {
    fn default(&self, object: &mut Value) {
        defaults(object);
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"loadBalancer": {}});
        let address = cluster_ip(object).to_owned();
        if !address.is_empty() && cluster_ips(object).is_empty() {
            map(object, "spec").insert("clusterIPs".into(), json!([address]));
        }
        families(object, None);
    }

    fn prepare_update(&self, object: &mut Value, current: &Value) {
        pair_addresses(object, current);
        keep_allocated(object, current);
        families(object, Some(current));
        drop_by_type(object, current);
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        validate::service(object, errors);
    }

    fn validate_update(&self, object: &Value, current: &Value, errors: &mut Errors) {
        validate::update(object, current, errors);
    }

    fn validate_status(&self, object: &Value, _current: &Value, errors: &mut Errors) {
        for (index, ingress) in items(object, "/status/loadBalancer/ingress").iter().enumerate() {
            if let Some(ip) = ingress.get("ip") {
                validate::is_ip(errors, &format!("status.loadBalancer.ingress[{index}].ip"), ip);
            }
        }
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        let mut warnings = vec![
            "nothing routes Services yet: Kedge has no pod network, this one only reserves its address".to_owned(),
        ];
        let kind = service_type(object);
        if kind != "ExternalName" && !text(object, "/spec/externalName").is_empty() {
            warnings.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".into());
        }
        if is_headless(object) {
            if !text(object, "/spec/loadBalancerIP").is_empty() {
                warnings.push("spec.loadBalancerIP is ignored for headless services".into());
            }
            if !items(object, "/spec/externalIPs").is_empty() {
                warnings.push("spec.externalIPs is ignored for headless services".into());
            }
            if text(object, "/spec/sessionAffinity") != "None" {
                warnings.push("spec.SessionAffinity is ignored for headless services".into());
            }
        }
        if !items(object, "/spec/externalIPs").is_empty() {
            warnings.push("spec.externalIPs is deprecated and may no longer be implemented in some clusters".into());
        }
        if text(object, "/spec/trafficDistribution") == "PreferClose" {
            warnings.push("spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"".into());
        }
        warnings
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
        let ports: Vec<String> = items(object, "/spec/ports").iter().map(port_text).collect();
        vec![
            json!(service_type(object)),
            json!(cluster_ips(object).first().and_then(Value::as_str).unwrap_or("<none>")),
            json!(external_ip(object)),
            json!(or_none(ports.join(","))),
            json!(selector(object)),
        ]
    }

    fn label_name(&self) -> bool {
        true
    }
}

fn service_type(service: &Value) -> &str {
    text(service, "/spec/type")
}

fn cluster_ip(service: &Value) -> &str {
    text(service, "/spec/clusterIP")
}

fn cluster_ips(service: &Value) -> &[Value] {
    items(service, "/spec/clusterIPs")
}

fn is_headless(service: &Value) -> bool {
    matches!(cluster_ips(service), [only] if only == "None")
}

fn needs_address(service: &Value) -> bool {
    service_type(service) != "ExternalName"
}

fn needs_node_ports(service: &Value) -> bool {
    matches!(service_type(service), "NodePort" | "LoadBalancer")
}

fn needs_health_port(service: &Value) -> bool {
    service_type(service) == "LoadBalancer" && text(service, "/spec/externalTrafficPolicy") == "Local"
}

/// Whether it is reached from outside: then it has an `externalTrafficPolicy`.
fn is_external(service: &Value) -> bool {
    needs_node_ports(service) || service_type(service) == "ClusterIP" && !items(service, "/spec/externalIPs").is_empty()
}

fn number(object: &Value, field: &str) -> i64 {
    object.get(field).and_then(Value::as_i64).unwrap_or_default()
}

fn spec<'a>(service: &'a Value, field: &str) -> Option<&'a Value> {
    service.get("spec").and_then(|s| s.get(field)).filter(|v| !v.is_null())
}

fn ports_mut(service: &mut Value) -> impl Iterator<Item = &mut Value> {
    let ports = service.pointer_mut("/spec/ports").and_then(Value::as_array_mut);
    ports.into_iter().flatten()
}

fn is_unset(value: Option<&Value>) -> bool {
    value.is_none_or(|v| v.is_null() || *v == "" || *v == 0)
}

fn default_word(service: &mut Value, field: &str, value: &str) {
    if is_unset(spec(service, field)) {
        map(service, "spec").insert(field.into(), json!(value));
    }
}

fn defaults(service: &mut Value) {
    default_word(service, "sessionAffinity", "None");
    match text(service, "/spec/sessionAffinity") {
        "None" => {
            map(service, "spec").shift_remove("sessionAffinityConfig");
        }
        "ClientIP"
            if service
                .pointer("/spec/sessionAffinityConfig/clientIP/timeoutSeconds")
                .is_none() =>
        {
            let config = json!({"clientIP": {"timeoutSeconds": CLIENT_IP_SECONDS}});
            map(service, "spec").insert("sessionAffinityConfig".into(), config);
        }
        _ => {}
    }
    default_word(service, "type", "ClusterIP");
    let ingress = service
        .pointer_mut("/status/loadBalancer/ingress")
        .and_then(Value::as_array_mut);
    for ingress in ingress.into_iter().flatten().filter_map(Value::as_object_mut) {
        if ingress.contains_key("ip") {
            default(ingress, "ipMode", "VIP");
        }
    }
    for port in ports_mut(service) {
        let number = port.get("port").cloned();
        let Some(port) = port.as_object_mut() else { continue };
        if is_unset(port.get("protocol")) {
            port.insert("protocol".into(), json!("TCP"));
        }
        if let Some(number) = number
            && is_unset(port.get("targetPort"))
        {
            port.insert("targetPort".into(), number);
        }
        if is_unset(port.get("nodePort")) {
            port.shift_remove("nodePort");
        }
    }
    if is_external(service) {
        default_word(service, "externalTrafficPolicy", "Cluster");
    }
    if needs_address(service) {
        default_word(service, "internalTrafficPolicy", "Cluster");
    }
    if service_type(service) == "LoadBalancer" {
        default(map(service, "spec"), "allocateLoadBalancerNodePorts", true);
    }
}

/// The address families: this cluster has IPv4 only.
fn families(service: &mut Value, current: Option<&Value>) {
    if !needs_address(service) {
        return;
    }
    let open = is_headless(service) && spec(service, "selector").is_none_or(|s| *s == json!({}));
    let kept = current.and_then(|c| spec(c, "ipFamilyPolicy")).cloned();
    let usual = if open { "RequireDualStack" } else { "SingleStack" };
    let mut families = items(service, "/spec/ipFamilies").to_vec();
    for address in cluster_ips(service).iter().skip(families.len()) {
        let address = address.as_str().unwrap_or_default();
        if address != "None" {
            families.push(json!(if is_ipv6(address) { "IPv6" } else { "IPv4" }));
        }
    }
    if families.is_empty() {
        families.push(json!("IPv4"));
    }
    let spec = map(service, "spec");
    default(spec, "ipFamilyPolicy", kept.unwrap_or_else(|| json!(usual)));
    // Who picks its endpoints itself may publish both families, whatever the cluster has.
    if open && spec["ipFamilyPolicy"] != "SingleStack" && families.len() == 1 {
        let other = if families[0] == "IPv4" { "IPv6" } else { "IPv4" };
        families.push(json!(other));
    }
    spec.insert("ipFamilies".into(), json!(families));
}

/// `clusterIP` and `clusterIPs` say the same; a client that knows only the first means both.
fn pair_addresses(service: &mut Value, current: &Value) {
    let (before, now) = (cluster_ip(current).to_owned(), cluster_ip(service).to_owned());
    if before == now && cluster_ips(service).is_empty() && !cluster_ips(current).is_empty() {
        let list = json!(cluster_ips(current));
        map(service, "spec").insert("clusterIPs".into(), list);
    }
    if before != now && cluster_ips(service) == cluster_ips(current) {
        let spec = map(service, "spec");
        if now.is_empty() {
            spec.shift_remove("clusterIPs");
        } else {
            spec.insert("clusterIPs".into(), json!([now]));
        }
    }
}

/// What was allocated and is not mentioned stays.
fn keep_allocated(service: &mut Value, current: &Value) {
    if needs_address(current) && needs_address(service) {
        let (address, list) = (cluster_ip(current), cluster_ips(current));
        if cluster_ip(service).is_empty() && !address.is_empty() {
            map(service, "spec").insert("clusterIP".into(), json!(address));
        }
        if cluster_ips(service).is_empty() && !list.is_empty() {
            map(service, "spec").insert("clusterIPs".into(), json!(list));
        }
    }
    if needs_node_ports(current) && needs_node_ports(service) {
        let wanted: Vec<i64> = items(service, "/spec/ports")
            .iter()
            .map(|p| number(p, "nodePort"))
            .collect();
        for port in ports_mut(service) {
            let name = text(port, "/name");
            let mut before = items(current, "/spec/ports").iter();
            let before = before.find(|p| text(p, "/name") == name);
            let before = before.map_or(0, |p| number(p, "nodePort"));
            if number(port, "nodePort") == 0 && before != 0 && !wanted.contains(&before) {
                port["nodePort"] = json!(before);
            }
        }
    }
    if needs_health_port(current) && needs_health_port(service) {
        let before = spec(current, "healthCheckNodePort").cloned().unwrap_or_default();
        if is_unset(spec(service, "healthCheckNodePort")) {
            map(service, "spec").insert("healthCheckNodePort".into(), before);
        }
    }
}

fn remove(service: &mut Value, field: &str) {
    map(service, "spec").shift_remove(field);
}

fn same(service: &Value, current: &Value, field: &str) -> bool {
    spec(service, field) == spec(current, field)
}

/// A change of `type` drops what the new type has no use for and the client did not change as well.
fn drop_by_type(service: &mut Value, current: &Value) {
    if needs_address(current) && !needs_address(service) {
        if same(service, current, "clusterIP") && same(service, current, "clusterIPs") {
            remove(service, "clusterIP");
            remove(service, "clusterIPs");
        }
        for field in ["ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            if same(service, current, field) {
                remove(service, field);
            }
        }
    }
    if needs_node_ports(current) && !needs_node_ports(service) {
        let before: Vec<i64> = items(current, "/spec/ports")
            .iter()
            .map(|p| number(p, "nodePort"))
            .collect();
        let now = items(service, "/spec/ports").iter();
        let none_is_new = now
            .map(|p| number(p, "nodePort"))
            .all(|p| p == 0 || before.contains(&p));
        if none_is_new {
            for port in ports_mut(service) {
                if let Some(port) = port.as_object_mut() {
                    port.shift_remove("nodePort");
                }
            }
        }
    }
    if needs_health_port(current) && !needs_health_port(service) && same(service, current, "healthCheckNodePort") {
        remove(service, "healthCheckNodePort");
    }
    if service_type(current) == "LoadBalancer" && service_type(service) != "LoadBalancer" {
        for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if same(service, current, field) {
                remove(service, field);
            }
        }
    }
    if is_external(current) && !is_external(service) && same(service, current, "externalTrafficPolicy") {
        remove(service, "externalTrafficPolicy");
    }
    if service_type(service) != "LoadBalancer" {
        service["status"] = json!({"loadBalancer": {}});
    }
}

fn or_none(text: String) -> String {
    if text.is_empty() { "<none>".into() } else { text }
}

fn port_text(port: &Value) -> String {
    let (number_, protocol) = (number(port, "port"), text(port, "/protocol"));
    match number(port, "nodePort") {
        0 => format!("{number_}/{protocol}"),
        node_port => format!("{number_}:{node_port}/{protocol}"),
    }
}

fn external_ip(service: &Value) -> String {
    let texts = |pointer: &str| -> Vec<String> {
        let texts = items(service, pointer).iter().filter_map(Value::as_str);
        texts.map(str::to_owned).collect()
    };
    match service_type(service) {
        "ClusterIP" | "NodePort" => or_none(texts("/spec/externalIPs").join(",")),
        "LoadBalancer" => {
            let ingress = items(service, "/status/loadBalancer/ingress").iter();
            let mut addresses: Vec<String> = ingress
                .map(|i| match text(i, "/ip") {
                    "" => text(i, "/hostname").to_owned(),
                    ip => ip.to_owned(),
                })
                .filter(|a| !a.is_empty())
                .collect();
            addresses.sort();
            addresses.dedup();
            addresses.extend(texts("/spec/externalIPs"));
            if addresses.is_empty() {
                "<pending>".into()
            } else {
                addresses.join(",")
            }
        }
        "ExternalName" => text(service, "/spec/externalName").to_owned(),
        _ => "<unknown>".into(),
    }
}

fn selector(service: &Value) -> String {
    let labels = spec(service, "selector").and_then(Value::as_object);
    let mut labels: Vec<String> = labels
        .into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
        .collect();
    labels.sort();
    or_none(labels.join(","))
}

#[cfg(test)]
mod tests;
