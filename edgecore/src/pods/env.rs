//! Environment of a container: ConfigMaps, Secrets, the downward API, `$(VAR)`, and the `kubernetes` Service.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::api::{Container, EnvSource, KeyRef, Map, Pod, ResourceFieldRef};
use super::expand::expand;
use super::objects::{self, Kind, ObjectError, Objects};
use super::quantity::Quantity;
use super::resources;

/// What the downward API shows beyond the pod itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// The node's name.
    pub node_name: String,
    /// The node's addresses, first is hostIP.
    pub host_ips: Vec<String>,
    /// The pod's addresses, first is podIP.
    pub pod_ips: Vec<String>,
    /// The node's allocatable resources: the default of limits.
    pub allocatable: Map,
    /// KUBERNETES_SERVICE_HOST; empty leaves the variables out.
    pub api_host: String,
    /// KUBERNETES_SERVICE_PORT.
    pub api_port: u16,
}

/// Why an environment or a downward file cannot be made. The text goes into CreateContainerConfigError as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    /// A ConfigMap or Secret.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// A field path that the downward API does not have.
    #[error("unsupported fieldPath: {0}")]
    Field(String),
    /// A resource that the downward API does not have.
    #[error("unsupported container resource: {0}")]
    Resource(String),
    /// A container that the pod does not have.
    #[error("container {0} not found")]
    Container(String),
}

/// The value of a downward API field path.
///
/// # Errors
/// [`EnvError::Field`] for one that does not exist.
pub fn field(pod: &Pod, facts: &Facts, path: &str) -> Result<String, EnvError> {
    let meta = &pod.metadata;
    let subscript = |prefix: &str| {
        path.strip_prefix(prefix)?
            .strip_prefix("['")?
            .strip_suffix("']")
            .map(str::to_owned)
    };
    if let Some(key) = subscript("metadata.labels") {
        return Ok(meta.labels.get(&key).cloned().unwrap_or_default());
    }
    if let Some(key) = subscript("metadata.annotations") {
        return Ok(meta.annotations.get(&key).cloned().unwrap_or_default());
    }
    let first = |list: &[String]| list.first().cloned().unwrap_or_default();
    Ok(match path {
        "metadata.name" => meta.name.clone(),
        "metadata.namespace" => meta.namespace.clone(),
        "metadata.uid" => meta.uid.clone(),
        "metadata.labels" => lines(&meta.labels),
        "metadata.annotations" => lines(&meta.annotations),
        "spec.nodeName" => facts.node_name.clone(),
        "spec.serviceAccountName" => pod.spec.service_account_name.clone(),
        "status.hostIP" => first(&facts.host_ips),
        "status.hostIPs" => facts.host_ips.join(","),
        "status.podIP" => first(&facts.pod_ips),
        "status.podIPs" => facts.pod_ips.join(","),
        other => return Err(EnvError::Field(other.to_owned())),
    })
}

/// `key="value"` lines, sorted, with Go's quoting of the value.
fn lines(map: &Map) -> String {
    let mut out = String::new();
    for (key, value) in map {
        if !out.is_empty() {
            out.push('\n');
        }
        let _ = write!(out, "{key}=\"");
        for c in value.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\t' => out.push_str("\\t"),
                '\r' => out.push_str("\\r"),
                c if c.is_control() => {
                    let _ = write!(out, "\\x{:02x}", u32::from(c));
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
    out
}

/// The value of a resourceFieldRef: limits default to what the node can give, requests to nothing.
///
/// # Errors
/// When container or resource do not exist.
pub fn resource(
    pod: &Pod,
    container: Option<&Container>,
    facts: &Facts,
    wanted: &ResourceFieldRef,
) -> Result<String, EnvError> {
    let container = match container.filter(|_| wanted.container_name.is_empty()) {
        Some(c) => c,
        None => pod
            .container(&wanted.container_name)
            .ok_or_else(|| EnvError::Container(wanted.container_name.clone()))?,
    };
    let (list, name) = wanted
        .resource
        .split_once('.')
        .ok_or_else(|| EnvError::Resource(wanted.resource.clone()))?;
    let known = matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    let value = match list {
        "limits" if known => resources::amount(&container.resources.limits, name)
            .or_else(|| resources::amount(&facts.allocatable, name))
            .unwrap_or_default(),
        "requests" if known => resources::request(container, name).unwrap_or_default(),
        _ => return Err(EnvError::Resource(wanted.resource.clone())),
    };
    let divisor = wanted
        .divisor
        .as_deref()
        .and_then(|d| d.parse().ok())
        .unwrap_or_else(|| Quantity::from_milli(1000));
    Ok(value.divided_by(divisor).to_string())
}

/// The environment, in the order in which it is given to the runtime; each name once, the last definition wins.
///
/// # Errors
/// When an object, key or field that is not optional is missing.
pub fn build(
    pod: &Pod,
    container: &Container,
    facts: &Facts,
    objects: &dyn Objects,
) -> Result<Vec<(String, String)>, EnvError> {
    let mut env = Env::default();
    let services = service_env(pod, facts);
    let namespace = &pod.metadata.namespace;
    for source in &container.env_from {
        let pairs = [
            (Kind::ConfigMap, &source.config_map_ref),
            (Kind::Secret, &source.secret_ref),
        ];
        for (kind, reference) in pairs {
            let Some(reference) = reference else { continue };
            match objects::data(objects, kind, namespace, &reference.name) {
                Ok(data) => {
                    for (key, value) in data {
                        env.set(format!("{}{key}", source.prefix), text(&value));
                    }
                }
                Err(ObjectError::NotFound { .. }) if reference.optional => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    for var in &container.env {
        let value = match &var.value_from {
            None => Some(expand(&var.value, |name| {
                env.get(name).or_else(|| services.get(name)).cloned()
            })),
            Some(source) => from_source(pod, container, facts, (objects, source))?,
        };
        if let Some(value) = value {
            env.set(var.name.clone(), value);
        }
    }
    for (name, value) in services {
        if env.get(&name).is_none() {
            env.set(name, value);
        }
    }
    Ok(env.list)
}

fn from_source(
    pod: &Pod,
    container: &Container,
    facts: &Facts,
    (objects, source): (&dyn Objects, &EnvSource),
) -> Result<Option<String>, EnvError> {
    if let Some(r) = &source.field_ref {
        return field(pod, facts, &r.field_path).map(Some);
    }
    if let Some(r) = &source.resource_field_ref {
        return resource(pod, Some(container), facts, r).map(Some);
    }
    if let Some(r) = &source.config_map_key_ref {
        return key(objects, Kind::ConfigMap, &pod.metadata.namespace, r);
    }
    if let Some(r) = &source.secret_key_ref {
        return key(objects, Kind::Secret, &pod.metadata.namespace, r);
    }
    Ok(Some(String::new()))
}

fn key(objects: &dyn Objects, kind: Kind, namespace: &str, wanted: &KeyRef) -> Result<Option<String>, EnvError> {
    match objects::data(objects, kind, namespace, &wanted.name) {
        Ok(data) => match data.get(&wanted.key) {
            Some(value) => Ok(Some(text(value))),
            None if wanted.optional => Ok(None),
            None => Err(ObjectError::NoKey {
                kind: kind.as_str(),
                namespace: namespace.to_owned(),
                name: wanted.name.clone(),
                key: wanted.key.clone(),
            }
            .into()),
        },
        Err(ObjectError::NotFound { .. }) if wanted.optional => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The variables of the `kubernetes` Service, which every pod gets whatever enableServiceLinks says.
fn service_env(_pod: &Pod, facts: &Facts) -> BTreeMap<String, String> {
    if facts.api_host.is_empty() {
        return BTreeMap::new();
    }
    let (host, port) = (&facts.api_host, facts.api_port);
    let bracketed = if host.contains(':') {
        format!("[{host}]")
    } else {
        host.clone()
    };
    let url = format!("tcp://{bracketed}:{port}");
    let tcp = format!("KUBERNETES_PORT_{port}_TCP");
    BTreeMap::from([
        ("KUBERNETES_SERVICE_HOST".to_owned(), host.clone()),
        ("KUBERNETES_SERVICE_PORT".to_owned(), port.to_string()),
        ("KUBERNETES_SERVICE_PORT_HTTPS".to_owned(), port.to_string()),
        ("KUBERNETES_PORT".to_owned(), url.clone()),
        (tcp.clone(), url),
        (format!("{tcp}_PROTO"), "tcp".to_owned()),
        (format!("{tcp}_PORT"), port.to_string()),
        (format!("{tcp}_ADDR"), host.clone()),
    ])
}

#[derive(Default)]
struct Env {
    list: Vec<(String, String)>,
    at: BTreeMap<String, usize>,
}

impl Env {
    fn set(&mut self, name: String, value: String) {
        match self.at.get(&name) {
            Some(&index) => self.list[index].1 = value,
            None => {
                self.at.insert(name.clone(), self.list.len());
                self.list.push((name, value));
            }
        }
    }
    fn get(&self, name: &str) -> Option<&String> {
        self.at.get(name).map(|&index| &self.list[index].1)
    }
}

#[cfg(test)]
mod tests {
    use super::super::objects::MapObjects;
    use super::*;
    use serde_json::json;

    fn facts() -> Facts {
        Facts {
            node_name: "n".into(),
            host_ips: vec!["10.0.0.1".into()],
            pod_ips: vec!["10.244.0.2".into()],
            allocatable: Map::from([("cpu".into(), "2".into()), ("memory".into(), "1Gi".into())]),
            api_host: "10.0.0.9".into(),
            api_port: 6443,
        }
    }

    fn build_env(container: serde_json::Value) -> Result<BTreeMap<String, String>, EnvError> {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u",
            "labels": {"a": "1"}, "annotations": {"k": "x\"y\n"}}, "spec": {"containers": [container]}}))
        .expect("pod");
        let objects = MapObjects::default();
        objects.put(
            "ConfigMap",
            "ns",
            "cm",
            &json!({"data": {"a": "1", "b": "2"}, "binaryData": {"c": "Mw=="}}),
        );
        objects.put("Secret", "ns", "s", &json!({"data": {"p": "c2VjcmV0"}}));
        build(&pod, &pod.spec.containers[0], &facts(), &objects).map(|list| list.into_iter().collect())
    }

    #[test]
    fn every_source_gives_its_value() {
        let env = build_env(json!({"name": "c", "resources": {"limits": {"memory": "64Mi"}},
            "envFrom": [{"prefix": "P_", "configMapRef": {"name": "cm"}}, {"secretRef": {"name": "none", "optional": true}}],
            "env": [
                {"name": "A", "value": "x"}, {"name": "B", "value": "$(A)-$(P_a)-$(KUBERNETES_SERVICE_HOST)-$(NO)"},
                {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "p"}}},
                {"name": "O", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "none", "optional": true}}},
                {"name": "L", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a']"}}},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
                {"name": "REQ", "valueFrom": {"resourceFieldRef": {"resource": "requests.cpu", "divisor": "1m"}}},
            ]}))
        .expect("env");
        for (name, wanted) in [
            ("A", "x"),
            ("B", "x-1-10.0.0.9-$(NO)"),
            ("P_c", "3"),
            ("S", "secret"),
            ("L", "1"),
            ("IP", "10.244.0.2"),
            ("CPU", "2"),
            ("MEM", "64"),
            ("REQ", "0"),
            ("KUBERNETES_SERVICE_PORT", "6443"),
        ] {
            assert_eq!(env.get(name).map(String::as_str), Some(wanted), "{name}");
        }
        assert!(!env.contains_key("O"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let missing = json!({"name": "c", "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "nope", "key": "k"}}}]});
        assert_eq!(
            build_env(missing).expect_err("missing").to_string(),
            "configmap \"nope\" not found"
        );
        let key =
            json!({"name": "c", "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]});
        assert_eq!(
            build_env(key).expect_err("key").to_string(),
            "couldn't find key k in Secret ns/s"
        );
    }

    #[test]
    fn annotations_are_quoted() {
        assert_eq!(lines(&Map::from([("k".into(), "x\"y\n".into())])), r#"k="x\"y\n""#);
    }
}
