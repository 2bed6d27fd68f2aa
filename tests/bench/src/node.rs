//! One real edge machine below a hub: rows 1 to 7 of design.md §4 and the idle traffic, above both APIs.
//!
//! - the machine's pods: started through the API, seen Running by a watch; beside it the same by raw CRI on the same containerd
//! - edgecore's memory over pod cycles and reconnects, its CPU time with idle pods, its return after kill -9
//! - the tunnel's bytes with five idle pods; the hub's memory with fifty

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kit::kubectl::{condition, is_true};
use kit::process::cpu_seconds;
use kit::wait::State;
use kit::{Edge, Hub, Site, paths};
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::api::{self, LIMIT, Pods, names};
use crate::elf;
use crate::proc::Sampler;
use crate::raw::Raw;
use crate::scale::{self, Above};
use crate::table::{Gate, Row, Rows, Samples, megabytes_a_day};
use crate::traffic::Traffic;
use crate::world;

const NODE: &str = "robot-1";
/// Pods that run while edgecore is looked at.
const PODS: usize = 20;
/// Pods that come and go together in the cycles.
const WAVE: usize = 10;
/// How often a restarted edgecore is asked whether it is there.
const ASK: Duration = Duration::from_millis(5);

/// How much of everything.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    starts: usize,
    bursts: usize,
    cycles: usize,
    reconnects: usize,
    kills: usize,
    cpu: Duration,
    idle: Duration,
    settle: Duration,
}

impl Extent {
    pub(crate) fn new(quick: bool) -> Self {
        let seconds = Duration::from_secs;
        if quick {
            Self {
                starts: 5,
                bursts: 1,
                cycles: 20,
                reconnects: 2,
                kills: 2,
                cpu: seconds(20),
                idle: seconds(20),
                settle: seconds(3),
            }
        } else {
            Self {
                starts: 20,
                bursts: 3,
                cycles: 200,
                reconnects: 10,
                kills: 5,
                cpu: seconds(60),
                idle: seconds(scale::IDLE),
                settle: seconds(15),
            }
        }
    }
}

/// All rows, above each API in turn or above the one that is asked for.
///
/// # Errors
/// The first measurement that could not be made.
pub(crate) fn run(extent: Extent, only: Option<Above>) -> Result<Vec<Row>> {
    let mut rows = vec![binary()?];
    for above in [Above::KubeApiserver, Above::Embedded] {
        if only.is_none_or(|only| only == above) {
            let name = above.name();
            eprintln!("bench: one machine above {name}");
            let measured = world::on_own_thread(name, move || one(name, extent));
            rows.extend(measured.with_context(|| format!("above {name}"))?);
        }
    }
    Ok(rows)
}

fn binary() -> Result<Row> {
    let path = paths::ours("edgecore");
    let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let built = elf::describe(&bytes).with_context(|| format!("{} is no ELF program", path.display()))?;
    let size = Samples::one(bytes.len() as f64 / 1e6);
    Ok(Row::new("-", "edgecore binary", "MB", size)
        .budget(Gate::Worst, 12.0)
        .reference("kubelet 84.5, KubeEdge edgecore 99.8")
        .note(built))
}

fn one(above: &str, extent: Extent) -> Result<Vec<Row>> {
    let site = Site::new()?;
    let hub = if above == "embedded" {
        Hub::embedded(&site)?
    } else {
        Hub::start(&site)?
    };
    let runtime = world::enter(&site)?;
    let mut edge = Edge::new(&site, 1, NODE)?;
    edge.join(&hub)?;
    edge.start()?;
    let (pods, raw) = runtime.block_on(async {
        let pods = Pods::new(api::client(&hub.kubeconfig).await?);
        let raw = Raw::new(&edge.socket(), edge.dir(), &edge.cgroup());
        Ok::<_, anyhow::Error>((pods, raw))
    })?;
    let mut bench = Bench {
        above,
        extent,
        site: &site,
        hub: &hub,
        edge: &mut edge,
        pods,
        raw,
        runtime,
        rows: Rows::default(),
    };
    let measured = bench.all();
    let rows = bench.rows;
    match measured {
        Ok(()) => Ok(rows.finish()),
        Err(error) => Err(error.context(format!("{}\n{}", edge.tail(), hub.tail()))),
    }
}

struct Bench<'a, 'e> {
    above: &'a str,
    extent: Extent,
    site: &'a Site,
    hub: &'a Hub<'a>,
    edge: &'e mut Edge<'a>,
    pods: Pods,
    raw: Raw,
    runtime: Runtime,
    rows: Rows,
}

impl Bench<'_, '_> {
    /// In this order: what needs few pods before what leaves traces of many.
    fn all(&mut self) -> Result<()> {
        self.wait_node("Ready", |node| is_true(node, "Ready"))?;
        self.say("pod start");
        self.pod_start()?;
        let twenty = self.at_once(PODS, ["kubelet 2.6 s", "1.55 s"], 1900.0)?;
        self.say("memory over pod cycles and reconnects");
        self.memory()?;
        self.say("CPU time");
        self.cpu()?;
        self.say("kill -9");
        self.kills()?;
        self.say("idle traffic");
        self.remove(&twenty[5..])?;
        self.idle_traffic()?;
        self.remove(&twenty[..5])?;
        self.say("50 pods");
        self.at_once(50, ["kubelet 7.6 s", ""], 6000.0)?;
        self.hub_memory()
    }

    fn say(&self, what: &str) {
        eprintln!("bench: {}: {what}", self.above);
    }

    fn row(&self, what: impl Into<String>, unit: &'static str, samples: Vec<f64>) -> Result<Row> {
        let what = what.into();
        let samples = Samples::new(samples).with_context(|| format!("{what}: nothing was measured"))?;
        Ok(Row::new(self.above, what, unit, samples))
    }

    fn wait_node(&self, what: &str, done: impl Fn(&Value) -> bool) -> Result<()> {
        self.hub
            .kubectl
            .wait(&["node", NODE], LIMIT, done)
            .with_context(|| format!("{what}, of node {NODE}"))?;
        Ok(())
    }

    fn remove(&self, names: &[String]) -> Result<()> {
        self.runtime.block_on(self.pods.remove(names))
    }

    /// One pod of ours and one by raw CRI in turn, so that what else the machine does meets both.
    fn pod_start(&mut self) -> Result<()> {
        let (mut ours, mut raw) = (Vec::new(), Vec::new());
        // The first makes the bridge and fills caches; it is not counted.
        for name in names("start", self.extent.starts + 1) {
            let name = [name];
            ours.extend(self.runtime.block_on(self.pods.start(&name))?);
            self.remove(&name)?;
            raw.extend(self.runtime.block_on(self.raw.start(1))?);
        }
        let (ours, raw) = (milliseconds(&ours[1..]), milliseconds(&raw[1..]));
        let over = ours.iter().zip(&raw).map(|(ours, raw)| ours - raw).collect();
        let ours = self.row("pod start, API write → Running seen by a watch", "ms", ours)?;
        let raw = self.row("the same pod by raw CRI", "ms", raw)?;
        let over = self.row("pod start over raw CRI, in pairs", "ms", over)?;
        self.rows.push(ours.reference("kubelet 230-280"));
        self.rows.push(raw.reference("144"));
        self.rows.push(over.budget(Gate::Median, 50.0));
        Ok(())
    }

    /// `count` pods at once, by raw CRI and by us in turn; our last ones stay and are returned.
    fn at_once(&mut self, count: usize, references: [&'static str; 2], limit: f64) -> Result<Vec<String>> {
        self.say(&format!("{count} pods at once"));
        let (mut ours, mut raw) = (Vec::new(), Vec::new());
        let mut last = Vec::new();
        for burst in 0..self.extent.bursts {
            self.remove(&last)?;
            raw.extend(self.runtime.block_on(self.raw.start(count))?.into_iter().max());
            last = names(&format!("burst{count}-{burst}"), count);
            ours.extend(self.runtime.block_on(self.pods.start(&last))?.into_iter().max());
            if let (Some(ours), Some(raw)) = (ours.last(), raw.last()) {
                self.say(&format!("{count} pods took {ours:.2?}, by raw CRI {raw:.2?}"));
            }
        }
        let what = format!("{count} pods at once, first API write → all Running");
        let ours = self.row(what, "ms", milliseconds(&ours))?;
        let raw = self.row(format!("{count} pods at once by raw CRI"), "ms", milliseconds(&raw))?;
        self.rows
            .push(ours.budget(Gate::Median, limit).reference(references[0]));
        self.rows.push(raw.reference(references[1]));
        Ok(last)
    }

    fn memory(&mut self) -> Result<()> {
        let pid = self.edge.pid().context("edgecore runs")?;
        let sampler = Sampler::start(pid);
        for wave in 0..self.extent.cycles.div_ceil(WAVE) {
            let size = WAVE.min(self.extent.cycles - wave * WAVE);
            let wave = names(&format!("cycle-{wave}"), size);
            self.runtime.block_on(self.pods.start(&wave))?;
            self.remove(&wave)?;
        }
        for _ in 0..self.extent.reconnects {
            self.edge.set_link(false)?;
            self.wait_node("seen away", |node| {
                condition(node, "EdgeConnected").is_some_and(|c| c["status"] != "True")
            })?;
            self.edge.set_link(true)?;
            self.wait_node("back", |node| is_true(node, "EdgeConnected"))?;
        }
        thread::sleep(self.extent.settle);
        let (worst, all) = sampler.finish();
        ensure!(
            self.edge.pid() == Some(pid) && self.edge.is_running(),
            "edgecore ended meanwhile"
        );
        let megabytes = |kilobytes: f64| kilobytes * 1024.0 / 1e6;
        let what = format!(
            "edgecore RSS, {PODS} pods, {} pod cycles, {} reconnects",
            self.extent.cycles, self.extent.reconnects
        );
        let note = format!(
            "at the worst RssAnon {:.1} MB, PSS {:.1} MB",
            megabytes(worst.anon as f64),
            megabytes(worst.pss as f64)
        );
        let row = self.row(what, "MB", all.into_iter().map(megabytes).collect())?;
        self.rows.push(
            row.budget(Gate::Worst, 20.0)
                .reference("kubelet 89-110, KubeEdge 113")
                .note(note),
        );
        Ok(())
    }

    fn cpu(&mut self) -> Result<()> {
        let pid = self.edge.pid().context("edgecore runs")?;
        let (before, start) = (cpu_seconds(pid)?, Instant::now());
        thread::sleep(self.extent.cpu);
        let used = (cpu_seconds(pid)? - before) / start.elapsed().as_secs_f64();
        let what = format!("edgecore CPU, {PODS} idle pods, {} s", self.extent.cpu.as_secs());
        let row = self.row(what, "% of a core", vec![used * 100.0])?;
        self.rows
            .push(row.budget(Gate::Worst, 0.5).reference("kubelet 1.4, KubeEdge 1.5"));
        Ok(())
    }

    fn kills(&mut self) -> Result<()> {
        let before = self.edge.all_containers()?;
        let mut took = Vec::new();
        for _ in 0..self.extent.kills {
            let killed = Instant::now();
            self.edge.kill();
            self.edge.start()?;
            self.wait_reconciled(killed)?;
            took.push(killed.elapsed());
            let after = self.edge.all_containers()?;
            ensure!(after == before, "containers changed: {before:?} became {after:?}");
        }
        let row = self.row(
            format!("edgecore kill -9 → {PODS} pods reconciled"),
            "ms",
            milliseconds(&took),
        )?;
        self.rows.push(row.budget(Gate::Worst, 1000.0).note(
            "runtime ready, each pod seen running in the runtime by its new worker, a session with the hub; no container restarted (checked)",
        ));
        Ok(())
    }

    fn wait_reconciled(&self, since: Instant) -> Result<()> {
        loop {
            let state = self.reconciled();
            match state {
                Ok(State::Done(())) => return Ok(()),
                Ok(State::Not(seen)) => ensure!(since.elapsed() < LIMIT, "not reconciled: {seen}"),
                // Its socket is not there yet.
                Err(error) => ensure!(since.elapsed() < LIMIT, "not reconciled: {error}"),
            }
            thread::sleep(ASK);
        }
    }

    fn reconciled(&self) -> Result<State<()>> {
        let (ready, _) = self.ask("/readyz")?;
        let (_, workers) = self.ask("/debug/workers")?;
        let (_, sessions) = self.ask("/debug/sessions")?;
        let running = workers
            .as_array()
            .map_or(0, |all| all.iter().filter(|w| w["phase"] == "Running").count());
        let connected = sessions.as_array().is_some_and(|all| !all.is_empty());
        Ok(if ready && connected && running == PODS {
            State::Done(())
        } else {
            State::Not(format!(
                "ready: {ready}, {running} of {PODS} pods, session: {connected}"
            ))
        })
    }

    /// Asks edgecore's admin socket: whether the answer is 200, and its JSON if it has any.
    fn ask(&self, page: &str) -> Result<(bool, Value)> {
        let mut stream = UnixStream::connect(self.edge.dir().join("run/edgecore.sock"))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {page} HTTP/1.1\r\nHost: edgecore\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .with_context(|| format!("an HTTP answer: {answer}"))?;
        Ok((
            head.starts_with("HTTP/1.1 200"),
            serde_json::from_str(body).unwrap_or_default(),
        ))
    }

    fn idle_traffic(&mut self) -> Result<()> {
        let traffic = Traffic::count(self.site)?;
        thread::sleep(self.extent.settle);
        let (before, start) = (traffic.bytes()?, Instant::now());
        thread::sleep(self.extent.idle);
        let bytes = traffic.bytes()? - before;
        let day = megabytes_a_day(bytes, start.elapsed().as_secs_f64());
        let what = format!(
            "idle tunnel, 5 pods, extrapolated from {} s",
            self.extent.idle.as_secs()
        );
        let row = self.row(what, "MB/day", vec![day])?;
        self.rows.push(
            row.budget(Gate::Worst, 2.0)
                .reference("KubeEdge ≈ 150")
                .note(format!("{bytes} bytes of IP packets, both ways")),
        );
        Ok(())
    }

    fn hub_memory(&mut self) -> Result<()> {
        let pid = self.hub.pid().context("the hub runs")?;
        let sampler = Sampler::start(pid);
        thread::sleep(self.extent.settle);
        let (worst, all) = sampler.finish();
        let row = self.row(
            "hub RSS, one node, 50 pods",
            "MB",
            all.into_iter().map(|kb| kb * 1024.0 / 1e6).collect(),
        )?;
        let note = format!("at the worst RssAnon {:.1} MB", worst.anon as f64 * 1024.0 / 1e6);
        let row = if self.above == "embedded" {
            row.budget(Gate::Worst, 60.0)
                .reference("kube-apiserver + etcd + controllers + scheduler 487 idle")
                .note(note)
        } else {
            row.note(format!("{note}; the API beside it is another's"))
        };
        self.rows.push(row);
        Ok(())
    }
}

fn milliseconds(times: &[Duration]) -> Vec<f64> {
    times.iter().map(|time| time.as_secs_f64() * 1000.0).collect()
}
