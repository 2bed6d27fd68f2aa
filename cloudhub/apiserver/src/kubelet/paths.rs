//! Which path of the kubelet's API a subresource of a pod or node is, with the checks that the real server makes before it calls.

use serde_json::{Value, json};

use crate::object;
use crate::status::{Errors, Status};

/// Whom to call, and what to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// The node's name.
    pub(crate) node: String,
    /// Path and query of the kubelet's API.
    pub(crate) path: String,
}

/// Query parameters: names may repeat.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Query<'a>(&'a [(String, String)]);

impl<'a> Query<'a> {
    /// Of these pairs, decoded.
    pub(crate) fn new(pairs: &'a [(String, String)]) -> Self {
        Self(pairs)
    }

    fn all(self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    fn text(self, name: &str) -> &'a str {
        self.0
            .iter()
            .find(|(n, _)| n == name)
            .map_or("", |(_, value)| value.as_str())
    }

    /// As apimachinery converts a parameter to a boolean: there and not "0" or "false".
    fn flag(self, name: &str) -> bool {
        let value = self.0.iter().find(|(n, _)| n == name);
        value.is_some_and(|(_, value)| value != "0" && !value.eq_ignore_ascii_case("false"))
    }

    fn number(self, name: &str) -> Result<Option<i64>, Status> {
        let value = self.text(name);
        if value.is_empty() {
            return Ok(None);
        }
        let number = value.parse();
        number
            .map(Some)
            .map_err(|_| Status::bad_request(format!("strconv.ParseInt: parsing {value:?}: invalid syntax")))
    }
}

/// Writes `text` so that it stands for itself in a query.
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn join(path: String, parameters: &[(&str, &str)]) -> String {
    let words: Vec<String> = parameters
        .iter()
        .map(|(name, value)| format!("{name}={}", encode(value)))
        .collect();
    if words.is_empty() {
        path
    } else {
        format!("{path}?{}", words.join("&"))
    }
}

fn names<'a>(pod: &'a Value, list: &str) -> Vec<&'a str> {
    let containers = object::items(pod, list).iter();
    containers.map(|container| object::text(container, "/name")).collect()
}

/// The container that is meant: the one that is named, or the only one.
fn container(pod: &Value, asked: &str) -> Result<String, Status> {
    let name = object::name(pod);
    let lists = ["/spec/initContainers", "/spec/containers", "/spec/ephemeralContainers"];
    let all: Vec<&str> = lists.iter().flat_map(|list| names(pod, list)).collect();
    if !asked.is_empty() {
        return if all.contains(&asked) {
            Ok(asked.to_owned())
        } else {
            Err(Status::bad_request(format!(
                "container {asked} is not valid for pod {name}"
            )))
        };
    }
    match names(pod, "/spec/containers").as_slice() {
        [only] => Ok((*only).to_owned()),
        [] => Err(Status::bad_request(format!(
            "a container name must be specified for pod {name}"
        ))),
        _ => Err(Status::bad_request(format!(
            "a container name must be specified for pod {name}, choose one of: [{}]",
            all.join(" ")
        ))),
    }
}

fn node(pod: &Value) -> Result<String, Status> {
    match object::text(pod, "/spec/nodeName") {
        "" => Err(Status::bad_request(format!(
            "pod {} does not have a host assigned",
            object::name(pod)
        ))),
        node => Ok(node.to_owned()),
    }
}

/// `pods/log`. None: the pod is on no node yet, which the real server answers with 204.
///
/// # Errors
/// 400 for a container that is not there or must be named, 422 for options that make no sense.
pub(crate) fn log(pod: &Value, query: Query<'_>) -> Result<Option<Target>, Status> {
    let options = log_options(query, object::name(pod))?;
    let container = container(pod, query.text("container"))?;
    let node = object::text(pod, "/spec/nodeName");
    if node.is_empty() {
        return Ok(None);
    }
    let path = format!(
        "/containerLogs/{}/{}/{container}",
        object::namespace(pod),
        object::name(pod)
    );
    let options: Vec<(&str, &str)> = options.iter().map(|(name, value)| (*name, value.as_str())).collect();
    Ok(Some(Target {
        node: node.to_owned(),
        path: join(path, &options),
    }))
}

/// v1.PodLogOptions, checked, as kubelet's parameters.
fn log_options(query: Query<'_>, pod: &str) -> Result<Vec<(&'static str, String)>, Status> {
    let mut errors = Errors::default();
    let mut options = Vec::new();
    for flag in ["follow", "previous", "timestamps"] {
        if query.flag(flag) {
            options.push((flag, "true".to_owned()));
        }
    }
    for (field, least, detail) in [
        ("tailLines", 0, "must be greater than or equal to 0"),
        ("limitBytes", 1, "must be greater than 0"),
        ("sinceSeconds", 1, "must be greater than 0"),
    ] {
        let Some(number) = query.number(field)? else {
            continue;
        };
        if number < least {
            errors.invalid(field, &json!(number), detail);
        }
        options.push((field, number.to_string()));
    }
    let since = query.text("sinceTime");
    if !since.is_empty() {
        if object::parse_time(since).is_none() {
            return Err(Status::bad_request(format!(
                "parsing time {since:?} as RFC 3339 failed"
            )));
        }
        if query.number("sinceSeconds")?.is_some() {
            errors.forbidden("", "at most one of `sinceTime` or `sinceSeconds` may be specified");
        }
        options.push(("sinceTime", since.to_owned()));
    }
    match query.text("stream") {
        "" | "All" => {}
        stream @ ("Stdout" | "Stderr") => {
            if query.number("tailLines")?.is_some() {
                errors.forbidden("", "`tailLines` and specific `stream` are mutually exclusive for now");
            }
            options.push(("stream", stream.to_owned()));
        }
        other => errors.not_supported("stream", &json!(other), &["All", "Stderr", "Stdout"]),
    }
    if errors.is_empty() {
        Ok(options)
    } else {
        Err(Status::invalid("", "PodLogOptions", pod, errors))
    }
}

/// `pods/exec` and `pods/attach`.
///
/// # Errors
/// 400: no node, or not that container.
pub(crate) fn process(what: &str, pod: &Value, query: Query<'_>) -> Result<Target, Status> {
    let container = container(pod, query.text("container"))?;
    let node = node(pod)?;
    let mut parameters = Vec::new();
    // kubelet's names for what the API calls stdin, stdout and stderr.
    for (ours, kubelets) in [
        ("stdin", "input"),
        ("stdout", "output"),
        ("stderr", "error"),
        ("tty", "tty"),
    ] {
        if query.flag(ours) {
            parameters.push((kubelets, "1"));
        }
    }
    if what == "exec" {
        parameters.extend(query.all("command").map(|word| ("command", word)));
    }
    let path = format!("/{what}/{}/{}/{container}", object::namespace(pod), object::name(pod));
    Ok(Target {
        node,
        path: join(path, &parameters),
    })
}

/// `pods/portforward`.
///
/// # Errors
/// 400: no node, or a port that is none.
pub(crate) fn port_forward(pod: &Value, query: Query<'_>) -> Result<Target, Status> {
    let node = node(pod)?;
    let ports: Vec<&str> = query.all("ports").flat_map(|ports| ports.split(',')).collect();
    if let Some(bad) = ports.iter().find(|port| port.parse::<u16>().is_err()) {
        return Err(Status::bad_request(format!(
            "strconv.ParseUint: parsing {bad:?}: invalid syntax"
        )));
    }
    let ports = ports.join(",");
    let parameters: &[(&str, &str)] = if ports.is_empty() { &[] } else { &[("port", &ports)] };
    let path = format!("/portForward/{}/{}", object::namespace(pod), object::name(pod));
    Ok(Target {
        node,
        path: join(path, parameters),
    })
}

/// The node of `nodes/NAME/proxy`, and the port where one is named: `NAME`, `NAME:PORT` or `https:NAME:PORT`.
///
/// # Errors
/// 400 for a name that is malformed.
pub(crate) fn node_of_proxy(name: &str) -> Result<(&str, Option<u16>), Status> {
    let malformed = || Status::bad_request(format!("invalid node request {name:?}"));
    let parts: Vec<&str> = name.split(':').collect();
    let (node, port) = match parts.as_slice() {
        [node] => (*node, ""),
        [node, port] | ["https", node, port] => (*node, *port),
        _ => return Err(malformed()),
    };
    if node.is_empty() {
        return Err(malformed());
    }
    let port = if port.is_empty() {
        None
    } else {
        Some(port.parse().map_err(|_| malformed())?)
    };
    Ok((node, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(node: &str, containers: &[&str], init: &[&str]) -> Value {
        let list = |names: &[&str]| names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>();
        json!({"metadata": {"name": "web", "namespace": "shop"},
               "spec": {"nodeName": node, "containers": list(containers), "initContainers": list(init)}})
    }

    fn pairs(query: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        query.iter().map(owned).collect()
    }

    fn log(pod: &Value, query: &[(&str, &str)]) -> Result<Option<Target>, Status> {
        super::log(pod, Query::new(&pairs(query)))
    }

    fn process(what: &str, pod: &Value, query: &[(&str, &str)]) -> Result<Target, Status> {
        super::process(what, pod, Query::new(&pairs(query)))
    }

    #[test]
    fn logs_carry_their_options_and_take_the_only_container() {
        let query = [
            ("follow", "true"),
            ("tailLines", "5"),
            ("sinceTime", "2026-01-01T00:00:00Z"),
            ("previous", "false"),
        ];
        let target = log(&pod("n1", &["main"], &[]), &query).unwrap().unwrap();
        assert_eq!(target.node, "n1");
        assert_eq!(
            target.path,
            "/containerLogs/shop/web/main?follow=true&tailLines=5&sinceTime=2026-01-01T00%3A00%3A00Z"
        );
        assert_eq!(log(&pod("", &["main"], &[]), &[]).unwrap(), None);
        assert_eq!(
            log(&pod("n1", &["main"], &["setup"]), &[("container", "setup")])
                .unwrap()
                .unwrap()
                .path,
            "/containerLogs/shop/web/setup"
        );
    }

    #[test]
    fn senseless_log_options_are_named() {
        let status = log(&pod("n1", &["main"], &[]), &[("tailLines", "-1"), ("limitBytes", "0")]).unwrap_err();
        assert_eq!((status.code, status.reason), (422, "Invalid"));
        assert_eq!(
            status.message,
            "PodLogOptions \"web\" is invalid: [tailLines: Invalid value: -1: must be greater than or equal to 0, \
             limitBytes: Invalid value: 0: must be greater than 0]"
        );
        assert_eq!(
            log(&pod("n1", &["main"], &[]), &[("tailLines", "x")]).unwrap_err().code,
            400
        );
        let both = [("sinceSeconds", "1"), ("sinceTime", "2026-01-01T00:00:00Z")];
        assert_eq!(log(&pod("n1", &["main"], &[]), &both).unwrap_err().code, 422);
    }

    #[test]
    fn exec_and_attach_use_kubelets_names() {
        let query = [
            ("command", "sh"),
            ("command", "-c"),
            ("command", "echo a+b"),
            ("stdin", "true"),
            ("stdout", "true"),
            ("tty", "true"),
            ("stderr", "false"),
        ];
        assert_eq!(
            process("exec", &pod("n1", &["main"], &[]), &query).unwrap().path,
            "/exec/shop/web/main?input=1&output=1&tty=1&command=sh&command=-c&command=echo%20a%2Bb"
        );
        assert_eq!(
            process("attach", &pod("n1", &["main"], &[]), &query).unwrap().path,
            "/attach/shop/web/main?input=1&output=1&tty=1"
        );
    }

    #[test]
    fn a_container_must_be_there_and_be_named_where_there_are_several() {
        let message = |result: Result<Target, Status>| result.unwrap_err().message;
        assert_eq!(
            message(process("exec", &pod("n1", &["a", "b"], &["c"]), &[])),
            "a container name must be specified for pod web, choose one of: [c a b]"
        );
        assert_eq!(
            message(process("exec", &pod("n1", &["a"], &[]), &[("container", "x")])),
            "container x is not valid for pod web"
        );
        assert_eq!(
            message(process("attach", &pod("", &["a"], &[]), &[])),
            "pod web does not have a host assigned"
        );
    }

    #[test]
    fn forwarded_ports_are_numbers() {
        let forward = |query: &[(&str, &str)]| port_forward(&pod("n1", &["a"], &[]), Query::new(&pairs(query)));
        assert_eq!(forward(&[]).unwrap().path, "/portForward/shop/web");
        assert_eq!(
            forward(&[("ports", "80"), ("ports", "81")]).unwrap().path,
            "/portForward/shop/web?port=80%2C81"
        );
        assert_eq!(forward(&[("ports", "http")]).unwrap_err().code, 400);
    }

    #[test]
    fn a_proxied_node_may_name_its_port() {
        assert_eq!(node_of_proxy("n1").unwrap(), ("n1", None));
        assert_eq!(node_of_proxy("n1:10250").unwrap(), ("n1", Some(10250)));
        assert_eq!(node_of_proxy("https:n1:10250").unwrap(), ("n1", Some(10250)));
        assert_eq!(node_of_proxy("https:n1:").unwrap(), ("n1", None));
        for name in ["", "n1:ssh", "http:n1:10250", "a:b:c:d", ":10250"] {
            assert_eq!(node_of_proxy(name).unwrap_err().code, 400, "{name}");
        }
    }
}
