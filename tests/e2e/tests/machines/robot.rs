//! A guest machine that has joined a hub on the host's side, as a person would do it by hand: containerd of the distribution, `kedge join`,
//! edgecore as a systemd unit.

use kit::kubectl::is_true;
use kit::site::{API_PORT, HUB, JOIN_PORT};
use kit::{Hub, Site};
use machines::{Arch, Drive, Guest, Spec, image};

use crate::LONG;
use crate::inside::{Places, logs};

/// The name of the node.
pub(crate) const NODE: &str = "robot-1";

/// Where a robot keeps what pods need.
pub(crate) const PLACES: Places = Places {
    cgroup: "/sys/fs/cgroup/kubepods",
    leases: "/run/kedge/cni/kedge",
};

/// Version 2 of containerd's configuration. Debian's plugins are where Debian puts them.
const CONTAINERD: &str = r#"version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "kedge.dev/pause:1"
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "/etc/cni/net.d"
"#;

const UNIT: &str = "[Unit]
Description=Kedge node agent
After=network.target containerd.service
Wants=containerd.service
StartLimitIntervalSec=0
RequiresMountsFor=/var/lib/kedge /opt/kedge

[Service]
Environment=RUST_LOG=info NO_COLOR=1
ExecStart=/opt/kedge/edgecore --config /etc/kedge/edgecore.yaml
Restart=always
RestartSec=1
KillMode=process
Delegate=yes

[Install]
WantedBy=multi-user.target
";

/// A machine with a link to the hub, and our programs on its second disk; `drives` come after that.
pub(crate) fn boot<'a>(site: &'a Site, arch: Arch, drives: Vec<Drive>) -> Guest<'a> {
    let folder = site.dir().join("programs");
    image::place_programs(arch, &["edgecore", "kedge", "images"], &folder).expect("our programs");
    image::place_images(arch, &folder).expect("the images");
    let programs = image::files_disk(site, "programs", &folder).expect("a disk of programs");
    let spec = Spec {
        arch,
        memory: 768,
        link: Some(1),
        drives: [Drive::ReadOnly(programs)].into_iter().chain(drives).collect(),
    };
    let guest = Guest::boot(site, "robot", spec).expect("it boots");
    guest.sh("mkdir -p /opt/kedge && echo '/dev/vdb /opt/kedge ext4 ro 0 0' >>/etc/fstab && systemctl daemon-reload && mount /opt/kedge")
        .expect("the disk of programs");
    guest
}

/// Joins it to the hub and waits until its node is Ready.
pub(crate) fn join(guest: &Guest, hub: &Hub) {
    let must = |script: &str| {
        let done = guest.sh_within(script, LONG);
        done.unwrap_or_else(|e| panic!("{e:#}\n{}", logs(guest)));
    };
    let (token, hash) = hub.token(NODE).expect("a token");
    guest.write("/etc/containerd/config.toml", CONTAINERD).expect("write");
    let config = format!("network: {{cniBinDir: /usr/lib/cni}}\napiServer: {{host: {HUB}, port: {API_PORT}}}\n");
    guest.write("/etc/kedge/edgecore.yaml", &config).expect("write");
    guest
        .write("/etc/systemd/system/edgecore.service", UNIT)
        .expect("write");
    must("systemctl daemon-reload && systemctl enable --now containerd");
    let import = "until ctr version >/dev/null; do sleep 0.2; done; cd /opt/kedge && \
                  ./images import --namespace k8s.io --socket /run/containerd/containerd.sock pause.tar demo.tar";
    must(import);
    let join = format!("/opt/kedge/kedge join --hub {HUB}:{JOIN_PORT} --token {token} --ca-hash {hash}");
    must(&join);
    must("systemctl enable --now edgecore");
    hub.kubectl
        .wait(&["node", NODE], LONG, |n| is_true(n, "Ready"))
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", logs(guest), hub.tail()));
}
