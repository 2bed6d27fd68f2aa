//! Suite `kubelet`: the real kubelet on one machine, edgecore on another, the same pods on both, below one unmodified kube-apiserver. What the
//! API and the two kubelet APIs say must agree, after removing times, ids, addresses and names of the two; each other difference is a row
//! of [`DIFFERENCES`] with its reason.

mod differences;
mod ends;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use kit::hub::Above;
use kit::kubectl::is_true;
use kit::kubelet::Kubelet;
use kit::plane::ControlPlane;
use kit::suite::{kubernetes, robot};
use kit::wait::State;
use kit::{Edge, Hub, Site, wait_for};
use serde_json::{Value, json};

use differences::DIFFERENCES;

/// Two nodes on one busy machine.
const START: Duration = Duration::from_secs(150);
/// What is told late: events, and a state between two of kubelet's looks. A pod that crashes again and again is waiting in kubelet's words only
/// after a look that may be a minute and a half away.
const AGREE: Duration = Duration::from_secs(240);
/// How long a pod may take before it is changed, so that it is looked at.
const NUDGE: Duration = Duration::from_secs(8);
/// The namespaces of the pods on edgecore and on kubelet.
const SIDES: [(&str, &str); 2] = [("ours", "robot-1"), ("theirs", "reference")];

/// When a pod has come to rest.
#[derive(Debug, Clone, Copy)]
enum Rest {
    Phase(&'static str),
    Waits(&'static str),
    Runs,
    Ready,
    /// Deleted, and told for the last time.
    Ended,
}

impl Rest {
    fn reached(self, pod: &Value) -> bool {
        let state = &pod["status"]["containerStatuses"][0]["state"];
        match self {
            Self::Phase(phase) => pod["status"]["phase"] == phase,
            Self::Waits(reason) => state["waiting"]["reason"] == reason,
            Self::Runs => state["running"].is_object() && pod["status"]["containerStatuses"][0]["started"] == true,
            Self::Ready => is_true(pod, "Ready"),
            Self::Ended => pod["metadata"]["deletionGracePeriodSeconds"] == 0 && state["terminated"].is_object(),
        }
    }
}

/// One pod: its name, its spec without node, grace period and images, and when it has come to rest.
struct Case(&'static str, &'static str, Rest);

const CASES: &[Case] = &[
    Case(
        "completes",
        "restartPolicy: Never, containers: [{name: main, command: [sh, -c, exit 0]}]",
        Rest::Phase("Succeeded"),
    ),
    Case(
        "fails",
        "restartPolicy: Never, containers: [{name: main, command: [sh, -c, echo gone wrong; exit 3], terminationMessagePolicy: FallbackToLogsOnError}]",
        Rest::Phase("Failed"),
    ),
    Case(
        "on-failure",
        "restartPolicy: OnFailure, containers: [{name: main, command: [sh, -c, exit 0]}]",
        Rest::Phase("Succeeded"),
    ),
    Case(
        "crashes",
        "containers: [{name: main, command: [sh, -c, exit 1]}]",
        Rest::Waits("CrashLoopBackOff"),
    ),
    Case(
        "fails-again",
        "restartPolicy: OnFailure, containers: [{name: main, command: [sh, -c, exit 2]}]",
        Rest::Waits("CrashLoopBackOff"),
    ),
    Case(
        "runs",
        "containers: [{name: main, command: [sleep, '100000'], resources: {limits: {cpu: 100m, memory: 32Mi}}}]",
        Rest::Ready,
    ),
    Case(
        "says",
        "restartPolicy: Never, containers: [{name: main, command: [sh, -c, 'echo \"$SECOND/$NAME/$LIMIT/$CORES\" > /dev/termination-log; exit 3'], \
         resources: {requests: {cpu: 50m}, limits: {memory: 32Mi}}, env: [{name: FIRST, value: one}, \
         {name: SECOND, value: $(FIRST) two $(NONE) $$(FIRST)}, {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}, \
         {name: LIMIT, valueFrom: {resourceFieldRef: {resource: limits.memory}}}, \
         {name: CORES, valueFrom: {resourceFieldRef: {resource: requests.cpu, divisor: 1m}}}]}]",
        Rest::Phase("Failed"),
    ),
    Case(
        "init",
        "restartPolicy: Never, initContainers: [{name: first, command: [sh, -c, exit 0]}], containers: [{name: main, command: [sh, -c, exit 0]}]",
        Rest::Phase("Succeeded"),
    ),
    Case(
        "init-fails",
        "restartPolicy: Never, initContainers: [{name: first, command: [sh, -c, exit 5]}], containers: [{name: main, command: [sh, -c, exit 0]}]",
        Rest::Phase("Failed"),
    ),
    Case(
        "unready",
        "containers: [{name: main, command: [sleep, '100000'], readinessProbe: {exec: {command: [sh, -c, exit 1]}, periodSeconds: 1}}]",
        Rest::Runs,
    ),
    Case(
        "unlive",
        "containers: [{name: main, command: [sleep, '100000'], livenessProbe: {exec: {command: [sh, -c, exit 1]}, periodSeconds: 1, failureThreshold: 2}}]",
        Rest::Waits("CrashLoopBackOff"),
    ),
    Case(
        "image",
        "containers: [{name: main, image: '127.0.0.1:1/nothing:1'}]",
        Rest::Waits("ImagePullBackOff"),
    ),
    Case(
        "never",
        "containers: [{name: main, image: '127.0.0.1:1/nothing:1', imagePullPolicy: Never}]",
        Rest::Waits("ErrImageNeverPull"),
    ),
    Case(
        "command",
        "restartPolicy: Never, containers: [{name: main, command: [/no/such/program]}]",
        Rest::Phase("Failed"),
    ),
    Case(
        "config",
        "containers: [{name: main, command: [sleep, '100000'], envFrom: [{configMapRef: {name: none}}]}]",
        Rest::Waits("CreateContainerConfigError"),
    ),
    Case(
        "post-start",
        "containers: [{name: main, command: [sleep, '100000'], lifecycle: {postStart: {exec: {command: [sh, -c, echo no; exit 3]}}}}]",
        Rest::Waits("CrashLoopBackOff"),
    ),
    Case(
        "hook",
        "containers: [{name: main, command: [sleep, '100000'], lifecycle: {preStop: {exec: {command: [sleep, '1']}}}}]",
        Rest::Ready,
    ),
];

/// The whole pod.
fn manifest(Case(name, spec, _): &Case, namespace: &str, node: &str) -> Value {
    let mut spec: Value = serde_yaml_ng::from_str(&format!("{{{spec}}}")).unwrap_or_else(|e| panic!("{name}: {e}"));
    spec["nodeName"] = node.into();
    spec["terminationGracePeriodSeconds"] = 2.into();
    for list in ["initContainers", "containers"] {
        for container in spec[list].as_array_mut().into_iter().flatten() {
            if container["image"].is_null() {
                container["image"] = "kedge.dev/demo:1".into();
            }
        }
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

/// Both machines with what asks them.
struct Pair<'a> {
    site: &'a Site,
    hub: &'a Hub<'a>,
    plane: &'a ControlPlane,
    tail: Box<dyn Fn() -> String + 'a>,
    found: Vec<String>,
    used: BTreeSet<usize>,
}

#[test]
fn edgecore_says_what_kubelet_says() {
    let site = Site::new().expect("a site");
    let hub = kubernetes(&site);
    let Above::Kubernetes(plane, _) = &hub.above else {
        panic!("a hub above a real control plane")
    };
    let edge = robot(&site, &hub);
    let machine = Edge::new(&site, 2, "reference").expect("a machine");
    let kubelet = Kubelet::start(&machine, plane).expect("kubelet");
    hub.kubectl
        .wait(&["node", "reference"], START, |n| is_true(n, "Ready"))
        .unwrap_or_else(|e| panic!("{e}\n{}", kubelet.tail()));
    let mut pair = Pair {
        site: &site,
        hub: &hub,
        plane,
        tail: Box::new(|| format!("{}\n{}", edge.tail(), kubelet.tail())),
        found: Vec::new(),
        used: BTreeSet::new(),
    };
    pair.make();
    for case in CASES {
        pair.compare_pod(case);
    }
    pair.compare_nodes();
    pair.compare_apis(&kubelet);
    for Case(name, ..) in CASES {
        pair.compare_events(name);
    }
    ends::compare(&mut pair);
    // Which figures there are hangs on the kernel.
    let unused = (0..DIFFERENCES.len()).filter(|n| !pair.used.contains(n) && DIFFERENCES[*n].0 != "/stats/summary");
    let unused: Vec<_> = unused.map(|n| DIFFERENCES[n]).collect();
    assert!(pair.found.is_empty(), "{}", pair.found.join("\n"));
    assert!(unused.is_empty(), "these no longer differ: {unused:?}");
}

impl Pair<'_> {
    fn make(&self) {
        for (namespace, node) in SIDES {
            let kubectl = &self.hub.kubectl;
            kubectl.run(&["create", "namespace", namespace]).expect("a namespace");
            let account = ["serviceaccount", "default", "-n", namespace];
            kubectl
                .wait(&account, START, |_| true)
                .expect("the default ServiceAccount");
            for case in CASES {
                let pod = manifest(case, namespace, node).to_string();
                kubectl.apply(&pod).expect("apply");
            }
        }
    }

    /// Compares two flat documents until they agree but for the rows, and notes what still differs after a while.
    fn compare(&mut self, whose: &str, read: impl Fn(&Self) -> [Flat; 2]) {
        let agreed = wait_for(whose, AGREE, || {
            let [ours, theirs] = read(self);
            agree(whose, &ours, &theirs)
        });
        self.note(whose, agreed);
    }

    /// The same for what goes on changing, from `first` on: one has said what the other has said.
    fn compare_over_time(&mut self, whose: &str, first: [Flat; 2], read: impl Fn(&Self) -> [Flat; 2]) {
        let mut said = first.map(|first| vec![first]);
        let agreed = wait_for(whose, AGREE, || {
            let pairs = said[0]
                .iter()
                .flat_map(|ours| said[1].iter().map(move |theirs| (ours, theirs)));
            let mut judged = pairs.map(|(ours, theirs)| agree(whose, ours, theirs));
            if let Some(done) = judged.find(|state| matches!(state, State::Done(_))) {
                return done;
            }
            let now = read(self);
            let judged = agree(whose, &now[0], &now[1]);
            for (said, now) in said.iter_mut().zip(now) {
                if !said.contains(&now) {
                    said.push(now);
                }
            }
            judged
        });
        self.note(whose, agreed);
    }

    fn note<E: std::fmt::Display>(&mut self, whose: &str, agreed: Result<(BTreeSet<usize>, Duration), E>) {
        match agreed {
            Ok((used, took)) => {
                println!("{whose}: {took:?}");
                self.used.extend(used);
            }
            Err(error) => self.found.push(error.to_string()),
        }
    }

    /// The pod when it has come to rest. Of a container that waits, kubelet tells only with its next look at the pod, which may be a minute and a
    /// half away, and by then it has been started again; so the pod is changed now and then, which makes both look.
    fn at_rest(&self, (namespace, name): (&str, &str), rest: Rest) -> Value {
        let (pod, since) = (["pod", name, "-n", namespace], Instant::now());
        for nudge in 0.. {
            match self.hub.kubectl.wait(&pod, NUDGE, |p| rest.reached(p)) {
                Ok((pod, _)) => return pod,
                Err(error) if since.elapsed() > START => panic!("{namespace}/{name}: {error}\n{}", (self.tail)()),
                Err(_) => {}
            }
            let mark = format!("nudged={nudge}");
            let nudged = self
                .hub
                .kubectl
                .run(&["annotate", "--overwrite", "pod", name, "-n", namespace, &mark]);
            nudged.unwrap_or_else(|e| panic!("{namespace}/{name}: {e}"));
        }
        unreachable!("the loop ends with the pod or with START")
    }

    fn compare_pod(&mut self, Case(name, _, rest): &Case) {
        let at_rest = SIDES.map(|(namespace, _)| {
            let pod = self.at_rest((namespace, name), *rest);
            flat(&pod["status"], &pod)
        });
        self.compare_over_time(name, at_rest, |pair| {
            SIDES.map(|(namespace, _)| {
                let pod = pair.hub.kubectl.get(&["pod", name, "-n", namespace]);
                let pod = pod.expect("get").expect("it is there");
                flat(&pod["status"], &pod)
            })
        });
    }

    fn compare_nodes(&mut self) {
        self.compare("node", |pair| {
            SIDES.map(|(_, name)| {
                let node = pair
                    .hub
                    .kubectl
                    .get(&["node", name])
                    .expect("get")
                    .expect("it is there");
                flat(&node, &node)
            })
        });
    }

    /// Type, reason and message of the pod's events.
    fn compare_events(&mut self, name: &str) {
        let line = |e: &Value| {
            let text = |field: &str| e[field].as_str().unwrap_or_default().to_owned();
            let message = words(&text("message"), &e["involvedObject"]["uid"]);
            (
                format!("{} {}: {message}", text("type"), text("reason")),
                "told".to_owned(),
            )
        };
        self.compare("events", |pair| {
            SIDES.map(|(namespace, _)| {
                let selector = format!("involvedObject.name={name}");
                let events = ["events", "-n", namespace, "--field-selector", &selector];
                let list = pair.hub.kubectl.get(&events).expect("get").unwrap_or_default();
                list["items"].as_array().into_iter().flatten().map(line).collect()
            })
        });
    }

    /// One page of a kubelet API.
    fn page(&self, address: &str, path: &str) -> String {
        let at = |name: &str| self.plane.dir().join(name).display().to_string();
        let (page, _) = wait_for(&format!("{address}{path}"), START, || {
            let mut curl = self.site.command("hub", Path::new("curl"));
            curl.args(["-sf", "--max-time", "10", "--cacert", &at("kubelet-ca.crt")]);
            curl.args(["--cert", &at("kubelet-client.crt"), "--key", &at("kubelet-client.key")]);
            match curl.arg(format!("https://{address}{path}")).output() {
                Ok(output) if output.status.success() => {
                    State::Done(String::from_utf8_lossy(&output.stdout).into_owned())
                }
                other => State::Not(format!("{other:?}")),
            }
        })
        .unwrap_or_else(|e| panic!("{e}\n{}", (self.tail)()));
        page
    }

    fn compare_apis(&mut self, kubelet: &Kubelet) {
        let node = self
            .hub
            .kubectl
            .get(&["node", "robot-1"])
            .expect("get")
            .expect("it is there");
        let port = &node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"];
        let ours = format!(
            "{}:{port}",
            node["status"]["addresses"][0]["address"].as_str().expect("an address")
        );
        let addresses = [ours, kubelet.address.clone()];
        let parsed = |text: String| serde_json::from_str::<Value>(&text).expect("JSON");
        let named = |list: &Value, pointer: &str| {
            let all = list.as_array().cloned().unwrap_or_default();
            let found = all
                .into_iter()
                .find(|p| p.pointer(pointer).is_some_and(|name| name == "runs"));
            found.unwrap_or_default()
        };
        let pages = |pair: &Self, path: &str| addresses.each_ref().map(|address| pair.page(address, path));
        self.compare("/metrics/resource", |pair| {
            pages(pair, "/metrics/resource").map(|page| metric_names(&page))
        });
        self.compare("/stats/summary", |pair| {
            pages(pair, "/stats/summary").map(parsed).map(|page| {
                let pod = named(&page["pods"], "/podRef/name");
                shape(&json!({"node": page["node"], "pod": pod}))
            })
        });
        self.compare("/pods", |pair| {
            pages(pair, "/pods")
                .map(parsed)
                .map(|page| shape(&named(&page["items"], "/metadata/name")))
        });
        self.compare("/configz", |pair| {
            pages(pair, "/configz").map(parsed).map(|page| {
                let keys = page.as_object().into_iter().flatten();
                keys.map(|(key, _)| (key.clone(), "there".to_owned())).collect()
            })
        });
    }
}

/// A document as paths and values.
type Flat = BTreeMap<String, String>;

/// The rows that explain what differs, and what differs without a row.
fn agree(whose: &str, ours: &Flat, theirs: &Flat) -> State<BTreeSet<usize>> {
    let (mut used, mut found) = (BTreeSet::new(), Vec::new());
    let paths: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    for path in paths.into_iter().filter(|path| ours.get(*path) != theirs.get(*path)) {
        let fits = |(who, pattern, _): &(&str, &str, &str)| {
            let (start, end) = pattern.split_once('*').unwrap_or((pattern, ""));
            (*who == whose || *who == "*") && path.starts_with(start) && path.ends_with(end)
        };
        match DIFFERENCES.iter().position(fits) {
            Some(row) => _ = used.insert(row),
            None => found.push(format!(
                "{whose} {path}: ours {:?}, kubelet's {:?}",
                ours.get(path).map_or("-", String::as_str),
                theirs.get(path).map_or("-", String::as_str)
            )),
        }
    }
    if found.is_empty() {
        State::Done(used)
    } else {
        State::Not(found.join("\n"))
    }
}

/// Names with their kinds, from the TYPE lines.
fn metric_names(page: &str) -> Flat {
    let types = page.lines().filter_map(|l| l.strip_prefix("# TYPE "));
    types
        .filter_map(|l| l.split_once(' '))
        .map(|(name, kind)| (name.to_owned(), kind.to_owned()))
        .collect()
}

/// Which fields are there, whatever they hold.
fn shape(document: &Value) -> Flat {
    flat(document, document)
        .into_keys()
        .map(|path| (path, "there".to_owned()))
        .collect()
}

/// A message without what differs from run to run.
fn words(message: &str, uid: &Value) -> String {
    let mut text = message.to_owned();
    if let Some(uid) = uid.as_str().filter(|uid| !uid.is_empty()) {
        text = text.replace(uid, "UID");
    }
    let text = text.replace("_ours", "_NS").replace("_theirs", "_NS");
    // How often a pod has crashed when it is looked at: every delay up to kubelet's longest.
    let delays = ["10s", "20s", "40s", "1m20s", "2m40s", "5m0s"].map(|delay| format!("back-off {delay} "));
    let text = delays
        .iter()
        .fold(text, |text, delay| text.replace(delay.as_str(), "back-off TIME "));
    let pulled = text
        .split_once(" in ")
        .filter(|_| text.starts_with("Successfully pulled"));
    pulled.map_or(text.clone(), |(before, _)| before.to_owned())
}

/// A name; the token volume's without the five letters that are drawn for each pod.
fn token_volume(name: &str) -> String {
    name.get(..15)
        .filter(|start| *start == "kube-api-access")
        .unwrap_or(name)
        .to_owned()
}

/// A document as paths and values: items of lists by their name or type, times, ids and addresses by those words.
fn flat(document: &Value, object: &Value) -> Flat {
    let mut all = BTreeMap::new();
    walk(document, "", &object["metadata"]["uid"], &mut all);
    all
}

fn walk(value: &Value, path: &str, uid: &Value, all: &mut Flat) {
    let field = path.rsplit('.').next().unwrap_or_default();
    match value {
        Value::Object(map) if map.is_empty() => _ = all.insert(path.to_owned(), "{}".to_owned()),
        Value::Object(map) => {
            for (key, value) in map.iter().filter(|(key, _)| *key != "managedFields") {
                let separator = if path.is_empty() { "" } else { "." };
                walk(value, &format!("{path}{separator}{key}"), uid, all);
            }
        }
        Value::Array(list) => {
            for (number, item) in list.iter().enumerate() {
                let named = item["name"].as_str().or(item["type"].as_str()).map(token_volume);
                walk(
                    item,
                    &format!("{path}[{}]", named.unwrap_or_else(|| number.to_string())),
                    uid,
                    all,
                );
            }
        }
        Value::String(text) => {
            let shown = match field {
                _ if field.ends_with("Time") || field.ends_with("At") || field.ends_with("Timestamp") => {
                    "TIME".to_owned()
                }
                "containerID" | "uid" | "resourceVersion" => "ID".to_owned(),
                "ip" | "podIP" | "hostIP" => "IP".to_owned(),
                _ => words(text, uid),
            };
            all.insert(path.to_owned(), shown);
        }
        Value::Number(times) if field == "restartCount" => {
            let again = if times.as_u64() == Some(0) { "never" } else { "again" };
            all.insert(path.to_owned(), again.to_owned());
        }
        other => _ = all.insert(path.to_owned(), other.to_string()),
    }
}

#[test]
fn what_differs_without_a_row_is_found() {
    let document = |status: &str, generation: u64| {
        let document = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": status, "observedGeneration": generation}]});
        flat(&document, &document)
    };
    let judged = |ours: Flat, theirs: Flat| match agree("any", &ours, &theirs) {
        State::Done(used) => Ok(used.len()),
        State::Not(found) => Err(found),
    };
    assert_eq!(judged(document("True", 2), document("True", 1)), Ok(1));
    assert_eq!(
        judged(document("True", 1), document("False", 1)),
        Err("any conditions[Ready].status: ours \"True\", kubelet's \"False\"".to_owned())
    );
    let missing = judged(document("True", 1), Flat::new()).expect_err("kubelet says nothing");
    assert!(
        missing.contains("phase: ours \"Running\", kubelet's \"-\""),
        "{missing}"
    );
}
