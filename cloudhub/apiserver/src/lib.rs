//! The embedded Kubernetes API: an HTTPS API server over a sled store. It knows neither kube nor the controllers.
//!
//! One request, from the socket to the disk and back:
//!
//! * [`http`]: TLS, bounds, routing, content types
//! * [`auth`]: who asks (client certificate, token, impersonation), may they (RBAC, Node), admission
//! * [`schema`]: is the body an object of that kind: unknown fields, wrong types; how lists merge in a patch
//! * [`kinds`]: a row and a strategy a kind: defaults, validation, what a write may change, columns
//! * [`registry`]: the one function that every write goes through; lists and watches
//! * [`store`]: objects by key, resourceVersions, the log that watches read; commits are grouped by `metastore`
//!
//! State: [`store::Store`] owns all of it. A request that fails has changed nothing. A store that fails ends the process, which
//! starts again on it.

pub mod auth;
mod bootstrap;
#[doc(hidden)]
pub mod fuzzing;
mod http;
pub mod kinds;
mod kubelet;
mod metrics;
mod object;
mod patch;
mod pki;
mod registry;
mod schema;
mod selector;
mod server;
pub mod status;
pub mod store;
mod table;

pub use pki::PkiError;
pub use server::{BuildError, Config, FirstWrite, KUBERNETES, Server, build};
