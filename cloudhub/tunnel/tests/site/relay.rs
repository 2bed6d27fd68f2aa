//! A link that can be cut, and loses packets.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

/// Forwards datagrams of one client, until it is cut: a link that dies without a word.
pub(crate) struct UdpRelay {
    pub(crate) address: SocketAddr,
    cut: tokio::sync::watch::Sender<bool>,
    /// What the hub says gets lost.
    deaf: Arc<AtomicBool>,
    forwarded: tokio::sync::watch::Receiver<u64>,
    lost_of_thousand: Arc<AtomicU32>,
    _task: tokio::task::JoinSet<()>,
}

impl UdpRelay {
    pub(crate) async fn start(hub: SocketAddr) -> Self {
        Self::start_with(hub, usize::MAX).await
    }

    /// Drops datagrams larger than `mtu`.
    pub(crate) async fn start_with(hub: SocketAddr, mtu: usize) -> Self {
        let any = (Ipv4Addr::LOCALHOST, 0);
        let front = tokio::net::UdpSocket::bind(any).await.unwrap();
        let back = tokio::net::UdpSocket::bind(any).await.unwrap();
        back.connect(hub).await.unwrap();
        let address = front.local_addr().unwrap();
        let (cut, is_cut) = tokio::sync::watch::channel(false);
        let (count, forwarded) = tokio::sync::watch::channel(0);
        let lost_of_thousand = Arc::new(AtomicU32::new(0));
        let loss = lost_of_thousand.clone();
        let deaf = Arc::new(AtomicBool::new(false));
        let is_deaf = deaf.clone();
        let mut task = tokio::task::JoinSet::new();
        task.spawn(async move {
            let mut client = None;
            let (mut up, mut down) = (vec![0; 65_536], vec![0; 65_536]);
            loop {
                let (size, upwards) = tokio::select! {
                    Ok((size, from)) = front.recv_from(&mut up) => {
                        client = Some(from);
                        (size, true)
                    }
                    Ok(size) = back.recv(&mut down) => (size, false),
                };
                let lost = rand::random_range(0..1000) < loss.load(Ordering::Relaxed);
                let passes = size <= mtu && !lost && !*is_cut.borrow();
                if passes && upwards {
                    let _ = back.send(&up[..size]).await;
                } else if let (true, Some(client)) = (passes && !is_deaf.load(Ordering::Relaxed), client) {
                    let _ = front.send_to(&down[..size], client).await;
                }
                count.send_modify(|count| *count += size as u64);
            }
        });
        Self {
            address,
            cut,
            deaf,
            forwarded,
            lost_of_thousand,
            _task: task,
        }
    }

    pub(crate) fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// One way only: what the hub says gets lost.
    pub(crate) fn cut_down(&self) {
        self.deaf.store(true, Ordering::Relaxed);
    }

    pub(crate) fn mend(&self) {
        self.cut.send_replace(false);
        self.deaf.store(false, Ordering::Relaxed);
    }

    /// From now on so many packets of a thousand get lost, both ways.
    pub(crate) fn lose(&self, of_thousand: u32) {
        self.lost_of_thousand.store(of_thousand, Ordering::Relaxed);
    }

    /// Bytes that came by, both ways, dropped ones too.
    pub(crate) fn bytes(&self) -> u64 {
        *self.forwarded.borrow()
    }

    /// Waits until nothing has come by for half a second.
    pub(crate) async fn quiet(&self) {
        let mut forwarded = self.forwarded.clone();
        let half_a_second = Duration::from_millis(500);
        while tokio::time::timeout(half_a_second, forwarded.changed()).await.is_ok() {}
    }
}
