//! The uplinks, and the session over all of them: `/debug/paths`, which `kedge links` prints, and Prometheus' metrics.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tunnel::bond::Carries;
use tunnel::exposition::{Exposition, Kind};
use tunnel::{PathReport, Priority, Session, Uplink};

use super::budget::Budgets;

/// Every path of the session, every uplink without one, and what the session has carried.
pub fn report(uplinks: &[Uplink], session: Option<&Session>, budgets: &Budgets) -> Value {
    let paths = session.map(Session::paths).unwrap_or_default();
    let down = uplinks
        .iter()
        .filter(|uplink| paths.iter().all(|path| path.uplink != uplink.name));
    let all: Vec<Value> = paths
        .iter()
        .map(one)
        .chain(down.map(|uplink| json!({"uplink": uplink.name, "state": "down", "metered": uplink.policy.metered})))
        .map(|path| with_usage(path, budgets))
        .collect();
    json!({"paths": all, "session": session.map(totals)})
}

/// What goes over a path now, in the configuration's words.
fn carries(carries: Carries) -> &'static str {
    let least = [
        (Priority::Bulk, "all"),
        (Priority::Normal, "normal"),
        (Priority::Interactive, "interactive"),
    ];
    let found = least.into_iter().find(|(priority, _)| carries.has(*priority));
    found.map_or("control", |(_, name)| name)
}

fn one(path: &PathReport) -> Value {
    let stats = &path.stats;
    json!({
        "uplink": path.uplink,
        "transport": path.transport.to_string(),
        "hub": path.remote.to_string(),
        "state": stats.state.name(),
        "upSeconds": path.age.as_secs(),
        "silentSeconds": path.silent_for.as_secs(),
        "rttMillis": stats.rtt.as_secs_f64() * 1e3,
        "lossPercent": stats.loss * 100.0,
        "bytesPerSecond": stats.rate,
        "sentBytes": stats.sent_bytes,
        "receivedBytes": stats.received_bytes,
        "lostPackets": stats.lost_packets,
        "suspicions": stats.suspicions,
        "metered": stats.policy.metered,
        "priority": stats.policy.priority,
        "carries": carries(stats.carries),
    })
}

/// With what the uplink has carried over all its paths.
fn with_usage(mut path: Value, budgets: &Budgets) -> Value {
    let seen = budgets.seen(path["uplink"].as_str().unwrap_or_default());
    path["todayBytes"] = seen.today.into();
    path["monthBytes"] = seen.month.into();
    path["budgetBytes"] = json!(seen.budget);
    path["budgetSpent"] = seen.spent.into();
    path
}

fn totals(session: &Session) -> Value {
    let stats = session.stats();
    json!({
        "epoch": session.peer().epoch,
        "dormant": !session.is_here(),
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

type Figure = fn(&PathReport) -> f64;

/// The same for Prometheus.
pub fn metrics(uplinks: &[Uplink], session: Option<&Session>, budgets: &Budgets) -> String {
    let paths = session.map(Session::paths).unwrap_or_default();
    let mut out = Exposition::default();
    // With none in the configuration there is one that follows the routes.
    let uplinks: BTreeSet<&str> = uplinks
        .iter()
        .map(|uplink| uplink.name.as_str())
        .chain(paths.iter().map(|path| path.uplink.as_str()))
        .collect();
    let states = uplinks.iter().flat_map(|uplink| {
        let path = paths.iter().find(|path| path.uplink == *uplink);
        let now = path.map_or("down", |path| path.stats.state.name());
        ["up", "suspect", "down"].map(|state| {
            let labels = vec![("uplink", *uplink), ("state", state)];
            (labels, f64::from(u8::from(state == now)))
        })
    });
    let help = "1 for the state that the uplink's path is in.";
    out.family(("kedge_uplink_state", Kind::Gauge, help), states);
    let figures: [(&str, &str, Figure); 3] = [
        ("kedge_uplink_rtt_seconds", "Smoothed round-trip time.", |path| {
            path.stats.rtt.as_secs_f64()
        }),
        (
            "kedge_uplink_loss_ratio",
            "Lost packets among those of the last minute.",
            |path| path.stats.loss,
        ),
        (
            "kedge_uplink_rate_bytes_per_second",
            "Bytes a second that the hub acknowledged lately.",
            |path| path.stats.rate as f64,
        ),
    ];
    for (name, help, figure) in figures {
        let samples = paths
            .iter()
            .map(|path| (vec![("uplink", path.uplink.as_str())], figure(path)));
        out.family((name, Kind::Gauge, help), samples);
    }
    used(&mut out, &uplinks, budgets);
    if let Some(session) = session {
        session_metrics(&mut out, session);
    }
    out.into_text()
}

fn used(out: &mut Exposition, uplinks: &BTreeSet<&str>, budgets: &Budgets) {
    let all: Vec<_> = uplinks.iter().map(|uplink| (*uplink, budgets.seen(uplink))).collect();
    let bytes = all.iter().flat_map(|(uplink, seen)| {
        let ways = [("sent", seen.carried.sent), ("received", seen.carried.received)];
        ways.map(|(way, bytes)| (vec![("uplink", *uplink), ("direction", way)], bytes as f64))
    });
    let help = "Bytes with the headers of UDP and IP, since edgecore started.";
    out.family(("kedge_uplink_bytes_total", Kind::Counter, help), bytes);
    let today = all
        .iter()
        .map(|(uplink, seen)| (vec![("uplink", *uplink)], seen.today as f64));
    out.family(
        (
            "kedge_uplink_today_bytes",
            Kind::Gauge,
            "Bytes of this day, UTC, both ways.",
        ),
        today,
    );
    let month = all
        .iter()
        .map(|(uplink, seen)| (vec![("uplink", *uplink)], seen.month as f64));
    let help = "Bytes of this month, which begins on resetDay, both ways.";
    out.family(("kedge_uplink_month_bytes", Kind::Gauge, help), month);
    let limited = || {
        let limited = all
            .iter()
            .filter_map(|(uplink, seen)| Some((*uplink, seen.budget?, seen.spent)));
        limited.map(|(uplink, budget, spent)| (vec![("uplink", uplink)], budget, spent))
    };
    let budget = limited().map(|(labels, budget, _)| (labels, budget as f64));
    out.family(
        ("kedge_uplink_budget_bytes", Kind::Gauge, "Bytes that a month may have."),
        budget,
    );
    let spent = limited().map(|(labels, _, spent)| (labels, f64::from(u8::from(spent))));
    let help = "1 where the month's budget is spent: control traffic alone goes over it.";
    out.family(("kedge_uplink_budget_exceeded", Kind::Gauge, help), spent);
}

fn session_metrics(out: &mut Exposition, session: &Session) {
    let stats = session.stats();
    out.repairs(&[(Vec::new(), stats)]);
    let counters = [
        ("kedge_session_messages_total", "Messages sent.", stats.messages_sent),
        (
            "kedge_session_message_copies_total",
            "Their copies, repetitions included.",
            stats.message_copies,
        ),
    ];
    for (name, help, value) in counters {
        out.family((name, Kind::Counter, help), [(Vec::new(), value as f64)]);
    }
    let queued = stats.queued_bytes as f64;
    out.family(
        ("kedge_session_queued_bytes", Kind::Gauge, "Bytes that wait for a path."),
        [(Vec::new(), queued)],
    );
}

#[cfg(test)]
mod tests {
    use metastore::Store;

    use super::*;
    use crate::config::{EdgecoreConfig, UplinkConfig};

    #[test]
    fn an_uplink_without_a_path_is_down_and_has_its_budget() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), &metastore::Options::default()).unwrap();
        let config = EdgecoreConfig::parse(
            "{apiVersion: a, kind: b, uplinks: [{name: wifi}, {name: lte, metered: {monthlyBudget: 5k}}]}",
        );
        let config: Vec<UplinkConfig> = config.unwrap().uplinks;
        let budgets = Budgets::new(&config, &store).unwrap();
        let uplinks: Vec<Uplink> = config
            .iter()
            .map(|uplink| Uplink {
                policy: uplink.policy(),
                ..Uplink::new(&uplink.name, None)
            })
            .collect();
        let shown = report(&uplinks, None, &budgets);
        let expected = json!({"uplink": "lte", "state": "down", "metered": true, "todayBytes": 0, "monthBytes": 0, "budgetBytes": 5000, "budgetSpent": false});
        assert_eq!(shown["paths"][1], expected);
        let text = metrics(&uplinks, None, &budgets);
        for line in [
            "kedge_uplink_state{uplink=\"wifi\",state=\"down\"} 1",
            "kedge_uplink_state{uplink=\"lte\",state=\"up\"} 0",
            "kedge_uplink_bytes_total{uplink=\"lte\",direction=\"sent\"} 0",
            "kedge_uplink_budget_bytes{uplink=\"lte\"} 5000",
            "kedge_uplink_budget_exceeded{uplink=\"lte\"} 0",
        ] {
            assert!(text.lines().any(|have| have == line), "{line}\n{text}");
        }
        assert!(
            !text.contains("budget_bytes{uplink=\"wifi\"}") && !text.contains("rtt"),
            "{text}"
        );
    }
}
