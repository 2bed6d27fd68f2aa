//! Power cuts on a disk with a volatile cache while the hub pours changes in: what an edge has acknowledged is there after the boot.
//!
//! - the hub's own log says which version of which ConfigMap it sent, and which were acknowledged
//! - after a cut the machine boots with no link; its `/debug/objects` says what the store has
//! - the control: with barriers off the same must lose, else this test could not see a missing flush

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kit::wait::State;
use kit::{Hub, Site, suite, wait_for};
use kube::api::{Api, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use machines::{Arch, Drive, Guest, VolatileDisk};

use crate::LONG;
use crate::inside::logs;
use crate::robot;

const CUTS: usize = 5;
/// ConfigMaps that the pod uses, each changed in turn.
const MAPS: usize = 40;
/// Writers at once.
const WRITERS: usize = 16;
/// Acknowledgements between two cuts, at least.
const ACKS: usize = 150;
/// What the issue asks for, acknowledgements a second, emulated as it is.
const RATE: f64 = 20.0;
/// MiB; edgecore's state is far smaller.
const DISK: u32 = 256;

/// What the hub's log says of the ConfigMaps.
#[derive(Debug, Default)]
struct Record {
    /// Versions in the order in which they were sent, by key.
    sent: BTreeMap<String, Vec<String>>,
    /// By key, the place in `sent` of the last acknowledged one.
    acked: BTreeMap<String, usize>,
    /// Acknowledgements of all objects.
    count: usize,
}

fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let rest = &line[line.find(&format!(" {name}="))? + name.len() + 2..];
    rest.split(' ').next().map(|value| value.trim_matches('"'))
}

impl Record {
    fn read(hub: &Hub) -> Self {
        let log = fs::read_to_string(hub.dir().join("cloudhub.log")).expect("the hub's log");
        let mut record = Self::default();
        let mut places: BTreeMap<&str, (String, usize)> = BTreeMap::new();
        for line in log.lines() {
            let Some(version) = field(line, "version") else {
                continue;
            };
            if line.contains(" sent ") {
                let key = field(line, "key").unwrap_or_default();
                if key.starts_with("ConfigMap/default/pour-") {
                    let sent = record.sent.entry(key.to_owned()).or_default();
                    sent.push(version.to_owned());
                    places.insert(version, (key.to_owned(), sent.len() - 1));
                }
            } else if line.contains(" acknowledged ")
                && let Some((key, place)) = places.get(version)
            {
                record.count += 1;
                let last = record.acked.entry(key.clone()).or_default();
                *last = (*last).max(*place);
            }
        }
        record
    }

    /// Acknowledged changes that `held` does not have, nor a later one of the same object.
    fn lost(&self, held: &BTreeMap<String, String>) -> Vec<String> {
        let lost = self.acked.iter().filter(|(key, acked)| {
            let has = held.get(*key);
            let place = has.and_then(|version| self.sent[*key].iter().rposition(|sent| sent == version));
            place.is_none_or(|place| place < **acked)
        });
        lost.map(|(key, acked)| {
            format!(
                "{key}: change {acked} is acknowledged, the store has {:?}",
                held.get(key)
            )
        })
        .collect()
    }
}

/// The ConfigMaps, and a pod whose environment they are.
fn manifests() -> String {
    let maps = (0..MAPS)
        .map(|n| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: pour-{n}}}\ndata: {{n: start}}\n---\n"));
    let from: Vec<String> = (0..MAPS)
        .map(|n| format!("{{prefix: P{n}_, configMapRef: {{name: pour-{n}}}}}"))
        .collect();
    let pod = kit::yaml::shell_pod("user", "trap 'exit 0' TERM; while true; do sleep 1; done");
    format!("{}{pod}    envFrom: [{}]\n", maps.collect::<String>(), from.join(", "))
}

/// Changes ConfigMaps until [`ACKS`] more changes are acknowledged; how many a second that were.
fn pour(site: &Site, hub: &Hub, round: usize) -> f64 {
    let kubeconfig = fs::read_to_string(&hub.kubeconfig).expect("the admin's kubeconfig");
    site.inside("hub", || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let api = config_maps(&kubeconfig).await;
            let writes = futures::stream::iter(0_u64..).map(|n| {
                let api = api.clone();
                async move {
                    let name = format!("pour-{}", n % MAPS as u64);
                    let change = serde_json::json!({"data": {"n": format!("{round}-{n}")}});
                    api.patch(&name, &PatchParams::default(), &Patch::Merge(change))
                        .await
                        .expect("the API takes the change");
                }
            });
            let mut writes = std::pin::pin!(writes.buffer_unordered(WRITERS));
            let before = Record::read(hub).count;
            let mut first: Option<(Instant, usize)> = None;
            let begun = Instant::now();
            loop {
                // A tenth of the changes between two looks: the log is read whole.
                for _ in 0..ACKS / 10 {
                    writes.next().await;
                }
                let acked = Record::read(hub).count - before;
                match first {
                    Some((at, of)) if acked >= of + ACKS => {
                        return f64::from(u32::try_from(acked - of).expect("few")) / at.elapsed().as_secs_f64();
                    }
                    None if acked > 0 => first = Some((Instant::now(), acked)),
                    _ => assert!(begun.elapsed() < LONG, "{acked} acknowledgements\n{}", hub.tail()),
                }
            }
        })
    })
}

async fn config_maps(kubeconfig: &str) -> Api<ConfigMap> {
    // Another test of this process may have set it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let file = Kubeconfig::from_yaml(kubeconfig).expect("a kubeconfig");
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .expect("a configuration");
    Api::namespaced(kube::Client::try_from(config).expect("a client"), "default")
}

/// What the store has, as edgecore tells it with no link; `None` when its disk cannot even be mounted.
fn held(guest: &Guest) -> Option<BTreeMap<String, String>> {
    let script = "curl -sf --max-time 20 --unix-socket /run/kedge/edgecore.sock http://edge/debug/objects || \
                  { systemctl is-failed var-lib-kedge.mount && echo unmountable; }";
    let (text, _) = wait_for("edgecore tells what its store has", LONG, || {
        match guest.try_sh(script, Duration::from_secs(60)) {
            Ok(ended) if ended.code == Some(0) => State::Done(ended.stdout),
            other => State::Not(format!("{other:?}")),
        }
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", logs(guest)));
    (!text.ends_with("unmountable\n")).then(|| serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}")))
}

/// Cuts the power, boots with no link, and says what is lost of what was acknowledged.
fn cut(guest: &mut Guest, hub: &Hub) -> Vec<String> {
    guest.power_off();
    guest.set_link(false).expect("cut");
    let booted = guest.power_on().expect("it boots");
    let held = held(guest);
    let record = Record::read(hub);
    eprintln!("booted in {booted:?}; {} changes acknowledged so far", record.count);
    record.lost(&held.unwrap_or_default())
}

#[test]
fn power_cuts_lose_nothing_that_was_acknowledged_and_without_barriers_they_do() {
    let site = Site::new().expect("a site");
    let mut hub = suite::embedded(&site);
    hub.log = "info,cloudhub::session=trace".to_owned();
    hub.restart().expect("a hub that writes down acknowledgements");
    let disk = VolatileDisk::new(&site, "state", DISK).expect("a disk");
    let mut guest = robot::boot(&site, Arch::Amd64, vec![Drive::Volatile(disk)]);
    guest
        .sh("mkdir -p /var/lib/kedge && echo '/dev/vdc /var/lib/kedge ext4 nofail 0 0' >>/etc/fstab && systemctl daemon-reload && mount /var/lib/kedge")
        .expect("the disk of the state");
    robot::join(&guest, &hub);
    hub.kubectl.apply(&manifests()).expect("apply");
    hub.kubectl
        .wait_ready("user", LONG)
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", logs(&guest), hub.tail()));
    // The system's disk is no part of this: its files were written long ago.
    guest.sh("sync").expect("sync");

    let mut rates = Vec::new();
    for round in 0..CUTS {
        rates.push(pour(&site, &hub, round));
        let lost = cut(&mut guest, &hub);
        assert!(lost.is_empty(), "cut {round}: {lost:#?}\n{}", logs(&guest));
        guest.set_link(true).expect("restore");
    }
    eprintln!("acknowledgements a second: {rates:.1?}");
    rates.sort_by(f64::total_cmp);
    assert!(rates[CUTS / 2] >= RATE, "{rates:?}");

    guest
        .sh("mount -o remount,barrier=0 /var/lib/kedge && grep '/var/lib/kedge .*nobarrier' /proc/mounts")
        .expect("barriers off");
    pour(&site, &hub, CUTS);
    let lost = cut(&mut guest, &hub);
    assert!(
        !lost.is_empty(),
        "with barriers off nothing was lost: this test sees nothing"
    );
    eprintln!("with barriers off: {} of {MAPS} objects lost changes", lost.len());
}

#[test]
fn a_change_that_is_missing_or_older_than_acknowledged_is_lost() {
    let record = Record {
        sent: BTreeMap::from([("a".to_owned(), vec!["1".to_owned(), "2".to_owned(), "3".to_owned()])]),
        acked: BTreeMap::from([("a".to_owned(), 1)]),
        count: 1,
    };
    let held = |version: &str| BTreeMap::from([("a".to_owned(), version.to_owned())]);
    assert_eq!(record.lost(&held("2")).len(), 0);
    assert_eq!(record.lost(&held("3")).len(), 0, "more than what was acknowledged");
    assert_eq!(record.lost(&held("1")).len(), 1);
    assert_eq!(record.lost(&BTreeMap::new()).len(), 1);
}
