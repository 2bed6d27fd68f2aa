//! What a real kube-apiserver says of one edge, recorded once and multiplied.
//!
//! - a real control plane, a real hub, edge 0 joined by `kedge join`, its pod with two ConfigMaps → the events of watches from before all
//!   that, and the Secrets by which the hub knows itself
//! - the last event of each object → [`Recording::multiply`]: as many edges' objects, each with names, uids and resourceVersions
//!   of its own, else byte for byte as they were recorded
//!
//! Recorded at each start, in half a minute: a recording that is kept would age with Kubernetes and with what the hub writes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use cloudhub::identity::Authority;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kit::{Hub, Site};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::super::board::Board;
use super::super::fleet::{self, ALL, Fleet};
use super::super::{config_map, pod};
use super::objects::{Kind, Objects, id};
use crate::api;

/// No step of the recording takes as long.
const LIMIT: Duration = Duration::from_secs(90);
/// How long a recorded watch is open: it only has to tell what is there.
const WATCH_SECONDS: u32 = 1;
/// Where the hub keeps what it must remember.
const OWN: &str = "/api/v1/namespaces/kedge-system/secrets";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/sim-0";

/// An object of edge 0.
#[derive(Debug)]
struct Template {
    kind: &'static Kind,
    text: String,
}

/// What was recorded.
#[derive(Debug)]
pub(in crate::scale) struct Recording {
    /// What there is once.
    once: Vec<(&'static Kind, Value)>,
    /// What each edge has: Node, Lease, pod, ConfigMap, node record.
    each: Vec<Template>,
    /// Who signs nodes' certificates.
    pub(in crate::scale) nodes_ca: Authority,
    /// How many events they were taken from.
    pub(in crate::scale) events: usize,
}

fn kind(plural: &str) -> Result<&'static Kind> {
    Kind::of(plural).with_context(|| format!("the feed does not know {plural}"))
}

async fn get(client: &kube::Client, path: &str) -> Result<Value> {
    let request = http::Request::get(path).body(Vec::new())?;
    client.request(request).await.with_context(|| format!("GET {path}"))
}

/// The events of a watch since `from`.
async fn events(client: &kube::Client, path: &str, from: &str) -> Result<Vec<Value>> {
    let url =
        format!("{path}?watch=true&allowWatchBookmarks=true&resourceVersion={from}&timeoutSeconds={WATCH_SECONDS}");
    let text = client.request_text(http::Request::get(&url).body(Vec::new())?).await;
    let text = text.with_context(|| format!("watch {path}"))?;
    text.lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("event {line}")))
        .collect()
}

/// The object of the last event of each Node, pod and ConfigMap since `from`, by plural and name; and how many events there were.
async fn last_events(client: &kube::Client, from: &str) -> Result<(BTreeMap<(&'static str, String), Value>, usize)> {
    let (mut last, mut count) = (BTreeMap::new(), 0);
    for (plural, path) in [
        ("nodes", "/api/v1/nodes"),
        ("pods", "/api/v1/namespaces/default/pods"),
        ("configmaps", "/api/v1/namespaces/default/configmaps"),
    ] {
        for mut event in events(client, path, from).await? {
            let object = event["object"].take();
            match event["type"].as_str() {
                Some("ADDED" | "MODIFIED") => {
                    count += 1;
                    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                    last.insert((plural, name), object);
                }
                Some("BOOKMARK") => {}
                _ => bail!("an event that was not expected: {object}"),
            }
        }
    }
    Ok((last, count))
}

/// Whether the hub and its edge have nothing more to write.
fn is_settled(node: &Value, pod: &Value) -> bool {
    let connected = |condition: &Value| condition["type"] == "EdgeConnected" && condition["status"] == "True";
    let limited = |toleration: &Value| !toleration["tolerationSeconds"].is_null();
    let any = |value: &Value, is: &dyn Fn(&Value) -> bool| value.as_array().into_iter().flatten().any(is);
    any(&node["status"]["conditions"], &connected)
        && node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].is_u64()
        && node["metadata"]["annotations"]["kedge.dev/agent"].is_string()
        && !any(&pod["spec"]["tolerations"], &limited)
}

impl Recording {
    /// Records edge 0 of `site`, whose folder stays: it has joined.
    ///
    /// # Errors
    /// When a part of the real cluster does not come up, or says something else than was waited for.
    pub(in crate::scale) fn make(site: &Site, runtime: &Runtime) -> Result<Self> {
        let hub = Hub::start(site)?;
        let recorded = runtime.block_on(async {
            let client = api::client(&hub.kubeconfig).await?;
            let from = get(&client, "/api/v1/nodes?limit=1").await?["metadata"]["resourceVersion"].take();
            let from = from.as_str().context("a list without resourceVersion")?;
            fleet::join(site, &hub, 1)?;
            let board = Board::new();
            let fleet = Fleet::start(site, 1, &board)?;
            fleet.connected(&[], LIMIT).await?;
            fleet.complete(LIMIT).await?;
            live_a_little(&client, &board).await?;
            Self::read(&client, from).await
        });
        recorded.map_err(|error| error.context(hub.tail()))
    }

    async fn read(client: &kube::Client, from: &str) -> Result<Self> {
        let (mut last, count) = last_events(client, from).await?;
        let mut take = |plural: &'static str, name: &str| {
            let object = last.remove(&(plural, name.to_owned()));
            object.with_context(|| format!("no event of {plural} {name} in {count}"))
        };
        let (own, all) = (fleet::own(0), take("configmaps", ALL)?);
        let mut each = vec![
            ("nodes", take("nodes", &fleet::name(0))?),
            ("pods", take("pods", "pod-0")?),
        ];
        each.push(("configmaps", take("configmaps", &own)?));
        each.push(("leases", get(client, LEASE).await?));
        let mut once = vec![(kind("configmaps")?, all)];
        once.push((
            kind("namespaces")?,
            get(client, "/api/v1/namespaces/kube-system").await?,
        ));
        let mut nodes_ca = None;
        for secret in get(client, OWN).await?["items"]
            .as_array_mut()
            .into_iter()
            .flatten()
            .map(Value::take)
        {
            match secret["metadata"]["name"].as_str().unwrap_or_default() {
                "node-sim-0" => each.push(("secrets", secret)),
                "join-sim-0" => {}
                name => {
                    if name == "ca-tunnel" {
                        let secret: Secret = serde_json::from_value(secret.clone())?;
                        nodes_ca = Some(Authority::from_secret(&secret)?);
                    }
                    once.push((kind("secrets")?, secret));
                }
            }
        }
        let template = |(plural, object): (&str, Value)| {
            let text = object.to_string();
            Ok::<_, anyhow::Error>(Template {
                kind: kind(plural)?,
                text,
            })
        };
        Ok(Self {
            once,
            each: each.into_iter().map(template).collect::<Result<_>>()?,
            nodes_ca: nodes_ca.context("the hub has no Secret ca-tunnel")?,
            events: count,
        })
    }

    /// The objects of a cluster with `edges` edges.
    ///
    /// # Errors
    /// When a template is no object of edge 0.
    pub(in crate::scale) fn multiply(&self, edges: usize) -> Result<Objects> {
        let objects = Objects::default();
        let place = |kind: &'static Kind, value: Value| {
            let text = |field: &str| value["metadata"][field].as_str().unwrap_or_default().to_owned();
            let at = id(&text("namespace"), &text("name"));
            objects.put(kind, &at, value);
        };
        for (kind, value) in &self.once {
            place(kind, value.clone());
        }
        let mut uids = Vec::new();
        for template in &self.each {
            let value: Value = serde_json::from_str(&template.text)?;
            let uid = value["metadata"]["uid"].as_str().context("a template without uid")?;
            uids.push(uid.to_owned());
        }
        for n in 0..edges {
            for template in &self.each {
                place(template.kind, serde_json::from_str(&of_edge(&template.text, &uids, n))?);
            }
        }
        Ok(objects)
    }
}

/// The template's text as it is of edge `n`.
fn of_edge(text: &str, uids: &[String], n: usize) -> String {
    let mut text = text.to_owned();
    for (from, to) in [
        ("sim-0", fleet::name(n)),
        ("own-0", fleet::own(n)),
        ("pod-0", format!("pod-{n}")),
    ] {
        text = text.replace(from, &to);
    }
    for (kind, uid) in uids.iter().enumerate() {
        text = text.replace(uid, &format!("{kind:08x}-0000-4000-8000-{n:012x}"));
    }
    text
}

/// A pod with its ConfigMaps comes, both are changed, and all that follows is written.
async fn live_a_little(client: &kube::Client, board: &Board) -> Result<()> {
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let (post, own) = (PostParams::default(), fleet::own(0));
    for name in [ALL, &own] {
        maps.create(&post, &config_map(name, &format!("{name}-0"))).await?;
    }
    pods.create(&post, &pod(0)).await?;
    for name in [ALL, &own] {
        board.wait(&format!("{name}-0"), 1, LIMIT).await?;
        let patch = Patch::Merge(json!({"data": {"value": format!("{name}-1")}}));
        maps.patch(name, &PatchParams::default(), &patch).await?;
        board.wait(&format!("{name}-1"), 1, LIMIT).await?;
    }
    let start = Instant::now();
    loop {
        let node = get(client, "/api/v1/nodes/sim-0").await?;
        let pod = get(client, "/api/v1/namespaces/default/pods/pod-0").await?;
        if is_settled(&node, &pod) && get(client, LEASE).await.is_ok() {
            return Ok(());
        }
        if start.elapsed() > LIMIT {
            bail!("not settled after {LIMIT:?}: {node} {pod}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_edge_gets_names_and_uids_of_its_own() {
        let uids = ["2f1a6f3e-7a3c-4f7e-9d53-0c6d1c5b9a10".to_owned()];
        let text = format!(
            r#"{{"name":"own-0","node":"sim-0","value":"own-0-1","uid":"{}"}}"#,
            uids[0]
        );
        assert_eq!(
            of_edge(&text, &uids, 17),
            r#"{"name":"own-17","node":"sim-17","value":"own-17-1","uid":"00000000-0000-4000-8000-000000000011"}"#
        );
    }

    #[test]
    fn a_node_without_its_kubelet_port_has_not_settled() {
        let mut node = json!({"metadata": {"annotations": {"kedge.dev/agent": "a"}}, "status": {
            "conditions": [{"type": "EdgeConnected", "status": "True"}], "daemonEndpoints": {"kubeletEndpoint": {"Port": 1}}}});
        let pod = |seconds: Value| json!({"spec": {"tolerations": [{"key": "k", "tolerationSeconds": seconds}]}});
        assert!(is_settled(&node, &pod(Value::Null)));
        assert!(!is_settled(&node, &pod(300.into())));
        node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"] = Value::Null;
        assert!(!is_settled(&node, &pod(Value::Null)));
    }
}
