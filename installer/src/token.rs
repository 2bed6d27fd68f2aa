//! `kedge token`: join tokens. The hub judges them (cloudhub/src/identity/tokens.rs); this makes and lists them.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use k8s_openapi::api::core::v1::Secret;
use kube::api::ListParams;
use rand::Rng;
use sha2::{Digest, Sha256};

use crate::api::{self, text};
use crate::pinned;

/// How long a token is good for.
const DEFAULT_LIFE_SECONDS: u64 = 3600;
/// Label with the public part of the token.
const ID_LABEL: &str = "kedge.dev/join-token";
/// Port of the hub's join listener.
const JOIN_PORT: u16 = 6444;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a token for a node; prints the command to run on it
    Create(Create),
    /// List tokens
    List,
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Name that the node will have
    node: String,
    /// Label that the Node will have, KEY=VALUE; more than once for more
    #[arg(long = "label", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    /// Seconds until it expires
    #[arg(long, default_value_t = DEFAULT_LIFE_SECONDS, value_parser = clap::value_parser!(u64).range(1..=30 * 86_400))]
    ttl_seconds: u64,
    /// Join listener as the node reaches it, HOST:PORT [default: the API's host, port 6444]
    #[arg(long)]
    hub: Option<String>,
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not KEY=VALUE")),
    }
}

pub(crate) async fn run(command: Command, kubeconfig: Option<&Path>) -> Result<()> {
    match command {
        Command::Create(args) => create(args, kubeconfig).await,
        Command::List => list(kubeconfig).await,
    }
}

/// Whether this can be a Node's name.
pub(crate) fn is_node_name(name: &str) -> bool {
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !label.is_empty() && !label.starts_with('-') && !label.ends_with('-') && label.bytes().all(inner)
    };
    name.len() <= 63 && name.split('.').all(label)
}

/// `[a-z0-9]{6}.[a-z0-9]{16}`: 82 bits of secret.
fn generate() -> String {
    const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut rng = rand::rng();
    let mut part = |length: usize| -> String {
        (0..length)
            .map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]))
            .collect()
    };
    format!("{}.{}", part(6), part(16))
}

/// What the hub keeps of a token.
fn token_secret(token: &str, node: &str, expires: u64, labels: &BTreeMap<String, String>) -> Result<Secret> {
    let hash: String = Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect();
    let values = [
        ("hash", hash),
        ("expires", expires.to_string()),
        ("labels", serde_json::to_string(labels)?),
    ];
    let mut secret = api::secret(&format!("join-{node}"), &values);
    let id = token.split('.').next().unwrap_or_default().to_owned();
    secret
        .metadata
        .labels
        .get_or_insert_default()
        .insert(ID_LABEL.to_owned(), id);
    Ok(secret)
}

async fn create(args: Create, kubeconfig: Option<&Path>) -> Result<()> {
    let node = &args.node;
    if !is_node_name(node) {
        bail!(
            "node name {node:?} must be a DNS subdomain: lower case letters, digits, '-' and '.', at most 63 characters"
        );
    }
    let cluster = api::connect(kubeconfig).await?;
    let secrets = api::secrets(&cluster.client);
    let ca = secrets
        .get_opt("ca-serving")
        .await
        .context("read Secret kedge-system/ca-serving")?
        .context("there is no Secret kedge-system/ca-serving: start cloudhub on this API first")?;
    let ca = text(&ca, "tls.crt").context("Secret kedge-system/ca-serving has no tls.crt")?;
    let hash = pinned::ca_hash_of_pem(ca).context("read the certificate in Secret kedge-system/ca-serving")?;
    let token = generate();
    let labels = args.labels.iter().cloned().collect();
    let expires = api::now() + args.ttl_seconds;
    api::put(&secrets, token_secret(&token, node, expires, &labels)?).await?;
    let hub = args.hub.unwrap_or_else(|| format!("{}:{JOIN_PORT}", cluster.host));
    eprintln!(
        "Run this on the machine that is to be node {node}, within {} minutes:\n",
        args.ttl_seconds.div_ceil(60)
    );
    println!("kedge join --hub {hub} --token {token} --ca-hash {hash}");
    Ok(())
}

fn state(secret: &Secret, now: u64) -> String {
    if text(secret, "spent").is_some() {
        return "used".to_owned();
    }
    match text(secret, "expires").and_then(|expires| expires.parse::<u64>().ok()) {
        Some(expires) if expires > now => format!("good for {} min", (expires - now).div_ceil(60)),
        _ => "expired".to_owned(),
    }
}

async fn list(kubeconfig: Option<&Path>) -> Result<()> {
    let cluster = api::connect(kubeconfig).await?;
    let params = ListParams::default().labels(ID_LABEL);
    let found = api::secrets(&cluster.client)
        .list(&params)
        .await
        .context("list join tokens")?;
    let now = api::now();
    let row = |secret: &Secret| {
        let name = secret.metadata.name.as_deref().unwrap_or_default();
        let id = secret.metadata.labels.as_ref().and_then(|labels| labels.get(ID_LABEL));
        vec![
            name.strip_prefix("join-").unwrap_or(name).to_owned(),
            id.cloned().unwrap_or_default(),
            state(secret, now),
        ]
    };
    api::table(
        &["NODE", "TOKEN ID", "STATE"],
        &found.iter().map(row).collect::<Vec<_>>(),
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use cloudhub::identity::tokens;

    use super::*;

    #[test]
    fn the_hub_takes_the_tokens_that_we_make() {
        let token = generate();
        assert!(tokens::is_well_formed(&token));
        let labels = BTreeMap::from([("zone".to_owned(), "dock".to_owned())]);
        let secret = token_secret(&token, "a", 100, &labels).unwrap();
        assert_eq!(secret.metadata.name, Some(tokens::secret_name("a")));
        assert_eq!(
            tokens::judge(&token, "a", Some(&secret), Duration::from_secs(99)),
            Ok(())
        );
        assert!(tokens::judge(&token, "a", Some(&secret), Duration::from_secs(100)).is_err());
        assert_eq!(tokens::labels(&secret), labels);
        let selector = tokens::selector(&token);
        let (key, id) = selector.split_once('=').unwrap();
        assert_eq!(secret.metadata.labels.as_ref().unwrap()[key], id);
        assert_eq!(state(&secret, 40), "good for 1 min");
        assert_eq!(state(&tokens::spend(secret, Duration::ZERO), 40), "used");
    }

    #[test]
    fn node_names_are_dns_subdomains() {
        assert!(is_node_name("robot-1.dock"));
        for name in ["", "-a", "a-", "A", "a..b", "a/b", &"x".repeat(64)] {
            assert!(!is_node_name(name), "{name}");
        }
    }
}
