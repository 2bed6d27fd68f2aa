//! Follows the objects of one kind without a task of its own: whoever asks next gets what changed since.

use std::sync::Arc;

use futures::FutureExt;

use crate::store::{Change, Store, Stored, Watch};

/// A place in the store's log of changes.
#[derive(Debug)]
pub(super) struct Follow {
    storage: &'static str,
    watch: Option<Watch>,
}

/// What is new.
#[derive(Debug)]
pub(super) enum News {
    /// Nothing since the last time.
    Nothing,
    /// These changes, in order.
    Changes(Vec<Arc<Change>>),
    /// Forget what was known: this is all there is.
    Everything(Vec<Arc<Stored>>),
}

impl Follow {
    pub(super) fn new(storage: &'static str) -> Self {
        Self { storage, watch: None }
    }

    /// The kind's prefix in the store.
    pub(super) fn storage(&self) -> &'static str {
        self.storage
    }

    /// What changed since the last call. Never waits.
    pub(super) fn news(&mut self, store: &Store) -> News {
        if let Some(watch) = &mut self.watch {
            match watch.next().now_or_never() {
                None => return News::Nothing,
                Some(Some(changes)) => return News::Changes(changes),
                // Fallen behind the log: from the start.
                Some(None) => {}
            }
        }
        // The watch begins before the list: a change between the two is seen twice, never missed.
        self.watch = store.watch(self.storage, None, store.version());
        News::Everything(store.list(self.storage, None, None, usize::MAX).1)
    }
}
