//! `installer/up --bin` in a fresh Debian: from nothing to Running pods, again, through killed programs, and down to nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use kit::wait::State;
use kit::{Fresh, Site, paths, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// What a busy machine of two cores may need.
const SOON: Duration = Duration::from_secs(90);
const KUBECTL: &str = "/var/lib/kedge-up/bin/kubectl";
const KUBECONFIG: &str = "/var/lib/kedge-up/hub/admin.kubeconfig";

/// Our programs and images in one folder, as `--bin` wants them.
fn binaries(site: &Site) -> PathBuf {
    let dir = site.dir().join("bin");
    fs::create_dir_all(&dir).expect("a folder");
    for name in ["cloudhub", "edgecore", "kedge", "images"] {
        fs::copy(paths::ours(name), dir.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    for name in ["pause", "demo"] {
        fs::copy(paths::image(name), dir.join(format!("{name}.tar"))).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    dir
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

struct Machine {
    fresh: Fresh,
    up: String,
    bin: String,
}

impl Machine {
    fn up(&self, args: &[&str]) -> String {
        let mut command = self.fresh.command(&self.up, args);
        let output = command.output().expect("installer/up starts");
        let text = said(&output);
        assert!(
            output.status.success(),
            "installer/up {args:?}: {text}\n{}",
            self.logs()
        );
        text
    }

    fn install(&self) -> String {
        self.up(&["--bin", &self.bin, "--node", "robot-1"])
    }

    fn kubectl(&self, args: &[&str]) -> Output {
        let mut command = self.fresh.command(KUBECTL, args);
        command.env("KUBECONFIG", KUBECONFIG);
        command.output().expect("kubectl starts")
    }

    fn kubectl_says(&self, args: &[&str]) -> String {
        let output = self.kubectl(args);
        assert!(
            output.status.success(),
            "kubectl {args:?}: {}\n{}",
            said(&output),
            self.logs()
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Name, uid, restarts and readiness of each pod.
    fn pods(&self) -> Vec<(String, String, u64, bool)> {
        let list: Value = serde_json::from_str(&self.kubectl_says(&["get", "pods", "-o", "json"])).expect("JSON");
        let pods = list["items"].as_array().expect("items").iter();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut pods: Vec<_> = pods
            .map(|pod| {
                let status = &pod["status"]["containerStatuses"][0];
                let restarts = status["restartCount"].as_u64().unwrap_or_default();
                let ready = status["ready"] == true;
                (
                    text(&pod["metadata"]["name"]),
                    text(&pod["metadata"]["uid"]),
                    restarts,
                    ready,
                )
            })
            .collect();
        pods.sort();
        pods
    }

    fn logs(&self) -> String {
        let folder = self.fresh.root().join("var/lib/kedge-up/logs");
        let mut text = String::new();
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let log = fs::read_to_string(entry.path()).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let from = lines.len().saturating_sub(25);
            text.push_str(&format!(
                "--- {}\n{}\n",
                entry.path().display(),
                lines[from..].join("\n")
            ));
        }
        text
    }

    /// Kills every process inside that runs `program`; how many.
    fn kill(&self, program: &str) -> usize {
        let path = format!("/var/lib/kedge-up/bin/{program} ");
        let found: Vec<u32> = self
            .fresh
            .processes()
            .into_iter()
            .filter(|(_, line)| line.starts_with(&path))
            .map(|(pid, _)| pid)
            .collect();
        for pid in &found {
            kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).expect("it runs");
        }
        found.len()
    }
}

#[test]
fn a_fresh_debian_gets_a_node_keeps_its_pods_and_gives_everything_back() {
    let site = Site::new().expect("a site");
    let bin = binaries(&site);
    let repository = paths::repository().canonicalize().expect("the repository");
    let fresh = Fresh::start(&site, &[&repository, &bin]).expect("a fresh Debian");
    let up = repository.join("installer/up").display().to_string();
    let machine = Machine {
        fresh,
        up,
        bin: bin.display().to_string(),
    };
    let _clean = CleanUp;

    let text = machine.install();
    for wanted in ["robot-1", "Ready", "Running", "What to try next"] {
        assert!(text.contains(wanted), "{wanted} in {text}");
    }
    works(&machine);

    let before = machine.pods();
    machine.install();
    assert_eq!(machine.pods(), before, "a second run changes nothing");

    survives_killed_programs(&machine, &before);

    machine.up(&["--down"]);
    nothing_is_left(&machine);
}

/// What the last lines of `up` tell a person to try.
fn works(machine: &Machine) {
    let pods = machine.pods();
    assert_eq!(pods.len(), 3, "two of the Deployment, one of the DaemonSet: {pods:?}");
    assert!(pods.iter().all(|(_, _, _, ready)| *ready), "{pods:?}");
    assert!(machine.kubectl_says(&["logs", "daemonset/demo-agent"]).contains("load"));
    let script = "echo $DEMO_PASSWORD; wget -qO- http://localhost:8080/ >/dev/null && echo served";
    let said = machine.kubectl_says(&["exec", "deployment/demo", "--", "sh", "-c", script]);
    assert_eq!(said, "anchor\nserved\n");
    let script =
        "echo | nc -w 3 $KUBERNETES_SERVICE_HOST $KUBERNETES_SERVICE_PORT && echo $KUBERNETES_SERVICE_HOST reached";
    let said = machine.kubectl_says(&["exec", "deployment/demo", "--", "sh", "-c", script]);
    assert!(said.contains("10.96.0.1 reached"), "pods reach the API: {said}");
}

fn survives_killed_programs(machine: &Machine, before: &[(String, String, u64, bool)]) {
    assert_eq!(machine.kill("edgecore"), 1);
    assert_eq!(machine.kill("cloudhub"), 1);
    wait_for("the node is Ready again, with the same pods", SOON, || {
        let node = machine.kubectl(&["wait", "--for=condition=Ready", "node/robot-1", "--timeout=5s"]);
        if !node.status.success() {
            return State::Not(said(&node));
        }
        let logs = machine.kubectl(&["logs", "daemonset/demo-agent", "--tail=1"]);
        if !logs.status.success() {
            return State::Not(said(&logs));
        }
        State::Done(())
    })
    .unwrap_or_else(|e| panic!("{e}\n{}", machine.logs()));
    assert_eq!(machine.pods(), before, "no container was restarted");
}

fn nothing_is_left(machine: &Machine) {
    let processes: Vec<_> = machine.fresh.processes();
    assert!(processes.is_empty(), "{processes:?}");
    let mounts = machine.fresh.mounts().expect("mountinfo");
    assert!(!mounts.contains("kedge-up"), "{mounts}");
    for path in ["var/lib/kedge-up", "run/kedge-up", "var/lib/cni"] {
        assert!(!machine.fresh.root().join(path).exists(), "{path} is left");
    }
    let ip = |args: &[&str]| said(&Command::new("ip").args(args).output().expect("ip"));
    assert!(!ip(&["link"]).contains("kedge-up"), "{}", ip(&["link"]));
    assert!(!ip(&["address"]).contains("10.96.0.1"), "{}", ip(&["address"]));
    let rules = said(&Command::new("nft").args(["list", "tables"]).output().expect("nft"));
    assert!(!rules.contains("kedge"), "{rules}");
    let cgroups = cgroups(Path::new("/sys/fs/cgroup"));
    assert!(cgroups.is_empty(), "{cgroups:?}");
}

fn cgroups(root: &Path) -> Vec<PathBuf> {
    let below = |path: &Path| {
        fs::read_dir(path)
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path())
            .collect::<Vec<_>>()
    };
    let hierarchies = below(root).into_iter().chain([root.to_owned()]);
    hierarchies
        .map(|h| h.join("kedge-up"))
        .filter(|path| path.is_dir())
        .collect()
}

/// The network of the machine that the test runs on is clean whatever happened.
struct CleanUp;

impl Drop for CleanUp {
    fn drop(&mut self) {
        for args in [
            ["ip", "link", "del", "kedge-up0"].as_slice(),
            &["ip", "address", "del", "10.96.0.1/32", "dev", "lo"],
            &["nft", "delete", "table", "ip", "kedge_masquerade"],
            &["nft", "delete", "table", "ip6", "kedge_masquerade"],
        ] {
            // Mostly there is nothing.
            let _ = Command::new(args[0]).args(&args[1..]).output();
        }
    }
}
