//! Secrets in `kedge-system`: the few operations that identities need, behind a trait so that tests need no API server.

use std::collections::BTreeMap;

use async_trait::async_trait;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, ListParams, PostParams};

use super::NAMESPACE;

/// A Secret could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Somebody else wrote it since it was read, or made it first.
    #[error("Secret {name} was changed by somebody else")]
    Conflict {
        /// Its name.
        name: String,
    },
    /// The API said no, or nothing.
    #[error("{operation} Secret {name}")]
    Api {
        /// What was tried.
        operation: &'static str,
        /// Its name.
        name: String,
        /// Cause.
        #[source]
        source: Box<kube::Error>,
    },
}

/// Secrets of one namespace.
#[async_trait]
pub trait SecretStore: Send + Sync {
    /// The Secret, if there is one.
    async fn get(&self, name: &str) -> Result<Option<Secret>, SecretError>;
    /// Makes it; [`SecretError::Conflict`] when it is there.
    async fn create(&self, secret: Secret) -> Result<Secret, SecretError>;
    /// Replaces the version that was read; [`SecretError::Conflict`] when there is another one by now.
    async fn replace(&self, secret: Secret) -> Result<Secret, SecretError>;
    /// All with these labels.
    async fn list(&self, selector: &str) -> Result<Vec<Secret>, SecretError>;

    /// Makes it, or gives the one that is there.
    async fn ensure(&self, secret: Secret) -> Result<Secret, SecretError> {
        let name = name(&secret).to_owned();
        match self.create(secret).await {
            Err(SecretError::Conflict { .. }) => {
                let found = self.get(&name).await?;
                found.ok_or(SecretError::Conflict { name })
            }
            made => made,
        }
    }
}

/// Name of a Secret.
pub fn name(secret: &Secret) -> &str {
    secret.metadata.name.as_deref().unwrap_or_default()
}

/// A value of a Secret.
pub fn value<'a>(secret: &'a Secret, key: &str) -> Option<&'a [u8]> {
    secret.data.as_ref()?.get(key).map(|value| value.0.as_slice())
}

/// A text value of a Secret.
pub fn text<'a>(secret: &'a Secret, key: &str) -> Option<&'a str> {
    value(secret, key).and_then(|bytes| std::str::from_utf8(bytes).ok())
}

/// An opaque Secret of `kedge-system`.
pub fn secret<const N: usize>(name: &str, values: [(&str, Vec<u8>); N]) -> Secret {
    Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        },
        data: Some(
            values
                .into_iter()
                .map(|(key, value)| (key.to_owned(), ByteString(value)))
                .collect::<BTreeMap<_, _>>(),
        ),
        ..Secret::default()
    }
}

/// The Kubernetes API's.
#[derive(Clone)]
pub struct KubeSecrets {
    api: Api<Secret>,
}

impl std::fmt::Debug for KubeSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubeSecrets").finish_non_exhaustive()
    }
}

impl KubeSecrets {
    /// Secrets of `kedge-system`.
    pub fn new(client: kube::Client) -> Self {
        Self {
            api: Api::namespaced(client, NAMESPACE),
        }
    }
}

fn api_error(operation: &'static str, name: &str) -> impl FnOnce(kube::Error) -> SecretError {
    let name = name.to_owned();
    move |source| match source {
        kube::Error::Api(status) if status.code == 409 => SecretError::Conflict { name },
        source => SecretError::Api {
            operation,
            name,
            source: Box::new(source),
        },
    }
}

#[async_trait]
impl SecretStore for KubeSecrets {
    async fn get(&self, name: &str) -> Result<Option<Secret>, SecretError> {
        self.api.get_opt(name).await.map_err(api_error("get", name))
    }

    async fn create(&self, secret: Secret) -> Result<Secret, SecretError> {
        let created = self.api.create(&PostParams::default(), &secret).await;
        created.map_err(api_error("create", name(&secret)))
    }

    async fn replace(&self, secret: Secret) -> Result<Secret, SecretError> {
        let name = name(&secret);
        let replaced = self.api.replace(name, &PostParams::default(), &secret).await;
        replaced.map_err(api_error("replace", name))
    }

    async fn list(&self, selector: &str) -> Result<Vec<Secret>, SecretError> {
        let params = ListParams::default().labels(selector);
        let listed = self.api.list(&params).await;
        Ok(listed.map_err(api_error("list", selector))?.items)
    }
}

/// Makes the namespace where it is missing and the hub may; elsewhere the installer has made it.
pub(super) async fn ensure_namespace(client: &kube::Client) -> Result<(), SecretError> {
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
        Err(kube::Error::Api(status)) if status.code == 409 || status.code == 403 => Ok(()),
        Err(source) => Err(api_error("create the namespace for", NAMESPACE)(source)),
    }
}

#[cfg(test)]
pub(super) mod fake {
    //! Secrets in memory, with resourceVersions.

    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    pub(crate) struct FakeSecrets {
        state: Mutex<(u64, BTreeMap<String, Secret>)>,
    }

    impl FakeSecrets {
        fn put(&self, mut secret: Secret, must_exist: bool) -> Result<Secret, SecretError> {
            let mut state = self.state.lock().unwrap();
            let name = name(&secret).to_owned();
            let version = state
                .1
                .get(&name)
                .and_then(|found| found.metadata.resource_version.clone());
            let wanted = secret.metadata.resource_version.clone();
            if version.is_some() != must_exist || (must_exist && wanted.is_some() && wanted != version) {
                return Err(SecretError::Conflict { name });
            }
            state.0 += 1;
            secret.metadata.resource_version = Some(state.0.to_string());
            state.1.insert(name, secret.clone());
            Ok(secret)
        }
    }

    #[async_trait]
    impl SecretStore for FakeSecrets {
        async fn get(&self, name: &str) -> Result<Option<Secret>, SecretError> {
            Ok(self.state.lock().unwrap().1.get(name).cloned())
        }

        async fn create(&self, secret: Secret) -> Result<Secret, SecretError> {
            self.put(secret, false)
        }

        async fn replace(&self, secret: Secret) -> Result<Secret, SecretError> {
            self.put(secret, true)
        }

        async fn list(&self, selector: &str) -> Result<Vec<Secret>, SecretError> {
            let (key, value) = selector.split_once('=').unwrap();
            let state = self.state.lock().unwrap();
            let labelled = |secret: &&Secret| {
                let label = secret.metadata.labels.as_ref().and_then(|labels| labels.get(key));
                label.is_some_and(|label| label == value)
            };
            Ok(state.1.values().filter(labelled).cloned().collect())
        }
    }
}
