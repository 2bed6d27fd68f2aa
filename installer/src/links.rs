//! `kedge links`: on which uplinks this machine reaches its hub, and how good each is. Read from edgecore's admin socket.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Args as ClapArgs;
use http::Method;
use serde::Deserialize;

use crate::admin;

/// How often -w looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// A link that loses more is named, percent: a good radio link loses less than one.
const BAD_LOSS: f64 = 2.0;

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// edgecore's admin socket
    #[arg(long, default_value = "/run/kedge/edgecore.sock", env = "KEDGE_ADMIN_SOCKET")]
    socket: PathBuf,
    /// Show it again each second until interrupted
    #[arg(short, long)]
    watch: bool,
    /// Print what edgecore says as JSON
    #[arg(long, conflicts_with = "watch")]
    json: bool,
}

#[derive(Debug, Deserialize)]
struct Report {
    paths: Vec<Link>,
    session: Option<Session>,
}

/// One uplink; without a path it has a name and a state only.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Link {
    uplink: String,
    state: String,
    /// quic, or tcp where the site blocks UDP; an older edgecore does not say.
    #[serde(default)]
    transport: String,
    #[serde(default)]
    hub: String,
    rtt_millis: Option<f64>,
    loss_percent: Option<f64>,
    #[serde(default)]
    bytes_per_second: u64,
    #[serde(default)]
    sent_bytes: u64,
    #[serde(default)]
    received_bytes: u64,
    #[serde(default)]
    silent_seconds: u64,
    #[serde(default)]
    metered: bool,
    /// What goes over it now.
    #[serde(default)]
    carries: String,
    #[serde(default)]
    today_bytes: u64,
    #[serde(default)]
    month_bytes: u64,
    budget_bytes: Option<u64>,
    #[serde(default)]
    budget_spent: bool,
}

#[derive(Debug, Deserialize)]
struct Session {
    epoch: u64,
    /// An older edgecore ends a session that no uplink carries.
    #[serde(default)]
    dormant: bool,
    repaired: u64,
    reinjected: u64,
    duplicated: u64,
    skipped: u64,
}

pub(crate) async fn run(args: Args) -> Result<()> {
    if args.watch {
        loop {
            // edgecore may be started again meanwhile.
            let shown = look(&args).await.unwrap_or_else(|error| format!("{error:#}"));
            // Clear the screen, cursor to its corner.
            println!("\x1b[2J\x1b[H{shown}");
            tokio::time::sleep(INTERVAL).await;
        }
    }
    println!("{}", look(&args).await?);
    Ok(())
}

/// What there is to show now.
async fn look(args: &Args) -> Result<String> {
    let (status, text) = admin::ask(("edgecore", &args.socket), Method::GET, "/debug/paths", Bytes::new()).await?;
    if !status.is_success() {
        bail!("edgecore answers {status}: is it older than this command?");
    }
    if args.json {
        return Ok(String::from_utf8_lossy(&text).into_owned());
    }
    let report: Report = serde_json::from_slice(&text).context("edgecore's answer")?;
    Ok(render(&report))
}

fn render(report: &Report) -> String {
    let total: u64 = report
        .paths
        .iter()
        .map(|path| path.sent_bytes + path.received_bytes)
        .sum();
    let header = [
        "UPLINK", "STATE", "OVER", "RTT", "LOSS", "RATE", "SHARE", "TODAY", "BUDGET", "HUB",
    ];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(report.paths.iter().map(|path| row(path, total)));
    let widths: Vec<usize> = (0..header.len())
        .map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<_> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text.push('\n');
    for trouble in report.paths.iter().filter_map(trouble) {
        text.push_str(&trouble);
        text.push('\n');
    }
    text.push_str(&match &report.session {
        None => "No session with the hub.".to_owned(),
        Some(session) if session.dormant => {
            format!(
                "No link to the hub: session {} goes on when an uplink answers.",
                session.epoch
            )
        }
        Some(session) => format!(
            "Session {}: {} repaired, {} sent again elsewhere, {} duplicates dropped, {} skipped.",
            session.epoch, session.repaired, session.reinjected, session.duplicated, session.skipped
        ),
    });
    text
}

fn row(path: &Link, total: u64) -> [String; 10] {
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let has_path = path.rtt_millis.is_some();
    let counted = |value: String| if has_path { value } else { "-".to_owned() };
    let state = match path.silent_seconds {
        seconds if path.state == "suspect" => format!("suspect {seconds}s"),
        _ => path.state.clone(),
    };
    let bytes = path.sent_bytes + path.received_bytes;
    let share = (bytes * 100).checked_div(total).unwrap_or(0);
    [
        path.uplink.clone(),
        state,
        counted(path.transport.clone()),
        or_dash(path.rtt_millis.map(|millis| format!("{millis:.0} ms"))),
        or_dash(path.loss_percent.map(|percent| format!("{percent:.1} %"))),
        counted(format!("{:.1} Mbit/s", path.bytes_per_second as f64 * 8.0 / 1e6)),
        counted(format!("{share} %")),
        size(path.today_bytes),
        budget(path),
        counted(path.hub.clone()),
    ]
}

/// What is wrong with an uplink.
fn trouble(path: &Link) -> Option<String> {
    let name = &path.uplink;
    let lost = path.loss_percent.unwrap_or(0.0);
    match path.state.as_str() {
        "down" => Some(format!("{name}: no connection to the hub.")),
        "suspect" => Some(format!("{name}: no answer for {} s.", path.silent_seconds)),
        _ if lost >= BAD_LOSS => Some(format!("{name}: {lost:.1} % of its packets are lost.")),
        _ if path.budget_spent => Some(format!("{name}: its budget of this month is spent.")),
        _ => None,
    }
}

/// What a metered uplink has carried of what it may this month, and what goes over it now.
fn budget(path: &Link) -> String {
    let mut said = Vec::new();
    if let Some(budget) = path.budget_bytes {
        let spent = if path.budget_spent { " spent" } else { "" };
        said.push(format!("{} of {}{spent}", size(path.month_bytes), size(budget)));
    }
    if path.metered && !path.carries.is_empty() {
        said.push(path.carries.clone());
    }
    if said.is_empty() {
        said.push("-".to_owned());
    }
    said.join(", ")
}

/// In decimal units, as uplinks are billed.
fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_shows_which_link_is_bad() {
        let report = serde_json::json!({
            "paths": [
                {"uplink": "g5", "state": "up", "transport": "quic", "hub": "192.0.2.9:6444", "rttMillis": 31.2, "lossPercent": 4.9, "bytesPerSecond": 5_000_000,
                 "sentBytes": 1_500, "receivedBytes": 3_000_000, "silentSeconds": 0, "upSeconds": 9, "lostPackets": 4, "suspicions": 0,
                 "todayBytes": 3_200_000, "monthBytes": 9_000_000, "budgetBytes": null, "budgetSpent": false, "metered": false,
                 "carries": "all", "priority": 0},
                {"uplink": "lte", "state": "suspect", "transport": "tcp via proxy:3128", "hub": "192.0.2.9:6444", "rttMillis": 61.0, "lossPercent": 0.0, "bytesPerSecond": 0,
                 "sentBytes": 500, "receivedBytes": 0, "silentSeconds": 4, "todayBytes": 600, "monthBytes": 5_400_000_000_u64,
                 "budgetBytes": 5_368_709_120_u64, "budgetSpent": true, "metered": true, "carries": "control"},
                {"uplink": "wifi", "state": "down", "metered": false, "todayBytes": 1_000, "monthBytes": 1_000, "budgetBytes": 5_000},
            ],
            "session": {"epoch": 7, "repaired": 3, "reinjected": 2, "duplicated": 1, "skipped": 0},
        });
        let mut report: Report = serde_json::from_value(report).unwrap();
        let text = render(&report);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "UPLINK  STATE       OVER                RTT    LOSS   RATE         SHARE  TODAY   BUDGET                             HUB",
                "g5      up          quic                31 ms  4.9 %  40.0 Mbit/s  99 %   3.2 MB  -                                  192.0.2.9:6444",
                "lte     suspect 4s  tcp via proxy:3128  61 ms  0.0 %  0.0 Mbit/s   0 %    600 B   5.40 GB of 5.37 GB spent, control  192.0.2.9:6444",
                "wifi    down        -                   -      -      -            -      1.0 kB  1.0 kB of 5.0 kB                   -",
                "",
                "g5: 4.9 % of its packets are lost.",
                "lte: no answer for 4 s.",
                "wifi: no connection to the hub.",
                "Session 7: 3 repaired, 2 sent again elsewhere, 1 duplicates dropped, 0 skipped.",
            ]
        );
        report.session.as_mut().unwrap().dormant = true;
        let said = "\nNo link to the hub: session 7 goes on when an uplink answers.";
        assert!(render(&report).ends_with(said));
    }
}
