//! Maps that are empty nearly always and give their memory back. A `BTreeMap` keeps its last leaf, a kilobyte and more here, and a
//! hub has a dozen such maps a session.

use std::collections::BTreeMap;

/// Removes `key`; the last one takes the leaf with it.
pub(crate) fn remove<K: Ord, V>(map: &mut BTreeMap<K, V>, key: &K) -> Option<V> {
    let value = map.remove(key);
    if map.is_empty() {
        *map = BTreeMap::new();
    }
    value
}
