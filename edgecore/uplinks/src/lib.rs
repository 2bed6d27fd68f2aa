//! Which network devices lead to the hub, as the kernel tells it (rtnetlink), and what keeps one from it.
//!
//! - [`read`] → [`Kernel`]: links, addresses, routes and rules, by full dumps; [`Monitor`] says when to read again
//! - [`candidates`]: the devices that lead to the hub (pure)
//! - [`Chooser`]: those that are used, over time: what vanishes goes at once, what loses its carrier some seconds later (pure)
//! - [`check`]: what `kedge check` says of each device, with the commands that put it right (pure but for two files of /proc)
//!
//! State: [`Chooser`]'s, owned by whoever feeds it. On failure (no netlink, a dump that does not end) an error is returned and nothing
//! is changed: the caller keeps what it has and tries again.

pub mod check;
mod choose;
mod decode;
mod kernel;
mod socket;
#[cfg(test)]
mod testing;

pub use choose::{Chooser, Device, HOLD, MAX_DEVICES, candidates, sources};
pub use kernel::{Address, Hop, Kernel, Link, Prefix, Route, Rule};
pub use socket::{DEBOUNCE, Monitor, read};
