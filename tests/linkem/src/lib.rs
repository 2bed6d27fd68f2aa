//! A bad link, as a model: rate, queue, delay, jitter, loss, silence.
//!
//! ```text
//! LinkSpec ─ directions(seed) ─► Direction (up), Direction (down)
//! Direction   offer(now, bytes) ─► Fate: delivered when, or dropped why. No clock, no I/O, no packet
//! Wire<T>     a Direction that also holds the packets until they are due: send, next_due, poll
//! ```
//!
//! [`run`] puts the model between real namespaces. Time is nanoseconds since the scenario began; whoever calls owns the clock. The k-th packet's loss, jitter, corruption and duplication are
//! functions of (seed, k) alone, whatever the timing.

mod direction;
mod draw;
mod rate;
pub mod run;
mod spec;
mod trace;
pub mod units;
mod wire;

pub use direction::{Cause, Counters, Direction, Fate};
pub use spec::{
    Action, Burst, DelayStep, DirectionSpec, Family, Jitter, LinkEvent, LinkSpec, Loss, Narrow, Queue, Rate, RateStep,
    SpecError, Window,
};
pub use trace::{Lte, Trace, TraceError};
pub use wire::{Arrival, Wire};

/// Nanoseconds in a millisecond.
pub const MS: u64 = 1_000_000;
/// Nanoseconds in a second.
pub const SECOND: u64 = 1_000_000_000;
