//! ServiceAccount `default` and ConfigMap `kube-root-ca.crt` in every namespace.
//!
//! * Namespaces, and the objects of these two names → queue (the namespace's name) → create what lacks, mend what differs

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::PostParams;

use crate::context::{Context, Informers, Tasks};
use crate::error::{Doing, Error};
use crate::informer::Cache;
use crate::pods::is_deleting;
use crate::queue::{Key, Queue, Reconciled, work};

/// Name of the ServiceAccount of pods that name none.
pub(crate) const ACCOUNT: &str = "default";
/// Name of the ConfigMap with the CA of the API server.
pub(crate) const ROOT_CA: &str = "kube-root-ca.crt";
const FILE: &str = "ca.crt";
/// Namespaces worked on at once.
const WORKERS: usize = 2;

/// `context` and `root_cas` are of the two users, each of which may write one of the two.
pub(crate) fn start(context: &Arc<Context>, root_cas: &Arc<Context>, informers: &mut Informers, tasks: &mut Tasks) {
    let queue = Queue::new();
    let to = Arc::clone(&queue);
    informers.namespaces.on(move |change| to.add(Key::of(change.object())));
    let to = Arc::clone(&queue);
    informers
        .accounts
        .on(move |change| to.add(Key::new("", change.object().namespace().unwrap_or_default())));
    let to = Arc::clone(&queue);
    informers
        .root_cas
        .on(move |change| to.add(Key::new("", change.object().namespace().unwrap_or_default())));
    let (context, root_cas) = (Arc::clone(context), Arc::clone(root_cas));
    tasks.add(
        "service accounts",
        work("service accounts", queue, WORKERS, move |key| {
            let (context, root_cas) = (Arc::clone(&context), Arc::clone(&root_cas));
            async move { reconcile(&context, &root_cas, &key).await }
        }),
    );
}

async fn reconcile(context: &Context, root_cas: &Context, key: &Key) -> Reconciled {
    let namespace = context.namespaces.by_key(key);
    if namespace.is_none_or(|namespace| is_deleting(&namespace.metadata)) {
        return Ok(None);
    }
    ensure_account(context, &key.name).await?;
    ensure_root_ca(root_cas, &key.name).await?;
    Ok(None)
}

fn named(namespace: &str, name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.into()),
        namespace: Some(namespace.into()),
        ..ObjectMeta::default()
    }
}

/// A namespace that ends meanwhile, or another writer, is no failure.
fn made<T>(result: Result<T, kube::Error>, what: &'static str) -> Result<(), Error> {
    match result {
        Err(kube::Error::Api(refusal)) if refusal.code == 409 || refusal.code == 404 => Ok(()),
        Err(kube::Error::Api(refusal)) if refusal.code == 403 && refusal.message.contains("being terminated") => Ok(()),
        other => other.map(|_| ()).doing(what),
    }
}

async fn ensure_account(context: &Context, namespace: &str) -> Result<(), Error> {
    if context.accounts.by_key(&Key::new(namespace, ACCOUNT)).is_some() {
        return Ok(());
    }
    let account = ServiceAccount {
        metadata: named(namespace, ACCOUNT),
        ..ServiceAccount::default()
    };
    let api = context.api::<ServiceAccount>(namespace);
    made(
        api.create(&PostParams::default(), &account).await,
        "make the default ServiceAccount",
    )
}

async fn ensure_root_ca(context: &Context, namespace: &str) -> Result<(), Error> {
    let data = BTreeMap::from([(FILE.to_owned(), context.config.root_ca.clone())]);
    let api = context.api::<ConfigMap>(namespace);
    let Some(there) = context.root_cas.by_key(&Key::new(namespace, ROOT_CA)) else {
        let mut metadata = named(namespace, ROOT_CA);
        metadata.annotations = Some(BTreeMap::from([(
            "kubernetes.io/description".to_owned(),
            "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.".to_owned(),
        )]));
        let map = ConfigMap {
            metadata,
            data: Some(data),
            ..ConfigMap::default()
        };
        return made(api.create(&PostParams::default(), &map).await, "make kube-root-ca.crt");
    };
    if there.data.as_ref() == Some(&data) {
        return Ok(());
    }
    let mut wanted = (*there).clone();
    wanted.data = Some(data);
    api.replace(ROOT_CA, &PostParams::default(), &wanted)
        .await
        .if_there("mend kube-root-ca.crt")?;
    Ok(())
}
