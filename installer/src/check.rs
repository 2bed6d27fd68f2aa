//! `kedge check`: whether this machine has what edgecore needs, each line with what would be right.

mod uplinks;

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_yaml_ng::Value;
use tokio::time::timeout;

use crate::{api, files};

/// A name server that answers does so at once.
const LOOKUP_WITHIN: Duration = Duration::from_secs(5);
/// 2026: no machine that runs this was right before.
const BUILD_EPOCH: u64 = 1_764_000_000;
const MAX_FILE: u64 = 1024 * 1024;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// edgecore's configuration
    #[arg(long, default_value = "/etc/kedge/edgecore.yaml")]
    config: PathBuf,
    /// Print the findings as JSON: level (ok, warning, bad) and text of each
    #[arg(long)]
    json: bool,
}

/// One line of the report.
enum Finding {
    Good(String),
    Warning(String),
    Bad(String),
}

use Finding::{Bad, Good, Warning};

pub(crate) async fn run(args: &Args) -> Result<ExitCode> {
    let mut findings = vec![user(), clock(), cgroups()];
    match read_config(&args.config) {
        Ok(config) => {
            findings.push(Good(format!("{} is there", args.config.display())));
            findings.extend(identity(&config, api::now()));
            findings.push(containerd(&config));
            findings.push(cni(&config));
            let (about_hub, hubs) = hub(&config).await;
            findings.extend(about_hub);
            findings.extend(uplinks::findings(&config, &hubs));
            findings.push(admin(&config));
        }
        Err(why) => findings.push(Bad(why)),
    }
    print!(
        "{}",
        if args.json {
            as_json(&findings)?
        } else {
            as_text(&findings)
        }
    );
    let bad = findings.iter().any(|finding| matches!(finding, Bad(_)));
    Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn as_text(findings: &[Finding]) -> String {
    let mut report = String::new();
    for finding in findings {
        let (mark, text) = match finding {
            Good(text) => ("ok  ", text),
            Warning(text) => ("warn", text),
            Bad(text) => ("BAD ", text),
        };
        let _ = writeln!(report, "{mark}  {text}");
    }
    report
}

fn as_json(findings: &[Finding]) -> Result<String> {
    let one = |finding: &Finding| {
        let (level, text) = match finding {
            Good(text) => ("ok", text),
            Warning(text) => ("warning", text),
            Bad(text) => ("bad", text),
        };
        serde_json::json!({"level": level, "text": text})
    };
    let list: Vec<_> = findings.iter().map(one).collect();
    Ok(serde_json::to_string_pretty(&list)? + "\n")
}

fn user() -> Finding {
    if nix::unistd::geteuid().is_root() {
        Good("this is root".to_owned())
    } else {
        Warning("this is not root, but edgecore must be".to_owned())
    }
}

fn clock() -> Finding {
    let now = api::now();
    if now >= BUILD_EPOCH {
        Good("the clock is plausible".to_owned())
    } else {
        Warning(format!(
            "the clock says {now} s after 1970; edgecore takes the hub's time, but set up NTP"
        ))
    }
}

fn cgroups() -> Finding {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        Good("cgroup v2".to_owned())
    } else if Path::new("/sys/fs/cgroup/memory").is_dir() {
        Good("cgroup v1".to_owned())
    } else {
        Bad("no cgroups in /sys/fs/cgroup: mount them".to_owned())
    }
}

fn read_config(path: &Path) -> Result<Value, String> {
    let bytes = files::read(path, MAX_FILE).map_err(|error| format!("{error:#}: 'kedge join' writes it"))?;
    let value: Value = serde_yaml_ng::from_slice(&bytes).map_err(|error| format!("{}: {error}", path.display()))?;
    match value.get("kind").and_then(Value::as_str) {
        Some("EdgecoreConfig") => Ok(value),
        kind => Err(format!("{}: kind is {kind:?}, not EdgecoreConfig", path.display())),
    }
}

fn text<'a>(config: &'a Value, path: &[&str]) -> Option<&'a str> {
    let found = path.iter().try_fold(config, |value, key| value.get(key))?;
    found.as_str().filter(|text| !text.is_empty())
}

fn identity(config: &Value, now: u64) -> Vec<Finding> {
    let state = text(config, &["stateDir"]).unwrap_or("/var/lib/kedge/edge");
    let pki = text(config, &["pkiDir"]).map_or_else(|| Path::new(state).join("pki"), PathBuf::from);
    let mut findings: Vec<Finding> = ["client.key", "serving-ca.crt"]
        .iter()
        .map(|name| pki.join(name))
        .filter(|path| !path.exists())
        .map(|path| Bad(format!("{} is missing: 'kedge join' makes it", path.display())))
        .collect();
    let path = pki.join("client.crt");
    let pem = match files::read(&path, MAX_FILE) {
        Ok(pem) => pem,
        Err(error) => {
            findings.push(Bad(format!("{error:#}: 'kedge join' makes it")));
            return findings;
        }
    };
    findings.push(match CertificateDer::from_pem_slice(&pem) {
        Ok(der) => certificate(&der, text(config, &["nodeName"]).unwrap_or_default(), now),
        Err(error) => Bad(format!("{}: {error}", path.display())),
    });
    findings
}

fn certificate(der: &CertificateDer<'_>, node: &str, now: u64) -> Finding {
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(der) else {
        return Bad("client.crt is not an X.509 certificate".to_owned());
    };
    let name = certificate
        .subject()
        .iter_common_name()
        .next()
        .and_then(|name| name.as_str().ok());
    let expected = format!("system:node:{node}");
    if name != Some(expected.as_str()) {
        return Bad(format!(
            "client.crt is for {name:?}, but nodeName is {node:?}: join again"
        ));
    }
    let end = certificate.validity().not_after.timestamp();
    match u64::try_from(end).unwrap_or(0).checked_sub(now) {
        Some(left) => Good(format!(
            "node {node}, its certificate is good for {} days",
            left / 86_400
        )),
        None => Warning(format!(
            "the certificate of node {node} expired: join again with --force"
        )),
    }
}

fn containerd(config: &Value) -> Finding {
    let socket = text(config, &["containerd", "socket"]).unwrap_or("/run/containerd/containerd.sock");
    match UnixStream::connect(socket) {
        Ok(_) => Good(format!("containerd listens at {socket}")),
        Err(error) => Bad(format!("containerd does not listen at {socket}: {error}")),
    }
}

fn cni(config: &Value) -> Finding {
    let folder = text(config, &["network", "cniBinDir"]).unwrap_or("/opt/cni/bin");
    let missing: Vec<&str> = ["bridge", "host-local", "portmap", "loopback"]
        .into_iter()
        .filter(|plugin| fs::metadata(Path::new(folder).join(plugin)).is_err())
        .collect();
    if missing.is_empty() {
        Good(format!("CNI plugins are in {folder}"))
    } else {
        Bad(format!("CNI plugins missing in {folder}: {}", missing.join(", ")))
    }
}

/// What is said of the hub's names, and the addresses that they have.
async fn hub(config: &Value) -> (Vec<Finding>, Vec<IpAddr>) {
    let names = config
        .get("hub")
        .and_then(|hub| hub.get("addresses"))
        .and_then(Value::as_sequence);
    let (mut findings, mut addresses) = (Vec::new(), Vec::new());
    for name in names.into_iter().flatten().filter_map(Value::as_str) {
        let (finding, found) = look_up(name).await;
        findings.push(finding);
        addresses.extend(found);
    }
    if findings.is_empty() {
        findings.push(Bad("hub.addresses is empty: 'kedge join' sets it".to_owned()));
    }
    (findings, addresses)
}

async fn look_up(name: &str) -> (Finding, Vec<IpAddr>) {
    match timeout(LOOKUP_WITHIN, tokio::net::lookup_host(name)).await {
        Ok(Ok(found)) => {
            let addresses = found.map(|address| address.ip()).collect();
            (Good(format!("the hub's name {name} is known")), addresses)
        }
        Ok(Err(error)) => {
            let finding = Warning(format!("the hub's name {name} is not known now: {error}"));
            (finding, Vec::new())
        }
        Err(_) => {
            let finding = Warning(format!("the hub's name {name}: no name server answers now"));
            (finding, Vec::new())
        }
    }
}

fn admin(config: &Value) -> Finding {
    let run = text(config, &["runDir"]).unwrap_or("/run/kedge");
    let socket = text(config, &["adminSocket"]).map_or_else(|| Path::new(run).join("edgecore.sock"), PathBuf::from);
    match UnixStream::connect(&socket) {
        Ok(_) => Good("edgecore runs".to_owned()),
        Err(_) => Warning(format!(
            "edgecore does not run (nothing listens at {})",
            socket.display()
        )),
    }
}
