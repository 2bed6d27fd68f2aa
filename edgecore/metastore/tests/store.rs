//! The store against a model, over reopening, corruption and kill -9.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use metastore::{Batch, CommitError, OpenError, Options, Store};
use proptest::prelude::*;

fn open(path: &Path) -> Store {
    Store::open(path, &Options::default()).expect("open")
}

#[derive(Debug, Clone)]
enum Op {
    Commit(Vec<(u8, Option<Vec<u8>>)>),
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    let value = prop::option::of(prop::collection::vec(any::<u8>(), 0..200));
    prop_oneof![
        8 => prop::collection::vec((any::<u8>(), value), 1..8).prop_map(Op::Commit),
        1 => Just(Op::Reopen),
    ]
}

fn key(n: u8) -> String {
    format!("{}/{n:03}", ["a", "b", "ba"][usize::from(n) % 3])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn agrees_with_a_map(ops in prop::collection::vec(op(), 1..40)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let mut store = open(&path);
        let mut model = BTreeMap::new();
        for op in ops {
            match op {
                Op::Commit(changes) => {
                    let mut batch = Batch::new();
                    for (n, value) in changes {
                        match value {
                            Some(value) => { batch.put(key(n), value.clone()); model.insert(key(n), value); }
                            None => { batch.delete(key(n)); model.remove(&key(n)); }
                        }
                    }
                    store.commit_blocking(batch).unwrap();
                }
                Op::Reopen => { drop(store); store = open(&path); }
            }
            for prefix in ["", "a/", "b", "b/", "ba/", "c"] {
                let expected: Vec<_> = model.iter().filter(|(k, _)| k.starts_with(prefix)).map(|(k, v)| (k.clone(), v.clone().into())).collect();
                prop_assert_eq!(store.scan(prefix).unwrap(), expected);
            }
        }
        if let Some((middle, _)) = model.iter().nth(model.len() / 2) {
            let expected: Vec<_> = model.iter().filter(|(k, _)| *k > middle).take(3).map(|(k, v)| (k.clone(), v.clone().into())).collect();
            prop_assert_eq!(store.scan_from("", Some(middle), 3).unwrap(), expected);
            prop_assert_eq!(store.get(middle).unwrap().unwrap().to_vec(), model[middle].clone());
        }
        prop_assert_eq!(store.keys("").unwrap(), model.keys().cloned().collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn concurrent_commits_are_all_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = open(&path);
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..200 {
        let store = store.clone();
        tasks.spawn(async move {
            let mut batch = Batch::new();
            batch.put(format!("k/{n}"), format!("v{n}"));
            store.commit(batch).await
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap().unwrap();
    }
    drop(store);
    assert_eq!(open(&path).scan("k/").unwrap().len(), 200);
}

#[tokio::test]
async fn a_watch_wakes_for_its_prefix_only_and_after_the_commit() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store"));
    let (mut pods, mut nodes) = (store.watch("pod/"), store.watch("node/"));
    let mut batch = Batch::new();
    batch.put("pod/a", "1");
    store.commit(batch).await.unwrap();
    assert!(pods.changed().await);
    assert_eq!(store.get("pod/a").unwrap().unwrap(), "1");
    assert!(
        tokio::time::timeout(Duration::from_millis(50), nodes.changed())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_value_that_is_too_large_is_named_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(
        &dir.path().join("store"),
        &Options {
            max_value: 10,
            ..Options::default()
        },
    )
    .unwrap();
    let mut batch = Batch::new();
    batch.put("small", "1").put("large", vec![0; 11]);
    let error = store.commit(batch).await.unwrap_err();
    assert!(
        matches!(&error, CommitError::TooLarge { key, size: 11, limit: 10 } if key == "large"),
        "{error}"
    );
    assert!(store.get("small").unwrap().is_none());
}

#[test]
fn secrets_are_not_on_the_disk_in_clear_and_another_key_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let options = Options {
        key: Some([7; 32]),
        ..Options::default()
    };
    let store = Store::open(&path, &options).unwrap();
    let mut batch = Batch::new();
    // sled compresses; a text that does not compress stays findable.
    let secret: Vec<u8> = (0..64_u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    batch.put("secret", secret.clone());
    store.commit_blocking(batch).unwrap();
    drop(store);
    for file in files(&path) {
        let content = fs::read(&file).unwrap();
        assert!(!content.windows(32).any(|w| w == &secret[..32]), "{}", file.display());
    }
    assert!(matches!(
        Store::open(&path, &Options::default()),
        Err(OpenError::Record { .. })
    ));
    let (_, aside) = Store::open_or_set_aside(
        &path,
        &Options {
            key: Some([8; 32]),
            ..Options::default()
        },
    )
    .unwrap();
    assert!(aside.unwrap().path.exists(), "the old store is renamed, not deleted");
}

fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("the folder is there").flatten() {
        if entry.path().is_dir() {
            found.extend(files(&entry.path()))
        } else {
            found.push(entry.path())
        }
    }
    found
}

#[test]
fn a_damaged_store_opens_whole_or_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = open(&path);
    for n in 0..40 {
        let mut batch = Batch::new();
        batch.put(format!("k/{n:02}"), vec![n; 300]);
        store.commit_blocking(batch).unwrap();
    }
    drop(store);
    let whole: Vec<_> = files(&path)
        .into_iter()
        .map(|f| (f.clone(), fs::read(f).unwrap()))
        .collect();
    let mut set_aside = 0;
    for (number, (file, content)) in whole.iter().enumerate().filter(|(_, (_, c))| !c.is_empty()) {
        for damage in 0..3 {
            let mut damaged = content.clone();
            match damage {
                0 => damaged[content.len() / 2] ^= 0xff,
                1 => damaged.truncate(content.len() / 2),
                _ => damaged[0] ^= 1,
            }
            let copy = dir.path().join(format!("copy-{number}-{damage}"));
            for (original, content) in &whole {
                let target = copy.join(original.strip_prefix(&path).unwrap());
                fs::create_dir_all(target.parent().unwrap()).unwrap();
                fs::write(&target, if original == file { &damaged } else { content }).unwrap();
            }
            let options = Options {
                check_deadline: Duration::from_secs(2),
                on_fatal: Arc::new(|_| {}),
                ..Options::default()
            };
            let (store, aside) = Store::open_or_set_aside(&copy, &options).unwrap();
            let rows = store.scan("k/").unwrap();
            if aside.is_some() {
                set_aside += 1;
                assert!(rows.is_empty());
            } else {
                assert!(
                    rows.iter()
                        .all(|(key, value)| value.iter().all(|b| format!("k/{b:02}") == *key)),
                    "a row is not what was written"
                );
            }
            let mut batch = Batch::new();
            batch.put("after", "1");
            store.commit_blocking(batch).unwrap();
        }
    }
    assert!(set_aside > 0, "no damage was noticed at all");
}

/// This test program again; under an emulator (`$KEDGE_TEST_RUNNER`) by that.
fn myself() -> Command {
    let program = std::env::current_exe().expect("/proc/self/exe is there");
    match std::env::var_os("KEDGE_TEST_RUNNER") {
        Some(runner) => {
            let mut command = Command::new(runner);
            command.arg(program);
            command
        }
        None => Command::new(program),
    }
}

/// The child of the next test: commits for ever and prints each key once its commit returned.
#[test]
fn child_that_writes() {
    let Ok(path) = std::env::var("METASTORE_CHILD") else {
        return;
    };
    let store = open(Path::new(&path));
    for n in 0_u32.. {
        let mut batch = Batch::new();
        batch.put(format!("k/{n:08}"), vec![1; 500]).put("last", n.to_string());
        store.commit_blocking(batch).unwrap();
        println!("acked {n}");
    }
}

#[test]
fn what_was_acknowledged_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let mut next = 0_u32;
    for round in 1..=3 {
        let mut child = myself()
            .args(["--exact", "child_that_writes", "--nocapture"])
            .env("METASTORE_CHILD", &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut acked = 0;
        for line in lines.map_while(Result::ok) {
            if let Some(n) = line.strip_prefix("acked ") {
                acked = n.parse().unwrap();
                if acked >= 20 * round {
                    break;
                }
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let store = open(&path);
        for n in 0..=acked {
            assert!(
                store.get(&format!("k/{n:08}")).unwrap().is_some(),
                "row {n} of {acked} acknowledged ones is lost"
            );
        }
        let last: u32 = str::from_utf8(&store.get("last").unwrap().unwrap())
            .unwrap()
            .parse()
            .unwrap();
        assert!(
            last >= acked && store.get(&format!("k/{last:08}")).unwrap().is_some(),
            "a batch is whole or not there"
        );
        next = next.max(acked);
    }
    assert!(next > 0);
}

/// A small disk of its own, unmounted when dropped.
struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    fn mount(&self, flags: nix::mount::MsFlags, size: &str) {
        let options = format!("size={size}");
        nix::mount::mount(
            Some("tmpfs"),
            self.dir.path(),
            Some("tmpfs"),
            flags,
            Some(options.as_str()),
        )
        .expect("mount a tmpfs: tests run as root");
    }

    fn new(size: &str) -> Self {
        let disk = Self {
            dir: tempfile::tempdir().expect("a temporary folder"),
        };
        disk.mount(nix::mount::MsFlags::empty(), size);
        disk
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.dir.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

/// The child of the next test: commits rows that do not compress until the disk is full.
#[test]
fn child_that_fills_the_disk() {
    let Ok(path) = std::env::var("METASTORE_FULL_CHILD") else {
        return;
    };
    let store = open(Path::new(&path));
    for n in 0_u32.. {
        let mut batch = Batch::new();
        let value: Vec<u8> = (0..4096).map(|_| rand::random()).collect();
        batch.put(format!("k/{n:08}"), value);
        if store.commit_blocking(batch).is_ok() {
            println!("acked {n}");
        }
    }
}

#[test]
fn a_full_disk_ends_the_process_and_loses_nothing_that_was_acknowledged() {
    let disk = SmallDisk::new("8m");
    let path = disk.dir.path().join("store");
    let mut child = myself()
        .args(["--exact", "child_that_fills_the_disk", "--nocapture"])
        .env("METASTORE_FULL_CHILD", &path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let acked: Vec<u32> = lines
        .map_while(Result::ok)
        .filter_map(|line| line.strip_prefix("acked ")?.parse().ok())
        .collect();
    assert_eq!(child.wait().unwrap().code(), Some(74), "the fatal handler ended it");
    assert!(acked.len() > 100, "{} rows fit", acked.len());
    disk.mount(nix::mount::MsFlags::MS_REMOUNT, "64m");
    let (store, aside) = Store::open_or_set_aside(&path, &Options::default()).unwrap();
    assert!(aside.is_none(), "{aside:?}");
    for n in &acked {
        assert!(store.get(&format!("k/{n:08}")).unwrap().is_some(), "row {n} is lost");
    }
    let mut batch = Batch::new();
    batch.put("after", "1");
    store.commit_blocking(batch).unwrap();
}
