//! The robots' links as the hub sees them: `/debug/paths` and Prometheus' metrics.
//!
//! Metrics are a dozen series a robot: what its session has carried and repaired, and how many paths it has. Those of each uplink are the
//! robot's to give (its kubelet API's `/metrics`), and here `/debug/paths` shows them: with thousands of robots of three uplinks they would be
//! most of what a Prometheus keeps. A robot whose session is dormant has none here: it is counted.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tunnel::bond::PathState;
use tunnel::exposition::{Exposition, Kind};
use tunnel::{PathReport, Session};

/// Every path of every session that is not dormant, by node.
pub(crate) fn report(sessions: &[Session]) -> Value {
    let one = |session: &Session| {
        let stats = session.stats();
        let value = json!({
            "epoch": session.peer().epoch,
            "paths": session.paths().iter().map(path).collect::<Vec<_>>(),
            "repaired": stats.repaired,
            "reinjected": stats.reinjected,
            "duplicated": stats.duplicated,
            "skipped": stats.skipped,
            "queuedBytes": stats.queued_bytes,
            "streams": stats.streams,
        });
        (session.peer().node.clone(), value)
    };
    Value::Object(sessions.iter().filter(|session| session.is_here()).map(one).collect())
}

fn path(path: &PathReport) -> Value {
    let stats = &path.stats;
    json!({
        "uplink": path.uplink,
        "remote": path.remote.to_string(),
        "state": stats.state.name(),
        "upSeconds": path.age.as_secs(),
        "silentSeconds": path.silent_for.as_secs(),
        "rttMillis": stats.rtt.as_secs_f64() * 1e3,
        "lossPercent": stats.loss * 100.0,
        "bytesPerSecond": stats.rate,
        "sentBytes": path.carried.sent,
        "receivedBytes": path.carried.received,
        "metered": stats.policy.metered,
        "priority": stats.policy.priority,
    })
}

/// For Prometheus.
pub(crate) fn metrics(sessions: &[Session]) -> String {
    let (here, away): (Vec<&Session>, Vec<&Session>) = sessions.iter().partition(|session| session.is_here());
    // In the order of their names, each time.
    let sessions: BTreeMap<&str, &Session> = here
        .iter()
        .map(|session| (session.peer().node.as_str(), *session))
        .collect();
    let mut out = Exposition::default();
    let dormant = "Robots that are away and whose session waits for them.";
    for (name, help, count) in [
        ("kedge_sessions", "Robots with a session.", here.len()),
        ("kedge_sessions_dormant", dormant, away.len()),
    ] {
        out.family((name, Kind::Gauge, help), [(Vec::new(), count as f64)]);
    }
    let stats: Vec<_> = sessions
        .iter()
        .map(|(node, session)| (vec![("node", *node)], session.stats()))
        .collect();
    out.repairs(&stats);
    let bytes = sessions.iter().flat_map(|(node, session)| {
        let carried = session.carried();
        [("sent", carried.sent), ("received", carried.received)]
            .map(|(way, bytes)| (vec![("node", *node), ("direction", way)], bytes as f64))
    });
    let help = "Bytes with the headers of UDP and IP, of the session that is.";
    out.family(("kedge_session_bytes_total", Kind::Counter, help), bytes);
    let paths = sessions.iter().flat_map(|(node, session)| {
        let paths = session.paths();
        [PathState::Live, PathState::Suspect].map(|state| {
            let count = paths.iter().filter(|path| path.stats.state == state).count();
            (vec![("node", *node), ("state", state.name())], count as f64)
        })
    });
    out.family(("kedge_session_paths", Kind::Gauge, "Paths by state."), paths);
    out.into_text()
}
