//! Simulated edges: edgecore's own end of the cable ([`EdgeHub`]: tunnel, relay, replica, outbox) over loopback UDP, each with
//! the certificate of a real join, or one that the hub's CA has signed, over a store in memory. No containerd, no pods that run.

use std::fs::{self, Permissions};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow, bail};
use cloudhub::identity::Authority;
use cri::CriRuntime;
use edgecore::config::EdgecoreConfig;
use edgecore::edgehub::EdgeHub;
use edgecore::kubelet_api::KubeletApi;
use edgecore::node::machine::{self, Identity};
use edgecore::node::{Amounts, NodeInfo, report};
use kit::process::run;
use kit::site::{HUB, JOIN_PORT};
use kit::{Hub, Site, paths};
use metastore::{Batch, Store};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tunnel::Session;

use super::board::Board;

/// Joins at a time: each is two processes, and the hub has work with them.
const JOINS_AT_ONCE: usize = 4;
/// The ConfigMap that every edge has a pod for.
pub(super) const ALL: &str = "all";

/// The name of edge `n`.
pub(super) fn name(n: usize) -> String {
    format!("sim-{n}")
}

/// The ConfigMap that edge `n` alone has a pod for.
pub(super) fn own(n: usize) -> String {
    format!("own-{n}")
}

/// Joins edges 0 to `count` with tokens of their own, as people do it.
///
/// # Errors
/// The first join that was refused.
pub(super) fn join(site: &Site, hub: &Hub<'_>, count: usize) -> Result<()> {
    each(0..count, JOINS_AT_ONCE, |n| {
        join_one(site, hub, &name(n)).context("join")
    })
}

/// Makes edges 1 to `count` of edge 0, which has joined: the same files with their own names, and certificates of their own that
/// the hub's CA signs. A join is two processes; ten thousand of them would be most of the measurement.
///
/// # Errors
/// When a file cannot be written, or the CA does not sign.
pub(super) fn multiply(site: &Site, ca: &Authority, count: usize) -> Result<()> {
    let (model, now) = (name(0), SystemTime::now().duration_since(UNIX_EPOCH)?);
    let from = folder(site, &model);
    // No way over TCP: where the edges themselves take the hub's cores, each would try that too.
    let config = fs::read_to_string(from.join("edgecore.yaml"))?;
    let config = config.replacen("\nhub:\n", "\nhub:\n  fallback:\n    enabled: false\n", 1);
    let make = |n: usize| -> Result<()> {
        let name = name(n);
        let pki = folder(site, &name).join("pki");
        fs::create_dir_all(&pki)?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&key)?.pem()?;
        fs::write(pki.join("client.crt"), ca.sign_node(&name, 1, &request, now)?)?;
        fs::write(pki.join("client.key"), key.serialize_pem())?;
        fs::set_permissions(pki.join("client.key"), Permissions::from_mode(0o600))?;
        for shared in ["serving-ca.crt", "tunnel-ca.crt"] {
            fs::hard_link(from.join("pki").join(shared), pki.join(shared))?;
        }
        fs::write(folder(site, &name).join("edgecore.yaml"), config.replace(&model, &name))?;
        Ok(())
    };
    each(1..count, thread::available_parallelism()?.get(), make)
}

/// Does `work` for each number, by so many threads.
fn each(numbers: Range<usize>, threads: usize, work: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(numbers.start);
    let worker = || -> Result<()> {
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= numbers.end {
                return Ok(());
            }
            work(n).with_context(|| format!("edge {n}"))?;
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().map_err(|_| anyhow!("a thread of the fleet panicked"))?)
    })
}

fn folder(site: &Site, name: &str) -> PathBuf {
    site.dir().join("sims").join(name)
}

fn join_one(site: &Site, hub: &Hub<'_>, name: &str) -> Result<()> {
    let (token, hash) = hub.token(name)?;
    let dir = folder(site, name);
    fs::create_dir_all(&dir)?;
    let mut join = site.command("hub", &paths::ours("kedge"));
    join.args([
        "join",
        "--hub",
        &format!("{HUB}:{JOIN_PORT}"),
        "--token",
        &token,
        "--ca-hash",
        &hash,
    ]);
    join.arg("--config-dir").arg(&dir).arg("--state-dir").arg(&dir);
    run(&mut join)?;
    Ok(())
}

/// One simulated edge.
#[derive(Debug)]
struct Sim {
    name: String,
    store: Store,
    sessions: watch::Receiver<Option<Session>>,
    complete: watch::Receiver<bool>,
}

/// All of them; they end when it is dropped.
#[derive(Debug)]
pub(super) struct Fleet {
    sims: Vec<Sim>,
    tasks: JoinSet<()>,
    stop: watch::Sender<bool>,
}

impl Fleet {
    /// Starts edges 0 to `count`, which have joined, all at once.
    ///
    /// # Errors
    /// When one's configuration cannot be read.
    pub(super) fn start(site: &Site, count: usize, board: &Board) -> Result<Self> {
        let mut fleet = Self {
            sims: Vec::new(),
            tasks: JoinSet::new(),
            stop: watch::Sender::new(false),
        };
        fleet.add(site, 0..count, board)?;
        Ok(fleet)
    }

    /// Starts these edges too.
    ///
    /// # Errors
    /// When one's configuration cannot be read.
    pub(super) fn add(&mut self, site: &Site, numbers: Range<usize>, board: &Board) -> Result<()> {
        let identity = machine::identity();
        // Nobody asks a simulated edge for logs; the kubelet API wants a runtime all the same.
        let (runtime, _pump) = CriRuntime::new(Path::new("/nonexistent"));
        let runtime = Arc::new(runtime);
        for n in numbers {
            let name = name(n);
            let config = Arc::new(EdgecoreConfig::load(&folder(site, &name).join("edgecore.yaml"))?);
            let store = Store::in_memory();
            report_node(&store, &config, &identity)?;
            let kubelet = KubeletApi::new(&config, runtime.clone(), Arc::new(store.clone()));
            let edge = EdgeHub::new(config, store.clone(), (kubelet, true), self.stop.subscribe())?;
            self.sims.push(Sim {
                name,
                store: store.clone(),
                sessions: edge.sessions(),
                complete: edge.complete(),
            });
            self.tasks.spawn(edge.run());
            self.tasks.spawn(look(store, own(n), board.clone()));
        }
        Ok(())
    }

    /// Waits until every edge has a session of a higher epoch than in `before`; gives the new epochs.
    ///
    /// # Errors
    /// After `limit`, with the edges that have none.
    pub(super) async fn connected(&self, before: &[u64], limit: Duration) -> Result<Vec<u64>> {
        let all = async {
            let mut epochs = Vec::new();
            for (n, sim) in self.sims.iter().enumerate() {
                let least = before.get(n).copied().unwrap_or(0);
                let epoch = |session: &Option<Session>| session.as_ref().map_or(0, |s| s.peer().epoch);
                let mut sessions = sim.sessions.clone();
                let session = sessions.wait_for(|session| epoch(session) > least).await;
                epochs.push(epoch(&*session.with_context(|| format!("{} ended", sim.name))?));
            }
            Ok(epochs)
        };
        match tokio::time::timeout(limit, all).await {
            Ok(epochs) => epochs,
            Err(_) => bail!(
                "after {limit:?} these have no session: {}",
                self.those(|sim| sim.sessions.borrow().is_none())
            ),
        }
    }

    /// Waits until every edge has taken a whole snapshot.
    ///
    /// # Errors
    /// After `limit`, with the edges that have not.
    pub(super) async fn complete(&self, limit: Duration) -> Result<()> {
        let all = async {
            for sim in &self.sims {
                let mut complete = sim.complete.clone();
                let done = complete.wait_for(|complete| *complete).await;
                done.with_context(|| format!("{} ended", sim.name))?;
            }
            Ok(())
        };
        match tokio::time::timeout(limit, all).await {
            Ok(done) => done,
            Err(_) => bail!(
                "after {limit:?} these have no snapshot: {}",
                self.those(|sim| !*sim.complete.borrow())
            ),
        }
    }

    fn those(&self, which: impl Fn(&Sim) -> bool) -> String {
        let names: Vec<&str> = self
            .sims
            .iter()
            .filter(|sim| which(sim))
            .map(|sim| sim.name.as_str())
            .collect();
        format!("{} edges, {:?}", names.len(), &names[..names.len().min(10)])
    }

    /// The edges that hold their pod.
    pub(super) fn with_pod(&self) -> usize {
        let has = |sim: &&Sim| matches!(sim.store.keys("object/v1/Pod/"), Ok(keys) if !keys.is_empty());
        self.sims.iter().filter(has).count()
    }
}

/// The row by which the hub registers the Node: edgecore's own report of a machine that is ready.
fn report_node(store: &Store, config: &EdgecoreConfig, identity: &Identity) -> Result<()> {
    let amounts = Amounts {
        cpu_milli: 2000,
        memory: 4 << 30,
        ephemeral_storage: 16 << 30,
        pods: 110,
    };
    let info = NodeInfo {
        name: config.node_name.clone(),
        capacity: amounts,
        allocatable: amounts,
        ready: true,
        ..NodeInfo::default()
    };
    let seen = report::Seen {
        conditions: &[],
        images: &[],
        runtime_version: "simulated://1",
    };
    let mut row = report::row(config, identity, &info, &seen);
    row["status"]["conditions"] = json!([{
        "type": "Ready", "status": "True", "reason": "Simulated", "message": "a simulated edge: nothing runs here",
    }]);
    let mut batch = Batch::new();
    batch.put(format!("status/v1/Node/-/{}/-", config.node_name), row.to_string());
    store.commit_blocking(batch)?;
    Ok(())
}

/// Notes on the board what this edge commits of the two ConfigMaps.
async fn look(store: Store, own: String, board: Board) {
    let mut watch = store.watch("object/v1/ConfigMap/");
    let mut known = [None, None];
    while watch.changed().await {
        for (name, known) in [ALL, &own].into_iter().zip(&mut known) {
            let Ok(Some(bytes)) = store.get(&format!("object/v1/ConfigMap/default/{name}")) else {
                continue;
            };
            let value = value_of(&bytes);
            if value.is_some() && value != *known {
                board.note(value.as_deref().unwrap_or_default());
                *known = value;
            }
        }
    }
}

/// `data.value`.
fn value_of(object: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Data {
        value: String,
    }
    #[derive(Deserialize)]
    struct ConfigMap {
        data: Data,
    }
    serde_json::from_slice::<ConfigMap>(object)
        .ok()
        .map(|map| map.data.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_edge_notes_each_value_that_it_commits_once() {
        let (store, board) = (Store::in_memory(), Board::new());
        let mut tasks = JoinSet::new();
        tasks.spawn(look(store.clone(), own(1), board.clone()));
        tokio::task::yield_now().await;
        let put = async |name: &str, value: &str| {
            let mut batch = Batch::new();
            batch.put(
                format!("object/v1/ConfigMap/default/{name}"),
                json!({"data": {"value": value}}).to_string(),
            );
            store.commit(batch).await.unwrap();
        };
        let limit = Duration::from_secs(60);
        put(&own(1), "1").await;
        board.wait("1", 1, limit).await.unwrap();
        put(ALL, "2").await;
        board.wait("2", 1, limit).await.unwrap();
        assert!(
            board.wait("1", 2, Duration::from_millis(1)).await.is_err(),
            "noted once"
        );
        assert_eq!(value_of(b"{}"), None);
    }
}
