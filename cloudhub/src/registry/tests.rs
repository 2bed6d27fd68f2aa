use super::*;
use futures::FutureExt as _;
use serde_json::json;

fn pod(name: &str, node: &str, rv: u64) -> Value {
    json!({"metadata": {"name": name, "namespace": "default", "uid": format!("u-{name}"), "resourceVersion": rv.to_string()},
           "spec": {"nodeName": node, "volumes": [{"name": "v", "configMap": {"name": "c"}}]}, "status": {"phase": "Pending"}})
}

fn state() -> State {
    let mut state = State {
        identity: Some(ApiIdentity("a".into())),
        lineage_at: u64::MAX,
        ..State::default()
    };
    state.served.insert("n".into());
    for kind in [Kind::Node, Kind::RuntimeClass] {
        state.replace(kind, Vec::new(), 1);
    }
    state
}

/// Of an API that nobody asks.
fn registry() -> Registry {
    let config = kube::Config::new(http::Uri::from_static("http://127.0.0.1:1"));
    Registry::new(KubeApi::new(config).expect("a client"), Points::ByHub)
}

/// A list of all pods that begins and ends now.
fn list_pods(state: &mut State, items: Vec<Value>, rv: u64) {
    state.begin_list_of_pods();
    state.replace(Kind::Pod, items, rv);
}

#[test]
fn a_status_write_does_not_change_what_goes_down() {
    let mut changed = pod("a", "n", 9);
    changed["status"]["phase"] = "Running".into();
    changed["kind"] = "Pod".into();
    assert_eq!(
        desired(Kind::Pod, &pod("a", "n", 1)).object,
        desired(Kind::Pod, &changed).object
    );
}

#[test]
fn a_view_waits_for_what_its_pods_name_and_pods_of_others_are_dropped() {
    let mut state = state();
    list_pods(&mut state, vec![pod("a", "n", 2), pod("b", "other", 2)], 2);
    assert!(state.assemble("n").is_none());
    let key = ObjectKey {
        kind: Kind::ConfigMap,
        namespace: "default".into(),
        name: "c".into(),
    };
    assert_eq!(state.needed("n"), BTreeSet::from([key.clone()]));
    assert!(state.needed("other").is_empty());
    state.named.entry("n".into()).or_default().insert(key, None);
    let view = state.assemble("n").unwrap();
    assert_eq!(
        view.objects.iter().map(|d| d.key.to_string()).collect::<Vec<_>>(),
        ["Pod/default/a"]
    );
    assert_eq!(state.pods.len(), 1);
}

#[tokio::test]
async fn a_change_wakes_its_own_node_and_no_other() {
    let registry = registry();
    let [mine, other] = ["n", "other"].map(|node| {
        let wake = Arc::new(Notify::new());
        registry.lock().served.insert(node.into());
        registry.wake_on_change(node, wake.clone());
        wake
    });
    let woken = |wake: &Notify| wake.notified().now_or_never().is_some();
    registry.take(Kind::Pod, Change::Apply(pod("a", "n", 5)));
    assert!(woken(&mine) && !woken(&other));
    assert!(registry.pod("n", "default", "a").is_some() && registry.pod("other", "default", "a").is_none());
    registry.take(Kind::Pod, Change::Bookmark(9));
    assert!(!woken(&mine), "how far a watch is, is no news of a node");
    // Of a session that was replaced: the wake is another's by now.
    registry.forget_wake("n", &other);
    registry.take(Kind::Pod, Change::Delete(pod("a", "n", 10)));
    assert!(woken(&mine) && registry.lock().pods.is_empty());
}

#[test]
fn a_node_that_is_served_after_the_list_of_pods_waits_for_the_next_list() {
    let mut state = state();
    state.served.clear();
    list_pods(&mut state, vec![pod("a", "n", 2)], 2);
    state.served.insert("n".into());
    assert!(state.assemble("n").is_none(), "its pods were dropped from that list");
    list_pods(&mut state, Vec::new(), 3);
    assert!(state.assemble("n").is_some());
}

#[tokio::test]
async fn a_node_that_is_served_while_pods_are_listed_waits_for_the_next_list() {
    let registry = registry();
    *registry.lock() = state();
    let (pods, [mine, late]) = (Pods(&registry), [pod("a", "n", 2), pod("b", "late", 2)]);
    pods.begins();
    assert!(pods.wants(&mine) && !pods.wants(&late));
    registry.lock().served.insert("late".into());
    assert!(!pods.wants(&late), "its first page has gone by");
    pods.take(Change::List(vec![mine], 2));
    let missing = registry.lock().assemble("late");
    assert!(missing.is_none(), "it would be proof that its pod is gone: {missing:?}");
    pods.begins();
    assert!(pods.wants(&late));
    pods.take(Change::List(vec![pod("a", "n", 2)], 3));
    assert!(registry.lock().assemble("late").is_some());
}

#[test]
fn a_list_that_is_older_starts_a_new_era() {
    let mut state = state();
    list_pods(&mut state, Vec::new(), 10);
    list_pods(&mut state, Vec::new(), 12);
    assert_eq!(state.era, 0);
    list_pods(&mut state, Vec::new(), 5);
    assert_eq!(state.era, 1);
    assert!(state.assemble("n").is_none(), "the other kinds are listed anew first");
}
