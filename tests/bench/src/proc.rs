//! What the kernel says of a process: memory, and the worst of many looks (CPU time is read by the kit).

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};

/// How often the sampler looks. smaps_rollup walks the page tables: more often would be seen in the CPU figure.
const EVERY: Duration = Duration::from_millis(250);

/// A process's memory, kB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    /// VmRSS.
    pub(crate) rss: u64,
    /// RssAnon: what is its own and no file's.
    pub(crate) anon: u64,
    /// Pss: shared pages count in shares.
    pub(crate) pss: u64,
}

impl Memory {
    /// What process `pid` has now.
    ///
    /// # Errors
    /// When it is gone.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let read = |file: &str| {
            fs::read_to_string(format!("/proc/{pid}/{file}")).with_context(|| format!("read /proc/{pid}/{file}"))
        };
        let (status, rollup) = (read("status")?, read("smaps_rollup")?);
        let field = |text: &str, name: &str| kilobytes(text, name).with_context(|| format!("{name} of process {pid}"));
        Ok(Self {
            rss: field(&status, "VmRSS")?,
            anon: field(&status, "RssAnon")?,
            pss: field(&rollup, "Pss")?,
        })
    }

    fn max(self, other: Self) -> Self {
        Self {
            rss: self.rss.max(other.rss),
            anon: self.anon.max(other.anon),
            pss: self.pss.max(other.pss),
        }
    }
}

/// `NAME:   123 kB`.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Looks at a process again and again; keeps the worst.
#[derive(Debug)]
pub(crate) struct Sampler {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<(Memory, Vec<f64>)>>,
    thread: Option<JoinHandle<()>>,
}

impl Sampler {
    pub(crate) fn start(pid: u32) -> Self {
        let mut sampler = Self {
            stop: Arc::default(),
            seen: Arc::default(),
            thread: None,
        };
        let (stop, seen) = (sampler.stop.clone(), sampler.seen.clone());
        sampler.thread = Some(thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                // One that has ended has no memory; whoever measures notices its end.
                if let Ok(now) = Memory::of(pid) {
                    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                    seen.0 = seen.0.max(now);
                    seen.1.push(now.rss as f64);
                }
                thread::sleep(EVERY);
            }
        }));
        sampler
    }

    /// The worst, and every RSS seen, kB.
    pub(crate) fn finish(mut self) -> (Memory, Vec<f64>) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It only reads; a panic there would be a bug that the caller sees as no samples.
            let _ = thread.join();
        }
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let status = "Name:\tx\nVmRSS:\t    8100 kB\nRssAnon:\t     700 kB\n";
        assert_eq!(kilobytes(status, "VmRSS"), Some(8100));
        assert_eq!(kilobytes(status, "RssAnon"), Some(700));
        assert_eq!(kilobytes("Pss_Dirty: 9 kB\nPss: 5 kB\n", "Pss"), Some(5));
        assert_eq!(kilobytes(status, "Pss"), None);
    }

    #[test]
    fn this_process_has_memory_and_the_sampler_sees_it() {
        let pid = std::process::id();
        let memory = Memory::of(pid).unwrap();
        assert!(memory.rss >= memory.anon && memory.anon > 0);
        assert!(kit::process::cpu_seconds(pid).unwrap() >= 0.0);
        let sampler = Sampler::start(pid);
        while sampler.seen.lock().unwrap().1.is_empty() {
            thread::yield_now();
        }
        assert!(sampler.finish().0.rss > 0);
    }
}
