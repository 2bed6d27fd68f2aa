//! The cloud side of Kedge: relays what a Kubernetes API wants to the edge nodes, and what they report back to it.

pub mod identity;
pub mod kubelet_proxy;
