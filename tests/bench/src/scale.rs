//! Many simulated edges below one hub, above kube-apiserver, above its own API, and above a recorded watch feed: memory an edge,
//! a change's way, one change to all, the storm after a hub's death, idle traffic.
//!
//! All in the hub's network namespace, over loopback: no link, no loss. What an edge commits, it acknowledges in the same turn
//! of its session's loop; the commit is what is timed.

mod board;
mod feed;
mod fleet;
mod recorded;

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use kit::{Hub, Site};
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use metastore::{Batch, Options, Store};
use serde_json::json;
use tokio::runtime::Runtime;

use crate::api;
use crate::proc::Memory;
use crate::table::{Gate, Row, Rows, Samples, megabytes_a_day};
use crate::traffic::Traffic;
use crate::world;
use board::Board;
use fleet::{ALL, Fleet};

/// The Kubernetes API above the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Above {
    /// An unmodified control plane.
    KubeApiserver,
    /// The hub's own.
    Embedded,
    /// What a kube-apiserver said of one edge, multiplied: for more edges than a real one has room for here.
    Recorded,
}

impl Above {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::KubeApiserver => "kube-apiserver",
            Self::Embedded => "embedded",
            Self::Recorded => "recorded feed",
        }
    }

    /// How many edges are measured, where nobody says.
    fn edges(self, quick: bool) -> usize {
        match self {
            _ if quick => 200,
            Self::Recorded => 10_000,
            Self::KubeApiserver | Self::Embedded => 1000,
        }
    }
}

/// Requests of ours to the API at once.
const AT_ONCE: usize = 16;
/// What a connected edge may cost the hub, and a pod of it, KiB.
const SESSION: f64 = 64.0;
const POD: f64 = 5.0;
/// Edges of ten thousand that begin at once: the handshakes' other ends have the hub's cores too, and would run into their deadlines.
const WAVE: usize = 500;
/// Commits of a real store.
const COMMITS: usize = 100;

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// Little of everything.
    pub(crate) quick: bool,
    /// Above the recorded feed too.
    pub(crate) full: bool,
    /// Above this alone.
    pub(crate) only: Option<Above>,
    /// So many edges.
    pub(crate) edges: Option<usize>,
    /// Only what they cost in memory.
    pub(crate) memory: bool,
}

impl Plan {
    fn extent(&self, above: Above) -> Extent {
        let (idle, settle) = match above {
            _ if self.quick => (20, 5),
            // All that an edge's return makes the hub write takes its time with ten thousand of them.
            Above::Recorded => (IDLE, 60),
            Above::KubeApiserver | Above::Embedded => (IDLE, 20),
        };
        let edges = self.edges.unwrap_or_else(|| above.edges(self.quick));
        Extent {
            edges,
            wave: if above == Above::Recorded { WAVE } else { edges },
            memory_alone: self.memory,
            changes: if self.quick { 50 } else { 500 },
            fan_outs: if self.quick { 3 } else { 10 },
            idle: Duration::from_secs(idle),
            settle: Duration::from_secs(settle),
        }
    }
}

/// Seconds in which all that an idle session says from time to time is said once: marks, and a node's status.
pub(crate) const IDLE: u64 = 300;

/// How much of everything.
#[derive(Debug, Clone, Copy)]
struct Extent {
    edges: usize,
    /// So many come to a hub at once; the next when all of these have a session.
    wave: usize,
    /// No times, no traffic.
    memory_alone: bool,
    changes: usize,
    fan_outs: usize,
    idle: Duration,
    settle: Duration,
}

impl Extent {
    /// No step takes so long: a minute, and a quarter of a second an edge on a machine that does other things.
    fn limit(&self) -> Duration {
        Duration::from_secs(60) + Duration::from_millis(250) * u32::try_from(self.edges).unwrap_or(u32::MAX)
    }
}

/// All rows, above each API in turn or above the one that is asked for.
///
/// # Errors
/// The first measurement that could not be made.
pub(crate) fn run(plan: Plan) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for above in [Above::KubeApiserver, Above::Embedded, Above::Recorded] {
        if plan
            .only
            .map_or(above != Above::Recorded || plan.full, |only| only == above)
        {
            let extent = plan.extent(above);
            eprintln!("bench: {} edges above {}", extent.edges, above.name());
            let measured = world::on_own_thread("scale", move || one(above, extent));
            rows.extend(measured.with_context(|| format!("above {}", above.name()))?);
        }
    }
    Ok(rows)
}

fn one(above: Above, extent: Extent) -> Result<Vec<Row>> {
    let site = Site::new()?;
    let mut hub = match above {
        Above::KubeApiserver => Hub::start(&site)?,
        Above::Embedded => Hub::embedded(&site)?,
        Above::Recorded => return recorded::run(&site, extent),
    };
    let runtime = world::enter(&site)?;
    let mut bench = Bench::new(above, extent, &site, runtime);
    match bench.all(&mut hub) {
        Ok(()) => Ok(bench.rows.finish()),
        Err(error) => Err(error.context(hub.tail())),
    }
}

struct Bench<'a> {
    above: &'static str,
    extent: Extent,
    site: &'a Site,
    runtime: Runtime,
    board: Board,
    values: u64,
    rows: Rows,
}

/// A client's handles.
struct Cluster {
    nodes: Api<Node>,
    pods: Api<Pod>,
    maps: Api<ConfigMap>,
}

/// Where changes come from.
trait Upstream {
    /// What a change's time counts from.
    const FROM: &'static str;
    /// What else is in the times.
    const NOTE: &'static str;
    /// Whether it answers when a change is written: then the time from there is told too.
    const ANSWERS: bool;

    /// A new `data.value` in ConfigMap `name`.
    async fn set(&self, name: &str, value: &str) -> Result<()>;
}

impl Upstream for Cluster {
    const FROM: &'static str = "from the API write";
    const NOTE: &'static str = "simulated edges, store in memory; the write to the API, made durable, is in it";
    const ANSWERS: bool = true;

    async fn set(&self, name: &str, value: &str) -> Result<()> {
        let patch = Patch::Merge(json!({"data": {"value": value}}));
        self.maps.patch(name, &PatchParams::default(), &patch).await?;
        Ok(())
    }
}

impl<'a> Bench<'a> {
    fn new(above: Above, extent: Extent, site: &'a Site, runtime: Runtime) -> Self {
        Self {
            above: above.name(),
            extent,
            site,
            runtime,
            board: Board::new(),
            values: 0,
            rows: Rows::default(),
        }
    }

    fn all(&mut self, hub: &mut Hub<'_>) -> Result<()> {
        let edges = self.extent.edges;
        let pid = hub.pid().context("the hub runs")?;
        let client = self.runtime.block_on(api::client(&hub.kubeconfig))?;
        let cluster = Cluster {
            nodes: Api::all(client.clone()),
            pods: Api::default_namespaced(client.clone()),
            maps: Api::default_namespaced(client),
        };
        say("joins");
        fleet::join(self.site, hub, edges)?;
        let joined = Memory::of(pid)?;

        say("sessions");
        let fleet = self.connect(&cluster)?;
        thread::sleep(self.extent.settle);
        let connected = Memory::of(pid)?;
        let row = self.memory_row(
            "hub RSS, per new edge: session, Node, Lease, kubelet port",
            (joined, connected),
        );
        self.rows.push(row);

        say("pods");
        self.pods(&cluster, &fleet)?;
        thread::sleep(self.extent.settle);
        let row = self.memory_row("hub RSS, per new pod with a ConfigMap", (connected, Memory::of(pid)?));
        self.rows.push(row);

        self.times(&cluster, hub, &fleet)?;
        drop(fleet);
        say("memory of sessions alone");
        hub.kill();
        hub.restart()?;
        self.come_back(hub).map(drop)
    }

    /// All that is no memory.
    fn times(&mut self, upstream: &impl Upstream, hub: &mut Hub<'_>, fleet: &Fleet) -> Result<()> {
        if self.extent.memory_alone {
            return Ok(());
        }
        say("changes");
        self.changes(upstream)?;
        self.fan_out(upstream)?;
        say("idle traffic");
        self.idle_traffic()?;
        say("reconnect storm");
        self.storm(hub, fleet)?;
        self.rows.push(real_commits(self.site, &self.runtime)?);
        Ok(())
    }

    /// What each edge has added to the hub's memory.
    fn memory_row(&self, what: &str, (before, after): (Memory, Memory)) -> Row {
        let each = |before: u64, after: u64| (after as f64 - before as f64) / self.extent.edges as f64;
        let note = format!(
            "RssAnon {:.1} KiB; the hub has {:.1} MB in all",
            each(before.anon, after.anon),
            after.rss as f64 * 1024.0 / 1e6
        );
        Row::new(self.above, what, "KiB", Samples::one(each(before.rss, after.rss))).note(note)
    }

    /// All edges come to a hub that has just been started and knows their Nodes and pods already: what a session alone costs. Gives
    /// how long it took until all had a session, and until each had all that it should.
    fn come_back(&mut self, hub: &Hub<'_>) -> Result<(Fleet, [Duration; 2])> {
        let limit = self.extent.limit();
        let pid = hub.pid().context("the hub runs")?;
        thread::sleep(self.extent.settle);
        let before = Memory::of(pid)?;
        let (site, edges, board, start) = (self.site, self.extent.edges, &self.board, Instant::now());
        let (fleet, sessions) = self.runtime.block_on(async {
            let mut fleet = Fleet::start(site, 0, board)?;
            for first in (0..edges).step_by(self.extent.wave) {
                fleet.add(site, first..edges.min(first + self.extent.wave), board)?;
                fleet.connected(&[], limit).await?;
            }
            let sessions = start.elapsed();
            fleet.complete(limit).await?;
            until("each edge holds its pod", limit, || fleet.with_pod() == edges).await?;
            Ok::<_, anyhow::Error>((fleet, sessions))
        })?;
        let whole = start.elapsed();
        thread::sleep(self.extent.settle);
        let row = self.memory_row(
            "hub RSS, per connected edge with 1 pod, its objects known before",
            (before, Memory::of(pid)?),
        );
        self.rows.push(
            row.budget(Gate::Worst, SESSION + POD)
                .reference("quinn alone 30-40 a connection"),
        );
        Ok((fleet, [sessions, whole]))
    }

    /// All edges at once, from the first packet to the last whole snapshot and its Node.
    fn connect(&mut self, cluster: &Cluster) -> Result<Fleet> {
        let (edges, limit) = (self.extent.edges, self.extent.limit());
        let start = Instant::now();
        let (site, board) = (self.site, &self.board);
        let (fleet, sessions) = self.runtime.block_on(async {
            let fleet = Fleet::start(site, edges, board)?;
            fleet.connected(&[], limit).await?;
            let sessions = start.elapsed();
            fleet.complete(limit).await?;
            wait_nodes(&cluster.nodes, edges, limit).await?;
            Ok::<_, anyhow::Error>((fleet, sessions))
        })?;
        let row = |what: &str, took: Duration| {
            Row::new(
                self.above,
                format!("{edges} edges at once, {what}"),
                "s",
                Samples::one(took.as_secs_f64()),
            )
        };
        self.rows.push(row("all have a session", sessions));
        self.rows
            .push(row("all have a snapshot and a Node", start.elapsed()).note("looked at twice a second"));
        Ok(fleet)
    }

    /// A pod on each edge that uses the ConfigMap of all and its own.
    fn pods(&mut self, cluster: &Cluster, fleet: &Fleet) -> Result<()> {
        let (edges, limit, board) = (self.extent.edges, self.extent.limit(), &self.board);
        self.runtime.block_on(async {
            let maps = (0..edges).map(|n| (fleet::own(n), format!("{}-0", fleet::own(n))));
            let maps = std::iter::once((ALL.to_owned(), "all-0".to_owned())).chain(maps);
            let post = &PostParams::default();
            stream::iter(maps.map(|(name, value)| async move {
                cluster.maps.create(post, &config_map(&name, &value)).await.map(drop)
            }))
            .buffer_unordered(AT_ONCE)
            .try_collect::<Vec<()>>()
            .await
            .context("create the ConfigMaps")?;
            stream::iter((0..edges).map(|n| async move { cluster.pods.create(post, &pod(n)).await.map(drop) }))
                .buffer_unordered(AT_ONCE)
                .try_collect::<Vec<()>>()
                .await
                .context("create the pods")?;
            board.wait("all-0", edges, limit).await?;
            for n in 0..edges {
                board.wait(&format!("{}-0", fleet::own(n)), 1, limit).await?;
            }
            until("each edge holds its pod", limit, || fleet.with_pod() == edges).await
        })
    }

    /// A new value in ConfigMap `name`: when it was sent, when the API had answered, when `edges` had it.
    fn change(&mut self, upstream: &impl Upstream, name: &str, edges: usize) -> Result<[Instant; 3]> {
        self.values += 1;
        let value = format!("v{}", self.values);
        let (board, limit) = (&self.board, self.extent.limit());
        self.runtime.block_on(async {
            let sent = Instant::now();
            upstream.set(name, &value).await?;
            let answered = Instant::now();
            Ok([sent, answered, board.wait(&value, edges, limit).await?])
        })
    }

    fn changes<U: Upstream>(&mut self, upstream: &U) -> Result<()> {
        let (mut whole, mut behind) = (Vec::new(), Vec::new());
        for change in 0..self.extent.changes {
            // A stride that meets all edges, neighbours far apart.
            let edge = change * 7919 % self.extent.edges;
            let [sent, answered, committed] = self.change(upstream, &fleet::own(edge), 1)?;
            whole.push(milliseconds(committed.duration_since(sent)));
            behind.push(milliseconds(committed.saturating_duration_since(answered)));
        }
        let edges = self.extent.edges;
        let row =
            |what: String, samples| Ok::<_, anyhow::Error>(Row::new(self.above, what, "ms", samples_of(samples)?));
        let whole = row(format!("one change → acked, {edges} edges, {}", U::FROM), whole)?;
        self.rows.push(whole.budget(Gate::P99, 25.0).note(U::NOTE));
        if U::ANSWERS {
            self.rows.push(row("the same from the API's answer".into(), behind)?);
        }
        Ok(())
    }

    fn fan_out<U: Upstream>(&mut self, upstream: &U) -> Result<()> {
        let edges = self.extent.edges;
        let mut took = Vec::new();
        for _ in 0..self.extent.fan_outs {
            let [sent, _, committed] = self.change(upstream, ALL, edges)?;
            took.push(milliseconds(committed.duration_since(sent)));
        }
        let what = format!("one change → acked by all of {edges} edges");
        self.rows.push(
            Row::new(self.above, what, "ms", samples_of(took)?)
                .budget(Gate::P99, 1000.0)
                .reference("KubeEdge: 2000 changes × 40 nodes ≈ 400 s")
                .note(U::NOTE),
        );
        Ok(())
    }

    fn idle_traffic(&mut self) -> Result<()> {
        let traffic = Traffic::count(self.site)?;
        thread::sleep(self.extent.settle);
        let (before, start) = (traffic.bytes()?, Instant::now());
        thread::sleep(self.extent.idle);
        let bytes = traffic.bytes()? - before;
        // On loopback the hub's and the edges' sockets share the namespace: each packet passes one rule out and one in.
        let (edges, seconds) = (self.extent.edges, start.elapsed().as_secs_f64());
        let each = megabytes_a_day(bytes, seconds) / edges as f64;
        let what = format!(
            "idle tunnel, per edge with 1 pod, extrapolated from {} s",
            self.extent.idle.as_secs()
        );
        self.rows.push(
            Row::new(self.above, what, "MB/day", Samples::one(each))
                .budget(Gate::Worst, 2.0)
                .note(format!("{bytes} bytes of IP packets, both ways, of all edges")),
        );
        Ok(())
    }

    /// kill -9 of the hub: how soon after its return all edges are back.
    fn storm(&mut self, hub: &mut Hub<'_>, fleet: &Fleet) -> Result<()> {
        let limit = self.extent.limit();
        let before = self.runtime.block_on(fleet.connected(&[], limit))?;
        let killed = Instant::now();
        hub.kill();
        hub.restart()?;
        let ready = Instant::now();
        self.runtime.block_on(fleet.connected(&before, limit))?;
        let edges = self.extent.edges;
        let row = |what: &str, since: Instant| {
            let took = Samples::one(since.elapsed().as_secs_f64());
            Row::new(self.above, format!("reconnect storm, {edges} edges: {what}"), "s", took)
        };
        let rows = [row("hub ready → all back", ready), row("hub killed → all back", killed)];
        self.rows.extend(rows);
        let pid = hub.pid().context("the hub runs")?;
        let rss = Memory::of(pid)?.rss as f64 * 1024.0 / 1e6;
        self.rows.push(Row::new(
            self.above,
            format!("hub RSS right after the storm, {edges} edges"),
            "MB",
            Samples::one(rss),
        ));
        Ok(())
    }
}

fn say(what: &str) {
    eprintln!("bench: scale: {what}");
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn samples_of(samples: Vec<f64>) -> Result<Samples> {
    Samples::new(samples).context("nothing was measured")
}

fn config_map(name: &str, value: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}, "data": {"value": value}})).expect("it is a ConfigMap")
}

/// Bound already: the scheduler is not what is measured here.
fn pod(n: usize) -> Pod {
    let (own, node) = (fleet::own(n), fleet::name(n));
    let pod = json!({
        "metadata": {"name": format!("pod-{n}")},
        "spec": {
            "nodeName": node, "automountServiceAccountToken": false,
            "containers": [{"name": "main", "image": "kedge.dev/demo:1", "volumeMounts": [
                {"name": "all", "mountPath": "/all"}, {"name": "own", "mountPath": "/own"}]}],
            "volumes": [{"name": "all", "configMap": {"name": ALL}}, {"name": "own", "configMap": {"name": own}}],
        },
    });
    serde_json::from_value(pod).expect("it is a pod")
}

async fn wait_nodes(nodes: &Api<Node>, count: usize, limit: Duration) -> Result<()> {
    let start = Instant::now();
    loop {
        let there = nodes.list_metadata(&ListParams::default()).await?.items.len();
        if there >= count {
            return Ok(());
        }
        if start.elapsed() > limit {
            bail!("{there} of {count} Nodes after {limit:?}");
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn until(what: &str, limit: Duration, done: impl Fn() -> bool) -> Result<()> {
    let start = Instant::now();
    while !done() {
        if start.elapsed() > limit {
            bail!("{what}: not after {limit:?}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// What a real edge's store adds to a change: one object of 1 KiB, durable on this disk.
fn real_commits(site: &Site, runtime: &Runtime) -> Result<Row> {
    let options = Options {
        key: Some([7; 32]),
        ..Options::default()
    };
    let store = Store::open(&site.dir().join("store"), &options)?;
    let mut took = Vec::new();
    for n in 0..COMMITS {
        let mut batch = Batch::new();
        batch.put(format!("object/v1/ConfigMap/default/{}", n % 10), vec![b'x'; 1024]);
        let start = Instant::now();
        runtime.block_on(store.commit(batch))?;
        took.push(milliseconds(start.elapsed()));
    }
    Ok(Row::new("-", "one real edge's commit, 1 KiB", "ms", samples_of(took)?)
        .note("a real store on this machine's disk"))
}
