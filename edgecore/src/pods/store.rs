//! The metastore as the pods' [`Rows`].

use async_trait::async_trait;
use bytes::Bytes;
use metastore::{Batch, Store, Watch};

use super::rows::{Change, Changes, RowError, Rows};

#[async_trait]
impl Rows for Store {
    fn get(&self, key: &str) -> Result<Option<Bytes>, RowError> {
        Store::get(self, key).map_err(|e| RowError(e.to_string()))
    }

    fn scan(&self, prefix: &str) -> Result<Vec<(String, Bytes)>, RowError> {
        Store::scan(self, prefix).map_err(|e| RowError(e.to_string()))
    }

    async fn commit(&self, changes: Vec<Change>) -> Result<(), RowError> {
        let mut batch = Batch::new();
        for (key, value) in changes {
            match value {
                Some(value) => batch.put(key, value),
                None => batch.delete(key),
            };
        }
        Store::commit(self, batch).await.map_err(|e| RowError(e.to_string()))
    }

    fn watch(&self, prefix: &str) -> Box<dyn Changes> {
        Box::new(Subscription(Store::watch(self, prefix)))
    }
}

struct Subscription(Watch);

#[async_trait]
impl Changes for Subscription {
    async fn changed(&mut self) {
        if !self.0.changed().await {
            // The store is closed: nothing changes any more.
            std::future::pending::<()>().await;
        }
    }
}
