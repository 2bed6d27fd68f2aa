//! A store that dies with its last handle: for simulated edges, of which a thousand share one process.
//!
//! The same reads, batches and watches as on the disk; no flush, no thread. A commit is done when it returns.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::batch::Batch;
use crate::watch::Watches;

/// What all handles share.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    records: Mutex<BTreeMap<String, Bytes>>,
    pub(crate) watches: Watches,
}

impl Memory {
    fn records(&self) -> MutexGuard<'_, BTreeMap<String, Bytes>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn commit(&self, batch: Batch) {
        let keys: Vec<String> = batch.changes.iter().map(|(key, _)| key.clone()).collect();
        let mut records = self.records();
        for (key, value) in batch.changes {
            match value {
                Some(value) => records.insert(key, value),
                None => records.remove(&key),
            };
        }
        drop(records);
        self.watches.notify(keys.iter().map(String::as_str));
    }

    pub(crate) fn get(&self, key: &str) -> Option<Bytes> {
        self.records().get(key).cloned()
    }

    pub(crate) fn range(&self, prefix: &str, start: Bound<String>, limit: usize) -> Vec<(String, Bytes)> {
        self.records()
            .range((start, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .take(limit)
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::{Batch, Store};

    #[tokio::test]
    async fn a_store_in_memory_reads_and_watches_as_one_on_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Store::open(&dir.path().join("store"), &crate::Options::default()).unwrap();
        for store in [disk, Store::in_memory()] {
            let mut watch = store.watch("a/");
            let mut batch = Batch::new();
            batch.put("a/1", "x").put("a/2", "y").put("b/1", "z").put("a/1", "w");
            store.commit(batch).await.unwrap();
            assert!(watch.changed().await);
            assert_eq!(store.get("a/1").unwrap().unwrap(), "w");
            assert_eq!(store.keys("a/").unwrap(), ["a/1", "a/2"]);
            let rest = store.scan_from("a/", Some("a/1"), 9).unwrap();
            assert_eq!(rest, [("a/2".to_owned(), bytes::Bytes::from("y"))]);
            assert_eq!(store.scan_from("", None, 2).unwrap().len(), 2);
            let mut batch = Batch::new();
            batch.delete("a/1");
            store.commit(batch).await.unwrap();
            assert_eq!(store.get("a/1").unwrap(), None);
        }
    }
}
