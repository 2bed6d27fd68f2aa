//! apply, diff, create, replace, edit, patch, label, annotate, delete, run, expose, debug, finalizers, namespaces.

use kit::Site;
use serde_json::Value;

use crate::bench::Bench;

fn config_map(colour: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: paint}}\ndata: {{colour: {colour}, size: '3'}}\n")
}

#[test]
fn apply_and_diff_agree() {
    let site = Site::new().expect("a site");
    let b = Bench::new(&site);
    let (red, blue) = (
        b.file("red.yaml", &config_map("red")),
        b.file("blue.yaml", &config_map("blue")),
    );
    assert_eq!(b.ok(&["apply", "-f", &red]), "configmap/paint created\n");
    let before = b.get(&["cm", "paint"]);
    assert_eq!(b.ok(&["apply", "-f", &red]), "configmap/paint unchanged\n");
    let after = b.get(&["cm", "paint"]);
    assert_eq!(
        before["metadata"]["resourceVersion"], after["metadata"]["resourceVersion"],
        "nothing was written"
    );
    b.ok(&["diff", "-f", &red]);
    let diff = b.hub.kubectl.output(&["diff", "-f", &blue]).expect("kubectl");
    let text = String::from_utf8_lossy(&diff.stdout).into_owned();
    assert_eq!(
        diff.status.code(),
        Some(1),
        "{text}{}",
        String::from_utf8_lossy(&diff.stderr)
    );
    assert!(
        text.contains("-  colour: red") && text.contains("+  colour: blue"),
        "{text}"
    );
    assert_eq!(b.get(&["cm", "paint"])["data"]["colour"], "red", "diff writes nothing");
    assert_eq!(b.ok(&["apply", "-f", &blue]), "configmap/paint configured\n");
    assert_eq!(b.get(&["cm", "paint"])["data"]["colour"], "blue");
    let less = b.file("less.yaml", &config_map("blue").replace(", size: '3'", ""));
    b.ok(&["apply", "-f", &less]);
    assert!(
        b.get(&["cm", "paint"])["data"]["size"].is_null(),
        "what is taken out of the file goes"
    );
    b.shows(&["apply", "view-last-applied", "cm/paint"], &["colour: blue"]);
}

#[test]
fn create_makes_each_kind_it_knows() {
    let site = Site::new().expect("a site");
    let b = Bench::new(&site);
    for args in [
        &["configmap", "c1", "--from-literal=a=b"][..],
        &["secret", "generic", "s1", "--from-literal=a=b"],
        &["serviceaccount", "sa1"],
        &["namespace", "n1"],
        &["deployment", "d1", "--image=kedge.dev/demo:1", "--replicas=0"],
        &["role", "r1", "--verb=get,list", "--resource=pods"],
        &["rolebinding", "rb1", "--role=r1", "--user=alice"],
        &["clusterrole", "cr1", "--verb=get", "--resource=nodes"],
        &["clusterrolebinding", "crb1", "--clusterrole=cr1", "--user=alice"],
        &["priorityclass", "p1", "--value=10"],
        &["poddisruptionbudget", "pdb1", "--selector=app=a", "--min-available=1"],
        &["service", "clusterip", "svc1", "--tcp=80:8080"],
    ] {
        let text = b.ok(&[&["create"], args].concat());
        assert!(text.contains("created"), "{args:?}: {text}");
    }
    b.refuses(
        &["create", "configmap", "c1", "--from-literal=a=b"],
        &["configmaps \"c1\" already exists"],
    );
    b.refuses(
        &["create", "configmap", "Bad_Name", "--from-literal=a=b"],
        &["Invalid value", "RFC 1123"],
    );
    b.refuses(
        &["create", "configmap", "c2", "-n", "nowhere"],
        &["namespaces \"nowhere\" not found"],
    );
    b.ok(&["create", "configmap", "dry", "--from-literal=a=b", "--dry-run=server"]);
    b.is_gone(&["configmap", "dry"]);
    let token = b.ok(&["create", "token", "sa1", "--duration=10m"]);
    assert_eq!(token.trim().split('.').count(), 3, "a JWT: {token}");
    let named = b.ok_with(
        &["create", "-f", "-", "-o", "name"],
        "{apiVersion: v1, kind: ConfigMap, metadata: {generateName: some-}}",
    );
    assert!(
        named.trim().len() == "configmap/some-".len() + 5 && named.starts_with("configmap/some-"),
        "{named}"
    );
}

#[test]
fn replace_knows_what_it_replaces() {
    let site = Site::new().expect("a site");
    let b = Bench::new(&site);
    b.ok_with(&["create", "-f", "-"], &config_map("red"));
    let mut read = b.get(&["cm", "paint"]);
    read["data"]["colour"] = "green".into();
    let file = b.file("read.json", &read.to_string());
    assert_eq!(b.ok(&["replace", "-f", &file]), "configmap/paint replaced\n");
    b.refuses(
        &["replace", "-f", &file],
        &[
            "Error from server (Conflict)",
            "Operation cannot be fulfilled on configmaps \"paint\": the object has been modified",
        ],
    );
    let blind = b.file("blind.yaml", &config_map("grey"));
    b.ok(&["replace", "-f", &blind]);
    let replaced = b.get(&["cm", "paint"]);
    assert_eq!(
        (&replaced["data"]["colour"], &replaced["metadata"]["uid"]),
        (&"grey".into(), &read["metadata"]["uid"])
    );
    b.ok(&["replace", "--force", "-f", &blind]);
    assert_ne!(
        b.get(&["cm", "paint"])["metadata"]["uid"],
        read["metadata"]["uid"],
        "--force deletes and creates"
    );
    b.refuses_object(
        "replace",
        &config_map("x").replace("paint", "nothing"),
        &["NotFound", "\"nothing\" not found"],
    );
}

#[test]
fn edit_writes_what_the_editor_leaves() {
    let site = Site::new().expect("a site");
    let b = Bench::new(&site);
    b.ok_with(&["create", "-f", "-"], &config_map("red"));
    let edit = |from: &str, to: &str| {
        let editor = b.editor(from, to);
        let output = b
            .with_editor(&["edit", "cm", "paint"], &editor)
            .output()
            .expect("kubectl");
        format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    };
    let said = edit("colour: red", "colour: green");
    assert!(said.contains("configmap/paint edited"), "{said}\n{}", b.hub.tail());
    assert_eq!(b.get(&["cm", "paint"])["data"]["colour"], "green");
    let said = edit("nothing like this", "x");
    assert!(said.contains("no changes made"), "{said}");
}

#[test]
fn patch_takes_three_forms() {
    let site = Site::new().expect("a site");
    let b = Bench::new(&site);
    b.ok(&[
        "create",
        "deployment",
        "web",
        "--image=kedge.dev/demo:1",
        "--replicas=0",
    ]);
    let add = r#"{"spec":{"template":{"spec":{"containers":[{"name":"second","image":"kedge.dev/pause:1"}]}}}}"#;
    b.ok(&["patch", "deployment", "web", "-p", add]);
    let names = |b: &Bench<'_>| {
        b.ok(&[
            "get",
            "deployment",
            "web",
            "-o",
            "jsonpath={.spec.template.spec.containers[*].name}",
        ])
    };
    assert_eq!(names(&b), "second demo", "a strategic merge adds to a list by its key");
    let gone = r#"{"spec":{"template":{"spec":{"containers":[{"name":"demo","$patch":"delete"}]}}}}"#;
    b.ok(&["patch", "deployment", "web", "--type=strategic", "-p", gone]);
    assert_eq!(names(&b), "second");
    let merge = r#"{"spec":{"template":{"spec":{"containers":[{"name":"only","image":"kedge.dev/demo:1"}]}}}}"#;
    b.ok(&["patch", "deployment", "web", "--type=merge", "-p", merge]);
    assert_eq!(names(&b), "only", "a merge patch replaces a list");
    let steps = r#"[{"op":"test","path":"/spec/replicas","value":0},{"op":"add","path":"/metadata/annotations/a~1b","value":"c"}]"#;
    b.ok(&["patch", "deployment", "web", "--type=json", "-p", steps]);
    assert_eq!(b.get(&["deployment", "web"])["metadata"]["annotations"]["a/b"], "c");
    let wrong = r#"[{"op":"test","path":"/spec/replicas","value":7},{"op":"remove","path":"/spec/paused"}]"#;
    b.refuses(
        &["patch", "deployment", "web", "--type=json", "-p", wrong],
        &["the server rejected our request due to an error in our request"],
    );
    b.refuses(
        &[
            "patch",
            "deployment",
            "web",
            "-p",
            r#"{"spec":{"selector":{"matchLabels":{"app":"x"}}}}"#,
        ],
        &["field is immutable"],
    );
    b.shows(&["patch", "deployment", "web", "-p", "{}"], &["no change"]);
    b.refuses(&["patch", "deployment", "nothing", "-p", "{}"], &["NotFound"]);
}

#[test]
fn labels_annotations_and_finalizers_are_kept() {
    let site = Site::new().expect("a site");
    let b = Bench::new(&site);
    b.ok_with(&["create", "-f", "-"], &config_map("red"));
    b.ok(&["label", "cm", "paint", "tier=front"]);
    b.refuses(&["label", "cm", "paint", "tier=back"], &["--overwrite"]);
    b.ok(&["label", "cm", "paint", "tier=back", "--overwrite"]);
    b.shows(&["get", "cm", "-l", "tier=back", "-o", "name"], &["configmap/paint"]);
    b.ok(&["label", "cm", "paint", "tier-"]);
    b.ok(&["annotate", "cm", "paint", "note=hello world"]);
    b.shows(&["describe", "cm", "paint"], &["hello world"]);
    b.refuses(&["label", "cm", "paint", "bad=not a label"], &["a valid label must be"]);
    let hold = r#"{"metadata":{"finalizers":["kedge.dev/test"]}}"#;
    b.ok(&["patch", "cm", "paint", "--type=merge", "-p", hold]);
    b.ok(&["delete", "cm", "paint", "--wait=false"]);
    let held = b.get(&["cm", "paint"]);
    assert!(!held["metadata"]["deletionTimestamp"].is_null(), "{held:#}");
    b.refuses(
        &[
            "patch",
            "cm",
            "paint",
            "--type=merge",
            "-p",
            r#"{"metadata":{"finalizers":["kedge.dev/test","kedge.dev/more"]}}"#,
        ],
        &["no new finalizers can be added"],
    );
    b.ok(&[
        "patch",
        "cm",
        "paint",
        "--type=merge",
        "-p",
        r#"{"metadata":{"finalizers":null}}"#,
    ]);
    b.is_gone(&["cm", "paint"]);
}

#[test]
fn run_expose_and_debug_make_their_objects() {
    let site = Site::new().expect("a site");
    let b = Bench::new(&site);
    b.ok(&[
        "run",
        "solo",
        "--image=kedge.dev/demo:1",
        "--labels=app=solo",
        "--env=A=b",
        "--port=8080",
    ]);
    let pod = b.get(&["pod", "solo"]);
    assert_eq!(pod["spec"]["containers"][0]["env"][0]["value"], "b", "{pod:#}");
    assert_eq!(pod["spec"]["restartPolicy"], "Always");
    assert_eq!(pod["spec"]["containers"][0]["imagePullPolicy"], "IfNotPresent");
    assert_eq!(pod["status"]["qosClass"], "BestEffort");
    b.ok(&["expose", "pod", "solo", "--port=80", "--target-port=8080"]);
    let service = b.get(&["service", "solo"]);
    let address = service["spec"]["clusterIP"].as_str().unwrap_or_default();
    assert!(address.starts_with("10.96.") && address != "10.96.0.1", "{service:#}");
    assert_eq!(service["spec"]["selector"]["app"], "solo");
    assert_eq!(b.ok(&["logs", "solo"]), "", "a pod on no node has no logs yet");
    b.refuses(
        &["exec", "solo", "--", "true"],
        &["pod solo does not have a host assigned"],
    );
    b.ok(&["debug", "solo", "--image=kedge.dev/demo:1", "-c", "dbg", "--", "sh"]);
    let debugged = b.get(&["pod", "solo"]);
    assert_eq!(
        debugged["spec"]["ephemeralContainers"][0]["name"], "dbg",
        "{debugged:#}"
    );
    b.ok(&[
        "debug",
        "solo",
        "--image=kedge.dev/demo:1",
        "--copy-to=copy",
        "-c",
        "dbg",
        "--",
        "sh",
    ]);
    b.get(&["pod", "copy"]);
    b.ok(&["set", "image", "pod/solo", "solo=kedge.dev/demo:2"]);
    b.refuses(
        &["patch", "pod", "solo", "-p", r#"{"spec":{"hostNetwork":true}}"#],
        &["pod updates may not change fields other than"],
    );
    b.wait_text("kubectl events", "FailedScheduling", || b.ok(&["events"]));
    b.shows(&["events", "--for", "pod/solo"], &["FailedScheduling"]);
    b.shows(
        &["get", "events", "--field-selector", "involvedObject.name=solo"],
        &["FailedScheduling", "pod/solo"],
    );
    b.ok(&["delete", "pod", "solo", "copy"]);
    b.is_gone(&["pod", "solo"]);
}

#[test]
fn a_namespace_goes_with_all_that_is_in_it() {
    let site = Site::new().expect("a site");
    let b = Bench::new(&site);
    b.ok(&["create", "namespace", "scratch"]);
    b.wait(&["serviceaccount", "default", "-n", "scratch"], |_| true);
    b.ok(&["create", "configmap", "inside", "-n", "scratch", "--from-literal=a=b"]);
    b.ok(&[
        "create",
        "deployment",
        "inside",
        "-n",
        "scratch",
        "--image=kedge.dev/demo:1",
    ]);
    b.wait(&["pods", "-n", "scratch"], |pods| {
        pods["items"].as_array().is_some_and(|items| items.len() == 1)
    });
    b.ok(&["delete", "namespace", "scratch", "--timeout=60s"]);
    b.is_gone(&["namespace", "scratch"]);
    let left: Value = b.get(&["pods,deployments,replicasets,configmaps", "-n", "scratch"]);
    assert_eq!(left["items"], Value::Array(Vec::new()), "{left:#}");
    b.refuses(
        &["delete", "namespace", "kube-system"],
        &["Forbidden", "this namespace may not be deleted"],
    );
}
