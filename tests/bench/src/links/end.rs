//! One end of what is measured, in a process of its own, so that its CPU time and memory are its own: `bench end`.
//!
//! stdin: [`Setup`], then [`Command`]s, a line each → the end → stdout: an [`Answer`] each. It ends with its input. Errors are answers; only an
//! input that cannot be read ends it.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::baseline::Baseline;
use super::packet::{self, REQUEST, SPEC};
use super::sink::Sink;
use super::talk::{Answer, Asked, Command, Load, Role, Setup, now};
use super::through::Tunnelled;

/// Between two requests.
const EVERY: Duration = Duration::from_millis(20);
/// How long an echo may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// A timer that fires so late was not late: the sender was held up, and what it sends was due before. ns.
const HELD_UP: u64 = 5_000_000;

/// What every end can do.
pub(crate) trait End {
    /// Waits until it is connected over so many paths.
    async fn connect(&mut self, paths: usize) -> Result<()>;
    /// Begins to send as much as goes.
    fn flood(&mut self, load: Load, until: u64) -> Result<()>;
    /// Sends one message, urgent or not.
    fn mail(&self) -> impl Mail + Send + Sync + 'static;
    /// What has arrived.
    fn counted(&self) -> &Arc<Counted>;
    /// Owns what runs beside.
    fn tasks(&mut self) -> &mut tokio::task::JoinSet<()>;
    /// What it has counted itself.
    fn stats(&self) -> Value;
}

/// A way to send messages.
pub(crate) trait Mail {
    /// Waits where there is no room; an error when nothing can be sent now.
    fn send(&self, message: Bytes) -> impl Future<Output = Result<()>> + Send;
}

/// Requests on their way, and what has come back.
#[derive(Debug, Default)]
struct Echoes {
    next: u64,
    outstanding: HashSet<u64>,
    times: Vec<f64>,
    specs: Vec<f64>,
}

/// What has arrived at an end.
#[derive(Debug, Default)]
pub(crate) struct Counted {
    pub(crate) load: Mutex<Sink>,
    messages: Mutex<Sink>,
    echoes: Mutex<Echoes>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Counted {
    /// A request has arrived.
    pub(crate) fn request(&self, message: &[u8]) {
        if let Some(heard) = packet::heard(message, now()) {
            lock(&self.messages).add(heard);
        }
    }

    /// An echo or a pod spec has arrived.
    pub(crate) fn reply(&self, message: &[u8]) {
        let Some(heard) = packet::heard(message, now()) else {
            return;
        };
        let took = heard.at.saturating_sub(heard.sent) as f64 / 1e6;
        let mut echoes = lock(&self.echoes);
        if message.len() == SPEC {
            echoes.specs.push(took);
        } else if echoes.outstanding.remove(&heard.number) {
            echoes.times.push(took);
        }
    }

    fn number(&self, is_awaited: bool) -> u64 {
        let mut echoes = lock(&self.echoes);
        echoes.next += 1;
        let number = echoes.next;
        if is_awaited {
            echoes.outstanding.insert(number);
        }
        number
    }
}

/// Reads what it shall be, and is it until its input ends.
///
/// # Errors
/// When its input is not what it should be, or it cannot become that.
pub(crate) fn run() -> Result<()> {
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    let setup: Setup = serde_json::from_str(&line).context("the first line")?;
    let path = format!("/run/netns/{}", setup.namespace);
    let namespace = File::open(&path).with_context(|| path.clone())?;
    setns(namespace, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {path}"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match setup.role {
            role @ (Role::TunnelHub { .. } | Role::TunnelEdge { .. }) => serve(Tunnelled::new(role)?).await,
            role => serve(Baseline::new(role)?).await,
        }
    })
}

async fn serve(mut end: impl End) -> Result<()> {
    say(&Answer::Done(Value::Null))?;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let command = serde_json::from_str(&line).with_context(|| format!("no command: {line}"))?;
        let answer = match obey(&mut end, command).await {
            Ok(value) => Answer::Done(value),
            Err(error) => Answer::Failed(format!("{error:#}")),
        };
        say(&answer)?;
    }
    Ok(())
}

fn say(answer: &Answer) -> Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line)?;
    Ok(out.flush()?)
}

async fn obey(end: &mut impl End, command: Command) -> Result<Value> {
    let counted = end.counted().clone();
    Ok(match command {
        Command::Connect { paths } => {
            let within = Duration::from_secs(20);
            let connected = tokio::time::timeout(within, end.connect(paths)).await;
            connected.with_context(|| format!("not connected over {paths} paths within {within:?}"))??;
            Value::Null
        }
        Command::Flood { load, until } => {
            end.flood(load, until)?;
            Value::Null
        }
        Command::Ask { until } => json!(ask(&counted, end.mail(), until).await?),
        Command::Specs { until } => {
            let mail = end.mail();
            end.tasks()
                .spawn(every(Duration::from_secs(1), until, async move |due| {
                    let number = counted.number(false);
                    let _ = mail.send(packet::message(number, due, SPEC)).await;
                }));
            Value::Null
        }
        Command::Beat { until } => {
            let mail = end.mail();
            end.tasks().spawn(every(EVERY, until, async move |due| {
                let number = counted.number(false);
                let _ = mail.send(packet::message(number, due, REQUEST)).await;
            }));
            Value::Null
        }
        Command::Seen(window) => json!(lock(&counted.load).seen(window)),
        Command::Heard(window) => json!(lock(&counted.messages).seen(window)),
        Command::Stats => end.stats(),
        Command::Clear => {
            lock(&counted.load).clear();
            lock(&counted.messages).clear();
            Value::Null
        }
    })
}

/// Sends requests and waits for the last echo, or as long as it is worth it.
async fn ask(counted: &Arc<Counted>, mail: impl Mail, until: u64) -> Result<Asked> {
    *lock(&counted.echoes) = Echoes::default();
    every(EVERY, until, async |due| {
        let number = counted.number(true);
        // One that could not be sent has no echo, and is counted as lost.
        let _ = mail.send(packet::message(number, due, REQUEST)).await;
    })
    .await;
    let given_up = now() + PATIENCE.as_nanos() as u64;
    while now() < given_up && !lock(&counted.echoes).outstanding.is_empty() {
        sleep(EVERY).await;
    }
    let mut echoes = std::mem::take(&mut *lock(&counted.echoes));
    echoes.times.sort_by(f64::total_cmp);
    echoes.specs.sort_by(f64::total_cmp);
    Ok(Asked {
        times: echoes.times,
        lost: echoes.outstanding.len(),
        specs: echoes.specs,
    })
}

/// Does it again and again, and says when it was due, which is before now where the last time took long.
async fn every(period: Duration, until: u64, mut work: impl AsyncFnMut(u64)) {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let begun = now();
    for count in 0.. {
        ticks.tick().await;
        let (now, due) = (now(), begun + count * period.as_nanos() as u64);
        if now >= until {
            return;
        }
        work(if now > due + HELD_UP { due } else { now }).await;
    }
}
