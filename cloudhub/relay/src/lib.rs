//! Reliable delivery between hub and edge: state machines without sockets, clock or tasks.
//!
//! * [`Link`]: one end of a session. Items of a class go in with [`Link::send`], come out of the other end as
//!   [`Event::Received`], and are acknowledged when that end's owner has [`Link::commit`]ted them
//!   * `sender`: what waits, what is on its way, repetition
//!   * `receiver`: reassembly, order, duplicates, expiry
//! * [`Outgoing`]: from a link into a transport whose queues fill up
//! * on top of it, the desired state:
//!   * [`Source`] at the hub: what the edge should hold against what it was sent → Apply, Delete, SnapshotSent
//!   * [`Replica`] at the edge: what it holds, from which API, how old; decides what may be applied and what proves a
//!     deletion
//!   * [`Lineage`]: the starts of the API's database, by which one that was restored from a backup is known
//!
//! A link lives as long as its tunnel session: sequence numbers start anew with each. What survives is in the owners'
//! stores: the edge's objects and outbox, the cluster's API.
//!
//! Named faults ([`Faults`]) can be switched on, so that the simulator can prove that its checker sees them.

mod digest;
mod faults;
mod lineage;
mod link;
mod outgoing;
mod receiver;
mod replica;
mod sender;
mod source;
mod spare;

pub use digest::{Digest, Entry, object_version};
pub use faults::Faults;
pub use lineage::Lineage;
pub use link::{Event, Item, Link, SendError, Transmit};
pub use outgoing::{Outgoing, Push};
pub use replica::{Change, Effect, Held, Replica, ReplicaState};
pub use source::{Key, Source, SourceObject, SourceView};
