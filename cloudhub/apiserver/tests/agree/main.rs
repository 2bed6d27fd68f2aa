//! The embedded API and a real kube-apiserver get the same requests, and must answer the same.
//!
//! * `scripts/*.yaml` ([`script`]): steps, each a request; both servers get them in order, from an empty start
//! * [`client`]: HTTP/2, with the admin's certificate or with none
//! * [`answer`]: what may differ in any answer (uids, times, versions, chosen addresses) is taken out; the rest is compared
//!
//! What else differs is a row in its step, with the reason; a row that no longer holds fails the test. `AGREE=NAME` runs the
//! scripts whose names contain it.

mod answer;
mod client;
mod script;

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result, bail};
use kit::Real;
use tokio::sync::watch;
use tokio::task::JoinSet;

use client::Client;
use script::Script;

#[test]
fn the_embedded_api_answers_as_kube_apiserver_does() -> Result<()> {
    let real = Real::start()?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(compare(&real))
}

async fn compare(real: &Real) -> Result<()> {
    let dir = real.dir().join("embedded");
    let server = apiserver::build(apiserver::Config {
        data: dir.clone(),
        listen: "127.0.0.1:0".parse()?,
        names: Vec::new(),
        service_range: (Ipv4Addr::new(10, 96, 0, 0), 16),
        not_ready_toleration_seconds: 300,
        unreachable_toleration_seconds: 300,
        kubelet_ca: ("kedge-system".into(), "ca-serving".into()),
        first_write: None,
    });
    let server = Box::pin(server).await?;
    let (_stop, stopped) = watch::channel(false);
    let mut tasks = JoinSet::new();
    tasks.spawn(server.run(stopped));
    let real = Client::connect(&real.kubeconfig)
        .await
        .context("connect to kube-apiserver")?;
    let ours = Client::connect(&dir.join("admin.kubeconfig"))
        .await
        .context("connect to the embedded API")?;
    let only = std::env::var("AGREE").unwrap_or_default();
    let mut faults = Vec::new();
    for script in scripts()?.iter().filter(|script| script.name.contains(&only)) {
        faults.extend(script.run(&real, &ours).await?);
    }
    if faults.is_empty() {
        return Ok(());
    }
    bail!("{} differences:\n{}", faults.len(), faults.join("\n"));
}

fn scripts() -> Result<Vec<Script>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/agree/scripts");
    let mut paths: Vec<_> = fs::read_dir(dir)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    paths.sort();
    paths.iter().map(|path| Script::read(path)).collect()
}
