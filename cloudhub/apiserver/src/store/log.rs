//! The changes that watches read: a window of the last ones, each kind by itself.
//!
//! - a kind has its own window and wakes its own watches: leases, which are written all the time and read by few, wake nobody else, and
//!   no watch is told that it fell behind because of them
//! - all windows together hold [`LOG_BYTES`]; when that is full, the kind that holds most loses its oldest change
//!
//! What counts is all that a change keeps alive, as if nobody else did; the newest state of an object is the store's own as well.

use std::collections::{HashMap, VecDeque};
use std::mem::size_of;
use std::sync::Arc;

use tokio::sync::watch;

use super::{Before, Change, Stored};

/// Bytes that the log may hold on to: some thousand changes of Nodes, ten thousand of Leases. It counts in the hub's budget of
/// 60 MB, and a watch that reads at all is behind by a few of them.
pub(super) const LOG_BYTES: usize = 4 << 20;

#[derive(Debug)]
struct Window {
    changes: VecDeque<Arc<Change>>,
    bytes: usize,
    /// A watch may begin at this resourceVersion or later.
    start: u64,
    versions: watch::Sender<u64>,
}

/// All kinds' windows.
#[derive(Debug, Default)]
pub(super) struct Log {
    kinds: HashMap<&'static str, Window>,
    bytes: usize,
    /// What was before is in no window.
    start: u64,
}

impl Log {
    /// A log that knows nothing of what was up to `start`.
    pub(super) fn new(start: u64) -> Self {
        Self {
            start,
            ..Self::default()
        }
    }

    fn window(&mut self, storage: &'static str) -> &mut Window {
        let start = self.start;
        self.kinds.entry(storage).or_insert_with(|| Window {
            changes: VecDeque::new(),
            bytes: 0,
            start,
            versions: watch::Sender::new(start),
        })
    }

    /// Adds a change; those who follow its kind learn of it by [`Self::tell`].
    pub(super) fn push(&mut self, change: Change) {
        let added = cost(&change);
        let window = self.window(change.object.key.storage);
        window.bytes += added;
        window.changes.push_back(Arc::new(change));
        self.bytes += added;
        while self.bytes > LOG_BYTES {
            let Some(largest) = self.kinds.values_mut().max_by_key(|window| window.bytes) else {
                return;
            };
            let Some(oldest) = largest.changes.pop_front() else {
                return;
            };
            let freed = cost(&oldest);
            largest.bytes -= freed;
            largest.start = oldest.resource_version;
            self.bytes -= freed;
        }
    }

    /// Wakes those who follow these kinds.
    pub(super) fn tell(&self, kinds: impl IntoIterator<Item = &'static str>, version: u64) {
        for window in kinds.into_iter().filter_map(|kind| self.kinds.get(kind)) {
            window.versions.send_replace(version);
        }
    }

    /// What [`Self::tell`] tells of a kind.
    pub(super) fn subscribe(&mut self, storage: &'static str) -> watch::Receiver<u64> {
        self.window(storage).versions.subscribe()
    }

    /// Whether all changes of a kind after `version` are here.
    pub(super) fn remembers(&self, storage: &'static str, version: u64) -> bool {
        version >= self.kinds.get(storage).map_or(self.start, |window| window.start)
    }

    /// The changes of a kind after `version`.
    pub(super) fn after(&self, storage: &'static str, version: u64) -> impl Iterator<Item = &Arc<Change>> {
        let changes = self.kinds.get(storage).map(|window| &window.changes);
        changes.into_iter().flat_map(move |changes| {
            let first = changes.partition_point(|change| change.resource_version <= version);
            changes.range(first..)
        })
    }

    /// Bytes that it holds on to.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// As if changes up to `version` had been pushed out.
    #[cfg(test)]
    pub(super) fn forget(&mut self, version: u64) {
        self.start = version;
        for window in self.kinds.values_mut() {
            window.start = version;
        }
    }
}

/// Bytes that a change keeps alive.
fn cost(change: &Change) -> usize {
    let before = match &change.before {
        Before::Other(stored) => stored_cost(stored),
        Before::Absent | Before::Alike => 0,
    };
    size_of::<Change>() + stored_cost(&change.object) + before
}

fn stored_cost(stored: &Stored) -> usize {
    size_of::<Stored>() + stored.bytes.len() + stored.key.namespace.len() + stored.key.name.len()
}
