//! Pods on a real containerd, over a real store: they run, come back after a kill, a restart of the agent and the death of their sandbox, follow
//! their ConfigMap, and leave nothing.

#![expect(clippy::unwrap_used, reason = "a test")]

mod containerd;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use containerd::{Containerd, IMAGE};
use cri::{CriRuntime, Runtime, SandboxFilter};
use edgecore::pods::{NodeApi, NodeFacts, Parts, PodManager, PodsConfig, Recorder, Rows};
use kit::containerd::Version;
use metastore::{Batch, Options, Store};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

const LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Hub;

#[async_trait]
impl NodeApi for Hub {
    async fn token(&self, _: &str, account: &str, request: Value) -> Result<Value, String> {
        assert_eq!(request["spec"]["boundObjectRef"]["uid"], "uid-web");
        Ok(json!({"status": {"token": format!("token-of-{account}"), "expirationTimestamp": "2100-01-01T00:00:00Z"}}))
    }
}

/// A node: containerd, store and, while it runs, the manager.
struct Node {
    dir: PathBuf,
    version: Version,
    containerd: Containerd,
    runtime: CriRuntime,
    store: Store,
    tasks: Option<JoinSet<()>>,
    pump: JoinSet<std::convert::Infallible>,
}

impl Node {
    fn new(dir: &Path, version: Version) -> Self {
        std::fs::create_dir_all(dir.join("cni")).unwrap();
        let network = json!({"cniVersion": "0.4.0", "name": "test", "plugins": [{"type": "bridge", "bridge": bridge(version), "isGateway": true,
            "ipam": {"type": "host-local", "dataDir": dir.join("leases"), "ranges": [[{"subnet": format!("{}0/24", range(version))}]]}}]});
        std::fs::write(dir.join("cni/10-test.conflist"), network.to_string()).unwrap();
        let (containerd, _) = Containerd::start(version, dir);
        let (runtime, events) = CriRuntime::new(&containerd.socket());
        let mut pump = JoinSet::new();
        pump.spawn(events.run());
        let options = Options {
            key: Some([7; 32]),
            ..Options::default()
        };
        let store = Store::open(&dir.join("store"), &options).unwrap();
        let mut node = Self {
            dir: dir.to_owned(),
            version,
            containerd,
            runtime,
            store,
            tasks: None,
            pump,
        };
        node.start();
        node
    }

    fn start(&mut self) {
        let config = PodsConfig {
            node_name: "robot".into(),
            root_dir: self.dir.join("kubelet"),
            pod_logs_dir: self.dir.join("logs"),
            container_logs_dir: Some(self.dir.join("container-logs")),
            cgroup_root: cgroup(self.version),
            api_host: "192.0.2.9".into(),
            api_port: 6443,
            ..PodsConfig::default()
        };
        let rows: Arc<dyn Rows> = Arc::new(self.store.clone());
        let recorder = Recorder::new(rows.clone(), "robot").unwrap();
        let facts = NodeFacts {
            host_ips: vec!["192.0.2.1".into()],
            ..NodeFacts::default()
        };
        let parts = Parts {
            rows,
            runtime: Arc::new(self.runtime.clone()),
            recorder: recorder.clone(),
            api: Arc::new(Hub),
            node: watch::channel(Arc::new(facts)).1,
            complete: watch::channel(true).1,
        };
        let manager = PodManager::new(config, parts);
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            manager.run(stopped).await;
            drop(stop);
        });
        tasks.spawn(async move { recorder.run().await });
        self.tasks = Some(tasks);
    }

    /// The agent dies, as with kill -9: nothing is told to anybody.
    fn kill(&mut self) {
        self.tasks = None;
    }

    async fn put(&self, kind: &str, name: &str, object: &Value) {
        let mut batch = Batch::new();
        batch.put(format!("object/v1/{kind}/d/{name}"), object.to_string());
        self.store.commit(batch).await.unwrap();
    }

    fn status(&self, name: &str) -> Value {
        let row = self.store.get(&format!("status/v1/Pod/d/{name}/uid-{name}")).unwrap();
        row.map_or(Value::Null, |b| {
            serde_json::from_slice::<Value>(&b).unwrap()["status"].clone()
        })
    }

    fn events(&self) -> Vec<String> {
        let rows = self.store.scan("event/v1/").unwrap();
        let text = |v: &[u8]| {
            let e: Value = serde_json::from_slice(v).unwrap();
            format!("{}: {}", e["reason"].as_str().unwrap(), e["message"].as_str().unwrap())
        };
        rows.iter().map(|(_, v)| text(v)).collect()
    }

    async fn until(&self, what: &str, test: impl Fn() -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !test() {
            assert!(
                Instant::now() < deadline,
                "not in time: {what}\n{}\n{:#?}",
                self.status("web"),
                self.events()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn until_ready(&self, name: &str) {
        let ready = || {
            let status = self.status(name);
            let all = status["conditions"].as_array().cloned().unwrap_or_default();
            all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
        };
        self.until(&format!("{name} is ready"), ready).await;
    }

    fn container_id(&self, name: &str) -> String {
        let id = self.status(name)["containerStatuses"][0]["containerID"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        id.trim_start_matches("containerd://").to_owned()
    }

    /// Task ids with their processes.
    fn tasks(&self) -> BTreeMap<String, String> {
        self.containerd.tasks()
    }

    fn kill_task(&self, id: &str) {
        kill(&self.tasks()[id]);
    }

    async fn exec(&self, id: &str, script: &str) -> String {
        let command = ["sh", "-c", script].map(str::to_owned);
        let output = self
            .runtime
            .exec_sync(id, &command, Duration::from_secs(10))
            .await
            .unwrap();
        assert_eq!(output.exit_code, 0, "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn leases(&self) -> usize {
        let dir = std::fs::read_dir(self.dir.join("leases/test"));
        dir.map_or(0, |d| {
            d.flatten()
                .filter(|e| e.file_name().to_string_lossy().starts_with("10."))
                .count()
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.tasks = None;
        self.pump.abort_all();
        // What a failed test leaves: containers, then their shims, which carry this test's folder in their arguments.
        self.tasks().values().for_each(|pid| kill(pid));
        let ours = self.containerd.socket().display().to_string();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let text = String::from_utf8_lossy(&arguments);
            if text.contains("containerd-shim") && text.contains(&ours) {
                kill(&entry.file_name().to_string_lossy());
            }
        }
        let _ = Command::new("ip").args(["link", "del", &bridge(self.version)]).output();
        for mount in mounts(&self.dir) {
            let _ = nix::mount::umount2(Path::new(&mount), nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

fn kill(pid: &str) {
    // One that is gone already is as good.
    let _ = nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid.parse().unwrap()),
        nix::sys::signal::Signal::SIGKILL,
    );
}

fn cgroup(version: Version) -> String {
    format!("kedge-pods-{}-{version:?}", std::process::id())
}

fn bridge(version: Version) -> String {
    format!("kp{}{}", std::process::id() % 1_000_000, version as u8)
}

/// Both tests run at once: the first three bytes of each one's addresses.
fn range(version: Version) -> &'static str {
    match version {
        Version::Debian => "10.213.0.",
        Version::Two => "10.213.1.",
    }
}

fn mounts(dir: &Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = table.lines().filter_map(|l| l.split(' ').nth(4)).map(str::to_owned);
    points.filter(|p| Path::new(p).starts_with(dir)).collect()
}

fn cgroups(version: Version) -> Vec<PathBuf> {
    let controllers = std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|e| e.path());
    let pods = |c: PathBuf| {
        let classes = ["", "besteffort", "burstable"].map(|class| c.join(cgroup(version)).join("kubepods").join(class));
        classes
            .into_iter()
            .filter_map(|d| std::fs::read_dir(d).ok())
            .flat_map(|d| d.flatten().map(|e| e.path()))
            .collect::<Vec<_>>()
    };
    controllers
        .flat_map(pods)
        .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("pod")))
        .collect()
}

fn remove_cgroups(version: Version) {
    for controller in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let root = controller.path().join(cgroup(version));
        for part in ["kubepods/besteffort", "kubepods/burstable", "kubepods", ""] {
            let _ = std::fs::remove_dir(root.join(part));
        }
    }
}

fn pod() -> Value {
    let script = "trap 'echo bye > /dev/termination-log; exit 0' TERM; echo started; while true; do sleep 0.1; done";
    json!({"metadata": {"name": "web", "namespace": "d", "uid": "uid-web", "generation": 1, "labels": {"app": "web"}}, "spec": {
        "terminationGracePeriodSeconds": 3, "serviceAccountName": "robot",
        "securityContext": {"fsGroup": 2000},
        "initContainers": [{"name": "prepare", "image": IMAGE, "command": ["sh", "-c", "echo ready > /scratch/prepared"],
            "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]}],
        "containers": [{
            "name": "main", "image": IMAGE, "command": ["sh", "-c", script],
            "resources": {"limits": {"memory": "64Mi", "cpu": "500m"}},
            "securityContext": {"runAsUser": 1000, "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            "env": [{"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "LIMIT", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
                {"name": "GREETING", "valueFrom": {"configMapKeyRef": {"name": "config", "key": "greeting"}}}],
            "readinessProbe": {"exec": {"command": ["sh", "-c", "cat /scratch/prepared"]}, "periodSeconds": 1},
            "volumeMounts": [{"name": "config", "mountPath": "/etc/config"}, {"name": "scratch", "mountPath": "/scratch"},
                {"name": "scratch", "mountPath": "/sub", "subPath": "a/b"},
                {"name": "access", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true}]}],
        "volumes": [{"name": "config", "configMap": {"name": "config"}}, {"name": "scratch", "emptyDir": {}},
            {"name": "access", "projected": {"sources": [{"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
                {"secret": {"name": "keys"}}, {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]}}],
    }})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_lives_through_everything_and_leaves_nothing_on_1_6() {
    lives_through_everything(Version::Debian).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_lives_through_everything_and_leaves_nothing_on_2() {
    lives_through_everything(Version::Two).await;
}

async fn lives_through_everything(version: Version) {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::new(dir.path(), version);
    node.put("ConfigMap", "config", &json!({"data": {"greeting": "hello"}}))
        .await;
    node.put("Secret", "keys", &json!({"data": {"key": "YW5jaG9y"}})).await;
    let began = Instant::now();
    node.put("Pod", "web", &pod()).await;
    node.until_ready("web").await;
    println!("pod ready after {:?}", began.elapsed());
    is_furnished(&node).await;

    let first = node.container_id("web");
    node.kill_task(&first);
    node.until("restarted", || {
        node.status("web")["containerStatuses"][0]["restartCount"] == 1
    })
    .await;
    node.until_ready("web").await;
    let last = node.status("web")["containerStatuses"][0]["lastState"]["terminated"].clone();
    assert_eq!((&last["exitCode"], &last["reason"]), (&json!(137), &json!("Error")));

    let before = node.tasks();
    node.kill();
    node.start();
    node.put("ConfigMap", "config", &json!({"data": {"greeting": "ahoy"}}))
        .await;
    let file = node
        .dir
        .join("kubelet/pods/uid-web/volumes/kubernetes.io~configmap/config/greeting");
    node.until("the volume follows", || {
        std::fs::read_to_string(&file).is_ok_and(|t| t == "ahoy")
    })
    .await;
    assert_eq!(
        node.exec(&node.container_id("web"), "cat /etc/config/greeting").await,
        "ahoy"
    );
    assert_eq!(node.tasks(), before, "a restart of the agent touches no container");

    sandbox_death(&mut node).await;
    deletion(&node).await;
    drop(node);
    remove_cgroups(version);
}

async fn is_furnished(node: &Node) {
    let status = node.status("web");
    let id = node.container_id("web");
    let said = node
        .exec(&id, "echo $NAME $IP $LIMIT $GREETING $KUBERNETES_SERVICE_HOST")
        .await;
    let ip = status["podIP"].as_str().unwrap();
    assert!(ip.starts_with(range(node.version)), "{status}");
    assert_eq!(said, format!("web {ip} 64 hello 192.0.2.9\n"));
    let access = "/var/run/secrets/kubernetes.io/serviceaccount";
    let files = node
        .exec(
            &id,
            &format!("cat {access}/token {access}/key {access}/labels /etc/config/greeting /scratch/prepared"),
        )
        .await;
    assert_eq!(files, "token-of-robotanchorapp=\"web\"helloready\n");
    let hosts = node.exec(&id, "cat /etc/hosts").await;
    assert!(hosts.contains(&format!("{ip}\tweb")), "{hosts}");
    node.exec(&id, "echo x > /scratch/file && echo y > /sub/file").await;
    let scratch = node
        .dir
        .join("kubelet/pods/uid-web/volumes/kubernetes.io~empty-dir/scratch");
    assert_eq!(
        std::fs::read_to_string(scratch.join("a/b/file")).unwrap(),
        "y\n",
        "subPath"
    );
    let pid = &node.tasks()[&id];
    let proc = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for line in ["Uid:\t1000\t", "NoNewPrivs:\t1", "CapEff:\t0000000000000000"] {
        assert!(proc.contains(line), "{line} in {proc}");
    }
    assert!(
        proc.lines().any(|l| l.starts_with("Groups:") && l.contains("2000")),
        "{proc}"
    );
    let log = node.dir.join("logs/d_web_uid-web/main/0.log");
    assert!(std::fs::read_to_string(log).unwrap().contains("stdout F started"));
    assert_eq!(status["qosClass"], "Burstable");
    assert!(!cgroups(node.version).is_empty());
    for reason in ["Pulled: ", "Created: Container created", "Started: Container started"] {
        node.until(reason, || node.events().iter().any(|e| e.starts_with(reason)))
            .await;
    }
}

/// All of the pod dies while the agent is away, as in a reset of the machine: it is recreated from the store.
async fn sandbox_death(node: &mut Node) {
    let before = node.tasks();
    node.kill();
    before.values().for_each(|pid| kill(pid));
    node.start();
    let this: &Node = node;
    // Once more than before, or twice: containerd may tell of the container's death before that of its sandbox, and refuses the first start then.
    let again = || {
        let main = &this.status("web")["containerStatuses"][0];
        let tasks = this.tasks();
        main["restartCount"].as_u64() >= Some(2)
            && main["ready"] == true
            && tasks.len() == 2
            && tasks.contains_key(&this.container_id("web"))
            && !tasks.keys().any(|id| before.contains_key(id))
    };
    this.until("recreated, and the restart is counted", again).await;
    this.until_ready("web").await;
    assert_eq!(
        this.exec(&this.container_id("web"), "cat /scratch/file /etc/config/greeting")
            .await,
        "x\nahoy"
    );
    assert_eq!(this.leases(), 1, "the address of the dead sandbox was given back");
}

async fn deletion(node: &Node) {
    let mut dying = pod();
    dying["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    dying["metadata"]["deletionGracePeriodSeconds"] = 3.into();
    node.put("Pod", "web", &dying).await;
    node.until("the gone row", || {
        node.store.get("gone/v1/Pod/d/web/uid-web").unwrap().is_some()
    })
    .await;
    let over = node.status("web")["containerStatuses"][0]["state"]["terminated"].clone();
    assert_eq!(
        (&over["exitCode"], &over["message"]),
        (&json!(0), &json!("bye\n")),
        "the trap ran"
    );
    assert!(
        node.runtime
            .list_sandboxes(&SandboxFilter::default())
            .await
            .unwrap()
            .is_empty()
    );
    assert!(node.tasks().is_empty());
    let left = |name: &str| std::fs::read_dir(node.dir.join(name)).map_or(0, Iterator::count);
    assert_eq!(
        (
            left("kubelet/pods"),
            left("logs"),
            left("container-logs"),
            node.leases()
        ),
        (0, 0, 0, 0)
    );
    assert_eq!(mounts(&node.dir.join("kubelet")), Vec::<String>::new());
    assert_eq!(cgroups(node.version), Vec::<PathBuf>::new());
    let mut batch = Batch::new();
    batch.delete("object/v1/Pod/d/web");
    node.store.commit(batch).await.unwrap();
    node.until("the status row goes", || node.status("web").is_null()).await;
    assert!(node.store.scan("local/v1/").unwrap().is_empty());
}
