//! The container runtime, seen from Kedge: CRI for pods, containerd's own events as hints.
//!
//! * [`Runtime`] is what the node agent calls; its types are small and our own, no generated type leaves the crate.
//! * [`CriRuntime`] speaks CRI v1 to containerd's socket (1.6 and later).
//! * [`events`]: containerd's event stream becomes hints to re-read, in a task that its caller owns.
//!
//! The crate keeps no state: containers, labels and restart counts are the runtime's, and survive us.

mod client;
pub mod container;
mod convert;
pub mod error;
pub mod events;
pub mod fake;
pub mod image;
pub mod runtime;
pub mod sandbox;
pub mod stats;

pub use client::CriRuntime;
pub use container::{
    Container, ContainerConfig, ContainerFilter, ContainerMetadata, ContainerState, ContainerStatus, Device, EnvVar,
    ExecOutput, Mount, MountPropagation, Resources, SeccompProfile, SecurityContext, SelinuxOptions, Streams,
};
pub use error::{Error, ErrorKind, Result};
pub use events::{EventPump, HintSource, Hints, PodHint};
pub use image::{Auth, FilesystemUsage, Image, ImageSpec};
pub use runtime::Runtime;
pub use sandbox::{
    DnsConfig, NamespaceMode, NamespaceOptions, PortMapping, Protocol, Sandbox, SandboxConfig, SandboxFilter,
    SandboxMetadata, SandboxState, SandboxStatus,
};
pub use stats::{CgroupDriver, ContainerStats, RuntimeStatus, RuntimeVersion};

/// The generated types; nothing of them leaves the crate.
mod proto {
    #![allow(
        missing_docs,
        missing_debug_implementations,
        unreachable_pub,
        clippy::all,
        clippy::pedantic
    )]
    tonic::include_proto!("runtime.v1");
}

/// Labels and annotations.
pub type StringMap = std::collections::BTreeMap<String, String>;
