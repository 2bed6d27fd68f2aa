//! A store in a temporary folder, for the tests of this module.

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::{Auth, Config, Identity, User, storage};
use crate::bootstrap;
use crate::kinds::{Row, Strategy};
use crate::object;
use crate::store::{Expect, Key, Store};

pub(super) struct Fixture {
    pub(super) auth: Auth,
    pub(super) store: Store,
    _folder: TempDir,
    _committer: JoinSet<()>,
}

impl Fixture {
    pub(super) async fn empty() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (store, committer) = Store::open(folder.path()).expect("a new store opens");
        let mut tasks = JoinSet::new();
        tasks.spawn(committer.run());
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
        let config = Config {
            issuer: "https://kubernetes.default.svc".into(),
            audiences: vec!["https://kubernetes.default.svc".into()],
            signing_key_pem: key.serialize_pem(),
            not_ready_toleration_seconds: 300,
            unreachable_toleration_seconds: 300,
        };
        Self {
            auth: Auth::new(store.clone(), config).expect("the key is good"),
            store,
            _folder: folder,
            _committer: tasks,
        }
    }

    /// With what every server has, and namespace `default` with its account.
    pub(super) async fn new() -> Self {
        let fixture = Self::empty().await;
        // Together, so that they are one commit.
        let objects = bootstrap::objects().into_iter();
        futures::future::join_all(objects.map(|(group, plural, object)| fixture.put(group, plural, object))).await;
        let account = json!({"metadata": {"name": "default", "namespace": "default", "uid": "account-uid"}});
        fixture.put("", "serviceaccounts", account).await;
        fixture
    }

    fn key(group: &'static str, plural: &'static str, object: &Value) -> Key {
        Key::new(storage(group, plural), object::namespace(object), object::name(object))
    }

    pub(super) async fn put(&self, group: &'static str, plural: &'static str, object: Value) {
        let key = Self::key(group, plural, &object);
        let expect = match self.store.latest(&key) {
            Some(stored) => Expect::Version(stored.resource_version),
            None => Expect::Absent,
        };
        self.store.put(key, expect, object).await.expect("it is stored");
    }

    pub(super) async fn delete(&self, group: &'static str, plural: &'static str, object: &Value) {
        let key = Self::key(group, plural, object);
        let stored = self.store.latest(&key).expect("it is there");
        let expect = Expect::Version(stored.resource_version);
        self.store.delete(key, expect, None).await.expect("it is deleted");
    }

    /// A ClusterRole of `rules`, bound to the user.
    pub(super) async fn grant(&self, user: &str, rules: Value) {
        let role = json!({"metadata": {"name": format!("role-of-{user}")}, "rules": rules});
        let binding = json!({
            "metadata": {"name": format!("binding-of-{user}")},
            "roleRef": {"kind": "ClusterRole", "name": format!("role-of-{user}")},
            "subjects": [{"kind": "User", "name": user}],
        });
        let group = "rbac.authorization.k8s.io";
        self.put(group, "clusterroles", role).await;
        self.put(group, "clusterrolebindings", binding).await;
    }

    /// A pod bound to `node`, which mounts Secret `secret` and runs as `default`.
    pub(super) async fn pod(&self, name: &str, node: &str) -> Value {
        let pod = json!({
            "metadata": {"name": name, "namespace": "default", "uid": format!("{name}-uid")},
            "spec": {
                "nodeName": node,
                "serviceAccountName": "default",
                "containers": [{"name": "a"}],
                "volumes": [
                    {"name": "s", "secret": {"secretName": "secret"}},
                    {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
                ],
            },
        });
        self.put("", "pods", pod.clone()).await;
        pod
    }
}

pub(super) fn user(name: &str) -> User {
    User {
        name: name.into(),
        groups: vec!["system:authenticated".into()],
        ..User::default()
    }
}

pub(super) fn node(name: &str) -> Identity {
    Identity::new(User {
        name: format!("system:node:{name}"),
        groups: vec!["system:nodes".into(), "system:authenticated".into()],
        ..User::default()
    })
}

#[derive(Debug)]
struct Plain;

impl Strategy for Plain {}

/// A row of no particulars.
pub(super) fn row(group: &'static str, plural: &'static str, namespaced: bool) -> &'static Row {
    Box::leak(Box::new(Row {
        group,
        version: "v1",
        kind: "Kind",
        plural,
        singular: "kind",
        short_names: &[],
        categories: &[],
        namespaced,
        storage: plural,
        status: true,
        scale: false,
        generation: false,
        selectable: &[],
        columns: &[],
        strategy: &Plain,
    }))
}
