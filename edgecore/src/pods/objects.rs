//! The ConfigMaps and Secrets that pods name, read from the store when they are used.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;

/// Where objects come from: the metastore, or a map in tests.
pub trait Objects: std::fmt::Debug + Send + Sync {
    /// The JSON of an object, where the node has it.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn object(&self, kind: &str, namespace: &str, name: &str) -> Result<Option<Bytes>, ObjectError>;
}

/// An object could not be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// It is not on this node (the API server does not have it, or it has not arrived).
    #[error("{kind} \"{name}\" not found")]
    NotFound {
        /// `configmap` or `secret`, as kubelet's texts have it.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// It has no such key.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey {
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The key.
        key: String,
    },
    /// The store cannot be read, or the object is no object.
    #[error("cannot read {kind} {name}: {message}")]
    Unreadable {
        /// The kind.
        kind: String,
        /// Its name.
        name: String,
        /// What went wrong.
        message: String,
    },
}

/// ConfigMap or Secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// data and binaryData.
    ConfigMap,
    /// data, in base64.
    Secret,
}

impl Kind {
    /// The API's name of the kind.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
        }
    }
    fn lower(self) -> &'static str {
        match self {
            Self::ConfigMap => "configmap",
            Self::Secret => "secret",
        }
    }
}

/// An object's keys with their bytes.
pub type Data = BTreeMap<String, Vec<u8>>;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Raw {
    data: Option<BTreeMap<String, String>>,
    binary_data: Option<BTreeMap<String, String>>,
}

/// Reads a ConfigMap's or Secret's keys.
///
/// # Errors
/// [`ObjectError::NotFound`] when it is not here, [`ObjectError::Unreadable`] when it makes no sense.
pub fn data(objects: &dyn Objects, kind: Kind, namespace: &str, name: &str) -> Result<Data, ObjectError> {
    let bytes = objects
        .object(kind.as_str(), namespace, name)?
        .ok_or_else(|| ObjectError::NotFound {
            kind: kind.lower(),
            name: name.to_owned(),
        })?;
    let unreadable = |message: String| ObjectError::Unreadable {
        kind: kind.as_str().to_owned(),
        name: name.to_owned(),
        message,
    };
    let raw: Raw = serde_json::from_slice(&bytes).map_err(|e| unreadable(e.to_string()))?;
    let decode = |text: String| STANDARD.decode(text).map_err(|e| unreadable(e.to_string()));
    let mut out = Data::new();
    for (key, text) in raw.data.unwrap_or_default() {
        let value = if kind == Kind::Secret {
            decode(text)?
        } else {
            text.into_bytes()
        };
        out.insert(key, value);
    }
    for (key, text) in raw.binary_data.unwrap_or_default() {
        out.insert(key, decode(text)?);
    }
    Ok(out)
}

/// Objects in a map, for tests: kind/namespace/name to JSON.
#[cfg(test)]
#[derive(Debug, Default)]
pub(crate) struct MapObjects(pub(crate) std::sync::Mutex<BTreeMap<String, Bytes>>);

#[cfg(test)]
impl MapObjects {
    pub(crate) fn put(&self, kind: &str, namespace: &str, name: &str, value: &serde_json::Value) {
        let key = format!("{kind}/{namespace}/{name}");
        self.0.lock().expect("lock").insert(key, value.to_string().into());
    }
    pub(crate) fn remove(&self, kind: &str, namespace: &str, name: &str) {
        self.0
            .lock()
            .expect("lock")
            .remove(&format!("{kind}/{namespace}/{name}"));
    }
}

#[cfg(test)]
impl Objects for MapObjects {
    fn object(&self, kind: &str, namespace: &str, name: &str) -> Result<Option<Bytes>, ObjectError> {
        Ok(self
            .0
            .lock()
            .expect("lock")
            .get(&format!("{kind}/{namespace}/{name}"))
            .cloned())
    }
}
