//! edgecore: the node agent. One process a robot: it keeps what the hub sent in a durable store and makes containerd run it, with or without
//! a network.
//!
//! `main.rs` parses and starts, `app` wires; each module below owns one thing and hands out handles.

pub mod admin;
pub mod app;
pub mod config;
pub mod edgehub;
#[doc(hidden)]
pub mod fuzzing;
pub mod kubelet_api;
pub mod metrics;
pub mod node;
pub mod pods;
pub mod rotation;
pub mod secret_key;
pub mod supervisor;
pub mod telemetry;
pub mod uplinks;
