//! Suite `road`: the tests that cross the whole road, each above an unmodified kube-apiserver and above the hub's own API. The robot
//! reaches its hub over three uplinks that lose 5, 2 and 8 %; above the hub's own API they also die one after another, all the while.

mod pods;
mod reach;
mod talk;

use std::collections::BTreeMap;

use kit::suite::{Start, robot};
use kit::uplinks::{Carried, lossy};
use kit::{Edge, Hub, Site};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What a test is about: a hub, and a robot that has joined it.
struct Road<'a> {
    site: &'a Site,
    hub: Hub<'a>,
    edge: Edge<'a>,
}

/// What happens to the robot's links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Links {
    /// They lose packets.
    Lose,
    /// And one after another is dead for 3 s.
    LoseAndDie,
}

/// Each test twice, in modules that say above what.
macro_rules! crossed {
    ($($module:ident::$name:ident),+ $(,)?) => {
        mod above_kubernetes {
            $(
                #[test]
                fn $name() {
                    super::cross(kit::suite::kubernetes, super::Links::Lose, super::$module::$name);
                }
            )+
        }

        mod above_embedded {
            $(
                #[test]
                fn $name() {
                    super::cross(kit::suite::embedded, super::Links::LoseAndDie, super::$module::$name);
                }
            )+
        }
    };
}

crossed!(
    reach::pod_runs_and_kubectl_reaches_it,
    pods::pod_survives_hub_death_container_death_and_reset,
    pods::edgecore_restart_touches_no_container,
    pods::pod_deleted_while_node_is_away_goes_on_return,
    pods::configuration_changed_while_away_arrives,
    pods::workloads_roll_out,
    pods::deleted_node_of_a_robot_comes_back,
    talk::kubectl_follows_logs_attaches_and_debugs,
);

/// A handshake is less: who has carried more has carried what the session had to say.
const USED: u64 = 10_000;

fn cross(start: Start, links: Links, test: fn(&mut Road<'_>)) {
    let site = Site::new().expect("a site");
    site.uplinks().give(1, lossy());
    let hub = start(&site);
    let run = || {
        let edge = robot(&site, &hub);
        let site = &site;
        test(&mut Road { site, hub, edge });
        site.uplinks().carried(1).expect("what the links carried")
    };
    let (carried, deaths) = match links {
        Links::Lose => (run(), 0),
        Links::LoseAndDie => site.uplinks().dying(1, run),
    };
    println!("{deaths} deaths; {carried:?}");
    was_crossed(links, &carried, deaths);
}

/// The tunnel went over two links at least, and they were as bad as they had to be.
fn was_crossed(links: Links, carried: &BTreeMap<String, Carried>, deaths: usize) {
    let used = carried.values().filter(|link| link.up > USED && link.down > USED);
    assert!(used.count() >= 2, "the tunnel kept to one link: {carried:?}");
    assert!(
        carried.values().any(|link| link.lost > 0),
        "nothing was lost: {carried:?}"
    );
    if links == Links::LoseAndDie {
        let swallowed: u64 = carried.values().map(|link| link.swallowed).sum();
        assert!(
            deaths > 0 && swallowed > 0,
            "{deaths} deaths, {swallowed} packets swallowed"
        );
    }
}

#[test]
fn a_road_of_one_link_or_without_faults_is_no_road() {
    let busy = Carried {
        up: USED + 1,
        down: USED + 1,
        lost: 1,
        swallowed: 1,
    };
    let idle = Carried { up: USED, ..busy };
    let whole = Carried { lost: 0, ..busy };
    let alive = Carried { swallowed: 0, ..busy };
    let passes = |links, carried: [Carried; 2], deaths| {
        let carried = ["g5", "lte"].map(str::to_owned).into_iter().zip(carried).collect();
        std::panic::catch_unwind(|| was_crossed(links, &carried, deaths)).is_ok()
    };
    assert!(passes(Links::LoseAndDie, [busy, busy], 2) && passes(Links::Lose, [busy, alive], 0));
    assert!(!passes(Links::Lose, [busy, idle], 0), "one link only");
    assert!(!passes(Links::Lose, [whole, whole], 0), "nothing lost");
    assert!(!passes(Links::LoseAndDie, [alive, alive], 2) && !passes(Links::LoseAndDie, [busy, busy], 0));
}

fn kill_container(pid: u32) {
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).expect("the container's process is there");
}
