//! The cloud side of Kedge: relays what a Kubernetes API wants to the edge nodes, and what they report back to it.
//!
//! - Kubernetes API → [`registry`] (what each node should hold) → [`session`] (what it does hold) → relay → tunnel → edge
//! - edge → tunnel → relay → [`session`] → [`writer`] (as that node and no other) → Kubernetes API
//! - kube-apiserver → [`kubelet_proxy`] → tunnel → the edge's kubelet API
//! - `embedded`: the Kubernetes API in this process, with its controllers, used like a cluster
//! - [`identity`]: CAs, join tokens, certificates; [`node_api`]: what an edge asks for in a session

pub mod admin;
pub mod app;
pub mod config;
mod embedded;
pub mod identity;
pub mod kube_api;
pub mod kubelet_proxy;
pub mod lineage;
mod links;
pub mod node_api;
pub mod packed;
pub mod registry;
pub mod reports;
pub mod session;
pub mod writer;
