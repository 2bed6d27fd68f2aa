//! The model between real network namespaces: everything here has I/O and a clock.
//!
//! ```text
//! Emulation   start(scenario) ─► Topology (namespaces, devices, routes, NAT) + engine (one thread) + timeline (one thread)
//!             apply(link, action): black hole, device down, NAT rebind …      stop() ─► Report
//! engine      TUN ─► Wire ─► TUN, both ways of every link; samples every 100 ms
//! control     commands as lines of text, for a test that is no Rust
//! selftest    what this machine gets wrong: rate, delay, loss, lateness
//! ```

pub mod control;
mod cpu;
mod emulation;
mod engine;
mod histogram;
mod report;
mod scenario;
pub mod selftest;
mod sys;
mod topology;

pub use emulation::Emulation;
pub use report::{LinkReport, Quantiles, Report, Sample, WayReport, WaySample};
pub use scenario::{EdgeSpec, HubSpec, Namespaces, Scenario};
pub use topology::inside;
