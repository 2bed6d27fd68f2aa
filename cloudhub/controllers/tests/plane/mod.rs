//! What the controllers are tested with: an API server without controllers, kubectl, and fake nodes.
//!
//! * `kit::Real`: etcd and an unmodified kube-apiserver on free loopback ports.
//! * [`Nodes`]: fake kubelets: leases, node status, pods that run at once, except those of image `never-ready`.

mod kubectl;
mod nodes;

pub(crate) use kubectl::Kubectl;
pub(crate) use nodes::{ALONE, AWAY, Nodes};
