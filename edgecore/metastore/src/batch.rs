//! A batch: puts and deletes that are committed together or not at all.

use bytes::Bytes;

/// Puts and deletes in order; the last one on a key wins.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    pub(crate) changes: Vec<(String, Option<Bytes>)>,
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets `key` to `value`.
    pub fn put(&mut self, key: impl Into<String>, value: impl Into<Bytes>) -> &mut Self {
        self.changes.push((key.into(), Some(value.into())));
        self
    }

    /// Deletes `key`; it need not be there.
    pub fn delete(&mut self, key: impl Into<String>) -> &mut Self {
        self.changes.push((key.into(), None));
        self
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// How many changes are in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.changes.len()
    }
}
