//! What `kedge up` asks of the hub and containerd: are they there, and may this node join.

use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use cri::{CriRuntime, Runtime as _};
use http::Method;
use tokio::process::Command;
use tokio::time::timeout;

use crate::admin;
use crate::up::layout::{Layout, Plan};
use crate::up::say;

/// Local sockets answer at once or not at all.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// The hub may be slow in its first seconds.
const JOIN_WITHIN: Duration = Duration::from_secs(60);

/// Whether containerd's CRI plugin answers.
pub(super) async fn containerd_version(layout: &Layout) -> Result<(), String> {
    let socket = layout.containerd_socket();
    if !std::fs::metadata(&socket).is_ok_and(|meta| meta.file_type().is_socket()) {
        return Err(format!("no socket {}", socket.display()));
    }
    let (runtime, _pump) = CriRuntime::new(&socket);
    match timeout(ANSWER_WITHIN, runtime.version()).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer".to_owned()),
    }
}

/// Whether `path` on the admin socket answers 200.
pub(super) async fn ready(socket: &Path, path: &str) -> Result<(), String> {
    let answered = admin::ask(("a service", socket), Method::GET, path, Bytes::new()).await;
    match answered.map_err(|error| format!("{error:#}"))? {
        (status, _) if status.is_success() => Ok(()),
        (_, text) => Err(String::from_utf8_lossy(&text).trim_end().to_owned()),
    }
}

/// Joins this machine as the plan's node, unless it has joined.
pub(super) async fn join(layout: &Layout, plan: &Plan) -> Result<()> {
    layout.write_edgecore(plan)?;
    if layout.edge().join("pki/client.crt").exists() {
        return Ok(());
    }
    say(&format!("joining as {}", plan.node));
    let kubeconfig = layout.kubeconfig(plan).display().to_string();
    let edges = plan.edges();
    let create = [
        "token",
        "create",
        &plan.node,
        "--hub",
        &edges,
        "--kubeconfig",
        &kubeconfig,
    ];
    let printed = kedge(&create).await?;
    let joined: Vec<&str> = printed.split_whitespace().skip_while(|word| *word != "join").collect();
    if joined.is_empty() {
        bail!("kedge token create printed no join command: {printed}");
    }
    let etc = layout.etc().display().to_string();
    let edge = layout.edge().display().to_string();
    let mut args = joined;
    args.extend(["--config-dir", &etc, "--state-dir", &edge]);
    kedge(&args).await?;
    Ok(())
}

/// This command with other arguments; what it printed.
async fn kedge(args: &[&str]) -> Result<String> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(args).kill_on_drop(true);
    let what = || format!("kedge {} {}", args.first().unwrap_or(&""), args.get(1).unwrap_or(&""));
    let done = timeout(JOIN_WITHIN, command.output())
        .await
        .with_context(|| format!("{}: no end within {} s", what(), JOIN_WITHIN.as_secs()))?
        .with_context(what)?;
    if !done.status.success() {
        bail!("{}: {}", what(), String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}
