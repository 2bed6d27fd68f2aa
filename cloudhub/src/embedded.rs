//! The Kubernetes API of our own, in this process, with its controllers: `--embedded`.
//!
//! - [`apiserver`] over DATA/store → HTTPS → [`controllers`], and the hub itself: clients like any other
//! - the hub's rights there are those of `installer/deploy/rbac.yaml`, as above a cluster; they are applied at each start
//! - each controller is the user that it is in a real cluster, with that user's default role; only [`apply`] is an administrator's
//!
//! State: none; DATA is the API server's alone. When the API or the controllers end, the process ends and names them.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use http::Method;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde::Deserialize as _;
use serde_json::Value;
use tokio::sync::watch;

use crate::app::Tasks;
use crate::config::Config;
use crate::identity;
use crate::kube_api::{ApiError, As, KubeApi, Send};
use crate::lineage;

/// What the hub may do, and the namespace of its memory.
const RBAC: &str = include_str!("../../installer/deploy/rbac.yaml");
/// The hub's account, to which [`RBAC`] gives its rights.
const HUB: &str = "kedge:cloudhub";
/// The Secret by whose certificate the hub's kubelet APIs are verified.
const KUBELET_CA: &str = "ca-serving";

/// Starts API and controllers; gives the client that the hub uses, with the hub's rights and no others.
///
/// # Errors
/// When the API cannot be built, or refuses the hub's role.
pub(crate) async fn start(config: &Config, tasks: &mut Tasks, stop: watch::Receiver<bool>) -> Result<kube::Config> {
    let server = apiserver::build(apiserver::Config {
        data: config.data.clone(),
        listen: config.listen,
        names: vec![config.advertise.clone()],
        service_range: config.services()?,
        not_ready_toleration_seconds: config.default_not_ready_toleration_seconds,
        unreachable_toleration_seconds: config.default_unreachable_toleration_seconds,
        kubelet_ca: (identity::NAMESPACE.into(), KUBELET_CA.into()),
        first_write: Some(lineage::first_write()),
    });
    let server = Box::pin(server).await.context("start the embedded API")?;
    let masters: &[&str] = &["system:masters"];
    let hub = configuration(&server.kubeconfig(HUB, &[])?).await?;
    let admin = configuration(&server.kubeconfig("kedge:installer", masters)?).await?;
    let clients = controllers::Clients::connect(async |user| {
        let own = configuration(&server.kubeconfig(user.name, user.groups)?).await?;
        kube::Client::try_from(own).with_context(|| format!("set up the client of {}", user.name))
    });
    let clients = clients.await?;
    let settings = controllers::Config {
        root_ca: server.root_ca().to_owned(),
        cluster_cidr: config.pods()?,
        node_grace: Duration::from_secs(config.node_monitor_grace_period),
        ..controllers::Config::default()
    };
    tasks.spawn("embedded API", server.run(stop.clone()));
    let admin = KubeApi::new(admin)?;
    apply(&admin, RBAC).await.context("apply the hub's role")?;
    apply(&admin, controllers::RBAC)
        .await
        .context("apply the controllers' role")?;
    tasks.spawn("controllers", control(clients, settings, stop));
    Ok(hub)
}

async fn configuration(kubeconfig: &str) -> Result<kube::Config> {
    let file = Kubeconfig::from_yaml(kubeconfig).context("read the embedded API's kubeconfig")?;
    Ok(kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?)
}

async fn control(clients: controllers::Clients, config: controllers::Config, mut stop: watch::Receiver<bool>) {
    let stopped = async move { identity::stopped(&mut stop).await };
    if let Err(error) = Box::pin(controllers::run(clients, config, stopped)).await {
        tracing::error!(error = error.chain(), "the controllers ended");
    }
}

/// Creates each object of `yaml`, or makes it say what `yaml` says.
async fn apply(api: &KubeApi, yaml: &str) -> Result<()> {
    for document in serde_yaml_ng::Deserializer::from_str(yaml) {
        let object = Value::deserialize(document)?;
        if object.is_null() {
            continue;
        }
        let (folder, name) = (folder(&object)?, text(&object, "/metadata/name"));
        let created = api.call(As::Hub, Method::POST, &folder, Send::Json(&object)).await;
        match created {
            Ok(_) => {}
            Err(error) if is_there(&error) => {
                let path = format!("{folder}/{name}");
                api.call(As::Hub, Method::PATCH, &path, Send::Merge(&object)).await?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn is_there(error: &ApiError) -> bool {
    error.code() == Some(409)
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Where objects of this kind are created: what `rbac.yaml` has.
fn folder(object: &Value) -> Result<String> {
    let plural = match text(object, "/kind") {
        "Namespace" => "namespaces",
        "ServiceAccount" => "serviceaccounts",
        "ClusterRole" => "clusterroles",
        "ClusterRoleBinding" => "clusterrolebindings",
        "Role" => "roles",
        "RoleBinding" => "rolebindings",
        other => bail!("rbac.yaml has a {other:?}, whose path is not known here"),
    };
    let version = text(object, "/apiVersion");
    let root = if version.contains('/') { "apis" } else { "api" };
    Ok(match text(object, "/metadata/namespace") {
        "" => format!("/{root}/{version}/{plural}"),
        namespace => format!("/{root}/{version}/namespaces/{namespace}/{plural}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_object_of_the_role_has_a_path() {
        let documents = |yaml| serde_yaml_ng::Deserializer::from_str(yaml).map(|d| Value::deserialize(d).unwrap());
        let folders: Vec<String> = documents(RBAC).map(|object| folder(&object).unwrap()).collect();
        assert!(folders.len() >= 6, "{folders:?}");
        assert_eq!(
            documents(controllers::RBAC)
                .filter(|object| folder(object).is_ok())
                .count(),
            3
        );
        assert_eq!(folders[0], "/api/v1/namespaces");
        assert!(folders.contains(&"/api/v1/namespaces/kedge-system/serviceaccounts".to_owned()));
        assert!(folders.contains(&"/apis/rbac.authorization.k8s.io/v1/clusterroles".to_owned()));
        assert!(folders.contains(&"/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system/rolebindings".to_owned()));
        assert!(folder(&serde_json::json!({"kind": "Pod", "apiVersion": "v1"})).is_err());
    }
}
