//! The harness of the end-to-end tests: real parts in namespaces of their own.
//!
//! * [`Site`] is one test's world: a folder, a hub namespace and edge namespaces joined by veth pairs on which only the
//!   declared ports pass.
//! * [`plane::ControlPlane`] runs etcd, kube-apiserver, kube-controller-manager and kube-scheduler in the hub namespace.
//! * [`Real`] is etcd and kube-apiserver alone, on loopback: what answers and controllers are compared with.
//! * [`hub::Hub`] runs our cloudhub there, above that control plane or above its own embedded API.
//! * [`edge::Edge`] is one machine: mount and network namespace, containerd, edgecore; it can be reset.
//! * [`uplinks::Uplinks`] puts an edge behind emulated bad links in the place of its veth pair.
//!
//! Everything is killed by id when its owner is dropped; what a crashed test left is swept by the next one (see [`sweep`]).

pub mod clock;
pub mod containerd;
pub mod edge;
pub mod exposition;
pub mod fresh;
pub mod hub;
pub mod kubectl;
pub mod kubelet;
pub mod links;
pub mod metrics_server;
pub mod paths;
pub mod pki;
pub mod plane;
pub mod process;
pub mod real;
pub mod registry;
pub mod site;
pub mod suite;
pub mod sweep;
mod sys;
pub mod uplinks;
pub mod wait;
pub mod yaml;

pub use edge::Edge;
pub use fresh::Fresh;
pub use hub::{Above, Hub};
pub use kubectl::Kubectl;
pub use plane::ControlPlane;
pub use real::Real;
pub use site::Site;
pub use wait::wait_for;
