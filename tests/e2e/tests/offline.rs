//! Suite `offline`: what happens to pods while the hub is away, and when what comes back is not what went.
//! Each test asserts on what containerd really runs.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use kit::kubectl::{condition, is_true};
use kit::process::run;
use kit::suite::{START, Start, embedded, kubernetes, robot};
use kit::wait::State;
use kit::{Edge, Hub, Site, above_both, registry, wait_for, yaml};
use serde_json::Value;

above_both!(spec_changed_while_away_runs, damaged_store_is_set_aside_and_pods_run_on,);

/// Runs on until it is told to end.
const FOREVER: &str = "trap 'exit 0' TERM; echo started; while true; do sleep 1; done";

/// A pod bound to the robot by hand: no scheduler is asked.
fn bound_pod(name: &str, script: &str) -> String {
    yaml::shell_pod(name, script).replace("spec:\n", "spec:\n  nodeName: robot-1\n")
}

/// Pod and id of each container that runs.
fn running(edge: &Edge) -> BTreeMap<String, String> {
    let all = edge.containers().unwrap_or_else(|e| panic!("{e}\n{}", edge.tail()));
    let running = all.into_iter().filter(|c| c.pid.is_some());
    running.map(|c| (c.pod, c.id)).collect()
}

fn ready(hub: &Hub, edge: &Edge, pod: &str) -> Value {
    let (pod, _) = hub
        .kubectl
        .wait_ready(pod, START)
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", edge.tail(), hub.tail()));
    pod
}

fn wait_running(edge: &Edge, what: &str, done: impl Fn(&[kit::edge::Container]) -> bool) {
    wait_for(what, START, || match edge.containers() {
        Ok(all) if done(&all) => State::Done(()),
        Ok(all) => State::Not(format!("{all:?}\n{}", edge.tail())),
        Err(error) => State::Not(error.to_string()),
    })
    .unwrap_or_else(|e| panic!("{e}"));
}

fn cut(hub: &Hub, edge: &Edge) {
    edge.set_link(false).expect("cut");
    hub.kubectl
        .wait(&["node", "robot-1"], START, |n| {
            condition(n, "EdgeConnected").is_some_and(|c| c["status"] == "False" && c["reason"] == "LinkLost")
        })
        .unwrap_or_else(|e| panic!("{e}\n{}", hub.tail()));
}

/// The command line of a pod's container.
fn command_of(edge: &Edge, pod: &str) -> String {
    let all = edge.containers().expect("containers");
    let pid = all.iter().find(|c| c.pod == pod).and_then(|c| c.pid);
    let bytes = pid.and_then(|pid| fs::read(format!("/proc/{pid}/cmdline")).ok());
    String::from_utf8_lossy(&bytes.unwrap_or_default()).replace('\0', " ")
}

const DEPLOYMENT: &str = r"apiVersion: apps/v1
kind: Deployment
metadata: {name: shop}
spec:
  replicas: 1
  selector: {matchLabels: {app: shop}}
  template:
    metadata: {labels: {app: shop}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: main, image: 'kedge.dev/demo:1', command: [sh, -c, 'echo first; exec sleep 100001']}
";

/// By hand and by Deployment: another command, another image.
fn spec_changed_while_away_runs(start: Start) {
    let site = Site::new().expect("a site");
    let hub = start(&site);
    let edge = robot(&site, &hub);
    edge.ctr(&["images", "tag", "kedge.dev/demo:1", "kedge.dev/demo:2"])
        .expect("another tag of the same image");
    hub.kubectl
        .apply(&bound_pod("web", "exec sleep 100001"))
        .expect("apply");
    hub.kubectl.apply(&bound_pod("image", FOREVER)).expect("apply");
    hub.kubectl.apply(DEPLOYMENT).expect("apply");
    let first = ready(&hub, &edge, "web");
    let image = ready(&hub, &edge, "image");
    hub.kubectl
        .run(&["rollout", "status", "deployment/shop", "--timeout=90s"])
        .unwrap_or_else(|e| panic!("{e}\n{}", edge.tail()));

    cut(&hub, &edge);
    let before = running(&edge);
    let change = |args: &[&str]| hub.kubectl.run(args).unwrap_or_else(|e| panic!("{e}\n{}", hub.tail()));
    change(&["delete", "pod", "web", "--force", "--grace-period=0"]);
    hub.kubectl
        .apply(&bound_pod("web", "exec sleep 200002"))
        .expect("the new one has the old one's name");
    change(&["set", "image", "pod/image", "main=kedge.dev/demo:2"]);
    let patch = DEPLOYMENT.replace("100001", "200002");
    hub.kubectl.apply(&patch).expect("apply");
    assert_eq!(running(&edge), before, "nothing reaches the robot yet");

    edge.set_link(true).expect("restore");
    let second = hub
        .kubectl
        .wait(&["pod", "web"], START, |p| {
            is_true(p, "Ready") && p["metadata"]["uid"] != first["metadata"]["uid"]
        })
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", edge.tail(), hub.tail()));
    new_specs_run(&hub, &edge, &second.0, &image);
}

/// What was changed while the robot was away runs there: pod `web` as it is now, pod `image` in place, one pod of the Deployment.
fn new_specs_run(hub: &Hub, edge: &Edge, web: &Value, image: &Value) {
    wait_running(edge, "the new incarnation of web alone runs", |all| {
        let found: Vec<_> = all.iter().filter(|c| c.pod == "web").collect();
        matches!(found[..], [one] if one.pid.is_some() && web["metadata"]["uid"] == one.uid.as_str())
    });
    assert!(
        command_of(edge, "web").contains("200002"),
        "{}",
        command_of(edge, "web")
    );
    hub.kubectl
        .wait(&["pod", "image"], START, |p| {
            let reason = condition(p, "Ready").and_then(|c| c.get("reason"));
            is_true(p, "Ready") && reason.is_none() && p["status"]["containerStatuses"][0]["restartCount"] == 1
        })
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", edge.tail(), hub.tail()));
    // Both tags are one image, and the runtime names it by the first.
    wait_for("the other image is started", START, || {
        match hub.kubectl.run(&["get", "events"]).unwrap_or_else(|e| e.to_string()) {
            events if events.contains("kedge.dev/demo:2") => State::Done(()),
            events => State::Not(events),
        }
    })
    .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(
        hub.kubectl.get(&["pod", "image"]).expect("get").expect("it is there")["metadata"]["uid"],
        image["metadata"]["uid"]
    );
    hub.kubectl
        .run(&["rollout", "status", "deployment/shop", "--timeout=90s"])
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", edge.tail(), hub.tail()));
    wait_running(edge, "one pod of the Deployment is left", |all| {
        let shop: Vec<_> = all.iter().filter(|c| c.pod.starts_with("shop-")).collect();
        matches!(shop[..], [one] if one.pid.is_some())
    });
}

/// Overwrites the middle of each of the store's data files.
type Damage = fn(&Path);

fn corrupt(store: &Path) {
    let mut files = 0;
    for file in files_below(store) {
        let mut bytes = fs::read(&file).expect("read");
        let (from, to) = (bytes.len() / 4, bytes.len() * 3 / 4);
        bytes[from..to].fill(0xa5);
        fs::write(&file, bytes).expect("write");
        files += usize::from(from < to);
    }
    assert!(files > 0, "{} has no data", store.display());
}

/// Cuts each of the store's data files to a third.
fn truncate(store: &Path) {
    for file in files_below(store) {
        let length = fs::metadata(&file).expect("metadata").len();
        let file = fs::File::options().write(true).open(&file).expect("open");
        file.set_len(length / 3).expect("truncate");
    }
}

fn files_below(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let paths: Vec<_> = entries.flatten().map(|e| e.path()).collect();
    let (folders, files): (Vec<_>, Vec<_>) = paths.into_iter().partition(|p| p.is_dir());
    files
        .into_iter()
        .chain(folders.iter().flat_map(|f| files_below(f)))
        .collect()
}

fn damaged_store_is_set_aside_and_pods_run_on(start: Start) {
    let site = Site::new().expect("a site");
    let mut hub = start(&site);
    let mut edge = robot(&site, &hub);
    for pod in ["one", "two"] {
        hub.kubectl.apply(&bound_pod(pod, FOREVER)).expect("apply");
        ready(&hub, &edge, pod);
    }
    let before = running(&edge);
    let damages: [(&str, Damage); 2] = [("store.aside-1", corrupt), ("store.aside-2", truncate)];
    for (number, (aside, damage)) in damages.into_iter().enumerate() {
        edge.stop().expect("stop");
        damage(&edge.store());
        hub.stop().expect("the hub is away too");
        edge.start().expect("edgecore");
        let aside = edge.store().with_file_name(aside);
        wait_for("the damaged store is set aside", START, || {
            if aside.exists() && edge.store().exists() {
                return State::Done(());
            }
            // sled may hang on a damaged page: edgecore then ends, for its supervisor to start it again.
            if !edge.is_running() {
                edge.start().expect("edgecore");
            }
            State::Not(edge.tail())
        })
        .unwrap_or_else(|e| panic!("{e}"));
        let runs_on = |edge: &Edge| assert_eq!(running(edge), before, "{}", edge.tail());
        runs_on(&edge);
        hub.restart().expect("the hub is back");
        let late = format!("late-{number}");
        hub.kubectl.apply(&bound_pod(&late, FOREVER)).expect("apply");
        ready(&hub, &edge, &late);
        for pod in ["one", "two"] {
            let pod = ready(&hub, &edge, pod);
            assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "{pod}");
        }
        hub.kubectl.run(&["delete", "pod", &late]).expect("delete");
        runs_on(&edge);
        let node = hub
            .kubectl
            .get(&["node", "robot-1"])
            .expect("get")
            .expect("it is there");
        assert!(!is_true(&node, "DesiredStateSuspect"), "{node}");
    }
    hub.kubectl.run(&["delete", "pod", "two"]).expect("delete");
    wait_running(&edge, "a pod of before can be deleted", |all| {
        all.iter().all(|c| c.pod != "two")
    });
}

fn export(hub: &Hub, site: &Site) -> String {
    let file = site.dir().join("cas.yaml").display().to_string();
    run(&mut hub.kedge(&["ca", "export", "--out", &file])).expect("export");
    file
}

/// Puts the hub's database away under `name`; the hub is stopped.
fn put_away(hub: &Hub, name: &str) {
    fs::rename(hub.dir().join("data"), hub.dir().join(name)).expect("rename");
}

fn is_suspect(hub: &Hub, edge: &Edge) -> String {
    let (node, _) = hub
        .kubectl
        .wait(&["node", "robot-1"], START, |n| is_true(n, "DesiredStateSuspect"))
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", edge.tail(), hub.tail()));
    let condition = condition(&node, "DesiredStateSuspect").expect("it is there");
    condition["message"].as_str().unwrap_or_default().to_owned()
}

fn adopt(hub: &Hub, edge: &Edge, args: &[&str]) -> String {
    let mut all = vec!["adopt", "robot-1"];
    all.extend(args);
    run(&mut hub.kedge(&all)).unwrap_or_else(|e| panic!("{e}\n{}\n{}", edge.tail(), hub.tail()))
}

/// What `kedge adopt` says without --yes.
fn would_stop(hub: &Hub, edge: &Edge, pods: &[&str]) {
    let shown = adopt(hub, edge, &[]);
    let stops: Vec<&str> = shown.lines().filter(|l| l.starts_with("  ")).map(str::trim).collect();
    let named: Vec<&str> = stops.iter().map(|l| l.split(' ').next().unwrap_or_default()).collect();
    assert_eq!(named, pods, "{shown}");
}

fn not_suspect(hub: &Hub, edge: &Edge) {
    hub.kubectl
        .wait(&["node", "robot-1"], START, |n| !is_true(n, "DesiredStateSuspect"))
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", edge.tail(), hub.tail()));
}

/// Another database: first with other CAs, then with these CAs and nothing in it.
#[test]
fn empty_hub_stops_nothing_until_it_is_adopted() {
    let site = Site::new().expect("a site");
    let mut hub = embedded(&site);
    let edge = robot(&site, &hub);
    for pod in ["one", "two"] {
        hub.kubectl.apply(&bound_pod(pod, FOREVER)).expect("apply");
        ready(&hub, &edge, pod);
    }
    let before = running(&edge);
    let cas = export(&hub, &site);
    hub.stop().expect("stop");
    put_away(&hub, "first");
    hub.restart().expect("a hub that nobody knows");
    let said = edge.log().len();
    wait_for("edgecore refuses the strange hub", START, || {
        let log = edge.log();
        let new = &log[said.min(log.len())..];
        if new.contains("certificate") {
            State::Done(())
        } else {
            State::Not(new.to_owned())
        }
    })
    .unwrap_or_else(|e| panic!("{e}\n{}", hub.tail()));
    assert_eq!(running(&edge), before);
    assert!(hub.kubectl.get(&["node", "robot-1"]).expect("get").is_none());

    run(&mut hub.kedge(&["ca", "import", &cas, "--force"])).expect("import");
    hub.restart().expect("the same hub with the CAs that the robot knows");
    let message = is_suspect(&hub, &edge);
    assert!(message.contains("another one"), "{message}");
    would_stop(&hub, &edge, &["default/one", "default/two"]);
    assert_eq!(running(&edge), before);
    let said = adopt(&hub, &edge, &["--yes"]);
    assert!(said.contains("took this API as the truth"), "{said}");
    wait_running(&edge, "what the new API does not have has stopped", |all| {
        all.is_empty()
    });
    not_suspect(&hub, &edge);
    hub.kubectl.apply(&bound_pod("three", FOREVER)).expect("apply");
    ready(&hub, &edge, "three");
}

/// A new database into which somebody applied some of the manifests again: same names, other uids.
#[test]
fn half_filled_hub_stops_nothing_until_it_is_adopted() {
    let site = Site::new().expect("a site");
    let mut hub = embedded(&site);
    let edge = robot(&site, &hub);
    for pod in ["one", "two"] {
        hub.kubectl.apply(&bound_pod(pod, FOREVER)).expect("apply");
        ready(&hub, &edge, pod);
    }
    let before = running(&edge);
    let cas = export(&hub, &site);
    hub.stop().expect("stop");
    put_away(&hub, "first");
    hub.restart().expect("a new hub");
    run(&mut hub.kedge(&["ca", "import", &cas, "--force"])).expect("import");
    hub.kubectl
        .wait(&["serviceaccount", "default"], START, |_| true)
        .expect("the default ServiceAccount");
    hub.kubectl.apply(&bound_pod("two", FOREVER)).expect("apply");
    hub.restart().expect("restart with the imported CAs");
    is_suspect(&hub, &edge);
    would_stop(&hub, &edge, &["default/one", "default/two"]);
    assert_eq!(running(&edge), before);
    adopt(&hub, &edge, &["--yes"]);
    let two = ready(&hub, &edge, "two");
    wait_running(
        &edge,
        "the new two alone runs",
        |all| matches!(all, [one] if one.pod == "two" && one.pid.is_some() && two["metadata"]["uid"] == one.uid.as_str()),
    );
    not_suspect(&hub, &edge);
}

/// The same database as it was before the last pods were made.
#[test]
fn older_backup_stops_nothing_until_it_is_adopted() {
    let site = Site::new().expect("a site");
    let mut hub = embedded(&site);
    let edge = robot(&site, &hub);
    hub.kubectl.apply(&bound_pod("one", FOREVER)).expect("apply");
    ready(&hub, &edge, "one");
    hub.stop().expect("stop");
    let (data, backup) = (hub.dir().join("data"), hub.dir().join("backup"));
    run(std::process::Command::new("cp").arg("-a").arg(&data).arg(&backup)).expect("copy");
    hub.restart().expect("go on");
    // A day's work: more than a hub writes when it starts.
    let many: String = (0..200)
        .map(|n| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: work-{n}}}\n---\n"))
        .collect();
    hub.kubectl.run_with(&["create", "-f", "-"], &many).expect("create");
    hub.kubectl.apply(&bound_pod("two", FOREVER)).expect("apply");
    ready(&hub, &edge, "two");
    let before = running(&edge);
    hub.kill();
    put_away(&hub, "later");
    run(std::process::Command::new("cp").arg("-a").arg(&backup).arg(&data)).expect("restore");
    hub.restart().expect("the older state");
    let message = is_suspect(&hub, &edge);
    assert!(message.contains("older"), "{message}");
    would_stop(&hub, &edge, &["default/two"]);
    assert_eq!(running(&edge), before);
    // Not even later, when the restored API has counted beyond what the robot saw.
    hub.kubectl
        .run_with(&["create", "-f", "-"], &many.replace("work-", "more-"))
        .expect("create");
    hub.restart().expect("a restart changes nothing");
    is_suspect(&hub, &edge);
    assert_eq!(running(&edge), before);
    adopt(&hub, &edge, &["--yes"]);
    wait_running(
        &edge,
        "two has stopped, one goes on",
        |all| matches!(all, [one] if one.pod == "one" && one.pid.is_some() && before["one"] == one.id),
    );
    not_suspect(&hub, &edge);
}

/// So many writes, each a ConfigMap.
fn write_many(hub: &Hub, name: &str) {
    let many: String = (0..200)
        .map(|n| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}-{n}}}\n---\n"))
        .collect();
    hub.kubectl.run_with(&["create", "-f", "-"], &many).expect("create");
}

fn resource_version(object: &Value) -> u64 {
    let text = object["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    text.parse().unwrap_or_else(|e| panic!("{text:?}: {e}"))
}

/// The robot meets the restored database only when that has counted past all that the robot saw.
#[test]
fn older_backup_that_has_counted_past_the_robot_stops_nothing_until_it_is_adopted() {
    let site = Site::new().expect("a site");
    let mut hub = embedded(&site);
    let edge = robot(&site, &hub);
    hub.kubectl.apply(&bound_pod("one", FOREVER)).expect("apply");
    ready(&hub, &edge, "one");
    hub.stop().expect("stop");
    let (data, backup) = (hub.dir().join("data"), hub.dir().join("backup"));
    run(std::process::Command::new("cp").arg("-a").arg(&data).arg(&backup)).expect("copy");
    hub.restart().expect("go on");
    hub.kubectl.apply(&bound_pod("two", FOREVER)).expect("apply");
    let seen = resource_version(&ready(&hub, &edge, "two"));
    let before = running(&edge);
    edge.set_link(false).expect("cut");
    hub.kill();
    put_away(&hub, "later");
    run(std::process::Command::new("cp").arg("-a").arg(&backup).arg(&data)).expect("restore");
    hub.restart().expect("the older state");
    write_many(&hub, "work");
    hub.restart().expect("restarts make it no younger");
    write_many(&hub, "more");
    let (last, _) = hub
        .kubectl
        .wait(&["configmap", "more-0"], START, |_| true)
        .expect("it is there");
    assert!(resource_version(&last) > seen + 100, "{last}: the robot saw {seen}");
    edge.set_link(true).expect("restore the link");
    let message = is_suspect(&hub, &edge);
    assert!(message.contains("restored from a backup"), "{message}");
    would_stop(&hub, &edge, &["default/two"]);
    assert_eq!(running(&edge), before);
    adopt(&hub, &edge, &["--yes"]);
    wait_running(
        &edge,
        "two has stopped, one goes on",
        |all| matches!(all, [one] if one.pod == "one" && one.pid.is_some() && before["one"] == one.id),
    );
    not_suspect(&hub, &edge);
    hub.restart().expect("what was adopted stays so");
    hub.kubectl.run(&["delete", "pod", "one"]).expect("delete");
    wait_running(&edge, "its deletions are believed", |all| all.is_empty());
    not_suspect(&hub, &edge);
}

/// The twin of the above: the same restarts and writes, and nothing restored.
#[test]
fn restarts_of_a_hub_that_lost_nothing_are_believed() {
    let site = Site::new().expect("a site");
    let mut hub = embedded(&site);
    let edge = robot(&site, &hub);
    for pod in ["one", "two"] {
        hub.kubectl.apply(&bound_pod(pod, FOREVER)).expect("apply");
        ready(&hub, &edge, pod);
    }
    let before = running(&edge);
    edge.set_link(false).expect("cut");
    hub.kill();
    hub.restart().expect("after a crash");
    write_many(&hub, "work");
    hub.restart().expect("once more");
    write_many(&hub, "more");
    hub.kubectl
        .run(&["delete", "pod", "two", "--wait=false"])
        .expect("delete");
    edge.set_link(true).expect("restore the link");
    wait_running(
        &edge,
        "two has stopped, one goes on",
        |all| matches!(all, [one] if one.pod == "one" && one.pid.is_some() && before["one"] == one.id),
    );
    not_suspect(&hub, &edge);
    let node = hub
        .kubectl
        .get(&["node", "robot-1"])
        .expect("get")
        .expect("it is there");
    assert!(
        condition(&node, "DesiredStateSuspect").is_none(),
        "it never was: {node}"
    );
}

/// `:latest` means Always: the registry is asked at each start, and may be out of reach.
#[test]
fn latest_starts_with_the_registry_out_of_reach() {
    let site = Site::new().expect("a site");
    let mut hub = kubernetes(&site);
    let mut edge = robot(&site, &hub);
    let served = registry::Registry::start(&edge).expect("a registry");
    let image = served.push(&edge, "kedge.dev/demo:1", "demo:latest").expect("push");
    let secret = registry::pull_secret("registry", registry::PASSWORD).to_string();
    hub.kubectl.apply(&secret).expect("apply");
    let pod = bound_pod("web", FOREVER).replace("kedge.dev/demo:1", &image);
    let pod = pod.replace("spec:\n", "spec:\n  imagePullSecrets: [{name: registry}]\n");
    hub.kubectl.apply(&pod).expect("apply");
    let pod = ready(&hub, &edge, "web");
    assert_eq!(pod["spec"]["containers"][0]["imagePullPolicy"], "Always");
    let first = edge.wait_container("web", START).expect("it runs");

    hub.kill();
    drop(served);
    edge.reset().expect("reset; the registry went with the machine");
    edge.start().expect("edgecore");
    let second = edge.wait_container("web", START).expect("runs after the reset");
    assert_ne!(second.id, first.id);
    edge.kill();
    edge.start().expect("edgecore");
    kill_container(second.pid.expect("running"));
    wait_running(&edge, "it is restarted after a restart of edgecore", |all| {
        all.iter().any(|c| c.pid.is_some() && c.id != second.id)
    });
}

fn kill_container(pid: u32) {
    let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("the container's process is there");
}

/// How many resets; the first ones make what stays.
const RESETS: usize = 20;

#[test]
fn resets_leak_nothing_and_damaged_cni_results_keep_no_pod_from_starting() {
    let site = Site::new().expect("a site");
    let mut hub = kubernetes(&site);
    let mut edge = robot(&site, &hub);
    hub.kubectl.apply(&yaml::furnished_pod("web")).expect("apply");
    ready(&hub, &edge, "web");
    hub.kill();
    let mut expected = BTreeMap::new();
    for reset in 1..=RESETS {
        edge.power_off();
        // What a power cut leaves of a file: nothing, or half of it.
        if reset % 5 == 0 {
            edge.damage_cni_result(reset % 2 != 0)
                .expect("a sandbox has a CNI result");
        }
        edge.boot().expect("boot");
        edge.start().expect("edgecore");
        edge.wait_container("web", START)
            .unwrap_or_else(|e| panic!("reset {reset}: {e}"));
        if reset == 2 {
            expected = edge.settled_resources(START).expect("resources");
        }
    }
    edge.wait_resources(&expected, START)
        .unwrap_or_else(|e| panic!("after the second reset: {e}\n{}", edge.tail()));
}
