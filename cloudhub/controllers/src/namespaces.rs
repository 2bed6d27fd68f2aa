//! Namespace deletion: everything in it goes, then the finalizer `kubernetes`.
//!
//! * Namespaces → queue (the name) → discovery of all namespaced kinds → deletecollection of each → what is left is counted
//!   → conditions and another look, or `finalize`

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, DynamicObject, ListParams, PartialObjectMeta, PostParams};
use kube::discovery::verbs;
use kube::{Api, ResourceExt};

use crate::context::{Context, Informers, Tasks};
use crate::error::{Doing, Error};
use crate::garbage::Kind;
use crate::garbage::kinds;
use crate::informer::Cache;
use crate::pods::is_deleting;
use crate::queue::{Key, Queue, Reconciled, work};

const FINALIZER: &str = "kubernetes";
/// Namespaces deleted at once.
const WORKERS: usize = 2;
/// How soon to look again for what goes by itself, as pods do after their grace period.
const AGAIN: Duration = Duration::from_millis(500);
/// Objects asked for at once.
const PAGE: u32 = 200;

/// What is still there of one kind.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Left {
    what: String,
    count: usize,
    finalizers: Vec<String>,
}

pub(crate) fn start(context: &Arc<Context>, informers: &mut Informers, tasks: &mut Tasks) {
    let queue = Queue::new();
    let to = Arc::clone(&queue);
    informers.namespaces.on(move |change| {
        if is_deleting(&change.object().metadata) {
            to.add(Key::of(change.object()));
        }
    });
    let context = Arc::clone(context);
    tasks.add(
        "namespace deletion",
        work("namespace deletion", queue, WORKERS, move |key| {
            let context = Arc::clone(&context);
            async move { reconcile(&context, &key).await }
        }),
    );
}

fn is_ours(namespace: &Namespace) -> bool {
    let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_deref());
    finalizers.unwrap_or_default().iter().any(|name| name == FINALIZER)
}

async fn reconcile(context: &Context, key: &Key) -> Reconciled {
    let found = context.namespaces.by_key(key);
    let Some(namespace) = found.filter(|n| is_deleting(&n.metadata) && is_ours(n)) else {
        return Ok(None);
    };
    let mut left = Vec::new();
    for kind in kinds(&context.client)
        .await?
        .iter()
        .filter(|kind| kind.deletes_in_namespace())
    {
        let rest = empty(context, &key.name, kind).await?;
        if rest.count > 0 {
            left.push(rest);
        }
    }
    if left.is_empty() {
        finalize(context, &namespace).await?;
        tracing::info!(namespace = key.name, "namespace is deleted");
        return Ok(None);
    }
    set_conditions(context, &namespace, &left).await?;
    Ok(Some(AGAIN))
}

/// Deletes what is there of `kind` and says what is left.
async fn empty(context: &Context, namespace: &str, kind: &Kind) -> Result<Left, Error> {
    let api: Api<PartialObjectMeta<DynamicObject>> =
        Api::namespaced_with(context.client.clone(), namespace, &kind.resource);
    let params = ListParams::default().limit(PAGE);
    let Some(list) = api.list(&params).await.if_there("list a namespace's objects")? else {
        return Ok(Left::default());
    };
    if list.items.is_empty() {
        return Ok(Left::default());
    }
    let background = DeleteParams::background();
    let waiting = list.items.iter().filter(|object| !is_deleting(&object.metadata));
    if waiting.clone().next().is_some() && kind.verbs.iter().any(|verb| verb == verbs::DELETE_COLLECTION) {
        api.delete_collection(&background, &ListParams::default())
            .await
            .if_there("delete a namespace's objects")?;
    } else {
        for object in waiting {
            api.delete(&object.name_any(), &background)
                .await
                .if_there("delete an object of a namespace")?;
        }
    }
    let Some(rest) = api.list(&params).await.if_there("list a namespace's objects")? else {
        return Ok(Left::default());
    };
    let more = rest
        .metadata
        .remaining_item_count
        .and_then(|count| usize::try_from(count).ok());
    Ok(Left {
        what: describe(kind),
        count: rest.items.len() + more.unwrap_or(0),
        finalizers: rest
            .items
            .iter()
            .flat_map(|object| object.finalizers().to_vec())
            .collect(),
    })
}

fn describe(kind: &Kind) -> String {
    if kind.resource.group.is_empty() {
        format!("{}.", kind.resource.plural)
    } else {
        format!("{}.{}", kind.resource.plural, kind.resource.group)
    }
}

async fn finalize(context: &Context, namespace: &Namespace) -> Result<(), Error> {
    let name = namespace.name_any();
    let mut wanted = namespace.clone();
    if let Some(finalizers) = wanted.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
        finalizers.retain(|name| name != FINALIZER);
    }
    let body = serde_json::to_vec(&wanted).map_err(|source| Error::Encode {
        what: "a Namespace",
        source,
    })?;
    let request = Request::put(format!("/api/v1/namespaces/{name}/finalize"))
        .header("content-type", "application/json")
        .body(body)
        .map_err(kube::Error::HttpError)
        .doing("build a request")?;
    context
        .client
        .request::<serde_json::Value>(request)
        .await
        .if_there("finalize a namespace")?;
    Ok(())
}

/// The texts of the conditions, `None` where all is well.
fn texts(left: &[Left]) -> [(&'static str, &'static str, Option<String>); 2] {
    let content = left
        .iter()
        .map(|rest| format!("{} has {} resource instances", rest.what, rest.count))
        .collect::<Vec<_>>()
        .join(", ");
    let mut counts: std::collections::BTreeMap<&String, usize> = std::collections::BTreeMap::new();
    for finalizer in left.iter().flat_map(|rest| &rest.finalizers) {
        *counts.entry(finalizer).or_default() += 1;
    }
    let finalizers = counts
        .iter()
        .map(|(name, count)| format!("{name} in {count} resource instances"))
        .collect::<Vec<_>>()
        .join(", ");
    [
        (
            "NamespaceContentRemaining",
            "SomeResourcesRemain",
            (!content.is_empty()).then(|| format!("Some resources are remaining: {content}")),
        ),
        (
            "NamespaceFinalizersRemaining",
            "SomeFinalizersRemain",
            (!finalizers.is_empty())
                .then(|| format!("Some content in the namespace has finalizers remaining: {finalizers}")),
        ),
    ]
}

async fn set_conditions(context: &Context, namespace: &Namespace, left: &[Left]) -> Result<(), Error> {
    let has = namespace
        .status
        .as_ref()
        .and_then(|s| s.conditions.clone())
        .unwrap_or_default();
    let mut changed: Vec<NamespaceCondition> = Vec::new();
    for (kind, reason, message) in texts(left) {
        let status = if message.is_some() { "True" } else { "False" };
        let old = has.iter().find(|condition| condition.type_ == kind);
        if old.is_none() && message.is_none() || old.is_some_and(|old| old.message == message && old.status == status) {
            continue;
        }
        changed.push(NamespaceCondition {
            type_: kind.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message,
            last_transition_time: Some(Time(Timestamp::now())),
        });
    }
    if changed.is_empty() {
        return Ok(());
    }
    let kept = has
        .into_iter()
        .filter(|old| changed.iter().all(|new| new.type_ != old.type_));
    let conditions = kept.chain(changed.iter().cloned()).collect();
    let mut wanted = namespace.clone();
    wanted.status.get_or_insert_default().conditions = Some(conditions);
    context
        .all::<Namespace>()
        .replace_status(&namespace.name_any(), &PostParams::default(), &wanted)
        .await
        .if_there("write a namespace's conditions")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_conditions_say_what_is_left() {
        let left = [
            Left {
                what: "pods.".into(),
                count: 2,
                finalizers: vec![],
            },
            Left {
                what: "configmaps.".into(),
                count: 1,
                finalizers: vec!["x/y".into()],
            },
        ];
        let [content, finalizers] = texts(&left);
        assert_eq!(
            content.2.as_deref(),
            Some("Some resources are remaining: pods. has 2 resource instances, configmaps. has 1 resource instances")
        );
        assert_eq!(
            finalizers.2.as_deref(),
            Some("Some content in the namespace has finalizers remaining: x/y in 1 resource instances")
        );
    }
}
