//! Images without a registry: built here as OCI archives, and imported through containerd's own API.
//!
//! * [`recipe`]: what is in `kedge.dev/pause:1` and `kedge.dev/demo:1`
//! * [`archive`]: files → layer → config → manifest → one `.tar` in OCI layout; same input, same bytes
//! * [`layout`]: reads such an archive back, every blob checked against its digest
//! * [`import`]: archive → content store (under a lease) → image record that the CRI plugin knows; list and prune

pub mod archive;
pub mod import;
pub mod layout;
pub mod recipe;

pub use archive::{Architecture, BuildError, Entry, Image};
pub use import::{Containerd, ImportError, Imported};
pub use layout::{Layout, LayoutError};
