//! What most suites begin with: a hub above either API, and one robot that has joined it.

use std::time::Duration;

use crate::containerd::Version;
use crate::edge::Edge;
use crate::hub::Hub;
use crate::kubectl::is_true;
use crate::site::Site;

/// What a busy machine of two cores may need for a pod start that takes 0.2 s on an idle one.
pub const START: Duration = Duration::from_secs(90);

/// How a test gets its hub.
pub type Start = for<'a> fn(&'a Site) -> Hub<'a>;

/// A hub above an unmodified control plane.
///
/// # Panics
/// When it does not come up.
#[must_use]
pub fn kubernetes(site: &Site) -> Hub<'_> {
    Hub::start(site).expect("a hub above an unmodified control plane")
}

/// A hub with its own API.
///
/// # Panics
/// When it does not come up.
#[must_use]
pub fn embedded(site: &Site) -> Hub<'_> {
    Hub::embedded(site).expect("a hub with its own API")
}

/// Machine 1, joined as node `robot-1`, Ready.
///
/// # Panics
/// When it does not become Ready: the text holds the ends of the logs.
#[must_use]
pub fn robot<'a>(site: &'a Site, hub: &Hub) -> Edge<'a> {
    robot_above(Version::Debian, site, hub)
}

/// The same above another containerd.
///
/// # Panics
/// When it does not become Ready: the text holds the ends of the logs.
#[must_use]
pub fn robot_above<'a>(version: Version, site: &'a Site, hub: &Hub) -> Edge<'a> {
    let mut edge = Edge::above(version, site, 1, "robot-1").expect("a machine");
    edge.join(hub).expect("join");
    edge.start().expect("edgecore");
    hub.kubectl
        .wait(&["node", "robot-1"], START, |n| is_true(n, "Ready"))
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", edge.tail(), hub.tail()));
    edge
}

/// That `text`, the log of [`yaml::CLOCK`](crate::yaml::CLOCK), has no gap and no line twice; a busy machine is late by some seconds.
///
/// # Panics
/// When it has, or is hardly there.
pub fn has_each_second(text: &str) {
    let seconds: Vec<u64> = text.lines().map(|line| line.parse().expect("a second")).collect();
    assert!(seconds.len() > 10, "{seconds:?}");
    assert!(
        seconds
            .windows(2)
            .all(|pair| pair[0] < pair[1] && pair[1] - pair[0] < 5),
        "a line is missing or doubled: {seconds:?}"
    );
}

/// Each test twice, in modules that say above what.
#[macro_export]
macro_rules! above_both {
    ($($name:ident),+ $(,)?) => {
        mod above_kubernetes {
            $(
                #[test]
                fn $name() {
                    super::$name($crate::suite::kubernetes);
                }
            )+
        }

        mod above_embedded {
            $(
                #[test]
                fn $name() {
                    super::$name($crate::suite::embedded);
                }
            )+
        }
    };
}
