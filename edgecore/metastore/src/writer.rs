//! The writer thread: group commit, flush, watchdog.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use crate::error::CommitError;
use crate::store::{Db, Fatal};
use crate::watch::Watches;

/// Batches that may wait for the writer. A full queue makes `commit` wait, so that producers feel a slow disk.
pub(crate) const QUEUE: usize = 1024;
/// Batches that one flush commits. More would only make the first of them wait longer.
const GROUP: usize = 256;
/// How often the watchdog looks.
const WATCH: Duration = Duration::from_millis(500);

/// A batch with encoded records, and who waits for it.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) changes: Vec<(String, Option<Vec<u8>>)>,
    pub(crate) reply: oneshot::Sender<Result<(), CommitError>>,
}

/// How the writer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WriterEnd {
    /// All handles are gone.
    Closed,
    /// A write failed.
    Failed,
}

/// What the writer thread owns.
pub(crate) struct Writer {
    pub(crate) db: Db,
    pub(crate) watches: Watches,
    pub(crate) fatal: Fatal,
    pub(crate) flush_deadline: Duration,
}

impl Writer {
    /// Starts the writer and its watchdog; both end when `requests` closes.
    pub(crate) fn start(self, requests: mpsc::Receiver<Request>) -> io::Result<JoinHandle<WriterEnd>> {
        let flushing = Arc::new(Mutex::new(None));
        let (watched, fatal, limit) = (Arc::downgrade(&flushing), self.fatal.clone(), self.flush_deadline);
        thread::Builder::new()
            .name("store-watchdog".into())
            .stack_size(64 * 1024)
            .spawn(move || watchdog(&watched, &fatal, limit))?;
        thread::Builder::new()
            .name("store-writer".into())
            .stack_size(512 * 1024)
            .spawn(move || self.run(requests, &flushing))
    }

    fn run(self, mut requests: mpsc::Receiver<Request>, flushing: &Mutex<Option<Instant>>) -> WriterEnd {
        while let Some(first) = requests.blocking_recv() {
            let mut group = vec![first];
            while group.len() < GROUP {
                match requests.try_recv() {
                    Ok(next) => group.push(next),
                    Err(_) => break,
                }
            }
            if let Err(error) = self.commit(&group, flushing) {
                (self.fatal)(&format!("write the store: {error}"));
                // Only a test's handler returns. The sled handle must not be dropped: its flush would never return.
                for request in group {
                    let _ = request.reply.send(Err(CommitError::Closed));
                }
                self.watches.close();
                std::mem::forget(self.db);
                return WriterEnd::Failed;
            }
            self.watches
                .notify(group.iter().flat_map(|r| r.changes.iter().map(|(key, _)| key.as_str())));
            for request in group {
                // The committer may have stopped waiting; the batch is durable all the same.
                let _ = request.reply.send(Ok(()));
            }
        }
        self.watches.close();
        WriterEnd::Closed
    }

    fn commit(&self, group: &[Request], flushing: &Mutex<Option<Instant>>) -> io::Result<()> {
        let mut last = BTreeMap::new();
        for (key, value) in group.iter().flat_map(|r| &r.changes) {
            last.insert(key.as_str(), value);
        }
        let mut batch = sled::Batch::default();
        for (key, value) in last {
            match value {
                Some(value) => batch.insert(key.as_bytes(), value.as_slice()),
                None => batch.remove(key.as_bytes()),
            }
        }
        *flushing.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        let result = self.db.apply_batch(batch).and_then(|()| self.db.flush().map(|_| ()));
        *flushing.lock().unwrap_or_else(PoisonError::into_inner) = None;
        result
    }
}

/// Calls `fatal` when a flush takes longer than `limit`; ends with the writer.
fn watchdog(flushing: &Weak<Mutex<Option<Instant>>>, fatal: &Fatal, limit: Duration) {
    let mut patience = Patience::new(Instant::now());
    while let Some(flushing) = flushing.upgrade() {
        let since = *flushing.lock().unwrap_or_else(PoisonError::into_inner);
        drop(flushing);
        if patience.look(Instant::now(), since) > limit {
            fatal(&format!("a flush of the store did not return in {limit:?}"));
            return;
        }
        thread::sleep(WATCH);
    }
}

/// How long a flush has taken. A look that comes late counts for two at most: while this process was stopped or starved, no flush could
/// return.
struct Patience {
    looked: Instant,
    since: Option<Instant>,
    waited: Duration,
}

impl Patience {
    fn new(now: Instant) -> Self {
        Self {
            looked: now,
            since: None,
            waited: Duration::ZERO,
        }
    }

    /// Looks again, at a flush that began at `since`.
    fn look(&mut self, now: Instant, since: Option<Instant>) -> Duration {
        let passed = now.saturating_duration_since(self.looked).min(WATCH * 2);
        self.looked = now;
        if self.since != since {
            (self.since, self.waited) = (since, Duration::ZERO);
        }
        if let Some(since) = since {
            self.waited += passed.min(now.saturating_duration_since(since));
        }
        self.waited
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_flush_is_counted_and_that_of_a_stopped_process_is_not() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut patience = Patience::new(start);
        let mut look = |now, since: Option<u64>| patience.look(at(now), since.map(at)).as_millis();
        assert_eq!(look(500, None), 0);
        assert_eq!(look(1000, Some(900)), 100);
        assert_eq!(look(1500, Some(900)), 600);
        // Stopped for half a minute, with the flush under way.
        assert_eq!(look(31_500, Some(900)), 1600);
        assert_eq!(look(32_000, Some(900)), 2100);
        // And the next one.
        assert_eq!(look(32_500, Some(32_400)), 100);
        assert_eq!(look(33_000, None), 0);
    }
}
