//! How pods end: preStop, postStart and grace periods on both machines. A finalizer keeps each Pod after its end, so that what was said
//! last can be read; when its container ended is compared in seconds.

use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use super::{Case, Pair, Rest, SIDES, START, manifest};

/// Both count in whole seconds and are looked at by one busy machine.
const BESIDE: i64 = 2;
const FINALIZER: &str = "kedge.dev/read-last";

/// A pod that runs until it is deleted, and its grace period in seconds.
struct End(Case, u64);

const ENDS: &[End] = &[
    // The signal is heeded.
    End(
        Case(
            "ends-heeding",
            "containers: [{name: main, command: [sh, -c, 'trap \"exit 7\" TERM; while :; do sleep 0.1; done']}]",
            Rest::Runs,
        ),
        30,
    ),
    // It is not: the kill comes after the grace period.
    End(
        Case(
            "ends-deaf",
            "containers: [{name: main, command: [sh, -c, 'trap \"\" TERM; while :; do sleep 0.1; done']}]",
            Rest::Runs,
        ),
        3,
    ),
    // The signal comes after the hook.
    End(
        Case(
            "ends-hooked",
            "containers: [{name: main, command: [sh, -c, 'trap \"exit 0\" TERM; while :; do sleep 0.1; done'], \
             lifecycle: {preStop: {exec: {command: [sleep, '3']}}}}]",
            Rest::Runs,
        ),
        20,
    ),
    // A hook that fails delays nothing.
    End(
        Case(
            "ends-hook-fails",
            "containers: [{name: main, command: [sh, -c, 'trap \"exit 0\" TERM; while :; do sleep 0.1; done'], \
             lifecycle: {preStop: {exec: {command: [sh, -c, exit 4]}}}}]",
            Rest::Runs,
        ),
        20,
    ),
    // One that hangs has the grace period, and the container a little after it.
    End(
        Case(
            "ends-hook-hangs",
            "containers: [{name: main, command: [sh, -c, 'trap \"\" TERM; while :; do sleep 0.1; done'], \
             lifecycle: {preStop: {exec: {command: [sleep, '1000']}}}}]",
            Rest::Runs,
        ),
        4,
    ),
    End(
        Case(
            "ends-hook-sleeps",
            "containers: [{name: main, command: [sh, -c, 'trap \"exit 0\" TERM; while :; do sleep 0.1; done'], \
             lifecycle: {preStop: {sleep: {seconds: 2}}}}]",
            Rest::Runs,
        ),
        20,
    ),
];

/// Makes the pods, deletes them all at once, and compares what is said of their ends.
pub(crate) fn compare(pair: &mut Pair<'_>) {
    for (namespace, node) in SIDES {
        for End(case, grace) in ENDS {
            let mut pod = manifest(case, namespace, node);
            pod["spec"]["terminationGracePeriodSeconds"] = (*grace).into();
            pod["metadata"]["finalizers"] = json!([FINALIZER]);
            pair.hub.kubectl.apply(&pod.to_string()).expect("apply");
        }
    }
    for (namespace, _) in SIDES {
        for End(Case(name, _, rest), _) in ENDS {
            let pod = ["pod", *name, "-n", namespace];
            let runs = pair.hub.kubectl.wait(&pod, START, |p| rest.reached(p));
            runs.unwrap_or_else(|e| panic!("{namespace}/{name}: {e}\n{}", (pair.tail)()));
        }
    }
    let deleted = SIDES.map(|(namespace, _)| {
        let names = ENDS.iter().map(|End(Case(name, ..), _)| *name);
        let all: Vec<&str> = ["delete", "pod", "--wait=false", "-n", namespace]
            .into_iter()
            .chain(names)
            .collect();
        let at = Timestamp::now().as_second();
        pair.hub.kubectl.run(&all).expect("delete");
        at
    });
    for End(Case(name, spec, _), _) in ENDS {
        pair.compare_pod(&Case(name, spec, Rest::Ended));
        let took = [0, 1].map(|side| ended(pair, SIDES[side].0, name) - deleted[side]);
        if (took[0] - took[1]).abs() > BESIDE {
            pair.found.push(format!(
                "{name}: ours ended after {} s, kubelet's after {} s",
                took[0], took[1]
            ));
        }
        pair.compare_events(name);
    }
    for (namespace, _) in SIDES {
        for End(Case(name, ..), _) in ENDS {
            let patch = [
                "patch",
                "pod",
                name,
                "-n",
                namespace,
                "--type=merge",
                "-p",
                r#"{"metadata":{"finalizers":null}}"#,
            ];
            pair.hub.kubectl.run(&patch).expect("let it go");
        }
    }
}

/// When the container ended, in seconds since 1970.
fn ended(pair: &Pair<'_>, namespace: &str, name: &str) -> i64 {
    let pod = pair.hub.kubectl.get(&["pod", name, "-n", namespace]);
    let pod = pod.expect("get").expect("it is there");
    let at = &pod["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"];
    let at: Timestamp = at.as_str().expect("it ended").parse().expect("a time");
    at.as_second()
}
