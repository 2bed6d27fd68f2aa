//! One target: its inputs, the thread that runs them, and the thread that watches.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{Seek as _, Write as _};
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::mutate::{Random, mutate};
use crate::{Target, sys};

/// CPU time that one input may take.
const PER_INPUT: Duration = Duration::from_secs(1);
/// As tokio's workers have it.
const STACK: usize = 2 << 20;
const LOOK: Duration = Duration::from_millis(50);
/// Runs of the target that making a failing input shorter may take.
const SHRINKS: usize = 3000;

/// Where inputs come from and failures go to.
#[derive(Debug, Clone)]
pub struct Hunt {
    /// Which decoder.
    pub target: &'static Target,
    /// Names the sequence of inputs.
    pub seed: u64,
    /// How long, after the regressions and the corpus.
    pub time: Duration,
    /// Folder of failing inputs.
    pub regressions: PathBuf,
}

/// What an input did that it must not do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// `panic`, `memory`, `hang`, `death` or `promise`.
    pub kind: &'static str,
    /// In words.
    pub what: String,
}

/// How it went.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// Inputs.
    pub cases: u64,
    /// The most memory that a byte of input cost beyond the constant.
    pub per_byte: usize,
    /// The most memory that an input cost.
    pub peak: usize,
}

/// The inputs of a hunt by their number: regressions, corpus, then mutated ones.
#[derive(Debug)]
pub struct Inputs {
    name: &'static str,
    seed: u64,
    seeds: Vec<Vec<u8>>,
}

impl Inputs {
    /// Of a hunt.
    ///
    /// # Errors
    /// When a regression cannot be read.
    pub fn of(hunt: &Hunt) -> Result<Self> {
        let mut seeds = Vec::new();
        let folder = hunt.regressions.join(hunt.target.name);
        if folder.is_dir() {
            let mut paths: Vec<PathBuf> = fs::read_dir(&folder)?
                .map(|entry| entry.map(|e| e.path()))
                .collect::<Result<_, _>>()?;
            paths.sort();
            for path in paths {
                seeds.push(fs::read(&path).with_context(|| format!("read {}", path.display()))?);
            }
        }
        seeds.extend((hunt.target.corpus)());
        Ok(Self {
            name: hunt.target.name,
            seed: hunt.seed,
            seeds,
        })
    }

    /// Number `case`.
    pub fn get(&self, case: u64) -> Vec<u8> {
        match usize::try_from(case).ok().and_then(|at| self.seeds.get(at)) {
            Some(seed) => seed.clone(),
            None => mutate(&mut Random::new(self.seed, self.name, case), &self.seeds),
        }
    }
}

thread_local! {
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Panics are failures that are reported, not printed.
fn keep_panics() {
    panic::set_hook(Box::new(|info| {
        LAST_PANIC.with(|last| *last.borrow_mut() = info.to_string())
    }));
}

/// Runs one input.
fn judge(target: &Target, input: &[u8]) -> (Option<Failure>, usize) {
    let (done, peak) = sys::metered(|| panic::catch_unwind(AssertUnwindSafe(|| (target.run)(input))));
    let budget = target.budget(input.len());
    let failure = match done {
        Err(_) => Some(("panic", LAST_PANIC.with(|last| last.take()))),
        Ok(Err(what)) => Some(("promise", what)),
        Ok(Ok(())) if peak > budget => Some((
            "memory",
            format!(
                "{} bytes of input held {peak} bytes of memory, more than {budget}",
                input.len()
            ),
        )),
        Ok(Ok(())) => None,
    };
    (failure.map(|(kind, what)| Failure { kind, what }), peak)
}

/// What the worker tells its watcher.
#[derive(Debug, Default)]
struct Shared {
    case: AtomicU64,
    thread: AtomicI32,
}

type Found = (Tally, Option<(Failure, Vec<u8>)>);

fn work(hunt: &Hunt, inputs: &Inputs, shared: &Shared, mut progress: Option<File>) -> Found {
    shared.thread.store(nix::unistd::gettid().as_raw(), Ordering::SeqCst);
    let until = Instant::now() + hunt.time;
    let mut tally = Tally::default();
    for case in 0.. {
        let is_seed = case < inputs.seeds.len() as u64;
        if !is_seed && Instant::now() >= until {
            break;
        }
        shared.case.store(case, Ordering::SeqCst);
        let input = inputs.get(case);
        if let Some(file) = &mut progress {
            // A process that dies of this input leaves it behind; where it cannot be written only that is lost.
            let _ = file
                .rewind()
                .and_then(|()| file.set_len(0))
                .and_then(|()| file.write_all(&input));
        }
        if is_seed {
            // What is made once in a process is not this input's cost.
            let _ = panic::catch_unwind(|| (hunt.target.run)(&input));
        }
        let (failure, peak) = judge(hunt.target, &input);
        if let Some(failure) = failure {
            let input = shrink(hunt.target, &failure, input);
            let (failure, input) = (judge(hunt.target, &input).0.unwrap_or(failure), input);
            return (tally, Some((failure, input)));
        }
        tally.cases += 1;
        tally.peak = tally.peak.max(peak);
        let beyond = peak.saturating_sub(hunt.target.constant);
        tally.per_byte = tally.per_byte.max(beyond.div_ceil(input.len().max(1)));
    }
    (tally, None)
}

/// A shorter input that fails in the same way.
fn shrink(target: &Target, failure: &Failure, mut input: Vec<u8>) -> Vec<u8> {
    let end = Instant::now() + 10 * PER_INPUT;
    let (mut size, mut tries) = (input.len() / 2, 0);
    while size > 0 && tries < SHRINKS {
        let mut at = 0;
        while at < input.len() && tries < SHRINKS && Instant::now() < end {
            let mut shorter = input.clone();
            shorter.drain(at..(at + size).min(input.len()));
            tries += 1;
            if judge(target, &shorter)
                .0
                .is_some_and(|other| other.kind == failure.kind)
            {
                input = shorter;
            } else {
                at += size;
            }
        }
        size /= 2;
    }
    input
}

/// CPU time of a thread of this process; zero where the kernel does not say.
fn cpu_time(thread: i32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap_or_default();
    // Behind the name, which may have spaces: state is field 3, utime and stime are 14 and 15, in hundredths.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<u64>().ok())
        .sum();
    Duration::from_millis(ticks * 10)
}

/// Waits for the worker, or for what it will not come back from.
fn watch(worker: &JoinHandle<Found>, shared: &Shared) -> Option<Failure> {
    let mut current = (u64::MAX, Duration::ZERO);
    while !worker.is_finished() {
        std::thread::sleep(LOOK);
        let wanted = sys::refused();
        if wanted > 0 {
            let what = format!("wanted to hold {wanted} bytes of memory");
            return Some(Failure { kind: "memory", what });
        }
        let (case, used) = (
            shared.case.load(Ordering::SeqCst),
            cpu_time(shared.thread.load(Ordering::SeqCst)),
        );
        if current.0 != case {
            current = (case, used);
        } else if used.saturating_sub(current.1) > PER_INPUT && !worker.is_finished() {
            let what = format!("takes more than {} s of CPU time", PER_INPUT.as_secs());
            return Some(Failure { kind: "hang", what });
        }
    }
    None
}

/// Hunts; a failure comes back with its input.
///
/// # Errors
/// When a regression cannot be read, or no thread can be started.
pub fn run(hunt: &Hunt, progress: Option<&Path>) -> Result<Found> {
    let inputs = Arc::new(Inputs::of(hunt)?);
    let shared = Arc::new(Shared::default());
    let progress = progress.map(File::create).transpose().context("the progress file")?;
    keep_panics();
    let worker = std::thread::Builder::new()
        .name("hunt".to_owned())
        .stack_size(STACK)
        .spawn({
            let (hunt, inputs, shared) = (hunt.clone(), inputs.clone(), shared.clone());
            move || work(&hunt, &inputs, &shared, progress)
        })?;
    if let Some(failure) = watch(&worker, &shared) {
        // It may be an input of the shrinking, which began with this one.
        let case = shared.case.load(Ordering::SeqCst);
        return Ok((Tally::default(), Some((failure, inputs.get(case)))));
    }
    worker.join().map_err(|_| anyhow::anyhow!("the fuzzer itself panicked"))
}

/// Keeps a failing input; its name says the kind, and a person gives it a better one.
///
/// # Errors
/// When it cannot be written.
pub fn keep(hunt: &Hunt, failure: &Failure, input: &[u8]) -> Result<PathBuf> {
    let folder = hunt.regressions.join(hunt.target.name);
    fs::create_dir_all(&folder)?;
    let hash = input.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let path = folder.join(format!("{}-{:08x}", failure.kind, hash >> 32));
    fs::write(&path, input).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}
