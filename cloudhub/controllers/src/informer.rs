//! One watch per kind, shared by all controllers.
//!
//! * API list/watch → [`Informer::drive`] → the kind's [`Store`] → handlers → the controllers' queues.
//!
//! Handlers run after the store has changed, on the informer's task, and must only add keys to queues. A relist tells them
//! of every object that is there and of each that went unseen, so a missed event is never lost. managedFields and what no
//! controller reads are dropped before an object is kept. When the watch fails it is retried with back-off for ever.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;

use crate::queue::Key;

/// One change of a store, as handlers see it.
#[derive(Debug)]
pub(crate) enum Change<'a, K> {
    /// The object is there; `before` is what the store held.
    Applied { before: Option<&'a K>, after: &'a K },
    /// The object is gone; this is the last that was seen of it.
    Deleted(&'a K),
}

impl<K> Change<'_, K> {
    /// The object's newest known form.
    pub(crate) fn object(&self) -> &K {
        match self {
            Self::Applied { after, .. } | Self::Deleted(after) => after,
        }
    }

    pub(crate) fn before(&self) -> Option<&K> {
        match self {
            Self::Applied { before, .. } => *before,
            Self::Deleted(_) => None,
        }
    }
}

type Handler<K> = Box<dyn Fn(&Change<'_, K>) + Send + Sync>;

/// What an informer's kind must be.
pub(crate) trait Watched:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
}

impl<K> Watched for K where K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static {}

/// The one watch of a kind.
pub(crate) struct Informer<K: Watched> {
    api: Api<K>,
    config: watcher::Config,
    writer: Writer<K>,
    store: Store<K>,
    handlers: Vec<Handler<K>>,
    slim: fn(&mut K),
}

impl<K: Watched> Informer<K> {
    pub(crate) fn new(api: Api<K>, config: watcher::Config, slim: fn(&mut K)) -> Self {
        let writer = Writer::new(());
        Self {
            api,
            config,
            store: writer.as_reader(),
            writer,
            handlers: Vec::new(),
            slim,
        }
    }

    pub(crate) fn store(&self) -> Store<K> {
        self.store.clone()
    }

    /// Calls `handler` for every change.
    pub(crate) fn on(&mut self, handler: impl Fn(&Change<'_, K>) + Send + Sync + 'static) {
        self.handlers.push(Box::new(handler));
    }

    fn tell(&self, change: &Change<'_, K>) {
        for handler in &self.handlers {
            handler(change);
        }
    }

    /// Watches for ever.
    pub(crate) async fn drive(mut self) {
        let slim = self.slim;
        let mut events = watch(self.api.clone(), self.config.clone())
            .modify(move |object: &mut K| {
                object.meta_mut().managed_fields = None;
                slim(object);
            })
            .default_backoff()
            .boxed();
        loop {
            match events.try_next().await {
                Ok(Some(event)) => self.take(event),
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(kind = %K::kind(&()), %error, "watch failed, trying again");
                }
            }
        }
    }

    fn take(&mut self, event: Event<K>) {
        match &event {
            Event::Init | Event::InitApply(_) => self.writer.apply_watcher_event(&event),
            Event::Apply(after) => {
                let before = self.store.get(&ObjectRef::from_obj(after));
                self.writer.apply_watcher_event(&event);
                self.tell(&Change::Applied {
                    before: before.as_deref(),
                    after,
                });
            }
            Event::Delete(last) => {
                self.writer.apply_watcher_event(&event);
                self.tell(&Change::Deleted(last));
            }
            Event::InitDone => self.relisted(&event),
        }
    }

    fn relisted(&mut self, event: &Event<K>) {
        let before = self.store.state();
        self.writer.apply_watcher_event(event);
        for old in &before {
            let replaced = self.store.get(&ObjectRef::from_obj(&**old));
            if replaced.is_none_or(|new| new.meta().uid != old.meta().uid) {
                self.tell(&Change::Deleted(old));
            }
        }
        let by_uid: HashMap<_, _> = before
            .iter()
            .filter_map(|old| Some((old.meta().uid.clone()?, old)))
            .collect();
        for after in self.store.state() {
            let known = after.meta().uid.as_ref().and_then(|uid| by_uid.get(uid));
            self.tell(&Change::Applied {
                before: known.map(|known| &***known),
                after: &after,
            });
        }
    }
}

/// Reads of a [`Store`] by [`Key`].
pub(crate) trait Cache<K> {
    /// The object, if it is there.
    fn by_key(&self, key: &Key) -> Option<Arc<K>>;
    /// The objects of one namespace.
    fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>>;
}

impl<K> Cache<K> for Store<K>
where
    K: Watched,
    K::DynamicType: Hash + Eq,
{
    fn by_key(&self, key: &Key) -> Option<Arc<K>> {
        let mut reference = ObjectRef::new(&key.name);
        if !key.namespace.is_empty() {
            reference = reference.within(&key.namespace);
        }
        self.get(&reference)
    }

    fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        self.state()
            .into_iter()
            .filter(|object| object.meta().namespace.as_deref() == Some(namespace))
            .collect()
    }
}
