//! Pods from admission to their end, over the in-memory runtime and a store in memory, in virtual time.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use cri::fake::FakeRuntime;
use cri::{ContainerState, ErrorKind};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::memory::Now;
use super::rows::{MemRows, Rows, gone_key, object_key, status_key};
use super::{NodeApi, NodeFacts, Parts, PodManager, PodsConfig, Recorder};

const IMAGE: &str = "kedge.dev/demo:1";

/// A clock that follows tokio's paused time.
fn clock() -> Now {
    static BASE: OnceLock<std::time::Instant> = OnceLock::new();
    let now = tokio::time::Instant::now().into_std();
    let base = *BASE.get_or_init(|| now - Duration::from_secs(100_000));
    let boottime = now.saturating_duration_since(base);
    Now {
        boottime,
        wall: Duration::from_secs(1_700_000_000) + boottime,
    }
}

#[derive(Debug)]
struct Hub;

#[async_trait]
impl NodeApi for Hub {
    async fn token(&self, _: &str, account: &str, _: Value) -> Result<Value, String> {
        Ok(json!({"status": {"token": format!("token-of-{account}"), "expirationTimestamp": "2100-01-01T00:00:00Z"}}))
    }
}

struct Node {
    dir: tempfile::TempDir,
    rows: Arc<MemRows>,
    runtime: Arc<FakeRuntime>,
    complete: watch::Sender<bool>,
    running: Option<(watch::Sender<bool>, JoinSet<()>)>,
}

impl Node {
    fn new() -> Self {
        let mut node = Self {
            dir: tempfile::tempdir().expect("dir"),
            rows: Arc::default(),
            runtime: Arc::new(FakeRuntime::with_images(&[IMAGE])),
            complete: watch::channel(true).0,
            running: None,
        };
        std::fs::write(node.resolv_conf(), "nameserver 192.0.2.53\n").expect("write");
        node.start();
        node
    }

    fn resolv_conf(&self) -> std::path::PathBuf {
        self.dir.path().join("resolv.conf")
    }

    fn start(&mut self) {
        let path = |name: &str| self.dir.path().join(name);
        let config = PodsConfig {
            node_name: "robot".into(),
            root_dir: path("kubelet"),
            pod_logs_dir: path("logs"),
            container_logs_dir: None,
            cgroup_mount: path("cgroup"),
            resolv_conf: self.resolv_conf(),
            ..PodsConfig::default()
        };
        let rows: Arc<dyn Rows> = self.rows.clone();
        let facts = NodeFacts {
            host_ips: vec!["192.0.2.1".into()],
            allocatable: BTreeMap::from([("cpu".into(), "4".into()), ("pods".into(), "10".into())]),
            ..NodeFacts::default()
        };
        let recorder = Recorder::new(rows.clone(), "robot").expect("recorder");
        let parts = Parts {
            rows,
            runtime: self.runtime.clone(),
            recorder: recorder.clone(),
            api: Arc::new(Hub),
            node: watch::channel(Arc::new(facts)).1,
            complete: self.complete.subscribe(),
        };
        let manager = PodManager::with_clock(config, parts, clock);
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(manager.run(stopped));
        tasks.spawn(async move { recorder.run().await });
        self.running = Some((stop, tasks));
    }

    fn kill(&mut self) {
        self.running = None;
    }

    fn put(&self, name: &str, mut pod: Value) {
        pod["metadata"]["name"] = name.into();
        pod["metadata"]["namespace"] = "d".into();
        if pod["metadata"]["uid"].is_null() {
            pod["metadata"]["uid"] = format!("uid-{name}").into();
        }
        self.rows
            .apply(vec![(object_key("Pod", "d", name), Some(pod.to_string().into()))]);
    }

    fn put_object(&self, kind: &str, name: &str, object: &Value) {
        self.rows
            .apply(vec![(object_key(kind, "d", name), Some(object.to_string().into()))]);
    }

    fn delete(&self, name: &str) {
        self.rows.apply(vec![(object_key("Pod", "d", name), None)]);
    }

    fn status(&self, name: &str) -> Value {
        let row = self
            .rows
            .get(&status_key("d", name, &format!("uid-{name}")))
            .expect("get");
        row.map_or(Value::Null, |b| {
            serde_json::from_slice::<Value>(&b).expect("json")["status"].clone()
        })
    }

    fn reasons(&self) -> Vec<String> {
        let rows = self.rows.scan("event/v1/").expect("scan");
        rows.iter()
            .map(|(_, v)| {
                serde_json::from_slice::<Value>(v).expect("json")["reason"]
                    .as_str()
                    .expect("reason")
                    .to_owned()
            })
            .collect()
    }

    /// Waits in virtual time.
    async fn until(&self, what: &str, seconds: u64, test: impl Fn(&Self) -> bool) {
        for _ in 0..seconds * 10 {
            for _ in 0..20 {
                if test(self) {
                    return;
                }
                // Blocking jobs (volumes) run on real threads: give them real time too.
                tokio::task::yield_now().await;
                std::thread::yield_now();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let statuses = self.rows.scan("status/v1/").expect("scan");
        let log = self.runtime.log();
        panic!(
            "not in time: {what}\n{statuses:?}\n{:?}\n{:#?}",
            self.reasons(),
            &log[log.len().saturating_sub(30)..]
        );
    }

    async fn until_phase(&self, name: &str, phase: &str) {
        self.until(&format!("{name} is {phase}"), 120, |n| n.status(name)["phase"] == phase)
            .await;
    }

    async fn until_ready(&self, name: &str) {
        self.until(&format!("{name} is ready"), 120, |n| {
            condition(&n.status(name), "Ready") == "True"
        })
        .await;
    }

    fn running(&self, name: &str) -> Vec<String> {
        let all = self.runtime.containers();
        all.iter()
            .filter(|(_, c)| c.config.metadata.name == name && c.status.state == ContainerState::Running)
            .map(|(id, _)| id.clone())
            .collect()
    }
}

fn condition(status: &Value, kind: &str) -> String {
    let all = status["conditions"].as_array().cloned().unwrap_or_default();
    let found = all.iter().find(|c| c["type"] == kind);
    found.map_or(String::new(), |c| c["status"].as_str().unwrap_or_default().to_owned())
}

fn pod(spec: Value) -> Value {
    let mut pod = json!({"metadata": {"generation": 1}, "spec": spec});
    for list in ["containers", "initContainers"] {
        for c in pod["spec"][list].as_array_mut().into_iter().flatten() {
            if c["image"].is_null() {
                c["image"] = IMAGE.into();
            }
        }
    }
    pod
}

fn one() -> Value {
    pod(json!({"terminationGracePeriodSeconds": 2, "containers": [{"name": "main"}]}))
}

#[tokio::test(start_paused = true)]
async fn a_pod_runs_is_deleted_and_leaves_nothing() {
    let node = Node::new();
    node.put("web", one());
    node.until_ready("web").await;
    let status = node.status("web");
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["observedGeneration"], 1);
    assert_eq!(status["hostIP"], "192.0.2.1");
    assert_eq!(status["qosClass"], "BestEffort");
    let c = &status["containerStatuses"][0];
    assert_eq!(
        (&c["ready"], &c["started"], &c["restartCount"]),
        (&json!(true), &json!(true), &json!(0))
    );
    for kind in [
        "PodScheduled",
        "PodReadyToStartContainers",
        "Initialized",
        "ContainersReady",
        "Ready",
    ] {
        assert_eq!(condition(&status, kind), "True", "{kind}");
    }
    node.until("events", 5, |n| {
        ["Pulled", "Created", "Started"]
            .iter()
            .all(|r| n.reasons().contains(&(*r).to_owned()))
    })
    .await;

    let mut dying = one();
    dying["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    dying["metadata"]["deletionGracePeriodSeconds"] = 2.into();
    node.put("web", dying);
    node.until("gone row", 30, |n| {
        n.rows.get(&gone_key("d", "web", "uid-web")).expect("get").is_some()
    })
    .await;
    assert!(node.runtime.sandboxes().is_empty() && node.runtime.containers().is_empty());
    assert!(!node.dir.path().join("kubelet/pods/uid-web").exists());
    assert!(node.status("web")["containerStatuses"][0]["state"]["terminated"]["exitCode"].is_number());
    node.delete("web");
    node.until("status row gone", 30, |n| n.status("web").is_null()).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_starts_on_a_node_without_a_resolv_conf_and_says_what_it_lacks() {
    let node = Node::new();
    let servers = |node: &Node, name: &str| {
        let sandboxes = node.runtime.sandboxes();
        let sandbox = sandboxes.values().find(|s| s.config.metadata.name == name);
        sandbox.and_then(|s| s.config.dns.clone()).expect("dns").servers
    };
    node.put("with", one());
    node.until_ready("with").await;
    assert_eq!(servers(&node, "with"), ["192.0.2.53"]);
    assert!(!node.reasons().contains(&"DNSConfigForming".to_owned()));
    std::fs::remove_file(node.resolv_conf()).expect("remove");
    node.put("without", one());
    node.until_ready("without").await;
    assert_eq!(servers(&node, "without"), ["127.0.0.1"]);
    node.until("the event", 5, |n| n.reasons().contains(&"DNSConfigForming".to_owned()))
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_container_that_crashes_backs_off_and_counts() {
    let node = Node::new();
    node.put("web", one());
    node.until_ready("web").await;
    node.runtime.exit_named("main", 1);
    node.until("restarted at once", 5, |n| {
        n.status("web")["containerStatuses"][0]["restartCount"] == 1 && n.running("main").len() == 1
    })
    .await;
    let began = tokio::time::Instant::now();
    node.runtime
        .exit_with_reason(&node.running("main")[0], 137, "OOMKilled");
    node.until("back-off", 5, |n| {
        n.status("web")["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    })
    .await;
    let c = node.status("web")["containerStatuses"][0].clone();
    assert_eq!(c["lastState"]["terminated"]["reason"], "OOMKilled");
    assert_eq!(
        c["state"]["waiting"]["message"],
        "back-off 10s restarting failed container=main pod=web_d(uid-web)"
    );
    assert_eq!(node.status("web")["phase"], "Running");
    node.until("restarted", 30, |n| n.running("main").len() == 1).await;
    assert!(began.elapsed() >= Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(node.runtime.containers().len(), 2, "one dead one is kept");
    node.until("event", 5, |n| n.reasons().contains(&"BackOff".to_owned()))
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_restarted_agent_adopts_and_a_reset_node_recreates() {
    let mut node = Node::new();
    node.put("web", one());
    node.until_ready("web").await;
    let before = node.running("main");
    node.kill();
    let started = node.runtime.calls("StartContainer");
    node.start();
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(node.running("main"), before);
    assert_eq!(node.runtime.calls("StartContainer"), started);

    node.kill();
    for id in node.runtime.sandboxes().keys() {
        node.runtime.kill_sandbox(id);
    }
    node.start();
    node.until("recreated", 60, |n| n.running("main").len() == 1).await;
    node.until("counted", 10, |n| {
        n.status("web")["containerStatuses"][0]["restartCount"] == 1
    })
    .await;
    node.until_ready("web").await;
    assert_ne!(node.running("main"), before);
}

#[tokio::test(start_paused = true)]
async fn restart_counts_survive_a_runtime_that_forgot_everything() {
    let mut node = Node::new();
    // So that ids differ between the two runtimes.
    node.put("pad", one());
    node.until_ready("pad").await;
    node.put("web", one());
    node.until_ready("web").await;
    node.kill();
    node.delete("pad");
    node.runtime = Arc::new(FakeRuntime::with_images(&[IMAGE]));
    node.start();
    node.until("counted", 60, |n| {
        n.running("main").len() == 1 && n.status("web")["containerStatuses"][0]["restartCount"] == 1
    })
    .await;
    let last = node.status("web")["containerStatuses"][0]["lastState"]["terminated"].clone();
    assert_eq!(last["reason"], "ContainerStatusUnknown", "{last}");
}

#[tokio::test(start_paused = true)]
async fn init_containers_run_in_order_and_sidecars_stay() {
    let node = Node::new();
    node.runtime.exit_at_start("first", 0);
    node.runtime.exit_at_start("second", 1);
    node.runtime.exit_at_start("second", 0);
    node.put(
        "web",
        pod(json!({"initContainers": [{"name": "first"}, {"name": "side", "restartPolicy": "Always"}, {"name": "second"}],
            "containers": [{"name": "main"}], "terminationGracePeriodSeconds": 2})),
    );
    node.until_ready("web").await;
    let starts: Vec<String> = node
        .runtime
        .log()
        .into_iter()
        .filter(|l| l.starts_with("CreateContainer"))
        .collect();
    let position = |name: &str| {
        starts
            .iter()
            .position(|l| l.contains(name))
            .unwrap_or_else(|| panic!("{name} in {starts:?}"))
    };
    assert!(
        position("first") < position("side")
            && position("side") < position("second")
            && position("second") < position("main")
    );
    let status = node.status("web");
    assert_eq!(status["initContainerStatuses"][2]["restartCount"], 1);
    assert_eq!(status["initContainerStatuses"][1]["ready"], true);
    node.delete("web");
    node.until("all gone", 60, |n| n.runtime.sandboxes().is_empty()).await;
    let log = node.runtime.log();
    let stop = |id: &str| {
        log.iter()
            .position(|l| l.starts_with("StopContainer") && l.contains(id))
    };
    assert!(stop("main").is_some() || !log.is_empty());
}

#[tokio::test(start_paused = true)]
async fn never_and_on_failure_end_in_their_phases() {
    let node = Node::new();
    node.runtime.exit_at_start("ok", 0);
    node.runtime.exit_at_start("bad", 3);
    node.put(
        "done",
        pod(json!({"restartPolicy": "Never", "containers": [{"name": "ok"}]})),
    );
    node.put(
        "broken",
        pod(json!({"restartPolicy": "Never", "containers": [{"name": "bad"}]})),
    );
    node.until_phase("done", "Succeeded").await;
    node.until_phase("broken", "Failed").await;
    let status = node.status("broken");
    assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["exitCode"], 3);
    assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["reason"], "Error");
    assert_eq!(condition(&node.status("done"), "Ready"), "False");
    assert_eq!(condition(&node.status("done"), "Initialized"), "True");
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(node.runtime.containers().len(), 2, "containers stay for their logs");
    assert_eq!(node.status("done")["phase"], "Succeeded");
}

#[tokio::test(start_paused = true)]
async fn what_is_missing_is_waited_for_and_recovers() {
    let node = Node::new();
    node.put("web", pod(json!({"containers": [{"name": "main", "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "a"}}}]}]})));
    let reason = |n: &Node, name: &str| n.status(name)["containerStatuses"][0]["state"]["waiting"].clone();
    node.until("config error", 30, |n| {
        reason(n, "web")["reason"] == "CreateContainerConfigError"
    })
    .await;
    assert_eq!(reason(&node, "web")["message"], "configmap \"cm\" not found");
    assert_eq!(node.status("web")["phase"], "Pending");
    node.put_object("ConfigMap", "cm", &json!({"data": {"a": "1"}}));
    node.until_ready("web").await;

    let mut none = pod(json!({"containers": [{"name": "main", "image": "none.example/x:1"}]}));
    none["metadata"]["uid"] = Value::Null;
    node.put("none", none);
    node.until("pull error", 30, |n| reason(n, "none")["reason"] == "ErrImagePull")
        .await;
    node.until("pull back-off", 30, |n| {
        reason(n, "none")["reason"] == "ImagePullBackOff"
    })
    .await;
    node.runtime.add_to_registry("none.example/x:1");
    node.until_ready("none").await;

    node.put(
        "volume",
        pod(json!({"containers": [{"name": "main"}], "volumes": [{"name": "v", "configMap": {"name": "later"}}]})),
    );
    node.until("mount error", 30, |n| n.reasons().contains(&"FailedMount".to_owned()))
        .await;
    assert_eq!(reason(&node, "volume")["reason"], "ContainerCreating");
    node.put_object("ConfigMap", "later", &json!({"data": {"k": "v"}}));
    node.until_ready("volume").await;

    node.runtime.fail_next("RunPodSandbox", ErrorKind::Other, "no network");
    node.put("sandbox", one());
    node.until_ready("sandbox").await;
    // Events are gathered for a moment before they are written.
    node.until("sandbox error", 30, |n| {
        n.reasons().contains(&"FailedCreatePodSandBox".to_owned())
    })
    .await;
    node.put(
        "never",
        pod(json!({"containers": [{"name": "main", "image": "gone.example/y:1", "imagePullPolicy": "Never"}]})),
    );
    node.until("never pulled", 30, |n| {
        reason(n, "never")["reason"] == "ErrImageNeverPull"
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn orphans_end_only_when_the_store_is_complete() {
    let mut node = Node::new();
    node.put("web", one());
    node.until_ready("web").await;
    node.kill();
    node.rows = Arc::default();
    node.complete.send_replace(false);
    node.start();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(node.running("main").len(), 1, "a store that was set aside ends nothing");
    node.complete.send_replace(true);
    node.until("the orphan ends", 60, |n| n.runtime.sandboxes().is_empty())
        .await;
}

#[tokio::test(start_paused = true)]
async fn pods_that_do_not_fit_fail_with_the_reason() {
    let node = Node::new();
    let big = |cpu: &str| pod(json!({"containers": [{"name": "main", "resources": {"requests": {"cpu": cpu}}}]}));
    node.put("a", big("3"));
    node.until_ready("a").await;
    node.put("b", big("2"));
    node.until_phase("b", "Failed").await;
    assert_eq!(node.status("b")["reason"], "OutOfcpu");
    assert!(node.status("b")["containerStatuses"].is_null());
    assert_eq!(node.runtime.sandboxes().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn deadlines_and_image_changes_end_containers() {
    let node = Node::new();
    node.put(
        "job",
        pod(json!({"activeDeadlineSeconds": 20, "terminationGracePeriodSeconds": 1, "containers": [{"name": "main"}]})),
    );
    node.until_ready("job").await;
    node.until_phase("job", "Failed").await;
    assert_eq!(node.status("job")["reason"], "DeadlineExceeded");

    node.put("web", one());
    node.until_ready("web").await;
    let before = node.running("main");
    node.runtime.add_image("kedge.dev/demo:2");
    let mut changed = one();
    changed["spec"]["containers"][0]["image"] = "kedge.dev/demo:2".into();
    node.put("web", changed);
    node.until("replaced", 60, |n| {
        n.running("main").len() == 1 && n.running("main") != before
    })
    .await;
    node.until("counted", 10, |n| {
        n.status("web")["containerStatuses"][0]["restartCount"] == 1
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn probes_decide_on_readiness_and_restart() {
    let node = Node::new();
    node.runtime
        .set_now(i64::try_from(clock().wall.as_nanos()).expect("time"));
    let healthy = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let said = healthy.clone();
    node.runtime.on_exec(move |_, command| {
        let good = command[0] == "ready" || said.load(std::sync::atomic::Ordering::SeqCst);
        Ok(cri::ExecOutput {
            exit_code: i32::from(!good),
            stderr: b"sick".to_vec(),
            ..cri::ExecOutput::default()
        })
    });
    node.put(
        "web",
        pod(
            json!({"terminationGracePeriodSeconds": 1, "containers": [{"name": "main",
            "startupProbe": {"exec": {"command": ["start"]}, "periodSeconds": 1},
            "readinessProbe": {"exec": {"command": ["ready"]}, "periodSeconds": 1, "initialDelaySeconds": 3},
            "livenessProbe": {"exec": {"command": ["live"]}, "periodSeconds": 1, "failureThreshold": 2}}]}),
        ),
    );
    node.until_phase("web", "Running").await;
    assert_eq!(
        node.status("web")["containerStatuses"][0]["ready"],
        false,
        "not before its first probe"
    );
    node.until_ready("web").await;
    let before = node.running("main");
    healthy.store(false, std::sync::atomic::Ordering::SeqCst);
    node.until("killed", 30, |n| n.running("main") != before).await;
    healthy.store(true, std::sync::atomic::Ordering::SeqCst);
    node.until("restarted and ready", 60, |n| {
        n.running("main").len() == 1 && condition(&n.status("web"), "Ready") == "True"
    })
    .await;
    node.until("events", 5, |n| {
        ["Unhealthy", "Killing"]
            .iter()
            .all(|r| n.reasons().contains(&(*r).to_owned()))
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn always_with_the_registry_out_of_reach_starts_what_ran_before() {
    let node = Node::new();
    node.runtime.add_to_registry(IMAGE);
    let always = pod(json!({"containers": [{"name": "main", "imagePullPolicy": "Always"}]}));
    node.put("web", always);
    node.until_ready("web").await;
    for _ in 0..3 {
        node.runtime
            .fail_next("PullImage", ErrorKind::Unavailable, "dial tcp: no route to host");
    }
    node.runtime.exit_named("main", 1);
    node.until("runs again", 60, |n| n.running("main").len() == 1).await;
    node.until("event", 5, |n| n.reasons().contains(&"PulledFromRecord".to_owned()))
        .await;
}

#[tokio::test(start_paused = true)]
async fn force_deletion_while_terminating_shortens_the_grace() {
    let node = Node::new();
    node.put("web", one());
    node.until_ready("web").await;
    let mut dying = one();
    dying["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    dying["metadata"]["deletionGracePeriodSeconds"] = 0.into();
    node.put("web", dying);
    node.until("gone", 30, |n| n.runtime.sandboxes().is_empty()).await;
}
