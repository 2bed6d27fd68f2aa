//! The kinds that are served: a [`Row`] and a [`Strategy`] each. What has no row is not served.

pub(crate) mod core;
pub(crate) mod fields;
mod nodes;
pub(crate) mod pods;
pub(crate) mod policy;
mod rbac;
pub(crate) mod services;
pub(crate) mod workloads;

use serde_json::Value;

use crate::status::Errors;

/// One kind of stored object.
#[derive(Debug)]
pub struct Row {
    /// API group; "" = core.
    pub group: &'static str,
    /// API version.
    pub version: &'static str,
    /// `Pod`.
    pub kind: &'static str,
    /// `pods`.
    pub plural: &'static str,
    /// `pod`.
    pub singular: &'static str,
    /// `po`.
    pub short_names: &'static [&'static str],
    /// `all`.
    pub categories: &'static [&'static str],
    /// Whether its objects are in namespaces.
    pub namespaced: bool,
    /// Prefix of its keys in the store, without slashes; rows of two groups that are one kind (events) share it.
    pub storage: &'static str,
    /// Whether it has the subresource `status`.
    pub status: bool,
    /// Whether it has the subresource `scale`.
    pub scale: bool,
    /// Whether `metadata.generation` counts changes outside `metadata` and `status`.
    pub generation: bool,
    /// Field selectors beside `metadata.name` and `metadata.namespace`: label, JSON pointer.
    pub selectable: &'static [(&'static str, &'static str)],
    /// Columns of the Table output in their order. `Name` is put first and `Age` after the last column of priority 0, unless the
    /// row places them itself: a column called `Age` or `Created At` stands where the row has it, and a row that has a column
    /// `Name` lays out the whole table (events: no `Age`). Those three are filled by `table`, the others by [`Strategy::cells`].
    pub columns: &'static [Column],
    /// What is particular.
    pub strategy: &'static dyn Strategy,
}

/// A column of the Table output, beside Name.
#[derive(Debug)]
pub struct Column {
    /// Heading as in `kubectl get`.
    pub name: &'static str,
    /// `string`, `integer`, `date`, `boolean`.
    pub kind: &'static str,
    /// 0 = always, 1 = `-o wide`.
    pub priority: u8,
}

/// A column that is always shown.
pub(crate) const fn column(name: &'static str) -> Column {
    Column {
        name,
        kind: "string",
        priority: 0,
    }
}

/// A column of whole numbers.
pub(crate) const fn number(name: &'static str) -> Column {
    Column {
        name,
        kind: "integer",
        priority: 0,
    }
}

/// A column of `-o wide`.
pub(crate) const fn wide(name: &'static str) -> Column {
    Column {
        name,
        kind: "string",
        priority: 1,
    }
}

/// What is particular to a kind. The generic machinery does metadata: name, namespace, uid, times, labels, annotations,
/// finalizers, ownerReferences, generation, resourceVersion.
///
/// Order on create: `default` → `prepare_create` → admission → `validate`. On update: `default` → `prepare_update` → admission →
/// `validate` → `validate_update`. On `status`: `prepare_status` → `validate_status`.
pub trait Strategy: Sync + std::fmt::Debug {
    /// Fills in what the real server fills in (the `SetDefaults_*` of the API's version). Idempotent.
    fn default(&self, _object: &mut Value) {}

    /// Wipes or sets what a client may not say at creation. The machinery has removed `status` where the row has the subresource.
    fn prepare_create(&self, _object: &mut Value) {}

    /// Takes back what an update may not change silently. The machinery has put the current `status` back where the row has the
    /// subresource.
    fn prepare_update(&self, _object: &mut Value, _current: &Value) {}

    /// Whether the object as a whole makes sense. The schema (types, unknown fields) and metadata are checked already.
    fn validate(&self, _object: &Value, _errors: &mut Errors) {}

    /// Whether it may become this: immutable fields.
    fn validate_update(&self, _object: &Value, _current: &Value, _errors: &mut Errors) {}

    /// An update of `status`: the machinery took everything but `status` (and, of metadata, what a status update may change) from
    /// `current`.
    fn prepare_status(&self, _object: &mut Value, _current: &Value) {}

    /// Whether `status` makes sense.
    fn validate_status(&self, _object: &Value, _current: &Value, _errors: &mut Errors) {}

    /// Texts for the Warning header.
    fn warnings(&self, _object: &Value) -> Vec<String> {
        Vec::new()
    }

    /// The default grace period of a deletion, seconds; None: the object goes at once. `current` may say (pods).
    fn grace(&self, _current: &Value, _asked: Option<i64>) -> Option<i64> {
        None
    }

    /// Cells for [`Row::columns`] but `Name`, `Age` and `Created At`, in their order.
    fn cells(&self, _object: &Value) -> Vec<Value> {
        Vec::new()
    }

    /// From the version of this row to what is stored (events of two groups are one object). Idempotent.
    fn to_storage(&self, _object: &mut Value) {}

    /// From what is stored to the version of this row.
    fn to_version(&self, _object: &mut Value) {}

    /// Whether a change of annotations counts as a generation (Deployment).
    fn annotations_count(&self) -> bool {
        false
    }

    /// Rules for names: true for those that are path segments only (RBAC), else DNS-1123 subdomains.
    fn any_name(&self) -> bool {
        false
    }

    /// Whether names are DNS-1123 labels: namespaces and services, whose names become labels of host names.
    fn label_name(&self) -> bool {
        false
    }

    /// Whether a create may say `status` although the row has the subresource: kubelet registers its Node with it.
    fn status_at_creation(&self) -> bool {
        false
    }
}

/// All rows, groups together, in the order of discovery.
pub fn rows() -> impl Iterator<Item = &'static Row> {
    [
        core::ROWS,
        nodes::ROWS,
        pods::ROWS,
        services::ROWS,
        workloads::ROWS,
        policy::ROWS,
        rbac::ROWS,
    ]
    .into_iter()
    .flatten()
}

/// The row of `plural` in `group` and `version`.
pub fn row(group: &str, version: &str, plural: &str) -> Option<&'static Row> {
    rows().find(|r| r.group == group && r.version == version && r.plural == plural)
}

/// The row of `kind` in `group` and `version`.
pub fn row_of_kind(group: &str, version: &str, kind: &str) -> Option<&'static Row> {
    rows().find(|r| r.group == group && r.version == version && r.kind == kind)
}

impl Row {
    /// `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}
