//! A real network namespace whose devices come and go: what is read and chosen follows.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::Command;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use uplinks::{Chooser, HOLD, Monitor, candidates, check, read};

fn ip(line: &str) {
    let output = Command::new("ip")
        .args(line.split_whitespace())
        .output()
        .expect("iproute2");
    assert!(output.status.success(), "ip {line}: {output:?}");
}

/// Runs on a thread in a namespace of its own, which goes with the thread.
fn alone(work: impl Future<Output = ()> + Send) {
    let run = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("root may");
        ip("link set lo up");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(work);
    };
    let ended = std::thread::scope(|scope| scope.spawn(run).join());
    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// A link to somewhere, with an address and a default route.
fn plug(name: &str, net: u8, metric: u32) {
    ip(&format!("link add {name} type veth peer name {name}-far"));
    ip(&format!("addr add 192.168.{net}.2/24 dev {name}"));
    ip(&format!("link set {name}-far up"));
    ip(&format!("link set {name} up"));
    ip(&format!(
        "route add default via 192.168.{net}.1 dev {name} metric {metric}"
    ));
}

fn chosen(chooser: &mut Chooser, now: Instant) -> Vec<String> {
    let (devices, _) = chooser.update(now, &read().unwrap(), &[]);
    devices.into_iter().map(|device| device.name).collect()
}

/// Waits for news until what is chosen is as wanted.
async fn until(monitor: &mut Monitor, chooser: &mut Chooser, wanted: &[&str]) {
    let follows = async {
        while chosen(chooser, Instant::now()) != wanted {
            monitor.changed().await.unwrap();
        }
    };
    if tokio::time::timeout(Duration::from_secs(10), follows).await.is_err() {
        panic!("not {wanted:?}: {:?}", read().unwrap());
    }
}

#[test]
fn the_list_follows_devices_that_are_plugged_in_and_pulled() {
    alone(async {
        let (mut monitor, mut chooser) = (Monitor::open().unwrap(), Chooser::default());
        plug("eth0", 1, 100);
        until(&mut monitor, &mut chooser, &[]).await;
        plug("wwan0", 2, 700);
        until(&mut monitor, &mut chooser, &["eth0", "wwan0"]).await;
        ip("link add pods type bridge");
        ip("addr add 10.244.1.1/24 dev pods");
        ip("link set pods up");
        plug("wlan0", 3, 600);
        until(&mut monitor, &mut chooser, &["eth0", "wlan0", "wwan0"]).await;
        ip("link del wwan0");
        until(&mut monitor, &mut chooser, &["eth0", "wlan0"]).await;
        ip("link set wlan0 down");
        until(&mut monitor, &mut chooser, &["eth0"]).await;
    });
}

#[test]
fn a_cable_that_is_pulled_is_waited_for() {
    alone(async {
        let mut chooser = Chooser::default();
        plug("eth0", 1, 100);
        plug("eth1", 2, 200);
        let now = Instant::now();
        assert_eq!(chosen(&mut chooser, now), ["eth0", "eth1"]);
        ip("link set eth1-far down");
        assert!(!read().unwrap().link("eth1").unwrap().carrier);
        assert_eq!(chosen(&mut chooser, now).len(), 2);
        let (devices, again) = chooser.update(now + HOLD, &read().unwrap(), &[]);
        assert_eq!((devices.len(), again), (1, None));
    });
}

#[test]
fn tables_rules_and_both_families_are_read() {
    alone(async {
        plug("eth0", 1, 100);
        plug("wwan0", 2, 700);
        ip("route del default dev wwan0");
        ip("route add default via 192.168.2.1 dev wwan0 table 1000");
        ip("rule add from 192.168.2.2 lookup 1000");
        ip("rule add fwmark 7 lookup 1001");
        let devices = candidates(&read().unwrap(), &[]);
        let wwan = devices
            .iter()
            .find(|device| device.name == "wwan0")
            .expect("its rule leads to it");
        assert_eq!(wwan.sources, ["192.168.2.2".parse::<std::net::IpAddr>().unwrap()]);
        assert_eq!(check::rp_filters(&read().unwrap()).unwrap()["wwan0"].max(2), 2);

        ip("link add g5 type veth peer name g5-far");
        ip("link set g5-far up");
        ip("link set g5 up");
        ip("-6 addr add 2001:db8::5/64 dev g5 nodad");
        ip("-6 route add default via 2001:db8::1 dev g5 metric 900");
        let hub = ["2001:db8:9::9".parse().unwrap()];
        let devices = candidates(&read().unwrap(), &hub);
        assert_eq!(
            devices.iter().map(|device| device.name.as_str()).collect::<Vec<_>>(),
            ["g5"]
        );
    });
}

#[test]
fn a_thousand_changes_are_one_word() {
    // The socket's buffer overruns: that is news too.
    alone(async {
        let mut monitor = Monitor::open().unwrap();
        for third in 0..8 {
            let batch: String = (0..250)
                .map(|last| format!("addr add 10.9.{third}.{last}/32 dev lo\n"))
                .collect();
            let file = std::env::temp_dir().join(format!("uplinks-{}-{third}", std::process::id()));
            std::fs::write(&file, batch).unwrap();
            ip(&format!("-batch {}", file.display()));
            std::fs::remove_file(&file).unwrap();
        }
        let news = tokio::time::timeout(Duration::from_secs(5), monitor.changed()).await;
        news.expect("news").unwrap();
        let added = |own: &&uplinks::Address| own.address.to_string().starts_with("10.9.");
        assert_eq!(read().unwrap().addresses.iter().filter(added).count(), 2000);
        let more = tokio::time::timeout(Duration::from_millis(300), monitor.changed()).await;
        assert!(more.is_err(), "what happened before is old");
    });
}
