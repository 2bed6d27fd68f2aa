//! Every write goes through here: (who, kind, current, incoming) → what is stored. Lists and reads are beside the store; this is
//! what makes an object out of a body.
//!
//! * create: defaults → admission → metadata → strategy → validation → admission's last word → store
//! * update, patch and the subresources: [`Registry::change`], repeated when another writer was faster and the caller did not
//!   insist on a version
//! * delete: preconditions, grace, finalizers ([`delete`])
//!
//! A dry run stops before the store. Nothing is stored of a write that is refused.

mod delete;
pub(crate) mod fuzzing;
mod metadata;

use futures::future::BoxFuture;
use serde_json::Value;
use tokio::sync::Mutex;

use crate::auth::Identity;
use crate::auth::admission::{Admission, Operation, Request};
use crate::kinds::Row;
use crate::kinds::services::{self, Ranges};
use crate::object;
use crate::status::{Errors, Status};
use crate::store::{Expect, Key, Store, WriteError};

pub(crate) use delete::DeleteOptions;
pub(crate) use metadata::is_of_url;

/// How often a change that met another writer's is made again before its caller is told.
const RETRIES: usize = 20;

/// What a write is about.
#[derive(Debug, Clone)]
pub(crate) struct Target<'a> {
    /// Who writes.
    pub identity: &'a Identity,
    /// The kind.
    pub row: &'static Row,
    /// Namespace, or "".
    pub namespace: &'a str,
    /// Name; "" = what the body says (creation).
    pub name: &'a str,
    /// Subresource, or "".
    pub subresource: &'a str,
    /// Whether nothing is to be stored.
    pub dry_run: bool,
}

impl Target<'_> {
    fn key(&self) -> Key {
        Key::new(self.row.storage, self.namespace, self.name)
    }

    fn not_found(&self) -> Status {
        Status::not_found(self.row.group, self.row.plural, self.name)
    }

    fn conflict(&self, why: &str) -> Status {
        Status::conflict(self.row.group, self.row.plural, self.name, why)
    }

    fn invalid(&self, name: &str, errors: Errors) -> Result<(), Status> {
        if errors.is_empty() {
            return Ok(());
        }
        // The real server has one kind of event inside, which has no group.
        let group = if self.row.storage == "events" {
            ""
        } else {
            self.row.group
        };
        Err(Status::invalid(group, self.row.kind, name, errors))
    }
}

/// What a write gives back.
#[derive(Debug)]
pub(crate) struct Written {
    /// The object as it is stored (or would be).
    pub object: Value,
    /// Texts for the Warning header.
    pub warnings: Vec<String>,
}

/// Which part of an object a change may touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Everything but `status`, where that is a part of its own.
    Main,
    /// `status` and what a status update may change of metadata.
    Status,
    /// What a subresource of ours has computed: not compared with what a client may change.
    Computed,
}

/// The writes.
#[derive(Debug)]
pub(crate) struct Registry {
    store: Store,
    admission: Admission,
    ranges: Ranges,
    /// Held from the choice of a Service's addresses until they are on the disk.
    addresses: Mutex<()>,
}

impl Registry {
    /// Over `store`.
    pub(crate) fn new(store: Store, admission: Admission, ranges: Ranges) -> Self {
        Self {
            store,
            admission,
            ranges,
            addresses: Mutex::new(()),
        }
    }

    /// The store.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Creates an object that the schema has accepted.
    ///
    /// # Errors
    /// 400, 403, 404, 409, 422 as the real server.
    pub(crate) async fn create(&self, target: &Target<'_>, mut object: Value) -> Result<Written, Status> {
        let row = target.row;
        row.strategy.to_storage(&mut object);
        row.strategy.default(&mut object);
        metadata::name(target, &mut object)?;
        metadata::no_version(target, &object)?;
        let name = object::name(&object).to_owned();
        let target = &Target {
            name: &name,
            ..target.clone()
        };
        let mut request = request(target, Operation::Create, Some(&mut object), None);
        self.admission.settle(&request).await;
        let mut warnings = self.admission.mutate(&mut request)?;
        row.strategy.default(&mut object);
        metadata::fresh(target, &mut object);
        if row.status && !row.strategy.status_at_creation() {
            object.as_object_mut().map(|fields| fields.shift_remove("status"));
        }
        row.strategy.prepare_create(&mut object);
        let mut errors = Errors::default();
        metadata::validate(target, &object, &mut errors);
        row.strategy.validate(&object, &mut errors);
        target.invalid(&name, errors)?;
        self.admission
            .validate(&request_of(target, Operation::Create, &mut object, None))?;
        warnings.extend(row.strategy.warnings(&object));
        let object = self.insert(target, object).await?;
        Ok(Written { object, warnings })
    }

    async fn insert(&self, target: &Target<'_>, mut object: Value) -> Result<Value, Status> {
        let row = target.row;
        let held = if row.storage == "services" {
            Some(self.addresses.lock().await)
        } else {
            None
        };
        if held.is_some() {
            services::allocate(&self.store, &mut object, &self.ranges)?;
        }
        let exists = || Status::already_exists(row.group, row.plural, target.name);
        let object = metadata::finished(row, object);
        if target.dry_run {
            return if self.store.latest(&target.key()).is_some() {
                Err(exists())
            } else {
                Ok(object)
            };
        }
        match self.store.put(target.key(), Expect::Absent, object).await {
            Ok(stored) => Ok(stored.value()),
            Err(WriteError::Conflict) => Err(self.meets_deletion(target).unwrap_or_else(exists)),
            Err(error) => Err(unavailable(&error)),
        }
    }

    /// 409 of another kind when the object of that name is on its way out, as the real server says it.
    fn meets_deletion(&self, target: &Target<'_>) -> Option<Status> {
        let current = self.store.latest(&target.key())?;
        let deleting = object::is_deleting(&current.value());
        let mut status = Status::already_exists(target.row.group, target.row.plural, target.name);
        if deleting {
            status.message = format!("object is being deleted: {}", status.message);
        }
        deleting.then_some(status)
    }

    /// Creates `object` unless it is there; for what the server itself makes at a start.
    ///
    /// # Errors
    /// When the store takes nothing any more.
    pub(crate) async fn ensure(&self, row: &'static Row, mut object: Value) -> Result<(), Status> {
        let namespace = object::namespace(&object).to_owned();
        let name = object::name(&object).to_owned();
        let key = Key::new(row.storage, &namespace, &name);
        if self.store.latest(&key).is_some() {
            return Ok(());
        }
        row.strategy.default(&mut object);
        metadata::stamp(row, &mut object);
        row.strategy.prepare_create(&mut object);
        if row.storage == "services" {
            let _held = self.addresses.lock().await;
            services::allocate(&self.store, &mut object, &self.ranges)?;
        }
        match self
            .store
            .put(key, Expect::Absent, metadata::finished(row, object))
            .await
        {
            Ok(_) | Err(WriteError::Conflict) => Ok(()),
            Err(error) => Err(unavailable(&error)),
        }
    }

    /// Changes an object: `incoming` makes the new one from the current one and may be called again.
    ///
    /// # Errors
    /// 400, 403, 404, 409, 422 as the real server.
    pub(crate) fn change<'a>(
        &'a self,
        target: &'a Target<'_>,
        part: Part,
        mut incoming: impl FnMut(&Value) -> Result<Value, Status> + Send + 'a,
    ) -> BoxFuture<'a, Result<Written, Status>> {
        Box::pin(async move {
            for _ in 0..RETRIES {
                let current = self.store.latest(&target.key()).ok_or_else(|| target.not_found())?;
                let version = current.resource_version;
                let current = current.value();
                let object = incoming(&current)?;
                let insists = metadata::precondition(target, &object, &current, version)?;
                match self.replace(target, part, object, (&current, version)).await {
                    Err(Replace::Raced) if !insists => {}
                    Err(Replace::Raced) => return Err(target.conflict(metadata::MODIFIED)),
                    Err(Replace::Refused(status)) => return Err(status),
                    Ok(written) => return Ok(written),
                }
            }
            Err(target.conflict(metadata::MODIFIED))
        })
    }

    async fn replace(
        &self,
        target: &Target<'_>,
        part: Part,
        object: Value,
        (current, version): (&Value, u64),
    ) -> Result<Written, Replace> {
        let (mut object, warnings) = self.judge(target, part, object, current)?;
        let held = if target.row.storage == "services" && part == Part::Main {
            Some(self.addresses.lock().await)
        } else {
            None
        };
        if held.is_some() {
            services::allocate(&self.store, &mut object, &self.ranges)?;
        }
        let object = metadata::finished(target.row, object);
        if target.dry_run || same(&object, current) {
            return Ok(Written { object, warnings });
        }
        let expect = Expect::Version(version);
        let stored = if delete::is_over(target.row, &object) {
            self.store.delete(target.key(), expect, Some(object)).await
        } else {
            self.store.put(target.key(), expect, object).await
        };
        match stored {
            Ok(stored) => Ok(Written {
                object: stored.value(),
                warnings,
            }),
            Err(WriteError::Conflict) => Err(Replace::Raced),
            Err(error) => Err(Replace::Refused(unavailable(&error))),
        }
    }

    /// What would be stored in place of `current`.
    fn judge(
        &self,
        target: &Target<'_>,
        part: Part,
        mut object: Value,
        current: &Value,
    ) -> Result<(Value, Vec<String>), Status> {
        prepare(target, part, &mut object, current);
        let mut request = request(target, Operation::Update, Some(&mut object), Some(current));
        let mut warnings = self.admission.mutate(&mut request)?;
        metadata::count_generation(target, part, &mut object, current);
        let errors = faults(target, part, &object, current);
        target.invalid(target.name, errors)?;
        self.admission
            .validate(&request_of(target, Operation::Update, &mut object, Some(current)))?;
        // The real server warns of a pod only when it is made.
        if part == Part::Main && target.row.storage != "pods" {
            warnings.extend(target.row.strategy.warnings(&object));
        }
        Ok((object, warnings))
    }
}

/// What a change makes of an object before admission sees it.
fn prepare(target: &Target<'_>, part: Part, object: &mut Value, current: &Value) {
    let strategy = target.row.strategy;
    if part == Part::Main {
        strategy.to_storage(object);
    }
    strategy.default(object);
    if part == Part::Status {
        metadata::only_status(object, current);
        strategy.prepare_status(object, current);
    } else {
        metadata::carry(target, part, object, current);
    }
    if part == Part::Main {
        strategy.prepare_update(object, current);
    }
}

/// What is wrong with a changed object.
fn faults(target: &Target<'_>, part: Part, object: &Value, current: &Value) -> Errors {
    let strategy = target.row.strategy;
    let mut errors = Errors::default();
    metadata::validate_update(object, current, &mut errors);
    match part {
        Part::Status => strategy.validate_status(object, current, &mut errors),
        Part::Main => {
            strategy.validate(object, &mut errors);
            strategy.validate_update(object, current, &mut errors);
        }
        Part::Computed => strategy.validate(object, &mut errors),
    }
    errors
}

enum Replace {
    Raced,
    Refused(Status),
}

impl From<Status> for Replace {
    fn from(status: Status) -> Self {
        Self::Refused(status)
    }
}

fn request<'a>(
    target: &'a Target<'_>,
    operation: Operation,
    object: Option<&'a mut Value>,
    current: Option<&'a Value>,
) -> Request<'a> {
    Request {
        identity: target.identity,
        operation,
        row: target.row,
        subresource: target.subresource,
        namespace: target.namespace,
        name: target.name,
        object,
        current,
    }
}

fn request_of<'a>(
    target: &'a Target<'_>,
    operation: Operation,
    object: &'a mut Value,
    current: Option<&'a Value>,
) -> Request<'a> {
    request(target, operation, Some(object), current)
}

/// Whether nothing but the resourceVersion differs.
fn same(object: &Value, current: &Value) -> bool {
    let without = |value: &Value| {
        let mut value = value.clone();
        object::metadata(&mut value).shift_remove("resourceVersion");
        value
    };
    without(object) == without(current)
}

pub(crate) fn unavailable(error: &WriteError) -> Status {
    match error {
        WriteError::Busy => Status::too_many_requests(error.to_string(), 1),
        error => Status::internal(error),
    }
}
