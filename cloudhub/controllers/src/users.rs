//! Whom the control plane acts as: each controller its own user with the role of a real cluster's, and none an administrator.

use std::collections::HashMap;

use kube::Client;

/// Groups of every ServiceAccount in kube-system.
const ACCOUNT_GROUPS: &[&str] = &["system:serviceaccounts", "system:serviceaccounts:kube-system"];

/// A user of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct User {
    /// As RBAC knows it.
    pub name: &'static str,
    /// Its groups; the API server adds `system:authenticated`.
    pub groups: &'static [&'static str],
}

const fn user(name: &'static str) -> User {
    User { name, groups: &[] }
}

const fn account(name: &'static str) -> User {
    User {
        name,
        groups: ACCOUNT_GROUPS,
    }
}

/// Watches for all, and writes the events.
pub(crate) const MANAGER: User = user("system:kube-controller-manager");
pub(crate) const SCHEDULER: User = user("system:kube-scheduler");
pub(crate) const REPLICA_SETS: User = account("system:serviceaccount:kube-system:replicaset-controller");
pub(crate) const DEPLOYMENTS: User = account("system:serviceaccount:kube-system:deployment-controller");
pub(crate) const DAEMON_SETS: User = account("system:serviceaccount:kube-system:daemon-set-controller");
/// Node lifecycle, and ranges of addresses.
pub(crate) const NODES: User = account("system:serviceaccount:kube-system:node-controller");
pub(crate) const POD_GC: User = account("system:serviceaccount:kube-system:pod-garbage-collector");
pub(crate) const NAMESPACES: User = account("system:serviceaccount:kube-system:namespace-controller");
pub(crate) const ACCOUNTS: User = account("system:serviceaccount:kube-system:service-account-controller");
pub(crate) const ROOT_CAS: User = account("system:serviceaccount:kube-system:root-ca-cert-publisher");
pub(crate) const DISRUPTION: User = account("system:serviceaccount:kube-system:disruption-controller");
pub(crate) const GARBAGE: User = account("system:serviceaccount:kube-system:generic-garbage-collector");

const ALL: &[User] = &[
    MANAGER,
    SCHEDULER,
    REPLICA_SETS,
    DEPLOYMENTS,
    DAEMON_SETS,
    NODES,
    POD_GC,
    NAMESPACES,
    ACCOUNTS,
    ROOT_CAS,
    DISRUPTION,
    GARBAGE,
];

/// A client of the API for each user of the control plane.
#[allow(missing_debug_implementations, reason = "Client has none")]
pub struct Clients(HashMap<User, Client>);

impl Clients {
    /// Asks `connect` for the client of each user.
    ///
    /// # Errors
    /// The first error of `connect`.
    pub async fn connect<E>(connect: impl AsyncFn(User) -> Result<Client, E>) -> Result<Self, E> {
        let mut clients = HashMap::new();
        for user in ALL {
            clients.insert(*user, connect(*user).await?);
        }
        Ok(Self(clients))
    }

    pub(crate) fn of(&self, user: User) -> Client {
        self.0[&user].clone()
    }
}
