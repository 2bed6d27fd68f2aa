//! Two namespaces with a cable between them, for what is limited by nothing but the CPU.

use std::process::Command as Program;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;
use kit::process::run;

/// The device at both ends.
pub(crate) const DEVICE: &str = "wire";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// The namespaces; they go with it.
#[derive(Debug)]
pub(crate) struct Veth {
    pub(crate) hub: String,
    pub(crate) edge: String,
}

impl Veth {
    /// Makes them; the hub has `203.0.113.1`, the edge `203.0.113.2`.
    ///
    /// # Errors
    /// When not root.
    pub(crate) fn new() -> Result<Self> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = |end: &str| format!("bench{}-{number}-{end}", std::process::id());
        let veth = Self {
            hub: name("hub"),
            edge: name("edge"),
        };
        let ip = |text: &str| run(Program::new("ip").args(text.split(' '))).map(drop);
        let (hub, edge) = (&veth.hub, &veth.edge);
        ip(&format!("netns add {hub}"))?;
        ip(&format!("netns add {edge}"))?;
        ip(&format!(
            "link add {DEVICE} netns {hub} type veth peer name {DEVICE} netns {edge}"
        ))?;
        for (end, address) in [(hub, "203.0.113.1/24"), (edge, "203.0.113.2/24")] {
            ip(&format!("-n {end} link set lo up"))?;
            ip(&format!("-n {end} address add {address} dev {DEVICE}"))?;
            ip(&format!("-n {end} link set {DEVICE} up"))?;
        }
        Ok(veth)
    }
}

impl Drop for Veth {
    fn drop(&mut self) {
        for name in [&self.hub, &self.edge] {
            // One that was not made is not there.
            let _ = run(Program::new("ip").args(["netns", "delete", name]));
        }
    }
}
