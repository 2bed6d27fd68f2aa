//! Hubs that end without a word.

use std::net::{SocketAddr, UdpSocket};

use super::Site;

/// A hub on a runtime of its own, so that it can end like a killed process: with no last word.
pub(crate) struct KilledHub(tokio::runtime::Runtime);

impl KilledHub {
    pub(crate) fn start(site: &Site) -> (Self, tunnel::Hub) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let hub = {
            let _inside = runtime.enter();
            site.hub()
        };
        (Self(runtime), hub)
    }

    pub(crate) fn kill(self, hub: tunnel::Hub, session: Option<tunnel::Session>) {
        self.0.shutdown_background();
        drop((hub, session));
    }
}

/// A hub of the same installation at the address of one that is gone.
pub(crate) async fn rebind(site: &Site, address: SocketAddr) -> tunnel::Hub {
    while UdpSocket::bind(address).is_err() {
        tokio::task::yield_now().await;
    }
    site.hub_at(address)
}
