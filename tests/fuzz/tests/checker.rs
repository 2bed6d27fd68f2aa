//! The fuzzer finds what it is there to find: decoders with a fault each are caught, and the sound ones are not.

use std::path::Path;
use std::process::Command;

fn hunt(target: &str, regressions: &Path, seconds: &str) -> (bool, String) {
    let done = Command::new(env!("CARGO_BIN_EXE_fuzz"))
        .args(["--target", target, "--seconds", seconds, "--regressions"])
        .arg(regressions)
        .output()
        .expect("works here");
    let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    (done.status.success(), said)
}

/// The fault is found, its input is kept, and the next hunt finds it at once.
fn is_caught(target: &str, kind: &str) {
    let folder = tempfile::tempdir().expect("works here");
    let (clean, said) = hunt(target, folder.path(), "120");
    assert!(!clean && said.contains(&format!("{target}: {kind}: ")), "{said}");
    let kept: Vec<_> = std::fs::read_dir(folder.path().join(target))
        .expect("works here")
        .collect();
    assert_eq!(kept.len(), 1);
    let (clean, said) = hunt(target, folder.path(), "0");
    assert!(
        !clean && said.contains(&format!("{target}: {kind}: ")),
        "replayed: {said}"
    );
}

#[test]
fn a_panic_is_caught() {
    is_caught("broken.panics", "panic");
}

#[test]
fn memory_by_a_length_field_is_caught() {
    is_caught("broken.allocates", "memory");
}

#[test]
fn memory_that_grows_too_fast_is_caught() {
    is_caught("broken.hoards", "memory");
}

#[test]
fn an_endless_loop_is_caught() {
    is_caught("broken.loops", "hang");
}

#[test]
fn a_stack_overflow_is_caught() {
    is_caught("broken.recurses", "death");
}

#[test]
fn a_broken_promise_is_caught() {
    is_caught("broken.forgets", "promise");
}

#[test]
fn regressions_and_corpus_pass_and_every_target_takes_part() {
    let regressions = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
    let (clean, said) = hunt("", &regressions, "0");
    assert!(clean, "{said}");
    for target in fuzz::targets::ALL {
        assert!(said.contains(target.name), "{}: {said}", target.name);
        assert!(!(target.corpus)().is_empty(), "{}", target.name);
    }
}
