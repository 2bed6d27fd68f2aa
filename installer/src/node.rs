//! `kedge node`: identities of nodes, and which hub has their sessions. Revoking marks Secret node-NODE; the hub watches it and cuts the node
//! within a second. Redirecting is said to the hub that has the session, on its machine.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::{Args, Subcommand};
use http::Method;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Node, Secret};
use kube::api::{Api, ListParams, PostParams};

use crate::admin;
use crate::api::{self, text};
use crate::token::is_node_name;

/// Label of node records.
const RECORD_LABEL: &str = "kedge.dev/node-record";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List nodes that joined
    List,
    /// Shut a node out: its session is cut within a second, its certificates are refused from now on
    Revoke(Revoke),
    /// Send a node's session to another hub of the same installation; runs on the machine of the hub that has it
    Redirect(Redirect),
}

#[derive(Debug, Args)]
pub(crate) struct Revoke {
    /// Its name
    node: String,
}

#[derive(Debug, Args)]
pub(crate) struct Redirect {
    /// Its name
    node: String,
    /// Where to: HOST:PORT of the other hub's tunnel, up to eight with commas between them. The node dials them first until it is started
    /// again; when none answers it comes back
    #[arg(long)]
    to: String,
    /// cloudhub's admin socket
    #[arg(long, default_value = "/run/kedge/cloudhub.sock", env = "KEDGE_HUB_SOCKET")]
    socket: PathBuf,
}

pub(crate) async fn run(command: Command, kubeconfig: Option<&Path>) -> Result<()> {
    match command {
        Command::List => list(kubeconfig).await,
        Command::Revoke(args) => revoke(&args.node, kubeconfig).await,
        Command::Redirect(args) => redirect(&args).await,
    }
}

async fn list(kubeconfig: Option<&Path>) -> Result<()> {
    let cluster = api::connect(kubeconfig).await?;
    let params = ListParams::default().labels(RECORD_LABEL);
    let records = api::secrets(&cluster.client)
        .list(&params)
        .await
        .context("list node records")?;
    let nodes: Api<Node> = Api::all(cluster.client);
    let mut rows = Vec::new();
    for record in &records {
        let name = record.metadata.name.as_deref().unwrap_or_default();
        let name = name.strip_prefix("node-").unwrap_or(name);
        let node = nodes.get_opt(name).await.with_context(|| format!("read Node {name}"))?;
        rows.push(vec![
            name.to_owned(),
            connected(node.as_ref()),
            text(record, "generation").unwrap_or("0").to_owned(),
            text(record, "revoked").unwrap_or("false").to_owned(),
        ]);
    }
    api::table(&["NODE", "CONNECTED", "CERTIFICATE", "REVOKED"], &rows);
    Ok(())
}

fn connected(node: Option<&Node>) -> String {
    let Some(node) = node else {
        return "no Node object".to_owned();
    };
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let found = conditions.and_then(|all| all.iter().find(|one| one.type_ == "EdgeConnected"));
    found.map_or("unknown".to_owned(), |condition| {
        match (condition.status.as_str(), condition.reason.as_deref()) {
            ("True", _) => "yes".to_owned(),
            (_, Some(reason)) => format!("no: {reason}"),
            _ => "no".to_owned(),
        }
    })
}

fn mark_revoked(secret: &mut Secret) {
    let labels = secret.metadata.labels.get_or_insert_default();
    labels.insert(RECORD_LABEL.to_owned(), "true".to_owned());
    let data = secret.data.get_or_insert_default();
    data.insert("revoked".to_owned(), ByteString(b"true".to_vec()));
}

async fn revoke(node: &str, kubeconfig: Option<&Path>) -> Result<()> {
    if !is_node_name(node) {
        bail!("{node:?} is not a node name");
    }
    let cluster = api::connect(kubeconfig).await?;
    let secrets = api::secrets(&cluster.client);
    let name = format!("node-{node}");
    for _ in 0..5 {
        let found = secrets
            .get_opt(&name)
            .await
            .with_context(|| format!("read Secret {name}"))?;
        let written = match found {
            Some(mut secret) => {
                mark_revoked(&mut secret);
                secrets.replace(&name, &PostParams::default(), &secret).await
            }
            None => {
                let mut secret = api::secret(&name, &[("generation", "0".to_owned())]);
                mark_revoked(&mut secret);
                eprintln!("kedge: no node {node} has joined yet; it is shut out all the same");
                secrets.create(&PostParams::default(), &secret).await
            }
        };
        match written {
            Ok(_) => {
                println!(
                    "node {node} is revoked; a new token lets it join again, 'kubectl delete node {node}' removes it"
                );
                return Ok(());
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(error).with_context(|| format!("write Secret {name}")),
        }
    }
    bail!("write Secret {name}: somebody else keeps changing it")
}

async fn redirect(args: &Redirect) -> Result<()> {
    let body = serde_json::json!({"node": args.node, "to": args.to}).to_string();
    let hub = ("cloudhub", args.socket.as_path());
    let (status, text) = admin::ask(hub, Method::POST, "/redirect", Bytes::from(body)).await?;
    if !status.is_success() {
        bail!("{}", String::from_utf8_lossy(&text).trim_end());
    }
    println!("node {} is told to go to {}", args.node, args.to);
    Ok(())
}

#[cfg(test)]
mod tests {
    use cloudhub::identity::NodeRecord;

    use super::*;

    #[test]
    fn the_hub_reads_our_mark() {
        let mut secret = api::secret("node-a", &[("generation", "3".to_owned())]);
        assert!(!NodeRecord::from_secret(&secret).revoked);
        mark_revoked(&mut secret);
        let record = NodeRecord::from_secret(&secret);
        assert_eq!((record.revoked, record.generation), (true, 3));
    }
}
