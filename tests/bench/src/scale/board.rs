//! Where simulated edges note what they have committed, and where a measurement waits for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::sync::watch;

/// How often a value was committed, and when last.
#[derive(Debug, Clone, Copy)]
struct Seen {
    count: usize,
    last: Instant,
}

/// Clones are the same board.
#[derive(Debug, Clone)]
pub(super) struct Board {
    seen: Arc<Mutex<HashMap<String, Seen>>>,
    news: watch::Sender<()>,
}

impl Board {
    pub(super) fn new() -> Self {
        Self {
            seen: Arc::default(),
            news: watch::Sender::new(()),
        }
    }

    /// An edge has committed `value`.
    pub(super) fn note(&self, value: &str) {
        let last = Instant::now();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = seen.entry(value.to_owned()).or_insert(Seen { count: 0, last });
        entry.count += 1;
        entry.last = last;
        drop(seen);
        self.news.send_replace(());
    }

    /// Waits until `count` edges have committed `value`: when the last of them did.
    ///
    /// # Errors
    /// After `limit`, with how many have.
    pub(super) async fn wait(&self, value: &str, count: usize, limit: Duration) -> Result<Instant> {
        let mut news = self.news.subscribe();
        let look = || {
            let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.get(value).copied()
        };
        let all = async {
            loop {
                news.borrow_and_update();
                if let Some(seen) = look().filter(|seen| seen.count >= count) {
                    return seen.last;
                }
                // The sender is ours: it cannot be gone.
                let _ = news.changed().await;
            }
        };
        match tokio::time::timeout(limit, all).await {
            Ok(last) => Ok(last),
            Err(_) => bail!(
                "{} of {count} edges have committed {value} after {limit:?}",
                look().map_or(0, |seen| seen.count)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_of_so_many_is_waited_for() {
        let board = Board::new();
        board.note("a");
        let first = board.wait("a", 1, Duration::from_secs(60)).await.unwrap();
        let short = board.wait("a", 2, Duration::from_millis(1)).await.unwrap_err();
        assert!(short.to_string().starts_with("1 of 2 edges"), "{short}");
        board.note("a");
        assert!(board.wait("a", 2, Duration::from_secs(60)).await.unwrap() >= first);
    }
}
