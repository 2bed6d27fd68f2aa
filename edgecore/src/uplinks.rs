//! Feeds the tunnel its uplinks: those of the configuration, or else those that the kernel has.
//!
//! - kernel → [`uplinks::Monitor`] → [`uplinks::read`] → [`uplinks::Chooser`] → [`staged`] → the tunnel's watch
//! - the hub's addresses: from the configuration, its names looked up beside all that
//!
//! State: [`Uplinks`], the only writer of the watch; the chooser's memory of what has just lost its carrier. On failure (no netlink) the
//! tunnel keeps what it was told last, at first that it is to follow the routes, and it is tried again every 5 s.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::timeout;
use tunnel::bond::PathState;
use tunnel::{Session, Uplink};
use uplinks::{Chooser, Device, Kernel, Monitor};

use crate::config::EdgecoreConfig;

/// After a failure of netlink.
const PAUSE: Duration = Duration::from_secs(5);
/// How soon it is seen that a path which may replace the one that follows the routes has come to life.
const LOOK_AT_PATHS: Duration = Duration::from_millis(500);
/// A name server that does not answer.
const LOOKUP_WITHIN: Duration = Duration::from_secs(3);
/// From one look-up of the hub's names to the next, when they were known and when they were not.
const KNOWN: Duration = Duration::from_secs(600);
const UNKNOWN: Duration = Duration::from_secs(10);

/// Who feeds the tunnel's uplinks.
#[derive(Debug)]
pub struct Uplinks {
    config: Arc<EdgecoreConfig>,
    /// Those of the configuration; none: the kernel's devices.
    listed: Vec<Uplink>,
    out: watch::Sender<Vec<Uplink>>,
    sessions: watch::Receiver<Option<Session>>,
    chooser: Chooser,
    hubs: Vec<IpAddr>,
}

impl Uplinks {
    /// Looks once, so that the first session begins over what is there. `out` holds what the configuration lists.
    pub fn new(
        config: Arc<EdgecoreConfig>,
        out: watch::Sender<Vec<Uplink>>,
        sessions: watch::Receiver<Option<Session>>,
    ) -> Self {
        let literal = |hub: &String| hub.parse::<SocketAddr>().ok();
        let hubs = config.hub.addresses.iter().filter_map(literal);
        let listed = out.borrow().clone();
        let mut uplinks = Self {
            listed,
            hubs: hubs.map(|hub| hub.ip()).collect(),
            chooser: Chooser::default(),
            config,
            out,
            sessions,
        };
        match ::uplinks::read() {
            Ok(kernel) => {
                uplinks.apply(&kernel);
            }
            Err(error) => tracing::warn!(%error, "the kernel does not say which network devices there are"),
        }
        uplinks
    }

    /// Follows the kernel.
    pub async fn run(mut self) -> Infallible {
        if self.config.hub.addresses.is_empty() {
            return std::future::pending().await;
        }
        loop {
            let Err(error) = self.follow().await;
            tracing::warn!(%error, "the kernel does not say which network devices there are");
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn follow(&mut self) -> io::Result<Infallible> {
        let mut monitor = Monitor::open()?;
        let config = self.config.clone();
        let mut lookup = std::pin::pin!(look_up(&config.hub.addresses, Duration::ZERO));
        loop {
            let again = self.apply(&::uplinks::read()?);
            let again = async {
                match again {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = monitor.changed() => changed?,
                (found, known) = &mut lookup => {
                    // Names that nobody knows now have led somewhere before.
                    if known || self.hubs.is_empty() {
                        self.hubs = found;
                    }
                    lookup.set(look_up(&config.hub.addresses, if known { KNOWN } else { UNKNOWN }));
                }
                () = again => {}
            }
        }
    }

    /// Tells the tunnel; says when to look again though nothing changes.
    fn apply(&mut self, kernel: &Kernel) -> Option<Instant> {
        let now = Instant::now();
        let (wanted, again): (Vec<Uplink>, _) = if self.listed.is_empty() {
            let (devices, again) = self.chooser.update(now, kernel, &self.hubs);
            (devices.into_iter().map(found).collect(), again)
        } else {
            (listed(&self.listed, kernel, &self.hubs), None)
        };
        let live = self.sessions.borrow().as_ref().map(live);
        let staged = staged(&self.out.borrow(), &wanted, live.as_deref());
        let again = again
            .into_iter()
            .chain((staged != wanted).then(|| now + LOOK_AT_PATHS))
            .min();
        self.out.send_if_modified(|uplinks| {
            let differs = *uplinks != staged;
            if differs {
                let names: Vec<_> = staged.iter().map(|uplink| uplink.name.as_str()).collect();
                tracing::info!(uplinks = ?names, "uplinks; none: the routes are followed");
                *uplinks = staged;
            }
            differs
        });
        again
    }
}

fn found(device: Device) -> Uplink {
    Uplink {
        index: device.index,
        sources: device.sources,
        ..Uplink::new(&device.name, Some(&device.name))
    }
}

/// The configured uplinks with what the kernel knows of their devices.
fn listed(uplinks: &[Uplink], kernel: &Kernel, hubs: &[IpAddr]) -> Vec<Uplink> {
    let one = |uplink: &Uplink| {
        let mut uplink = uplink.clone();
        if let Some(device) = &uplink.device {
            uplink.index = kernel.link(device).map_or(0, |link| link.index);
            uplink.sources = ::uplinks::sources(kernel, device, hubs);
        }
        uplink
    };
    uplinks.iter().map(one).collect()
}

/// The uplinks over which a session lives now.
fn live(session: &Session) -> Vec<String> {
    let paths = session.paths().into_iter();
    let live = paths.filter(|path| path.stats.state == PathState::Live);
    live.map(|path| path.uplink).collect()
}

/// What to tell the tunnel on the way to `wanted`. A session that follows the routes keeps doing so until one of its new paths has come to
/// life, else it would end with its only one. `live`: the session's live uplinks; none: there is no session to lose.
fn staged(current: &[Uplink], wanted: &[Uplink], live: Option<&[String]>) -> Vec<Uplink> {
    let routes = Uplink::default();
    let follows = current.is_empty() || current.contains(&routes);
    let replaced = |live: &[String]| wanted.iter().any(|uplink| live.contains(&uplink.name));
    let keep = follows && !wanted.is_empty() && !wanted.contains(&routes) && !live.is_none_or(replaced);
    keep.then_some(routes)
        .into_iter()
        .chain(wanted.iter().cloned())
        .collect()
}

/// The addresses of the hub that are known after `pause`, and whether all its names were.
async fn look_up(hubs: &[String], pause: Duration) -> (Vec<IpAddr>, bool) {
    tokio::time::sleep(pause).await;
    let (mut found, mut all) = (Vec::new(), true);
    for hub in hubs {
        match timeout(LOOKUP_WITHIN, tokio::net::lookup_host(hub)).await {
            Ok(Ok(addresses)) => found.extend(addresses.map(|address| address.ip())),
            // The tunnel says so at each attempt.
            Ok(Err(_)) | Err(_) => all = false,
        }
    }
    (found, all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str, index: u32) -> Uplink {
        found(Device {
            name: name.to_owned(),
            index,
            sources: Vec::new(),
        })
    }

    #[test]
    fn a_session_that_follows_the_routes_does_so_until_a_new_path_lives() {
        let routes = Uplink::default();
        let wanted = [device("eth0", 2), device("wwan0", 3)];
        let both: Vec<_> = [routes.clone()].iter().chain(&wanted).cloned().collect();
        let live = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(staged(&[], &wanted, Some(&live(&["default"]))), both);
        assert_eq!(staged(&both, &wanted, Some(&live(&["default"]))), both);
        assert_eq!(staged(&both, &wanted, Some(&[])), both, "all are suspect");
        assert_eq!(staged(&both, &wanted, Some(&live(&["default", "wwan0"]))), wanted);
        assert_eq!(staged(&[], &wanted, None), wanted, "no session");
        assert_eq!(
            staged(&wanted, &wanted[..1], Some(&live(&["wwan0"]))),
            wanted[..1],
            "it is gone"
        );
        assert_eq!(staged(&wanted, &[], Some(&live(&["wwan0"]))), [], "back to the routes");
        assert_eq!(staged(&[], &[], Some(&live(&["default"]))), []);
    }

    #[test]
    fn what_the_configuration_lists_is_used_and_nothing_else() {
        let config = [
            Uplink::new("mobile", Some("lo")),
            Uplink::new("absent", Some("nowhere0")),
            Uplink::default(),
        ];
        let kernel = ::uplinks::read().expect("netlink");
        let uplinks = listed(&config, &kernel, &[]);
        let indices: Vec<_> = uplinks.iter().map(|uplink| uplink.index).collect();
        assert_eq!(indices, [1, 0, 0]);
        assert_eq!(uplinks[2], config[2]);
    }

    #[tokio::test]
    async fn names_are_looked_up_and_literals_are_known() {
        let hubs = ["127.0.0.1:6444".to_owned(), "[2001:db8::1]:6444".to_owned()];
        let (found, known) = look_up(&hubs, Duration::ZERO).await;
        assert_eq!(found, hubs.map(|hub| hub.parse::<SocketAddr>().unwrap().ip()));
        assert!(known);
        let (found, known) = look_up(&["no such name:1".to_owned()], Duration::ZERO).await;
        assert!(found.is_empty() && !known);
    }
}
