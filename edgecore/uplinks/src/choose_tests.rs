use super::*;
use crate::testing::{MAIN, ip, machine};

const HUB: &str = "198.51.100.9";

fn names(kernel: &Kernel, hubs: &[&str]) -> Vec<String> {
    let hubs: Vec<_> = hubs.iter().map(|hub| ip(hub)).collect();
    candidates(kernel, &hubs)
        .into_iter()
        .map(|device| device.name)
        .collect()
}

/// A robot as network managers leave it: three default routes of different metric.
fn robot() -> Kernel {
    machine()
        .device("eth0", &["192.168.1.5"])
        .device("wlan0", &["192.168.2.5"])
        .device("wwan0", &["10.20.30.40"])
        .route("192.168.1.0/24", "eth0", (100, MAIN))
        .route("192.168.2.0/24", "wlan0", (600, MAIN))
        .out("wwan0", 700)
        .out("eth0", 100)
        .out("wlan0", 600)
}

#[test]
fn every_device_with_a_default_route_leads_to_the_hub_the_best_first() {
    assert_eq!(names(&robot(), &[HUB]), ["eth0", "wlan0", "wwan0"]);
    assert_eq!(
        names(&robot(), &[]),
        ["eth0", "wlan0", "wwan0"],
        "the hub's address is not known"
    );
    let devices = candidates(&robot(), &[ip(HUB)]);
    assert!(devices.iter().all(|device| device.sources.is_empty()), "{devices:?}");
}

#[test]
fn what_is_down_has_no_carrier_no_address_or_no_route_leads_nowhere() {
    let pods = |kernel: Kernel| {
        let kernel = kernel
            .device("kedge0", &["10.244.1.1"])
            .route("10.244.1.0/24", "kedge0", (0, MAIN));
        kernel
            .device("vethpod", &[])
            .change("kedge0", |link| link.kind = "bridge".to_owned())
    };
    let cases = [
        robot().change("wlan0", |link| link.up = false),
        robot().change("wlan0", |link| link.carrier = false),
        pods(robot().without("wlan0")),
        robot().without("wlan0").device("wlan0", &["fe80::5"]).out("wlan0", 600),
        robot()
            .without("wlan0")
            .device("lidar", &["192.168.7.1"])
            .route("192.168.7.0/24", "lidar", (0, MAIN)),
        robot().change("wlan0", |link| link.kind = "wireguard".to_owned()),
    ];
    for kernel in cases {
        assert_eq!(names(&kernel, &[HUB]), ["eth0", "wwan0"], "{kernel:?}");
    }
}

#[test]
fn a_route_of_a_table_that_a_rule_names_counts_and_says_what_to_send_from() {
    let kernel = machine()
        .device("eth0", &["192.168.1.5"])
        .device("wwan0", &["10.20.30.40", "2001:db8:3::40"])
        .out("eth0", 100)
        .route("0.0.0.0/0", "wwan0", (0, 103));
    assert_eq!(names(&kernel, &[HUB]), ["eth0"], "no rule names table 103");
    let elsewhere = kernel.clone().from("192.0.2.0/24", 103);
    assert_eq!(names(&elsewhere, &[HUB]), ["eth0"], "the rule is for another address");
    let ours = candidates(&kernel.clone().from("10.20.30.40", 103), &[ip(HUB)]);
    assert_eq!(ours[0].sources, [ip("10.20.30.40")]);
    assert_eq!((ours[0].name.as_str(), ours[1].name.as_str()), ("wwan0", "eth0"));
    let by_device = candidates(&kernel.out_by("wwan0", 103), &[ip(HUB)]);
    assert_eq!(by_device[0].name, "wwan0");
    assert_eq!(by_device[0].sources, [] as [IpAddr; 0], "a bound socket meets the rule");
}

#[test]
fn an_uplink_of_ipv6_only_leads_to_a_hub_that_has_it() {
    let kernel = robot()
        .device("g5", &["fe80::7", "2001:db8:7::5"])
        .route("::/0", "g5", (1024, MAIN));
    assert_eq!(names(&kernel, &[HUB]), ["eth0", "wlan0", "wwan0"]);
    assert_eq!(
        names(&kernel, &[HUB, "2001:db8:9::9"]),
        ["eth0", "wlan0", "wwan0", "g5"]
    );
    assert_eq!(names(&kernel, &["2001:db8:9::9"]), ["g5"]);
    assert_eq!(names(&kernel, &[]).len(), 4);
}

#[test]
fn a_route_to_the_hub_itself_does_without_a_default_route() {
    let kernel = machine()
        .device("eth0", &["192.168.1.5"])
        .device("wlan0", &["192.168.1.6"])
        .route("192.168.1.0/24", "eth0", (100, MAIN))
        .route("192.168.1.0/24", "wlan0", (600, MAIN));
    assert_eq!(names(&kernel, &["192.168.1.9"]), ["eth0", "wlan0"]);
    assert_eq!(names(&kernel, &[HUB]), [] as [&str; 0]);
    let halves = kernel
        .route("0.0.0.0/1", "eth0", (0, MAIN))
        .route("128.0.0.0/1", "eth0", (0, MAIN));
    assert_eq!(names(&halves, &[HUB]), ["eth0"]);
}

#[test]
fn a_private_hub_on_a_net_at_hand_is_not_looked_for_over_the_modem() {
    let near = robot();
    assert_eq!(names(&near, &["192.168.1.9"]), ["eth0"]);
    assert_eq!(
        names(&near, &["10.98.0.1"]).len(),
        3,
        "private, and on no net at hand: an APN may lead there"
    );
}

#[test]
fn no_more_devices_than_a_session_has_paths() {
    let mut kernel = machine();
    for number in 0..20 {
        let name = format!("u{number:02}");
        kernel = kernel.device(&name, &[&format!("192.0.2.{number}")]).out(&name, number);
    }
    let names = names(&kernel, &[HUB]);
    assert_eq!(
        (names.len(), names[0].as_str(), names[7].as_str()),
        (MAX_DEVICES, "u00", "u07")
    );
    let (devices, _) = Chooser::default().update(Instant::now(), &kernel, &[]);
    assert_eq!(devices.len(), MAX_DEVICES);
}

fn chosen(chooser: &mut Chooser, now: Instant, kernel: &Kernel) -> Vec<String> {
    let (devices, _) = chooser.update(now, kernel, &[ip(HUB)]);
    devices.into_iter().map(|device| device.name).collect()
}

const NONE: [&str; 0] = [];

#[test]
fn one_device_follows_the_routes_two_are_bound_and_so_is_what_is_left_of_them() {
    let (mut chooser, now) = (Chooser::default(), Instant::now());
    let two = robot().without("wwan0");
    let one = two.clone().without("wlan0");
    assert_eq!(chosen(&mut chooser, now, &one), NONE);
    assert_eq!(chosen(&mut chooser, now, &two), ["eth0", "wlan0"]);
    assert_eq!(chosen(&mut chooser, now, &one), ["eth0"]);
    assert_eq!(chosen(&mut chooser, now, &machine()), NONE);
    assert_eq!(chosen(&mut chooser, now, &one), NONE, "it begins anew");
}

#[test]
fn what_vanishes_or_is_taken_down_goes_at_once() {
    let (mut chooser, now) = (Chooser::default(), Instant::now());
    chosen(&mut chooser, now, &robot());
    assert_eq!(chosen(&mut chooser, now, &robot().without("wwan0")), ["eth0", "wlan0"]);
    let down = robot().change("wlan0", |link| link.up = false);
    assert_eq!(chosen(&mut chooser, now, &down), ["eth0", "wwan0"]);
    assert_eq!(chosen(&mut chooser, now, &robot()), ["eth0", "wlan0", "wwan0"]);
}

#[test]
fn what_loses_its_carrier_or_its_routes_goes_after_some_seconds_and_not_if_it_is_back() {
    let (mut chooser, now) = (Chooser::default(), Instant::now());
    chosen(&mut chooser, now, &robot());
    let lost = robot().without("wlan0").device("other", &[]);
    let lost = lost.change("other", |link| {
        link.name = "wlan0".to_owned();
        link.index = 3;
        link.carrier = false;
    });
    let has_wlan = |names: &[String]| names.iter().any(|name| name == "wlan0");
    let (devices, again) = chooser.update(now, &lost, &[ip(HUB)]);
    assert_eq!((devices.len(), again), (3, Some(now + HOLD)));
    assert!(has_wlan(&chosen(&mut chooser, now + HOLD / 2, &lost)));
    assert!(has_wlan(&chosen(&mut chooser, now + HOLD * 3 / 4, &robot())));
    assert!(
        has_wlan(&chosen(&mut chooser, now + HOLD * 3 / 2, &lost)),
        "the time counts anew"
    );
    assert!(!has_wlan(&chosen(&mut chooser, now + HOLD * 3, &lost)));
}

#[test]
fn a_device_that_is_plugged_in_again_is_another_one() {
    let (mut chooser, now) = (Chooser::default(), Instant::now());
    let index = |devices: &[Device]| {
        devices
            .iter()
            .find(|device| device.name == "wwan0")
            .map(|device| device.index)
    };
    let (before, _) = chooser.update(now, &robot(), &[ip(HUB)]);
    let again = robot()
        .without("wwan0")
        .device("x", &[])
        .device("wwan0", &["10.20.30.40"])
        .out("wwan0", 700);
    let (after, _) = chooser.update(now, &again, &[ip(HUB)]);
    assert_eq!((index(&before), index(&after)), (Some(4), Some(5)));
}

#[test]
fn a_hub_on_this_machine_is_reached_by_the_routes() {
    let mut chooser = Chooser::default();
    for hub in ["127.0.0.1", "::1", "192.168.2.5"] {
        let (devices, _) = chooser.update(Instant::now(), &robot(), &[ip(hub)]);
        assert_eq!(devices, [], "{hub}");
    }
}
