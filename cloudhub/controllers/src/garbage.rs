//! The garbage collector: objects whose owners are gone go too; foreground and orphan deletion.
//!
//! * Shared informers, and a watch of the metadata of every other kind that can be deleted → [`graph::Graph`] → queue (uids)
//! * uid → what its owners and children say → [`graph::verdict`] → delete, drop references, or remove the finalizer
//!
//! The graph says where to look; before anything is deleted the object and each owner that the graph does not know are read
//! from the API. A foreground or orphan finalizer is removed only when every kind has been read. Discovery is repeated every
//! [`REDISCOVER`], so kinds that are added later are collected too; events own nothing and are left out.

mod graph;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, DynamicObject, PartialObjectMeta, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::ApiResource;
use kube::discovery::{Discovery, Scope, verbs};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use crate::context::{Context, Informers, Tasks};
use crate::error::{Doing, Error};
use crate::informer::{Change, Informer, Watched};
use crate::queue::{Key, Queue, Reconciled, work};

use graph::{Graph, Item, Owner, Verdict};

/// Objects worked on at once.
const WORKERS: usize = 8;
/// How often kinds are discovered again, as kube-controller-manager does.
const REDISCOVER: Duration = Duration::from_secs(30);
/// Deadline of one discovery.
const DISCOVERY: Duration = Duration::from_secs(30);
/// Wait for the watches to be filled before a finalizer is removed.
const UNSYNCED: Duration = Duration::from_millis(500);
/// Objects that a list asks for at once.
const PAGE: u32 = 200;

/// A kind of objects, as discovery tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) resource: ApiResource,
    pub(crate) namespaced: bool,
    pub(crate) verbs: Vec<String>,
}

impl Kind {
    fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|has| has == verb)
    }

    /// Whether a namespace's deletion must empty it.
    pub(crate) fn deletes_in_namespace(&self) -> bool {
        self.namespaced && self.can(verbs::DELETE) && self.can(verbs::LIST)
    }

    fn is_collected(&self) -> bool {
        self.can(verbs::DELETE)
            && self.can(verbs::LIST)
            && self.can(verbs::WATCH)
            && self.resource.plural != "events"
            && !Informers::watches(&self.resource.group, &self.resource.plural)
    }
}

/// Every kind that the API serves, each in its preferred version.
pub(crate) async fn kinds(client: &Client) -> Result<Vec<Kind>, Error> {
    let discovery = Discovery::new(client.clone()).run().await.doing("discover the kinds")?;
    let kinds = discovery.groups().flat_map(|group| group.recommended_resources());
    Ok(kinds
        .map(|(resource, capabilities)| Kind {
            resource,
            namespaced: capabilities.scope == Scope::Namespaced,
            verbs: capabilities.operations,
        })
        .collect())
}

type Meta = PartialObjectMeta<DynamicObject>;

struct Collector {
    context: Arc<Context>,
    graph: Mutex<Graph>,
    queue: Arc<Queue>,
    kinds: Mutex<Arc<Vec<Kind>>>,
    /// Watches that have not been filled yet, the discovery itself counting as one.
    unfilled: AtomicUsize,
}

pub(crate) fn start(context: &Arc<Context>, informers: &mut Informers, tasks: &mut Tasks) {
    let queue = Queue::new();
    let collector = Arc::new(Collector {
        context: Arc::clone(context),
        graph: Mutex::default(),
        queue: Arc::clone(&queue),
        kinds: Mutex::default(),
        unfilled: AtomicUsize::new(1),
    });
    collector.listen(&mut informers.pods);
    collector.listen(&mut informers.nodes);
    collector.listen(&mut informers.namespaces);
    collector.listen(&mut informers.replica_sets);
    collector.listen(&mut informers.deployments);
    collector.listen(&mut informers.daemon_sets);
    collector.listen(&mut informers.revisions);
    collector.listen(&mut informers.budgets);
    let by = Arc::clone(&collector);
    tasks.add("garbage watches", async move { by.watch_all().await });
    tasks.add(
        "garbage collector",
        work("garbage collector", queue, WORKERS, move |key| {
            let collector = Arc::clone(&collector);
            async move { collector.reconcile(&key.name).await }
        }),
    );
}

impl Collector {
    fn graph(&self) -> MutexGuard<'_, Graph> {
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kinds(&self) -> Arc<Vec<Kind>> {
        Arc::clone(&self.kinds.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn listen<K: Watched>(self: &Arc<Self>, informer: &mut Informer<K>) {
        let resource = Arc::new(ApiResource::erase::<K>(&()));
        let by = Arc::clone(self);
        informer.on(move |change| {
            let gone = matches!(change, Change::Deleted(_));
            by.observe(&resource, change.object().meta(), gone);
        });
    }

    /// Takes an object into the graph or out of it, and queues what may change by that.
    fn observe(&self, resource: &Arc<ApiResource>, meta: &ObjectMeta, gone: bool) {
        let Some(uid) = meta.uid.clone() else {
            return;
        };
        let touched = if gone {
            self.graph().remove(&uid)
        } else {
            self.graph().insert(uid, Item::new(resource, meta))
        };
        for uid in touched {
            self.queue.add(Key::new("", uid));
        }
    }

    /// Watches every kind that no informer watches, for ever.
    async fn watch_all(self: &Arc<Self>) {
        let mut watches: JoinSet<()> = JoinSet::new();
        let mut running: HashMap<ApiResource, AbortHandle> = HashMap::new();
        let mut first = true;
        loop {
            match timeout(DISCOVERY, kinds(&self.context.client)).await {
                Ok(Ok(kinds)) => {
                    self.start_watches(&kinds, &mut watches, &mut running);
                    *self.kinds.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(kinds);
                    if first {
                        self.unfilled.fetch_sub(1, Ordering::AcqRel);
                    }
                    first = false;
                }
                Ok(Err(error)) => tracing::warn!(error = error.chain(), "discovery failed, trying again"),
                Err(_) => tracing::warn!("discovery passed its deadline, trying again"),
            }
            sleep(if first { UNSYNCED } else { REDISCOVER }).await;
            while watches.try_join_next().is_some() {}
        }
    }

    fn start_watches(
        self: &Arc<Self>,
        kinds: &[Kind],
        watches: &mut JoinSet<()>,
        running: &mut HashMap<ApiResource, AbortHandle>,
    ) {
        running.retain(|resource, handle| {
            let there = kinds.iter().any(|kind| kind.resource == *resource);
            if !there {
                handle.abort();
                self.graph().remove_kind(resource);
            }
            there
        });
        for kind in kinds.iter().filter(|kind| kind.is_collected()) {
            if running.contains_key(&kind.resource) {
                continue;
            }
            let by = Arc::clone(self);
            let resource = Arc::new(kind.resource.clone());
            self.unfilled.fetch_add(1, Ordering::AcqRel);
            let handle = watches.spawn(async move { by.watch_one(&resource).await });
            running.insert(kind.resource.clone(), handle);
        }
    }

    async fn watch_one(&self, resource: &Arc<ApiResource>) {
        let filling = Filling(&self.unfilled);
        let mut filling = Some(filling);
        let api: Api<Meta> = Api::all_with(self.context.client.clone(), &**resource);
        let config = watcher::Config::default().page_size(PAGE);
        let mut events = watch(api, config).default_backoff().boxed();
        let mut listed: Vec<String> = Vec::new();
        loop {
            match events.try_next().await {
                Ok(Some(Event::Init)) => listed.clear(),
                Ok(Some(Event::InitApply(object))) => {
                    listed.extend(object.uid());
                    self.observe(resource, &object.metadata, false);
                }
                Ok(Some(Event::InitDone)) => {
                    let touched = self.graph().retain_kind(resource, &listed);
                    touched.into_iter().for_each(|uid| self.queue.add(Key::new("", uid)));
                    listed = Vec::new();
                    filling = None;
                }
                Ok(Some(Event::Apply(object))) => self.observe(resource, &object.metadata, false),
                Ok(Some(Event::Delete(object))) => self.observe(resource, &object.metadata, true),
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!(kind = resource.kind, %error, filled = filling.is_none(), "watch failed, trying again");
                }
            }
        }
    }

    async fn reconcile(&self, uid: &str) -> Reconciled {
        let Some((item, children)) = self.graph().look(uid) else {
            return Ok(None);
        };
        if item.deleting && (item.orphan || item.foreground) {
            if self.unfilled.load(Ordering::Acquire) > 0 {
                return Ok(Some(UNSYNCED));
            }
            return self.finish(uid, &item, children).await;
        }
        if item.deleting || item.owners.is_empty() {
            return Ok(None);
        }
        let mut owners = Vec::new();
        for owner in &item.owners {
            owners.push((owner.clone(), self.state(&item, owner).await?));
        }
        match graph::verdict(&owners, !children.is_empty()) {
            Verdict::Keep => Ok(None),
            Verdict::Drop(gone) => self.drop_owners(&item, uid, &gone).await,
            Verdict::Delete(foreground) => self.delete(&item, uid, foreground).await,
        }
    }

    /// Whether an owner is there: by the graph, else by the API.
    async fn state(&self, item: &Item, owner: &Owner) -> Result<graph::OwnerState, Error> {
        if let Some(state) = self.graph().owner_state(&owner.uid) {
            return Ok(state);
        }
        let kinds = self.kinds();
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        let kind = kinds
            .iter()
            .find(|kind| kind.resource.group == group && kind.resource.kind == owner.kind);
        let Some(kind) = kind else {
            return Err(Error::Invalid(format!(
                "{} {}/{}: owner of kind {} {}, which is not served",
                item.resource.kind, item.namespace, item.name, owner.api_version, owner.kind
            )));
        };
        let found = self.api(&kind.resource, kind.namespaced.then_some(&item.namespace));
        let found = match found {
            Some(api) => api.get_opt(&owner.name).await.doing("get an owner")?,
            None => None,
        };
        Ok(match found {
            Some(found) if found.uid().as_deref() == Some(&owner.uid) => graph::state_of(&found.metadata),
            _ => graph::OwnerState::Gone,
        })
    }

    /// `None` for a namespaced kind without a namespace: a cluster-scoped object cannot have such an owner.
    fn api(&self, resource: &ApiResource, namespace: Option<&String>) -> Option<Api<Meta>> {
        let client = self.context.client.clone();
        match namespace {
            Some(namespace) if namespace.is_empty() => None,
            Some(namespace) => Some(Api::namespaced_with(client, namespace, resource)),
            None => Some(Api::all_with(client, resource)),
        }
    }

    fn api_of(&self, item: &Item) -> Api<Meta> {
        let namespace = (!item.namespace.is_empty()).then_some(&item.namespace);
        self.api(&item.resource, namespace)
            .unwrap_or_else(|| Api::all_with(self.context.client.clone(), &*item.resource))
    }

    /// The object as the API has it, if it is still the one.
    async fn read(&self, item: &Item, uid: &str) -> Result<Option<Meta>, Error> {
        let found = self.api_of(item).get_opt(&item.name).await.doing("get an object")?;
        Ok(found.filter(|found| found.uid().as_deref() == Some(uid)))
    }

    async fn patch(&self, item: &Item, meta: &Meta, change: serde_json::Value) -> Result<(), Error> {
        let mut metadata = json!({"uid": meta.uid(), "resourceVersion": meta.resource_version()});
        if let (Some(all), serde_json::Value::Object(change)) = (metadata.as_object_mut(), change) {
            all.extend(change);
        }
        self.api_of(item)
            .patch(
                &item.name,
                &PatchParams::default(),
                &Patch::Merge(json!({"metadata": metadata})),
            )
            .await
            .if_there("patch an object's owners or finalizers")?;
        Ok(())
    }

    async fn drop_owners(&self, item: &Item, uid: &str, gone: &[String]) -> Reconciled {
        let Some(meta) = self.read(item, uid).await? else {
            return Ok(None);
        };
        let keep: Vec<&OwnerReference> = meta
            .owner_references()
            .iter()
            .filter(|owner| !gone.contains(&owner.uid))
            .collect();
        if keep.len() != meta.owner_references().len() {
            self.patch(item, &meta, json!({"ownerReferences": keep})).await?;
        }
        Ok(None)
    }

    async fn delete(&self, item: &Item, uid: &str, foreground: bool) -> Reconciled {
        let Some(meta) = self.read(item, uid).await? else {
            return Ok(None);
        };
        if graph::owners(&meta.metadata) != item.owners {
            // The graph is behind: its news comes by the watch.
            return Ok(None);
        }
        let has = |name: &str| meta.finalizers().iter().any(|finalizer| finalizer == name);
        let policy = if has(graph::ORPHAN) {
            PropagationPolicy::Orphan
        } else if foreground || has(graph::FOREGROUND) {
            PropagationPolicy::Foreground
        } else {
            PropagationPolicy::Background
        };
        let params = DeleteParams {
            propagation_policy: Some(policy),
            preconditions: Some(Preconditions {
                uid: meta.uid(),
                resource_version: meta.resource_version(),
            }),
            ..DeleteParams::default()
        };
        self.api_of(item)
            .delete(&item.name, &params)
            .await
            .if_there("delete an object whose owners are gone")?;
        tracing::info!(
            kind = item.resource.kind,
            namespace = item.namespace,
            name = item.name,
            "collected: its owners are gone"
        );
        Ok(None)
    }

    /// Does what the finalizers of an object that is being deleted ask for, then removes them.
    async fn finish(&self, uid: &str, item: &Item, children: Vec<String>) -> Reconciled {
        if item.orphan {
            for child in children {
                let Some((child_item, _)) = self.graph().look(&child) else {
                    continue;
                };
                self.drop_owners(&child_item, &child, &[uid.to_owned()]).await?;
            }
            return self.remove_finalizer(item, uid, graph::ORPHAN).await;
        }
        let blocking = self.graph().blocking(uid);
        for child in &children {
            self.queue.add(Key::new("", child.clone()));
        }
        if blocking == 0 {
            return self.remove_finalizer(item, uid, graph::FOREGROUND).await;
        }
        Ok(None)
    }

    async fn remove_finalizer(&self, item: &Item, uid: &str, name: &str) -> Reconciled {
        let Some(meta) = self.read(item, uid).await? else {
            return Ok(None);
        };
        let keep: Vec<&String> = meta
            .finalizers()
            .iter()
            .filter(|finalizer| *finalizer != name)
            .collect();
        if keep.len() != meta.finalizers().len() {
            self.patch(item, &meta, json!({"finalizers": keep})).await?;
        }
        Ok(None)
    }
}

/// Counts a watch as not filled until it is dropped.
struct Filling<'a>(&'a AtomicUsize);

impl Drop for Filling<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
