//! The local store: durable batches over key prefixes of one sled tree, prefix scans, prefix watches.
//!
//! * [`Store`] is a cloneable handle; reads go straight to sled.
//! * one writer thread ([`writer`]) owns every write: it joins what waits into one batch (group commit), applies it,
//!   flushes, wakes the watches and only then replies. So a reply means: on the disk.
//! * a watchdog thread looks at the flush: one that does not return in time, or any write error, is fatal
//!   ([`Options::on_fatal`]): sled never recovers from a failed flush, and its `Drop` would hang. The process must exit
//!   without dropping the store and start again on it.
//! * [`Store::in_memory`] keeps nothing: for simulated edges ([`memory`]).
//! * every record is checksummed, and encrypted when a key is given ([`record`]). A store that does not open or fails
//!   its checks is renamed, never deleted ([`Store::open_or_set_aside`]).
//!
//! A reader may see a write a moment before it is durable; whoever promises something to others waits for the reply.

mod aside;
mod batch;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod memory;
mod record;
mod store;
mod watch;
mod writer;

pub use aside::SetAside;
pub use batch::Batch;
pub use error::{CommitError, OpenError, ReadError};
pub use store::{Options, Store};
pub use watch::Watch;
