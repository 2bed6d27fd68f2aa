//! What reaches the node agent: requests to its kubelet API, objects of the hub, logs of containers.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::{Arc, LazyLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use cri::fake::FakeRuntime;
use edgecore::kubelet_api::logs::{Formatter, LogOptions, LogReader, parse};
use edgecore::kubelet_api::query::Query;
use edgecore::kubelet_api::stream;
use edgecore::node::quantity;
use edgecore::pods::api::Pod;
use edgecore::pods::env::{self, Facts};
use edgecore::pods::objects::{ObjectError, Objects};
use edgecore::pods::quantity::Quantity;
use edgecore::pods::volumes::atomic;
use edgecore::pods::{admission, resources};
use http::{HeaderMap, HeaderValue, header};
use time::OffsetDateTime;

use super::{OBJECTS, texts};

pub(super) fn requests() -> Vec<Vec<u8>> {
    texts(&[
        "/containerLogs/default/web/main?follow=true&tailLines=5&limitBytes=10&sinceSeconds=60&timestamps=true",
        "/containerLogs/default/web/main?sinceTime=2026-01-01T00:00:00Z&previous=1&stream=Stdout",
        "/exec/default/web/0b8a/main?command=sh&command=-c&command=echo%20a%2Bb&input=1&output=1&error=1&tty=1",
        "/portForward/default/web?port=80&port=443,8443",
        "/stats/summary?only_cpu_and_memory=true",
        "v5.channel.k8s.io, v4.channel.k8s.io",
    ])
}

pub(super) fn request(input: &[u8]) -> Result<(), String> {
    let text = String::from_utf8_lossy(input);
    let (path, query) = text.split_once('?').unwrap_or((&text, ""));
    edgecore::fuzzing::path(path);
    let query = Query::parse(query);
    let _ = query.log_options(OffsetDateTime::UNIX_EPOCH);
    let _ = query.streams();
    if let Ok(value) = HeaderValue::from_bytes(input) {
        let mut headers = HeaderMap::new();
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, value);
        let _ = stream::negotiate(&headers);
    }
    Ok(())
}

pub(super) fn logs() -> Vec<Vec<u8>> {
    texts(&[
        "2016-10-06T00:17:09.669794202Z stdout F text\n2016-10-06T00:17:10.1Z stderr P part\n2016-10-06T00:17:11Z stderr F end\n",
        "2016-10-06T00:17:09.669794202+02:00 stdout P:x a\n2016-10-06T00:17:09Z stdout F \n\n2016-10-06T00:17:09Z stdout F no end",
    ])
}

thread_local! {
    static TOKIO: RefCell<Option<tokio::runtime::Runtime>> = const { RefCell::new(None) };
}

/// Lines one by one, and the whole file as `kubectl logs --tail` reads it.
pub(super) fn log(input: &[u8]) -> Result<(), String> {
    let options = |tail| LogOptions {
        timestamps: true,
        since: Some(OffsetDateTime::UNIX_EPOCH),
        tail_lines: tail,
        limit_bytes: Some(1 << 20),
        ..LogOptions::default()
    };
    let mut formatter = Formatter::new(options(None));
    let mut out = Vec::new();
    for line in input.split_inclusive(|byte| *byte == b'\n') {
        parse(line);
        formatter.line(line, &mut out);
    }
    // A stamp is 36 bytes at most, and a line that has one has had a time of its own.
    if out.len() > input.len().saturating_mul(3) {
        return Err(format!("{} bytes of log become {}", input.len(), out.len()));
    }
    let failed = |error: std::io::Error| error.to_string();
    let mut file = tempfile::NamedTempFile::new().map_err(failed)?;
    file.write_all(input).map_err(failed)?;
    TOKIO.with(|slot| {
        let mut slot = slot.borrow_mut();
        let tokio = match slot.take() {
            Some(tokio) => tokio,
            None => tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(failed)?,
        };
        let read = tokio.block_on(async {
            let runtime = Arc::new(FakeRuntime::default());
            let opened = LogReader::open(file.path(), "c", options(Some(2)), runtime).await;
            let mut reader = opened.map_err(|error| error.to_string())?;
            while reader.next().await.is_some() {}
            Ok(())
        });
        *slot = Some(tokio);
        read
    })
}

/// Every ConfigMap and Secret is this one.
#[derive(Debug)]
struct One(Bytes);

impl Objects for One {
    fn object(&self, _kind: &str, _namespace: &str, _name: &str) -> Result<Option<Bytes>, ObjectError> {
        Ok(Some(self.0.clone()))
    }
}

pub(super) fn pods() -> Vec<Vec<u8>> {
    let pods = OBJECTS.iter().filter(|object| object["kind"] == "Pod");
    pods.map(|pod| pod.to_string().into_bytes()).collect()
}

/// A Pod as the hub sends it, and what is computed of it before anything is done.
pub(super) fn pod(input: &[u8]) -> Result<(), String> {
    let Ok(pod) = Pod::parse(input) else { return Ok(()) };
    let facts = Facts {
        node_name: "robot-1".into(),
        allocatable: BTreeMap::from([
            ("cpu".to_owned(), "4".to_owned()),
            ("memory".to_owned(), "8Gi".to_owned()),
        ])
        .into_iter()
        .collect(),
        ..Facts::default()
    };
    let objects = One(Bytes::from_static(br#"{"data":{"k":"dmFsdWU="}}"#));
    resources::qos(&pod);
    resources::pod_resources(&pod);
    let _ = (pod.grace_seconds(), pod.full_name());
    let _ = admission::admit(&pod, &[&pod], &facts.allocatable, &pod.spec.node_selector);
    for container in pod.all_containers() {
        let _ = env::build(&pod, container, &facts, &objects);
        resources::container_resources(&pod, container, 8 << 30);
        let _ = (
            container.hash(),
            container.pull_policy(),
            container.message_path().len(),
        );
        edgecore::fuzzing::credentials(&objects, &pod, &container.image);
    }
    atomic::is_safe(&pod.metadata.name);
    Ok(())
}

pub(super) fn registries() -> Vec<Vec<u8>> {
    texts(&[
        r#"{"auths":{"https://registry.example/v1/":{"auth":"dTpw"},"*.example":{"username":"u","password":"p"}}}"#,
        r#"{"auths":{"registry.example:5000/a/b":{"identitytoken":"t","registrytoken":"r","auth":"e"}}}"#,
    ])
}

static PULLER: LazyLock<Pod> = LazyLock::new(|| {
    let pod = br#"{"metadata":{"name":"p","namespace":"n","uid":"u"},"spec":{"imagePullSecrets":[{"name":"s"}],"containers":[]}}"#;
    Pod::parse(pod).expect("it is a pod")
});

/// The Docker configuration in a pull secret.
pub(super) fn registry(input: &[u8]) -> Result<(), String> {
    let secret = format!(r#"{{"data":{{".dockerconfigjson":"{}"}}}}"#, STANDARD.encode(input));
    edgecore::fuzzing::credentials(&One(secret.into()), &PULLER, "registry.example/a/b:1");
    Ok(())
}

pub(super) fn quantities() -> Vec<Vec<u8>> {
    texts(&[
        "100m",
        "1.5",
        "64Mi",
        "2e3",
        "1E6",
        "10%",
        "0.000000001",
        "9223372036854775807",
        "8Ei",
        "-1",
    ])
}

pub(super) fn quantity(input: &[u8]) -> Result<(), String> {
    let text = String::from_utf8_lossy(input);
    quantity::parse(&text);
    quantity::threshold(&text, u64::MAX);
    if let Ok(quantity) = text.parse::<Quantity>() {
        let _ = (quantity.milli(), quantity.value(), quantity.divided_by(quantity));
        let _ = (resources::shares(quantity.milli()), resources::quota(quantity.milli()));
    }
    Ok(())
}
