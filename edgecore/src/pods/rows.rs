//! The rows of the node's store, as the pods need them: the metastore in life, a map in tests.

use async_trait::async_trait;
use bytes::Bytes;

/// The store does not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("store: {0}")]
pub struct RowError(pub String);

/// A key with its new value, or None to delete it.
pub type Change = (String, Option<Bytes>);

/// A table of rows under keys with prefixes.
#[async_trait]
pub trait Rows: std::fmt::Debug + Send + Sync + 'static {
    /// One row.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn get(&self, key: &str) -> Result<Option<Bytes>, RowError>;
    /// All rows under a prefix, in key order.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn scan(&self, prefix: &str) -> Result<Vec<(String, Bytes)>, RowError>;
    /// Changes rows at once; durable when it returns.
    ///
    /// # Errors
    /// When it is not durable.
    async fn commit(&self, changes: Vec<Change>) -> Result<(), RowError>;
    /// Wakes when something under the prefix changed; it may wake too often, never too seldom.
    fn watch(&self, prefix: &str) -> Box<dyn Changes>;
}

/// A subscription to changes.
#[async_trait]
pub trait Changes: Send {
    /// Waits for a change since the last call. Cancel safe.
    async fn changed(&mut self);
}

/// Key of an object that the hub sent.
pub fn object_key(kind: &str, namespace: &str, name: &str) -> String {
    format!("object/v1/{kind}/{namespace}/{name}")
}

/// Key of a pod's status.
pub fn status_key(namespace: &str, name: &str, uid: &str) -> String {
    format!("status/v1/Pod/{namespace}/{name}/{uid}")
}

/// Key that tells the hub that a pod's containers and volumes are gone.
pub fn gone_key(namespace: &str, name: &str, uid: &str) -> String {
    format!("gone/v1/Pod/{namespace}/{name}/{uid}")
}

/// Prefix of the pods' own rows about one pod.
pub fn local_prefix(uid: &str) -> String {
    format!("local/v1/pods/{uid}/")
}

impl super::objects::Objects for std::sync::Arc<dyn Rows> {
    fn object(&self, kind: &str, namespace: &str, name: &str) -> Result<Option<Bytes>, super::objects::ObjectError> {
        Rows::get(&**self, &object_key(kind, namespace, name)).map_err(|e| super::objects::ObjectError::Unreadable {
            kind: kind.to_owned(),
            name: name.to_owned(),
            message: e.0,
        })
    }
}

#[cfg(test)]
pub(crate) use memory::MemRows;

#[cfg(test)]
mod memory {
    use super::{Bytes, Change, Changes, RowError, Rows, async_trait};
    use std::collections::BTreeMap;
    use std::sync::Mutex;
    use tokio::sync::watch;

    /// Rows in a map.
    #[derive(Debug)]
    pub(crate) struct MemRows {
        rows: Mutex<BTreeMap<String, Bytes>>,
        version: watch::Sender<u64>,
    }

    impl Default for MemRows {
        fn default() -> Self {
            Self {
                rows: Mutex::default(),
                version: watch::channel(0).0,
            }
        }
    }

    impl MemRows {
        pub(crate) fn apply(&self, changes: Vec<Change>) {
            {
                let mut rows = self.rows.lock().expect("lock");
                for (key, value) in changes {
                    match value {
                        Some(value) => rows.insert(key, value),
                        None => rows.remove(&key),
                    };
                }
            }
            self.version.send_modify(|v| *v += 1);
        }
    }

    #[async_trait]
    impl Rows for MemRows {
        fn get(&self, key: &str) -> Result<Option<Bytes>, RowError> {
            Ok(self.rows.lock().expect("lock").get(key).cloned())
        }
        fn scan(&self, prefix: &str) -> Result<Vec<(String, Bytes)>, RowError> {
            let rows = self.rows.lock().expect("lock");
            let under = rows
                .range(prefix.to_owned()..)
                .take_while(|(k, _)| k.starts_with(prefix));
            Ok(under.map(|(k, v)| (k.clone(), v.clone())).collect())
        }
        async fn commit(&self, changes: Vec<Change>) -> Result<(), RowError> {
            self.apply(changes);
            Ok(())
        }
        fn watch(&self, _prefix: &str) -> Box<dyn Changes> {
            Box::new(Watch(self.version.subscribe()))
        }
    }

    struct Watch(watch::Receiver<u64>);

    #[async_trait]
    impl Changes for Watch {
        async fn changed(&mut self) {
            if self.0.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}
