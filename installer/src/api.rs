//! The Kubernetes API as this command sees it: a client, and the Secrets of `kedge-system`.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// Where the hub keeps identities.
pub(crate) const NAMESPACE: &str = "kedge-system";
/// The embedded hub's administrator.
const EMBEDDED: &str = "/var/lib/kedge/hub/admin.kubeconfig";
/// Nobody waits longer for a command.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// A client and what it talks to.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    /// Host of the API server, without port.
    pub(crate) host: String,
}

/// Connects with a kubeconfig: the one given, the embedded hub's, or the user's own.
pub(crate) async fn connect(kubeconfig: Option<&Path>) -> Result<Cluster> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let embedded = PathBuf::from(EMBEDDED);
    let path = kubeconfig
        .map(Path::to_owned)
        .or_else(|| embedded.exists().then_some(embedded));
    let mut config = match path {
        Some(path) => {
            let file = Kubeconfig::read_from(&path).with_context(|| format!("read kubeconfig {}", path.display()))?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .with_context(|| format!("use kubeconfig {}", path.display()))?
        }
        None => Config::infer()
            .await
            .context("find a kubeconfig: pass --kubeconfig FILE or set KUBECONFIG")?,
    };
    config.connect_timeout = Some(ANSWER_WITHIN);
    config.read_timeout = Some(ANSWER_WITHIN);
    let host = config.cluster_url.host().unwrap_or("HUB").to_owned();
    let client = Client::try_from(config).context("set up the client of the Kubernetes API")?;
    Ok(Cluster { client, host })
}

/// The Secrets of `kedge-system`.
pub(crate) fn secrets(client: &Client) -> Api<Secret> {
    Api::namespaced(client.clone(), NAMESPACE)
}

/// Makes the namespace where it is missing.
pub(crate) async fn ensure_namespace(client: &Client) -> Result<()> {
    let namespace = Namespace {
        metadata: ObjectMeta {
            name: Some(NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        },
        ..Namespace::default()
    };
    let api = Api::<Namespace>::all(client.clone());
    match api.create(&PostParams::default(), &namespace).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error).with_context(|| format!("create namespace {NAMESPACE}")),
    }
}

/// Writes a Secret over whatever is there.
pub(crate) async fn put(api: &Api<Secret>, mut secret: Secret) -> Result<()> {
    let name = secret.metadata.name.clone().unwrap_or_default();
    let params = PostParams::default();
    for _ in 0..5 {
        let found = api
            .get_opt(&name)
            .await
            .with_context(|| format!("read Secret {name}"))?;
        let written = match found {
            Some(found) => {
                secret.metadata.resource_version = found.metadata.resource_version;
                api.replace(&name, &params, &secret).await
            }
            None => {
                secret.metadata.resource_version = None;
                api.create(&params, &secret).await
            }
        };
        match written {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(error).with_context(|| format!("write Secret {name}")),
        }
    }
    anyhow::bail!("write Secret {name}: somebody else keeps changing it")
}

/// An opaque Secret of `kedge-system`.
pub(crate) fn secret(name: &str, values: &[(&str, String)]) -> Secret {
    let bytes = |value: &String| ByteString(value.clone().into_bytes());
    Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        },
        data: Some(
            values
                .iter()
                .map(|(key, value)| ((*key).to_owned(), bytes(value)))
                .collect(),
        ),
        ..Secret::default()
    }
}

/// A text value of a Secret.
pub(crate) fn text<'a>(secret: &'a Secret, key: &str) -> Option<&'a str> {
    let value = secret.data.as_ref()?.get(key)?;
    std::str::from_utf8(&value.0).ok()
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Prints rows under a header, each column as wide as it needs.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([header[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        println!("{}", padded.join("   ").trim_end());
    };
    line(&mut header.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
}
