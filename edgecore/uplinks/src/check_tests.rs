use super::Finding::{Bad, Good, Warning};
use super::*;
use crate::testing::{MAIN, ip, machine};

fn two() -> Kernel {
    machine()
        .device("eth0", &["192.168.1.5"])
        .device("wlan0", &["192.168.2.5"])
        .out("eth0", 100)
        .out("wlan0", 600)
}

fn findings(kernel: &Kernel, filter: u8, listed: &[&str]) -> Vec<Finding> {
    let listed: Vec<_> = listed.iter().map(|name| (*name).to_owned()).collect();
    let question = Question {
        kernel,
        hubs: &[ip("198.51.100.9")],
        listed: &listed,
        rp_filters: kernel.links.iter().map(|link| (link.name.clone(), filter)).collect(),
    };
    question.findings()
}

fn only<'a>(findings: &'a [Finding], device: &str) -> &'a Finding {
    let about = |finding: &&Finding| {
        let (Good(text) | Warning(text) | Bad(text)) = finding;
        text.contains(device)
    };
    findings
        .iter()
        .find(about)
        .unwrap_or_else(|| panic!("nothing of {device} in {findings:?}"))
}

#[test]
fn a_strict_filter_on_what_is_not_the_best_route_is_named_with_both_fixes() {
    let strict = findings(&two(), 1, &[]);
    assert!(matches!(only(&strict, "eth0:"), Good(_)), "the best route: {strict:?}");
    let Bad(text) = only(&strict, "wlan0") else {
        panic!("{strict:?}")
    };
    assert!(text.contains("sysctl -w net.ipv4.conf.wlan0.rp_filter=2"), "{text}");
    let route = "ip route add default via 192.0.2.1 dev wlan0 table 103 && ip rule add from 192.168.2.5 lookup 103";
    assert!(text.contains(route), "{text}");
    for filter in [0, 2] {
        assert!(
            findings(&two(), filter, &[])
                .iter()
                .all(|finding| matches!(finding, Good(_)))
        );
    }
}

#[test]
fn a_rule_for_the_address_makes_a_strict_filter_right() {
    let fixed = two().route("0.0.0.0/0", "wlan0", (0, 103)).from("192.168.2.5", 103);
    let report = findings(&fixed, 1, &[]);
    assert!(report.iter().all(|finding| matches!(finding, Good(_))), "{report:?}");
    // And another device's is told another table.
    let third = fixed
        .device("wwan0", &["10.2.3.4"])
        .out("wwan0", 700)
        .from("192.0.2.0/24", 104);
    let Bad(text) = only(&findings(&third, 1, &[]), "wwan0").clone() else {
        panic!("{third:?}")
    };
    assert!(text.contains("lookup 204"), "{text}");
}

#[test]
fn a_vlan_has_a_slash_in_its_sysctl() {
    let kernel = two().device("eth0.10", &["10.2.3.4"]).out("eth0.10", 700);
    let Bad(text) = only(&findings(&kernel, 1, &[]), "eth0.10").clone() else {
        panic!()
    };
    assert!(text.contains("net.ipv4.conf.eth0/10.rp_filter=2"), "{text}");
}

#[test]
fn one_uplink_needs_no_route_of_its_own() {
    let one = machine().device("eth0", &["192.168.1.5"]).out("eth0", 100);
    assert_eq!(
        findings(&one, 1, &[]),
        [Good("one uplink, eth0: the routes are followed".to_owned())]
    );
    assert!(matches!(findings(&machine(), 1, &[]).as_slice(), [Warning(_)]));
}

#[test]
fn a_device_without_a_route_is_worth_a_look_and_wrong_when_it_is_listed() {
    let lidar = two()
        .device("eth1", &["192.168.7.1"])
        .route("192.168.7.0/24", "eth1", (0, MAIN));
    let fix = "ip route add default via GATEWAY dev eth1 metric 1000";
    assert!(matches!(only(&findings(&lidar, 2, &[]), "eth1"), Warning(text) if text.contains(fix)));
    let listed = ["eth0", "eth1", "wwan0"];
    let report = findings(&lidar, 2, &listed);
    assert!(
        matches!(only(&report, "eth1"), Bad(text) if text.contains(fix)),
        "{report:?}"
    );
    assert!(
        matches!(only(&report, "wwan0"), Warning(text) if text.contains("no such device")),
        "{report:?}"
    );
    assert!(matches!(only(&report, "eth0"), Good(_)));
    assert_eq!(report.len(), 3, "wlan0 is not listed: {report:?}");
    let down = lidar.change("eth1", |link| link.up = false);
    assert!(matches!(only(&findings(&down, 2, &listed), "eth1"), Bad(text) if text.contains("ip link set eth1 up")));
}

#[test]
fn containers_devices_are_not_spoken_of() {
    let pods = two()
        .device("kedge0", &["10.244.1.1"])
        .route("10.244.1.0/24", "kedge0", (0, MAIN));
    let pods = pods
        .change("kedge0", |link| link.kind = "bridge".to_owned())
        .device("veth1", &["fe80::1"]);
    assert_eq!(findings(&pods, 2, &[]).len(), 2);
}

#[test]
fn a_hub_on_this_machine_needs_none() {
    let kernel = two();
    let question = Question {
        kernel: &kernel,
        hubs: &[ip("127.0.0.1")],
        listed: &[],
        rp_filters: BTreeMap::new(),
    };
    assert!(matches!(question.findings().as_slice(), [Good(_)]));
}
