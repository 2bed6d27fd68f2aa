//! The store against what its callers rely on.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;
use tokio::task::JoinSet;

use super::*;

struct Running {
    store: Store,
    _committer: JoinSet<()>,
}

fn open(path: &Path) -> Running {
    let (store, committer) = Store::open(path).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(committer.run());
    Running {
        store,
        _committer: tasks,
    }
}

fn key(name: &str) -> Key {
    Key::new("configmaps", "default", name)
}

fn map(name: &str, value: u64) -> Value {
    json!({"kind": "ConfigMap", "apiVersion": "v1",
           "metadata": {"name": name, "namespace": "default", "labels": {"n": value.to_string()}}, "data": {"v": value.to_string()}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_has_the_same_objects_and_versions_and_gives_none_twice() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let running = open(&path);
    let a = running.store.put(key("a"), Expect::Absent, map("a", 1)).await.unwrap();
    let b = running.store.put(key("b"), Expect::Absent, map("b", 1)).await.unwrap();
    let gone = running
        .store
        .delete(key("b"), Expect::Version(b.resource_version), None)
        .await
        .unwrap();
    drop(running);
    let running = tokio::task::spawn_blocking(move || reopen(&path)).await.unwrap();
    assert_eq!(running.store.version(), gone.resource_version, "a deletion counts too");
    assert_eq!(running.store.get(&key("a")).unwrap().bytes, a.bytes);
    assert!(running.store.get(&key("b")).is_none());
    let next = running.store.put(key("c"), Expect::Absent, map("c", 1)).await.unwrap();
    assert!(next.resource_version > gone.resource_version);
    assert!(
        running.store.watch("configmaps", None, a.resource_version).is_none(),
        "what was before the start is not in the log: the client lists again"
    );
}

/// The committer's handle goes with its task, a moment after the runtime was told.
fn reopen(path: &Path) -> Running {
    for _ in 0..100 {
        if let Ok((store, committer)) = Store::open(path) {
            let mut tasks = JoinSet::new();
            tasks.spawn(committer.run());
            return Running {
                store,
                _committer: tasks,
            };
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("the store stays locked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_writers_that_saw_the_same_version_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    let running = open(&dir.path().join("store"));
    let first = running.store.put(key("a"), Expect::Absent, map("a", 0)).await.unwrap();
    let mut writers = JoinSet::new();
    for n in 1..=16 {
        let store = running.store.clone();
        let expect = Expect::Version(first.resource_version);
        writers.spawn(async move { store.put(key("a"), expect, map("a", n)).await.is_ok() });
    }
    let won = writers.join_all().await.into_iter().filter(|won| *won).count();
    assert_eq!(won, 1);
    let absent = running.store.put(key("a"), Expect::Absent, map("a", 99)).await;
    assert!(matches!(absent, Err(WriteError::Conflict)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_goes_away_leaves_a_whole_change() {
    let dir = tempfile::tempdir().unwrap();
    let running = open(&dir.path().join("store"));
    let mut watch = running
        .store
        .watch("configmaps", None, running.store.version())
        .unwrap();
    let write = running.store.put(key("a"), Expect::Absent, map("a", 1));
    // Polled once: staged, then dropped before the disk has answered.
    let mut write = Box::pin(write);
    let polled = futures::future::poll_fn(|cx| std::task::Poll::Ready(write.as_mut().poll(cx).is_pending())).await;
    drop(write);
    assert!(polled, "the commit takes longer than one poll");
    let changes = watch.next().await.unwrap();
    assert_eq!(changes.len(), 1);
    assert_eq!(running.store.get(&key("a")).unwrap().bytes, changes[0].object.bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_falls_behind_is_told_and_memory_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let running = open(&dir.path().join("store"));
    let mut slow = running
        .store
        .watch("configmaps", None, running.store.version())
        .unwrap();
    let big = "x".repeat(1 << 20);
    let mut expect = Expect::Absent;
    for n in 0..12 {
        let mut object = map("a", n);
        object["data"]["big"] = json!(big);
        let stored = running.store.put(key("a"), expect, object).await.unwrap();
        expect = Expect::Version(stored.resource_version);
    }
    assert!(running.store.state().log.bytes() <= log::LOG_BYTES);
    assert!(
        slow.next().await.is_none(),
        "12 MiB of changes do not fit into a log of 4"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_that_is_written_all_the_time_pushes_out_nobody_elses_changes() {
    let dir = tempfile::tempdir().unwrap();
    let store = &open(&dir.path().join("store")).store;
    let start = store.version();
    let a = store.put(key("a"), Expect::Absent, map("a", 1)).await.unwrap();
    let mut quiet = store.watch("configmaps", None, a.resource_version).unwrap();
    let (lease, big) = (Key::new("leases", "default", "l"), "x".repeat(1 << 20));
    let mut expect = Expect::Absent;
    for n in 0..6 {
        let object = json!({"metadata": {"name": "l", "namespace": "default"}, "spec": {"n": n, "big": big}});
        expect = Expect::Version(store.put(lease.clone(), expect, object).await.unwrap().resource_version);
    }
    assert!(
        !store.remembers("leases", a.resource_version),
        "6 MiB of leases do not fit"
    );
    assert!(store.remembers("configmaps", start));
    assert_eq!(
        quiet.seen(),
        store.version(),
        "all the same it has seen all that concerns it"
    );
    let b = store.put(key("b"), Expect::Absent, map("b", 1)).await.unwrap();
    let news = quiet.next().await.unwrap();
    assert_eq!(
        news.iter().map(|c| c.resource_version).collect::<Vec<_>>(),
        [b.resource_version]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_keeps_the_state_before_it_only_where_selectors_see_another() {
    let dir = tempfile::tempdir().unwrap();
    let store = &open(&dir.path().join("store")).store;
    let mut watch = store.watch("configmaps", None, store.version()).unwrap();
    let mut expect = Expect::Absent;
    for (label, data) in [(1, 1), (1, 2), (2, 2)] {
        let mut object = map("a", label);
        object["data"] = json!({"v": data.to_string()});
        expect = Expect::Version(store.put(key("a"), expect, object).await.unwrap().resource_version);
    }
    let mut changes = Vec::new();
    while changes.len() < 3 {
        changes.extend(watch.next().await.unwrap());
    }
    assert!(matches!(changes[0].before, Before::Absent));
    assert!(matches!(changes[1].before, Before::Alike));
    assert!(Arc::ptr_eq(&changes[0].object.labels, &changes[1].object.labels));
    assert_eq!(changes[2].before().unwrap().labels[0].1, "1");
}

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u64),
    Delete(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..6_u8, any::<u64>()).prop_map(|(name, value)| Step::Put(name, value)),
        1 => (0..6_u8).prop_map(Step::Delete),
    ];
    proptest::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// What a watch has told, applied to the list that it began with, is what the store holds.
    #[test]
    fn a_list_and_the_watch_after_it_make_the_store(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let running = open(&dir.path().join("store"));
            let mut model: BTreeMap<String, u64> = BTreeMap::new();
            let mut watch = running.store.watch("configmaps", Some("default"), running.store.version()).unwrap();
            let mut last = 0;
            for step in steps {
                last = apply(&running.store, step).await.unwrap_or(last);
            }
            while watch.seen() < last {
                for change in watch.next().await.expect("the log is long enough") {
                    let name = change.object.key.name.clone();
                    if change.deleted {
                        prop_assert!(model.remove(&name).is_some(), "deleted twice");
                    } else {
                        prop_assert_eq!(change.before().is_none(), !model.contains_key(&name));
                        model.insert(name, change.object.resource_version);
                    }
                }
            }
            let (_, listed) = running.store.list("configmaps", Some("default"), None, usize::MAX);
            let listed: BTreeMap<String, u64> = listed.iter().map(|o| (o.key.name.clone(), o.resource_version)).collect();
            prop_assert_eq!(listed, model);
            Ok(())
        })?;
    }
}

async fn apply(store: &Store, step: Step) -> Option<u64> {
    match step {
        Step::Put(name, value) => {
            let name = format!("n{name}");
            let expect = store
                .latest(&key(&name))
                .map_or(Expect::Absent, |o| Expect::Version(o.resource_version));
            Some(
                store
                    .put(key(&name), expect, map(&name, value))
                    .await
                    .unwrap()
                    .resource_version,
            )
        }
        Step::Delete(name) => {
            let name = format!("n{name}");
            let current = store.latest(&key(&name))?;
            let expect = Expect::Version(current.resource_version);
            Some(store.delete(key(&name), expect, None).await.unwrap().resource_version)
        }
    }
}
