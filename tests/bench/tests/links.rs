//! bonding.md §8 on sockets, at rates that leave CPU time: `bench links --gate` between real namespaces, as root. Each test is one
//! scenario of it; what `tests/bench/run links` prints is the same at full rates, beside what else there is.

use std::process::Command;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

/// One after the other: they measure.
static TURN: Mutex<()> = Mutex::new(());

/// The figures of one scenario; panics when linkem called every try invalid.
fn figures(scenario: &str) -> Vec<Value> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let file = tempfile::NamedTempFile::new().expect("/tmp is there");
    let output = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(["links", "--gate", "--only", scenario, "--json"])
        .arg(file.path())
        .output()
        .expect("cargo built bench");
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout)
    );
    assert!(output.status.success(), "{said}");
    println!("{}", String::from_utf8_lossy(&output.stdout));
    let text = std::fs::read(file.path()).expect("bench wrote it");
    let mut answer: Value = serde_json::from_slice(&text).expect("it is JSON");
    let figures: Vec<Value> = serde_json::from_value(answer["figures"].take()).expect("a list");
    for figure in &figures {
        let invalid = figure["invalid"].as_array().expect("a list");
        assert!(
            invalid.is_empty(),
            "machine too slow: {invalid:?} in each of three tries\n{said}"
        );
    }
    figures
}

/// The worst of a figure.
fn worst(figures: &[Value], who: &str, what: &str) -> f64 {
    let is_it = |figure: &&Value| figure["who"].as_str() == Some(who) && figure["what"].as_str() == Some(what);
    let figure = figures.iter().find(is_it);
    let figure = figure.unwrap_or_else(|| panic!("no figure {what} of {who} in {figures:?}"));
    figure["worst"].as_f64().unwrap_or_else(|| panic!("{figure}"))
}

fn three_links_are_one(scenario: &str) {
    let figures = figures(scenario);
    for load in ["datagrams", "packets in order"] {
        let share = worst(&figures, "kedge", load);
        assert!(share >= 85.0, "{scenario}, {load}: {share} % of the limit");
    }
}

#[test]
fn s1_three_clean_links_are_one() {
    three_links_are_one("s1");
}

#[test]
fn s2_three_lossy_links_are_one() {
    three_links_are_one("s2");
}

#[test]
fn s4_the_silent_death_of_each_link_is_hardly_noticed() {
    let figures = figures("s4");
    let stall = worst(&figures, "kedge", "silent, in order: stall");
    assert!(stall <= 500.0, "{stall} ms");
    let visible = worst(&figures, "kedge", "silent, in order: missing or late inside");
    assert!(visible <= 0.0, "{visible} packets missing or late");
}

#[test]
fn s5_a_control_message_is_twice_as_fast_as_over_tcp_on_one_link() {
    let figures = figures("s5");
    let ours = worst(&figures, "kedge", "echo p99, beside specs");
    let tcp = worst(&figures, "TCP cubic over g5", "echo p99");
    assert!(ours <= tcp / 2.0, "p99 {ours} ms, TCP's {tcp} ms");
}
