//! metastore.
