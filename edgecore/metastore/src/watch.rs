//! Watches: a level-triggered, coalescing hint that something under a prefix was committed.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

/// Says when something under its prefix was committed. It carries no data: scan after it.
#[derive(Debug, Clone)]
pub struct Watch {
    receiver: watch::Receiver<u64>,
}

impl Watch {
    /// Waits for a commit under the prefix since the last call (or since the watch was made).
    ///
    /// Returns `false` when the store is closed. Cancel-safe.
    pub async fn changed(&mut self) -> bool {
        self.receiver.changed().await.is_ok()
    }

    /// Makes the next [`Self::changed`] return at once.
    pub fn mark_changed(&mut self) {
        self.receiver.mark_changed();
    }
}

/// A prefix and who is told of it.
type Entry = (String, watch::Sender<u64>);

/// All watches of a store.
#[derive(Debug, Default, Clone)]
pub(crate) struct Watches {
    inner: Arc<Mutex<Vec<Entry>>>,
}

impl Watches {
    pub(crate) fn add(&self, prefix: &str) -> Watch {
        let mut watches = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        watches.retain(|(_, sender)| sender.receiver_count() > 0);
        if let Some((_, sender)) = watches.iter().find(|(have, _)| have == prefix) {
            return Watch {
                receiver: sender.subscribe(),
            };
        }
        let (sender, receiver) = watch::channel(0);
        watches.push((prefix.to_owned(), sender));
        Watch { receiver }
    }

    pub(crate) fn notify<'a>(&self, keys: impl Iterator<Item = &'a str> + Clone) {
        let watches = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        for (prefix, sender) in watches.iter() {
            if keys.clone().any(|key| key.starts_with(prefix.as_str())) {
                sender.send_modify(|n| *n += 1);
            }
        }
    }

    pub(crate) fn close(&self) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
