//! `installer/up --bin` on a machine with systemd and cgroup v2: from nothing to Running pods, through resets with no hub, and down to
//! nothing. The hub is in the machine too; while its unit is disabled, the node is offline.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use kit::wait::State;
use kit::{Site, paths, wait_for};
use machines::{Arch, Drive, Guest, Spec, image};
use serde_json::Value;

use crate::LONG;
use crate::inside::{Places, Process, TOKEN, logs, processes, wait_processes, wait_resources};

const PLACES: Places = Places {
    cgroup: "/sys/fs/cgroup/kedge-up",
    leases: "/run/kedge-up/cni/kedge",
};
const UNITS: [&str; 3] = ["kedge-up-containerd", "kedge-up-cloudhub", "kedge-up-edgecore"];
const UP: &str = "/opt/kedge/installer/up --bin /opt/kedge/bin --node robot-1";
/// What the demo's pods see of their Secret, their ConfigMap and their token.
const FILES: [&str; 3] = ["/etc/demo-secret/password", "/etc/demo/greeting", TOKEN];
/// Two pods of the demo's Deployment, one of its DaemonSet.
const PODS: usize = 3;
const RESETS: usize = 3;

/// The installer, our programs and a kubectl, as a person has them who installs with `--bin`.
fn disk(site: &Site) -> PathBuf {
    let folder = site.dir().join("installer");
    let programs = folder.join("bin");
    image::place_programs(Arch::Amd64, &["cloudhub", "edgecore", "kedge", "images"], &programs).expect("our programs");
    image::place_images(Arch::Amd64, &programs).expect("the images");
    fs::create_dir_all(folder.join("installer")).expect("a folder");
    fs::copy(paths::repository().join("installer/up"), folder.join("installer/up")).expect("installer/up");
    fs::copy(paths::kube("kubectl"), folder.join("kubectl")).expect("kubectl");
    image::files_disk(site, "installer", &folder).expect("a disk")
}

fn sh(guest: &Guest, script: &str) -> String {
    guest
        .sh_within(script, LONG)
        .unwrap_or_else(|error| panic!("{error:#}\n{}", logs(guest)))
}

fn kubectl(guest: &Guest, args: &str) -> String {
    sh(
        guest,
        &format!("kubectl --kubeconfig /var/lib/kedge-up/hub/admin.kubeconfig {args}"),
    )
}

/// Name, uid and restarts of each pod.
fn pods(guest: &Guest) -> BTreeMap<String, (String, u64)> {
    let list: Value = serde_json::from_str(&kubectl(guest, "get pods -o json")).expect("JSON");
    let pods = list["items"].as_array().expect("items").iter();
    pods.map(|pod| {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let restarts = pod["status"]["containerStatuses"][0]["restartCount"].as_u64();
        let uid = text(&pod["metadata"]["uid"]);
        (text(&pod["metadata"]["name"]), (uid, restarts.unwrap_or_default()))
    })
    .collect()
}

#[test]
fn installation_under_systemd_with_cgroup_v2_outlives_resets_while_offline() {
    let site = Site::new().expect("a site");
    let spec = Spec {
        arch: Arch::Amd64,
        memory: 1024,
        link: None,
        drives: vec![Drive::ReadOnly(disk(&site))],
    };
    let mut guest = Guest::boot(&site, "machine", spec).expect("it boots");
    sh(
        &guest,
        "mkdir /opt/kedge && echo '/dev/vdb /opt/kedge ext4 ro 0 0' >>/etc/fstab && systemctl daemon-reload && mount /opt/kedge && \
         ln -s /opt/kedge/kubectl /usr/local/bin/ && [ $(stat -fc %T /sys/fs/cgroup) = cgroup2fs ]",
    );
    let said = sh(&guest, UP);
    for wanted in ["robot-1", "Ready", "Running", "What to try next"] {
        assert!(said.contains(wanted), "{wanted} in {said}");
    }
    let before = pods(&guest);
    assert_eq!(before.len(), PODS, "{before:?}");
    runs_under_systemd(&guest, &before);
    sh(&guest, UP);
    assert_eq!(pods(&guest), before, "a second run changes nothing");

    sh(&guest, "systemctl disable --quiet --now kedge-up-cloudhub");
    // What containerd unpacked reaches the disk within half a minute by itself.
    sh(&guest, "sync");
    let mut first = None;
    for reset in 1..=RESETS {
        let took = guest.reset().unwrap_or_else(|error| panic!("reset {reset}: {error:#}"));
        eprintln!("reset {reset}: booted in {took:?}");
        all_pods_are_back(&guest, &before);
        let now = wait_resources(&guest, PLACES, "nothing is left over", |now| {
            // libcni keeps a pod's network and its loopback.
            let wanted = [("leases", PODS), ("netns", PODS), ("results", 2 * PODS)];
            wanted.iter().all(|(name, count)| now[*name] == *count) && first.as_ref().is_none_or(|first| first == now)
        });
        eprintln!("reset {reset}: {now:?}");
        first.get_or_insert(now);
    }

    sh(&guest, "systemctl enable --quiet --now kedge-up-cloudhub");
    hub_is_back(&guest, &before);
    sh(&guest, "/opt/kedge/installer/up --down");
    nothing_is_left(&guest);
}

fn uids(pods: &BTreeMap<String, (String, u64)>) -> Vec<&str> {
    let mut uids: Vec<&str> = pods.values().map(|(uid, _)| uid.as_str()).collect();
    uids.sort_unstable();
    uids
}

/// The three units are up and enabled, and cgroup v2 holds what the pods ask for.
fn runs_under_systemd(guest: &Guest, pods: &BTreeMap<String, (String, u64)>) {
    for unit in UNITS {
        sh(
            guest,
            &format!("systemctl is-active {unit} && systemctl is-enabled {unit}"),
        );
    }
    let all = processes(guest, PLACES, &FILES).expect("processes");
    let (name, (uid, _)) = pods
        .iter()
        .find(|(name, _)| !name.starts_with("demo-agent"))
        .expect("a pod of the Deployment");
    let server = all.iter().find(|p| p.uid == *uid).expect("its process");
    // Requests and limits of deploy/demo.yaml.
    let limits = sh(
        guest,
        &format!(
            "cd /sys/fs/cgroup$(cut -d: -f3 /proc/{}/cgroup) && cat memory.max ../memory.max cpu.weight",
            server.pid
        ),
    );
    assert_eq!(limits, "67108864\n67108864\n1\n", "{name}");
}

/// Each pod runs with its Secret, its ConfigMap and its token, and the servers answer over the pods' network.
fn all_pods_are_back(guest: &Guest, pods: &BTreeMap<String, (String, u64)>) {
    let wanted = uids(pods);
    let found = wait_processes(guest, (PLACES, &FILES), "all pods run again with no hub", |all| {
        let mut uids: Vec<&str> = all.iter().map(|p| p.uid.as_str()).collect();
        uids.sort_unstable();
        uids.dedup();
        uids == wanted && all.iter().all(is_furnished)
    });
    assert!(found.iter().any(|p| p.files[0] == "anchor"), "{found:?}");
    assert!(found.iter().any(|p| p.files[1] == "Ahoy"), "{found:?}");
    wait_for("both servers answer at their pods' addresses", LONG, || {
        let script = "n=0; for a in $(cd /run/kedge-up/cni/kedge && ls | grep '^[0-9]'); do \
                      curl -sf --max-time 5 http://$a:8080/readyz >/dev/null && n=$((n + 1)); done; echo $n";
        match guest.sh(script) {
            Ok(count) if count == "2\n" => State::Done(()),
            other => State::Not(format!("{other:?}")),
        }
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", logs(guest)));
}

/// A pod has its Secret or its ConfigMap, and a token.
fn is_furnished(process: &Process) -> bool {
    let [secret, config, token] = &process.files[..] else {
        return false;
    };
    (secret == "anchor" || config == "Ahoy") && token.split('.').count() == 3
}

fn hub_is_back(guest: &Guest, before: &BTreeMap<String, (String, u64)>) {
    let all = "--all --timeout=240s --for=condition=Ready";
    kubectl(
        guest,
        &format!(
            "wait node/robot-1 --timeout=240s --for=condition=Ready && kubectl --kubeconfig /var/lib/kedge-up/hub/admin.kubeconfig wait pods {all}"
        ),
    );
    assert_eq!(uids(&pods(guest)), uids(before), "the same pods");
}

fn nothing_is_left(guest: &Guest) {
    let found = sh(
        guest,
        "ls -d /var/lib/kedge-up /run/kedge-up /var/lib/cni /run/containerd /etc/systemd/system/kedge-up* /etc/systemd/system/*/kedge-up* \
           /sys/fs/cgroup/kedge-up /sys/class/net/kedge-up0 2>/dev/null; \
         grep kedge /proc/self/mountinfo | grep -v ' /opt/kedge '; nft list tables | grep kedge; ip address | grep 10.96.0.1; \
         systemctl list-units --all --plain --no-legend 'kedge-up*'; pgrep -a 'containerd|edgecore|cloudhub|kedge'; true",
    );
    assert_eq!(found, "");
}
