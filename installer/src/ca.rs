//! `kedge ca`: carry the CAs to a new cluster, so that its hub is one that the nodes know.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

use crate::{api, files};

/// What makes a hub the same hub.
const SECRETS: [&str; 4] = ["ca-serving", "ca-client", "ca-tunnel", "quic-keys"];
/// Four Secrets have about 5 KiB.
const MAX_FILE: u64 = 1024 * 1024;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write the CAs with their keys to a file (mode 0600); keep it like a password
    Export(Export),
    /// Put exported CAs into this cluster, before its cloudhub starts
    Import(Import),
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// The file; '-' for the terminal
    #[arg(long, default_value = "-")]
    out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// The file
    file: PathBuf,
    /// Replace CAs that are there: nodes that know only those will refuse the hub
    #[arg(long)]
    force: bool,
}

/// A v1 List of Secrets, as kubectl knows it too.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SecretList {
    api_version: String,
    kind: String,
    items: Vec<Secret>,
}

pub(crate) async fn run(command: Command, kubeconfig: Option<&Path>) -> Result<()> {
    match command {
        Command::Export(args) => export(&args.out, kubeconfig).await,
        Command::Import(args) => import(&args, kubeconfig).await,
    }
}

/// Only what identifies the hub, nothing of this cluster.
fn bare(secret: Secret) -> Secret {
    Secret {
        metadata: ObjectMeta {
            name: secret.metadata.name,
            namespace: Some(api::NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        },
        ..secret
    }
}

async fn export(out: &Path, kubeconfig: Option<&Path>) -> Result<()> {
    let cluster = api::connect(kubeconfig).await?;
    let secrets = api::secrets(&cluster.client);
    let mut items = Vec::new();
    for name in SECRETS {
        let found = secrets
            .get_opt(name)
            .await
            .with_context(|| format!("read Secret {name}"))?;
        let found = found.with_context(|| {
            format!(
                "there is no Secret {}/{name}: has cloudhub run on this API?",
                api::NAMESPACE
            )
        })?;
        items.push(bare(found));
    }
    let list = SecretList {
        api_version: "v1".to_owned(),
        kind: "List".to_owned(),
        items,
    };
    let yaml = serde_yaml_ng::to_string(&list)?;
    if out == Path::new("-") {
        print!("{yaml}");
    } else {
        files::write(out, yaml.as_bytes(), 0o600)?;
        eprintln!("wrote the CAs with their keys to {}", out.display());
    }
    Ok(())
}

fn parse(yaml: &str) -> Result<Vec<Secret>> {
    let list: SecretList = serde_yaml_ng::from_str(yaml).context("not a file of 'kedge ca export'")?;
    for secret in &list.items {
        let name = secret.metadata.name.as_deref().unwrap_or_default();
        if !SECRETS.contains(&name) {
            bail!("Secret {name:?} is not one of {}", SECRETS.join(", "));
        }
    }
    if !list
        .items
        .iter()
        .any(|secret| secret.metadata.name.as_deref() == Some("ca-serving"))
    {
        bail!("there is no ca-serving in it");
    }
    Ok(list.items.into_iter().map(bare).collect())
}

async fn import(args: &Import, kubeconfig: Option<&Path>) -> Result<()> {
    let path = &args.file;
    let yaml = files::read(path, MAX_FILE)?;
    let yaml = String::from_utf8(yaml).with_context(|| format!("{} is not text", path.display()))?;
    let items = parse(&yaml).with_context(|| format!("read {}", path.display()))?;
    let cluster = api::connect(kubeconfig).await?;
    api::ensure_namespace(&cluster.client).await?;
    let secrets = api::secrets(&cluster.client);
    for secret in &items {
        let name = secret.metadata.name.as_deref().unwrap_or_default();
        let found = secrets
            .get_opt(name)
            .await
            .with_context(|| format!("read Secret {name}"))?;
        if !args.force && found.is_some_and(|found| found.data != secret.data) {
            bail!(
                "another {name} is there already; --force replaces it, and nodes that know only that one will refuse the hub"
            );
        }
    }
    for secret in items {
        api::put(&secrets, secret).await?;
    }
    eprintln!("imported; restart cloudhub if it runs");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_exported_can_be_imported_and_nothing_else() {
        let mut secret = api::secret("ca-serving", &[("tls.crt", "x".to_owned())]);
        secret.metadata.uid = Some("u".to_owned());
        let list = SecretList {
            api_version: "v1".to_owned(),
            kind: "List".to_owned(),
            items: vec![bare(secret)],
        };
        let yaml = serde_yaml_ng::to_string(&list).unwrap();
        let read = parse(&yaml).unwrap();
        assert_eq!(read[0].data, list.items[0].data);
        assert_eq!(read[0].metadata.uid, None);
        assert!(parse("").is_err());
        assert!(parse("apiVersion: v1\nkind: List\nitems: []\n").is_err());
        assert!(parse(&yaml.replace("ca-serving", "admin-password")).is_err());
    }
}
