//! An end of Kedge's own: [`tunnel::Hub`] or [`tunnel::Edge`], with certificates of the measurement's own.
//!
//! - [`keep_edge`], [`keep_hub`]: one session after the other → [`Ground::serve`] → `live` (a watch) → floods and messages, which wait for one that lives
//! - session → messages → echo and [`Counted`]; packets → [`Counted`], or the TUN device

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tunnel::bond::{PathState, Policy};
use tunnel::{
    Admission, ClockFloor, Edge, EdgeConfig, EpochSource, Hub, HubConfig, Limits, Meter, PacketReceiver, PacketSender,
    PeerCertificate, Priority, QuicKeys, SERVER_NAME, SendError, Session, Uplink, tls,
};

use super::end::{Counted, End, Mail, lock};
use super::inner;
use super::packet::{self, REQUEST};
use super::talk::{Keys, Load, Role, now};

/// Packets that are made before they are offered: one system call's worth in quinn.
const BATCH: usize = 16;
/// Between two looks at a session's paths.
const LOOK: Duration = Duration::from_millis(20);

/// A session, and its packets where no TUN device has them.
#[derive(Debug)]
struct Live {
    session: Session,
    packets: Option<Mutex<PacketSender>>,
}

type Current = watch::Receiver<Option<Arc<Live>>>;
/// All that live.
type Sessions = Arc<std::sync::Mutex<Vec<Session>>>;

/// An end.
pub(crate) struct Tunnelled {
    live: Current,
    sessions: Sessions,
    is_hub: bool,
    counted: Arc<Counted>,
    tasks: JoinSet<()>,
}

impl Tunnelled {
    /// Begins to listen or to connect.
    ///
    /// # Errors
    /// When the certificates or the socket cannot be used.
    pub(crate) fn new(role: Role) -> Result<Self> {
        let (to, live) = watch::channel(None);
        let (counted, mut tasks) = (Arc::<Counted>::default(), JoinSet::new());
        let sessions = Sessions::default();
        let is_hub = match role {
            Role::TunnelHub { keys, listen, inner } => {
                let ground = Ground::new((to, sessions.clone()), counted.clone(), inner, &mut tasks)?;
                tasks.spawn(keep_hub(hub(&keys, listen)?, ground));
                true
            }
            Role::TunnelEdge {
                keys,
                hub,
                uplinks,
                metered,
                inner,
            } => {
                let ground = Ground::new((to, sessions.clone()), counted.clone(), inner, &mut tasks)?;
                let each = uplinks.iter().map(|name| Uplink {
                    policy: Policy {
                        metered,
                        ..Policy::default()
                    },
                    ..Uplink::new(name, Some(name))
                });
                let uplinks = watch::Sender::new(each.collect());
                for number in 0..keys.nodes.len() {
                    let edge = Edge::new(edge_config(&keys, number, hub, uplinks.subscribe())?)?;
                    tasks.spawn(keep_edge(edge, uplinks.clone(), ground.clone()));
                }
                false
            }
            Role::Hub { .. } | Role::Edge { .. } => bail!("a baseline"),
        };
        Ok(Self {
            live,
            sessions,
            is_hub,
            counted,
            tasks,
        })
    }
}

async fn next(live: &mut Current) -> Result<Arc<Live>> {
    let live = live.wait_for(Option::is_some).await.context("it has ended")?;
    live.clone().context("there is one")
}

impl End for Tunnelled {
    async fn connect(&mut self, paths: usize) -> Result<()> {
        let live = next(&mut self.live).await?;
        loop {
            let all = live.session.paths();
            if all.iter().filter(|path| path.stats.state == PathState::Live).count() >= paths {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn flood(&mut self, load: Load, until: u64) -> Result<()> {
        let mut live = self.live.clone();
        self.tasks.spawn(async move {
            let mut number = 0;
            while let Ok(live) = next(&mut live).await {
                if flood(&live, load, until, &mut number).await {
                    return;
                }
                // Its end shows there in a moment.
                tokio::time::sleep(LOOK).await;
            }
        });
        Ok(())
    }

    fn mail(&self) -> impl Mail + Send + Sync + 'static {
        Letters(self.live.clone())
    }

    fn counted(&self) -> &Arc<Counted> {
        &self.counted
    }

    fn tasks(&mut self) -> &mut JoinSet<()> {
        &mut self.tasks
    }

    fn stats(&self) -> Value {
        let Some(live) = self.live.borrow().clone() else {
            return Value::Null;
        };
        let stats = live.session.stats();
        let paths = live.session.paths().into_iter().map(|path| {
            json!({
                "uplink": path.uplink, "live": path.stats.state == PathState::Live, "sent": path.stats.sent_bytes,
                "lostPackets": path.stats.lost_packets, "sentPackets": path.stats.sent_packets,
                "rttMs": path.stats.rtt.as_secs_f64() * 1e3, "rate": path.stats.rate * 8, "suspicions": path.stats.suspicions,
            })
        });
        let all = lock(&self.sessions)
            .iter()
            .map(|session| session.paths().len())
            .sum::<usize>();
        json!({
            "allPaths": all, "epoch": live.session.peer().epoch, "messages": stats.messages_sent, "copies": stats.message_copies,
            "repaired": stats.repaired, "reinjected": stats.reinjected, "skipped": stats.skipped, "late": stats.late,
            "expired": stats.expired, "duplicated": stats.duplicated, "isHub": self.is_hub, "paths": paths.collect::<Vec<_>>(),
        })
    }
}

/// Sends until that moment or the session's end; true when the time is over.
async fn flood(live: &Live, load: Load, until: u64, number: &mut u64) -> bool {
    let Some(packets) = &live.packets else {
        return true;
    };
    let packets = packets.lock().await;
    let mut batch = VecDeque::with_capacity(BATCH);
    loop {
        if now() >= until {
            return true;
        }
        while batch.len() < BATCH {
            batch.push_back(packet::packet(load, *number));
            *number += 1;
        }
        match packets.send_batch(&mut batch) {
            Ok(()) => tokio::task::yield_now().await,
            Err(SendError::Busy) => packets.ready().await,
            Err(_) => return false,
        }
    }
}

struct Letters(Current);

impl Mail for Letters {
    async fn send(&self, message: Bytes) -> Result<()> {
        let live = self.0.borrow().clone().context("no session")?;
        let priority = match message.len() {
            REQUEST => Priority::Urgent,
            _ => Priority::Normal,
        };
        // Busy: in an outage; what is said then is not heard.
        Ok(live.session.send(priority, message)?)
    }
}

/// What every session of an end is served with.
#[derive(Debug, Clone)]
struct Ground {
    live: watch::Sender<Option<Arc<Live>>>,
    sessions: Sessions,
    /// For the TUN device, where there is one.
    inner: Option<watch::Sender<Option<Session>>>,
    counted: Arc<Counted>,
}

impl Ground {
    fn new(
        (live, sessions): (watch::Sender<Option<Arc<Live>>>, Sessions),
        counted: Arc<Counted>,
        inner: Option<String>,
        tasks: &mut JoinSet<()>,
    ) -> Result<Self> {
        let inner = inner.map(|address| inner::carry(&address, tasks)).transpose()?;
        Ok(Self {
            live,
            sessions,
            inner,
            counted,
        })
    }

    /// Does what an end does with a session, until it ends.
    async fn serve(&self, session: Session, is_hub: bool) {
        lock(&self.sessions).push(session.clone());
        let (sender, receiver) = match &self.inner {
            Some(inner) => {
                inner.send_replace(Some(session.clone()));
                (None, None)
            }
            None => session.packets().unzip(),
        };
        let live = Arc::new(Live {
            session: session.clone(),
            packets: sender.map(Mutex::new),
        });
        self.live.send_replace(Some(live.clone()));
        let packets = async {
            if let Some(receiver) = receiver {
                take_packets(receiver, &self.counted).await;
            }
        };
        tokio::join!(self.take_messages(&session, is_hub), packets);
        // The closed ones have no paths.
        lock(&self.sessions).retain(|one| !one.paths().is_empty());
        self.live.send_if_modified(|current| {
            let is_this = current.as_ref().is_some_and(|current| Arc::ptr_eq(current, &live));
            if is_this {
                *current = None;
            }
            is_this
        });
    }

    async fn take_messages(&self, session: &Session, is_hub: bool) {
        while let Ok(message) = session.recv().await {
            if is_hub {
                self.counted.request(&message);
                // Busy: whoever asked will not hear, and counts it.
                let _ = session.send(Priority::Urgent, message);
            } else {
                self.counted.reply(&message);
            }
        }
    }
}

async fn keep_edge(edge: Edge, uplinks: watch::Sender<Vec<Uplink>>, ground: Ground) {
    loop {
        match edge.connect().await {
            Ok(session) => ground.serve(session, false).await,
            Err(error) => eprintln!("the edge, with {} uplinks: {error}", uplinks.borrow().len()),
        }
    }
}

async fn keep_hub(hub: Hub, ground: Ground) {
    let mut sessions = JoinSet::new();
    while let Some(session) = hub.accept().await {
        while sessions.try_join_next().is_some() {}
        let ground = ground.clone();
        sessions.spawn(async move { ground.serve(session, true).await });
    }
}

async fn take_packets(mut receiver: PacketReceiver, counted: &Counted) {
    let mut packets = Vec::new();
    while receiver.recv(&mut packets).await.is_ok() {
        let at = now();
        let mut load = lock(&counted.load);
        for packet in packets.drain(..) {
            if let Some(arrival) = packet::arrival(&packet, at) {
                load.add(arrival);
            }
        }
    }
}

/// Lets everybody in whom the CA has signed.
struct Everybody;

impl Admission for Everybody {
    fn admit(&self, _certificate: &PeerCertificate, _now: Duration) -> Result<(), String> {
        Ok(())
    }

    fn quarantined(&self, node: &str) {
        eprintln!("{node} is quarantined");
    }
}

/// In memory: a process's measurements end with it.
#[derive(Default)]
struct Epochs(AtomicU64);

impl EpochSource for Epochs {
    fn next(&self, above: u64) -> BoxFuture<'_, Result<u64, String>> {
        let next = self.0.load(Ordering::Relaxed).max(above) + 1;
        self.0.store(next, Ordering::Relaxed);
        Box::pin(async move { Ok(next) })
    }
}

fn hub(keys: &Keys, listen: SocketAddr) -> Result<Hub> {
    let (chain, key) = &keys.hub;
    Ok(Hub::bind(HubConfig {
        listen,
        listen_tcp: Vec::new(),
        certificate: tls::identity_from_pem(chain.as_bytes(), key.as_bytes())?,
        client_roots: Arc::new(tls::roots_from_pem(keys.tunnel_ca.as_bytes())?),
        hub_instance: rand::random(),
        addresses: Vec::new(),
        limits: Limits::default(),
        keys: QuicKeys::generate(),
        admission: Arc::new(Everybody),
        dormant_for: tunnel::DORMANT_FOR,
    })?)
}

fn edge_config(
    keys: &Keys,
    number: usize,
    hub: SocketAddr,
    uplinks: watch::Receiver<Vec<Uplink>>,
) -> Result<EdgeConfig> {
    let (chain, key) = keys.nodes.get(number).context("a node's certificate")?;
    Ok(EdgeConfig {
        node: node(number),
        hubs: vec![hub.to_string()],
        server_name: SERVER_NAME.to_owned(),
        roots: Arc::new(tls::roots_from_pem(keys.serving_ca.as_bytes())?),
        certificate: tls::identity_from_pem(chain.as_bytes(), key.as_bytes())?,
        incarnation: rand::random(),
        epochs: Arc::new(Epochs::default()),
        boot_id: "boot".to_owned(),
        agent: "bench".to_owned(),
        uplinks,
        fallback: tunnel::Fallback::default(),
        clock_floor: ClockFloor::default(),
        meter: Meter::default(),
        dormant_for: tunnel::DORMANT_FOR,
    })
}

/// The name of node `number`.
pub(crate) fn node(number: usize) -> String {
    format!("robot-{number}")
}
