//! `/debug/paths`: the uplinks, and the session over all of them. `kedge links` prints it.

use serde_json::{Value, json};
use tunnel::bond::PathState;
use tunnel::{PathReport, Session, Uplink};

/// Every path of the session, every uplink without one, and what the session has carried.
pub fn report(uplinks: &[Uplink], session: Option<&Session>) -> Value {
    let paths = session.map(Session::paths).unwrap_or_default();
    let down = uplinks
        .iter()
        .filter(|uplink| paths.iter().all(|path| path.uplink != uplink.name));
    let all: Vec<Value> = paths
        .iter()
        .map(one)
        .chain(down.map(|uplink| json!({"uplink": uplink.name, "state": "down"})))
        .collect();
    json!({"paths": all, "session": session.map(totals)})
}

fn one(path: &PathReport) -> Value {
    let stats = &path.stats;
    json!({
        "uplink": path.uplink,
        "transport": path.transport.to_string(),
        "hub": path.remote.to_string(),
        "state": match stats.state {
            PathState::Live => "up",
            PathState::Suspect => "suspect",
        },
        "upSeconds": path.age.as_secs(),
        "silentSeconds": path.silent_for.as_secs(),
        "rttMillis": stats.rtt.as_secs_f64() * 1e3,
        "lossPercent": stats.loss * 100.0,
        "bytesPerSecond": stats.rate,
        "sentBytes": stats.sent_bytes,
        "receivedBytes": stats.received_bytes,
        "lostPackets": stats.lost_packets,
        "suspicions": stats.suspicions,
    })
}

fn totals(session: &Session) -> Value {
    let stats = session.stats();
    json!({
        "epoch": session.peer().epoch,
        "repaired": stats.repaired,
        "reinjected": stats.reinjected,
        "duplicated": stats.duplicated,
        "skipped": stats.skipped,
        "messagesSent": stats.messages_sent,
        "messageCopies": stats.message_copies,
        "queuedBytes": stats.queued_bytes,
        "streams": stats.streams,
    })
}
