//! Guest machines for the tests: real Debian with systemd and cgroup v2 under qemu, x86-64 and ARM64, that are reset and lose power.
//!
//! * [`image`]: the base images, made once by `tests/machines/make`; our own programs for them; read-only disks of files.
//! * [`guest::Guest`]: one machine: an overlay on its base image, qemu in the test's hub namespace, its link a tap there.
//! * [`agent`]: commands in the guest by qemu-guest-agent, independent of any network.
//! * [`volatile::VolatileDisk`]: a disk whose cache dies with the power, as hardware's does.
//!
//! All files and sockets lie in the site's folder, so qemu and nbdkit are known by their command lines: what a crashed test left is
//! swept with its site (kit's `sweep`), taps with its namespace.

pub mod agent;
pub mod guest;
pub mod image;
pub mod volatile;

pub use guest::{Drive, Guest, Spec};
pub use image::Arch;
pub use volatile::VolatileDisk;
