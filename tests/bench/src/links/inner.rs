//! The IP tunnel that TCP runs through.

use anyhow::{Result, ensure};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tunnel::Session;
use tunnel::ip::{Tun, TunConfig};

/// Bytes of its packets.
pub(crate) const MTU: usize = tunnel::ip::INNER_MTU;
/// The device at either end.
const DEVICE: &str = "kedge0";

/// A TUN device with that address, for whichever session there is.
///
/// # Errors
/// When not root.
pub(crate) fn carry(address: &str, tasks: &mut JoinSet<()>) -> Result<watch::Sender<Option<Session>>> {
    let tun = Tun::open(TunConfig::new(DEVICE))?;
    let added = std::process::Command::new("ip")
        .args(["address", "add", address, "dev", DEVICE])
        .status();
    ensure!(added?.success(), "{address} for {DEVICE}");
    let (sessions, current) = watch::channel(None);
    tasks.spawn(async move {
        if let Err(error) = tunnel::ip::run(&tun, current).await {
            eprintln!("{DEVICE}: {error}");
        }
    });
    Ok(sessions)
}
