//! Real machines, emulated: an installation under systemd with cgroup v2 that is reset while offline, an ARM64 robot, and power cuts on
//! disks with a volatile cache. Bit by bit emulation is slow: limits are five times what an idle machine of two cores needs.

mod arm64;
mod inside;
mod installation;
mod power_cuts;
mod robot;

use std::time::Duration;

/// What takes half a minute in a guest on an idle machine.
const LONG: Duration = Duration::from_secs(400);
