//! Two machines in one process: the edge's and the hub's, each a network namespace, with links between them and an IP tunnel over those.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::Arc;

use nix::sched::{CloneFlags, setns, unshare};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tunnel::ip::{self, Tun, TunConfig, TunStats};
use tunnel::{Edge, Fallback, Hub, Session, Uplink};

use super::namespace::command;
use super::{Site, soon};

/// The device on both machines.
pub(crate) const DEVICE: &str = "ked0";
/// The edge's inner addresses, and the hub's.
pub(crate) const EDGE: [&str; 2] = ["10.99.0.1", "fd99::1"];
pub(crate) const HUB: [&str; 2] = ["10.99.0.2", "fd99::2"];

fn run(line: &str) {
    let mut words = line.split(' ');
    command(Command::new(words.next().expect("a program")).args(words), "");
}

/// Both machines. The thread is on the edge's.
#[derive(Debug)]
pub(crate) struct Machines {
    edge: File,
    hub: File,
}

impl Machines {
    /// With so many links of this MTU: `up0` on both ends, 10.77.0.1 and 10.77.0.2, and so on. For a thread of its own.
    pub(crate) fn new(links: usize, mtu: usize) -> Self {
        let own = || File::open("/proc/thread-self/ns/net").expect("a namespace");
        unshare(CloneFlags::CLONE_NEWNET).expect("root may leave its network");
        let hub = own();
        unshare(CloneFlags::CLONE_NEWNET).expect("root may leave its network");
        let machines = Self { edge: own(), hub };
        let other = format!("/proc/{}/fd/{}", std::process::id(), machines.hub.as_raw_fd());
        for link in 0..links {
            run(&format!(
                "ip link add up{link} type veth peer name up{link} netns {other}"
            ));
        }
        let configure = |host: usize| {
            run("ip link set lo up");
            for link in 0..links {
                run(&format!("ip link set up{link} mtu {mtu} up"));
                run(&format!("ip addr add 10.77.{link}.{host}/24 dev up{link}"));
            }
        };
        configure(1);
        machines.at_hub(|| configure(2));
        machines
    }

    /// What is made meanwhile belongs to the hub's machine.
    pub(crate) fn at_hub<T>(&self, act: impl FnOnce() -> T) -> T {
        setns(&self.hub, CloneFlags::CLONE_NEWNET).expect("the hub's machine");
        let made = act();
        setns(&self.edge, CloneFlags::CLONE_NEWNET).expect("the edge's machine");
        made
    }

    /// From now on a link loses everything without a word.
    pub(crate) fn cut(&self, link: usize) {
        let rules = format!(
            "add table inet cut
            add chain inet cut input {{ type filter hook input priority 0; }}
            add rule inet cut input iifname up{link} drop
            add chain inet cut output {{ type filter hook output priority 0; }}
            add rule inet cut output oifname up{link} drop\n"
        );
        self.at_hub(|| command(Command::new("nft").args(["-f", "-"]), &rules));
    }

    /// From now on a link carries so much, with a queue of 50 ms, both ways.
    pub(crate) fn slow_down(&self, link: usize, rate: &str) {
        let line = format!("tc qdisc add dev up{link} root tbf rate {rate} burst 10kb latency 50ms");
        run(&line);
        self.at_hub(|| run(&line));
    }
}

/// An IP tunnel between the machines: sessions one after another, a device on each, and all that runs them.
pub(crate) struct Tunnel {
    pub(crate) machines: Machines,
    pub(crate) at_edge: watch::Receiver<Option<Session>>,
    pub(crate) at_hub: watch::Receiver<Option<Session>>,
    devices: [Arc<Tun>; 2],
    _tasks: JoinSet<()>,
}

impl Tunnel {
    pub(crate) async fn new(machines: Machines, links: usize) -> Self {
        let site = Site::new();
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let hub = machines.at_hub(|| site.hub_on(any, any));
        let uplinks = (0..links).map(|link| {
            let name = format!("up{link}");
            Uplink {
                hubs: vec![format!("10.77.{link}.2:{}", hub.local_addr().port())],
                ..Uplink::new(&name, Some(&name))
            }
        });
        let (uplinks, known) = watch::channel(uplinks.collect());
        let mut config = site.edge_config("a", SocketAddr::from(([10, 77, 0, 2], hub.local_addr().port())));
        config.uplinks = known;
        config.fallback = Fallback {
            ports: vec![hub.tcp_addrs()[0].port()],
            proxy: None,
        };
        let edge = Edge::new(config).unwrap();
        let open = || Arc::new(Tun::open(TunConfig::new(DEVICE)).unwrap());
        let address = |of: [&str; 2]| {
            run(&format!("ip addr add {}/24 dev {DEVICE}", of[0]));
            run(&format!("ip addr add {}/64 dev {DEVICE} nodad", of[1]));
        };
        let ours = open();
        address(EDGE);
        let theirs = machines.at_hub(|| {
            let device = open();
            address(HUB);
            device
        });
        let mut tasks = JoinSet::new();
        let (publish, at_edge) = watch::channel(None);
        tasks.spawn(async move {
            let _uplinks = uplinks;
            keep_edge(&edge, &publish).await;
        });
        let (publish, at_hub) = watch::channel(None);
        tasks.spawn(async move { keep_hub(&hub, &publish).await });
        for (device, sessions) in [(&ours, &at_edge), (&theirs, &at_hub)] {
            let (device, sessions) = (device.clone(), sessions.clone());
            tasks.spawn(async move { ip::run(&device, sessions).await.unwrap() });
        }
        let mut tunnel = Self {
            machines,
            at_edge,
            at_hub,
            devices: [ours, theirs],
            _tasks: tasks,
        };
        let have_all = async {
            while tunnel.session().await.paths().len() < links {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        soon("all paths", have_all).await;
        tunnel
    }

    /// The session that the edge has, when it has one.
    pub(crate) async fn session(&mut self) -> Session {
        let session = soon("a session", self.at_edge.wait_for(Option::is_some)).await.unwrap();
        session.clone().unwrap()
    }

    /// Of the edge's device, and the hub's.
    pub(crate) fn stats(&self) -> [TunStats; 2] {
        [self.devices[0].stats(), self.devices[1].stats()]
    }
}

async fn keep_edge(edge: &Edge, publish: &watch::Sender<Option<Session>>) {
    loop {
        let session = edge.connect().await.unwrap();
        publish.send_replace(Some(session.clone()));
        session.closed().await;
        publish.send_replace(None);
    }
}

async fn keep_hub(hub: &Hub, publish: &watch::Sender<Option<Session>>) {
    while let Some(session) = hub.accept().await {
        publish.send_replace(Some(session));
    }
}
