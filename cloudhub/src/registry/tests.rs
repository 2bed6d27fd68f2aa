use super::list_watch::Taker as _;
use super::named::Told;
use super::pods::{Newcomers, Pods};
use super::*;
use futures::FutureExt as _;
use rand::{Rng as _, SeedableRng as _};
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

/// What each pod here names.
fn config_map() -> ObjectKey {
    ObjectKey {
        kind: Kind::ConfigMap,
        namespace: "default".into(),
        name: "c".into(),
    }
}

/// The node reads it: it is not there.
fn read(state: &mut State, node: &str) {
    state.enter(node, &config_map());
    assert_eq!(tell(state, node, (None, 1)), [node]);
}

/// The watch tells `reader` what is in the map at a resourceVersion.
fn tell(state: &mut State, reader: &str, (data, at): (Option<&str>, u64)) -> Vec<String> {
    let found = data.map(|data| {
        let map = json!({"metadata": {"name": "c", "namespace": "default", "resourceVersion": at.to_string()}, "data": {"k": data}});
        Arc::new(desired(Kind::ConfigMap, &map))
    });
    let anew = false;
    state.tell(&config_map(), reader, Told { found, at, anew })
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
    assert_eq!(state.needed("n"), BTreeSet::from([config_map()]));
    assert!(state.needed("other").is_empty());
    read(&mut state, "n");
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

#[test]
fn a_newcomer_is_listed_alone_and_many_are_not() {
    let mut state = state();
    assert_eq!(state.newcomers(), Newcomers::Later, "all pods will be listed anyway");
    list_pods(&mut state, Vec::new(), 2);
    state.served.insert("late".into());
    assert_eq!(state.newcomers(), Newcomers::Alone(vec!["late".into()]));
    state.begin_list_of_pods();
    assert_eq!(
        state.newcomers(),
        Newcomers::Alone(Vec::new()),
        "the list that has begun will have its pods"
    );
    assert_eq!(state.begin_newcomer("late"), None);
    state.replace(Kind::Pod, Vec::new(), 3);
    state.served.extend((0..40).map(|n| format!("n-{n}")));
    assert_eq!(state.newcomers(), Newcomers::WithAll);
    state.begin_list_of_pods();
    state.served.extend((0..40).map(|n| format!("m-{n}")));
    assert_eq!(
        state.newcomers(),
        Newcomers::Later,
        "a list that is under way is not begun anew"
    );
}

#[test]
fn a_newcomer_is_not_known_before_the_state_of_the_database_is() {
    let mut state = state();
    list_pods(&mut state, Vec::new(), 2);
    state.served.insert("late".into());
    assert_eq!(state.begin_newcomer("late"), Some((1, 2)));
    state.lineage_at = state.lists;
    state.end_newcomer("late", vec![pod("a", "late", 2), pod("b", "n", 2)], 2, &[]);
    assert!(
        state.pods.contains_key("late") && !state.pods.contains_key("n"),
        "b is not of that node"
    );
    read(&mut state, "late");
    assert!(state.assemble("late").is_none());
    state.lineage_at = state.lists;
    assert!(state.assemble("late").is_some());
    state.listing = Some(HashSet::from(["n".into()]));
    state.replace(Kind::Pod, Vec::new(), 3);
    assert!(state.assemble("late").is_none(), "the watch goes on from elsewhere");
    assert_eq!(state.newcomers(), Newcomers::Alone(vec!["late".into()]));
}

/// Pods of node n by name with their resourceVersions, at each resourceVersion.
fn history(rng: &mut rand::rngs::StdRng, length: u64) -> (Vec<BTreeMap<String, u64>>, Vec<Change>) {
    let (mut states, mut events) = (vec![BTreeMap::new()], Vec::new());
    for rv in 1..=length {
        let mut now = states.last().cloned().unwrap_or_default();
        let name = ["a", "b", "c"][rng.random_range(0..3)];
        if now.contains_key(name) && rng.random_bool(0.5) {
            now.remove(name);
            events.push(Change::Delete(pod(name, "n", rv)));
        } else {
            now.insert(name.to_owned(), rv);
            events.push(Change::Apply(pod(name, "n", rv)));
        }
        states.push(now);
    }
    (states, events)
}

#[test]
fn a_newcomers_list_and_what_the_watch_tells_of_it_make_one_state() {
    for seed in 0..3000 {
        let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
        let (truth, events) = history(&mut rng, 12);
        let served = rng.random_range(0..=12);
        let (told, listed) = (rng.random_range(served..=12), rng.random_range(served..=12));
        let mut state = state();
        state.served.clear();
        list_pods(&mut state, Vec::new(), 0);
        let tell = |state: &mut State, rv: usize| match &events[rv - 1] {
            Change::Delete(pod) => state.delete(Kind::Pod, pod),
            Change::Apply(pod) => state.apply(Kind::Pod, pod.clone()),
            _ => BTreeSet::new(),
        };
        for rv in 1..=served {
            tell(&mut state, rv);
        }
        state.served.insert("n".into());
        state.begin_newcomer("n");
        for rv in served + 1..=told {
            tell(&mut state, rv);
        }
        let gone = state.gone.remove("n").unwrap_or_default();
        let items = truth[listed].iter().map(|(name, rv)| pod(name, "n", *rv));
        state.end_newcomer("n", items.collect(), listed as u64, &gone);
        for rv in told..=12 {
            if rv > told {
                tell(&mut state, rv);
            }
            let pods = state.pods.get("n").into_iter().flatten();
            let known: BTreeMap<_, _> = pods.map(|pod| (pod.desired.key.name.clone(), pod.version)).collect();
            let place = format!("seed {seed}: served at {served}, told to {told}, listed at {listed}, now {rv}");
            assert_eq!(known, truth[rv.max(listed)], "{place}");
        }
    }
}

#[test]
fn what_many_name_is_watched_once_and_each_is_let_in_by_itself() {
    let mut state = state();
    state.served.insert("m".into());
    list_pods(&mut state, vec![pod("a", "n", 2), pod("b", "m", 2)], 2);
    assert!(state.enter("n", &config_map()).is_some());
    assert!(state.enter("m", &config_map()).is_none(), "it is watched already");
    assert_eq!(tell(&mut state, "n", (Some("v"), 3)), ["n"]);
    assert!(state.assemble("n").is_some());
    assert!(
        state.assemble("m").is_none(),
        "whether that node may read it, the API has not said"
    );
    let asked = state.next_applicant();
    assert_eq!(asked.map(|asked| asked.node), Some("m".into()));
    assert_eq!(
        tell(&mut state, "m", (Some("w"), 5)),
        ["m", "n"],
        "what was told later than the watch is"
    );
    assert_eq!(state.assemble("m").map(|view| view.objects.len()), Some(2));
    assert_eq!(tell(&mut state, "n", (None, 4)), ["n"], "the watch is behind");
    assert_eq!(state.assemble("n").map(|view| view.objects.len()), Some(2));
    assert_eq!(tell(&mut state, "n", (None, 6)), ["m", "n"]);
    assert_eq!(state.assemble("m").map(|view| view.objects.len()), Some(1));
}

#[test]
fn the_next_reader_takes_over_from_one_that_leaves_or_is_refused() {
    let mut state = state();
    for node in ["a", "b", "c"] {
        state.enter(node, &config_map());
    }
    let reader = |state: &State| state.named[&config_map()].reader.clone();
    assert_eq!(reader(&state), "a");
    state.leave("a", &config_map());
    assert_eq!(reader(&state), "b");
    state.refuse(&config_map(), "b");
    state.refuse(&config_map(), "b");
    state.refuse(&config_map(), "a");
    assert_eq!(reader(&state), "b", "twice is not three times");
    state.refuse(&config_map(), "b");
    assert_eq!(reader(&state), "c");
    let asking: Vec<_> = std::iter::from_fn(|| state.next_applicant())
        .map(|next| next.node)
        .collect();
    assert_eq!(
        asking,
        ["b"],
        "it asks for itself from now on; c is asked for by the watch, a is gone"
    );
    tell(&mut state, "b", (None, 3));
    for _ in 0..3 {
        state.refuse(&config_map(), "c");
    }
    assert_eq!(reader(&state), "b", "that one was let in");
    state.leave("c", &config_map());
    for _ in 0..5 {
        state.refuse(&config_map(), "b");
    }
    assert_eq!(reader(&state), "b", "there is nobody else");
    state.leave("b", &config_map());
    assert!(state.named.is_empty());
}
