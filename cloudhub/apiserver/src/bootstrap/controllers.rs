//! Roles of the controllers that run here, each bound to the ServiceAccount of its name in kube-system, as in a real cluster.

use super::Grant::On;
use super::{EVENTS, Grant, Seed};

/// What their names begin with; the rest is the account.
pub(super) const PREFIX: &str = "system:controller:";

const fn seed(name: &'static str, grants: &'static [Grant]) -> Seed {
    Seed {
        name,
        aggregates_to: "",
        grants,
    }
}

pub(super) const ROLES: &[Seed] = &[
    seed(
        "system:controller:clusterrole-aggregation-controller",
        &[On(
            "escalate READ patch update",
            "rbac.authorization.k8s.io",
            "clusterroles",
        )],
    ),
    seed(
        "system:controller:daemon-set-controller",
        &[
            On("READ", "apps extensions", "daemonsets"),
            On("update", "apps extensions", "daemonsets/status"),
            On("update", "apps extensions", "daemonsets/finalizers"),
            On("list watch", "core", "nodes"),
            On("create delete list patch watch", "core", "pods"),
            On("create", "core", "pods/binding"),
            On("create delete READ patch update", "apps", "controllerrevisions"),
            EVENTS,
        ],
    ),
    seed(
        "system:controller:deployment-controller",
        &[
            On("READ update", "apps extensions", "deployments"),
            On("update", "apps extensions", "deployments/status"),
            On("update", "apps extensions", "deployments/finalizers"),
            On("create delete READ patch update", "apps extensions", "replicasets"),
            On("READ update", "core", "pods"),
            EVENTS,
        ],
    ),
    seed(
        "system:controller:disruption-controller",
        &[
            On("READ", "apps extensions", "deployments"),
            On("READ", "apps extensions", "replicasets"),
            On("READ", "core", "replicationcontrollers"),
            On("READ", "policy", "poddisruptionbudgets"),
            On("READ", "apps", "statefulsets"),
            On("update", "policy", "poddisruptionbudgets/status"),
            On("patch update", "core", "pods/status"),
            On("get", "*", "*/scale"),
            EVENTS,
        ],
    ),
    seed(
        "system:controller:endpointslice-controller",
        &[
            On("READ", "core", "nodes pods services"),
            On("update", "core", "services/finalizers"),
            On("create delete READ update", "discovery.k8s.io", "endpointslices"),
            EVENTS,
        ],
    ),
    seed(
        "system:controller:generic-garbage-collector",
        &[On("delete READ patch update", "*", "*"), EVENTS],
    ),
    seed(
        "system:controller:namespace-controller",
        &[
            On("delete READ", "core", "namespaces"),
            On("update", "core", "namespaces/finalize namespaces/status"),
            On("delete deletecollection READ", "*", "*"),
        ],
    ),
    seed(
        "system:controller:node-controller",
        &[
            On("delete READ patch update", "core", "nodes"),
            On("patch update", "core", "nodes/status"),
            On("patch update", "core", "pods/status"),
            On("delete READ", "core", "pods"),
            EVENTS,
        ],
    ),
    seed(
        "system:controller:pod-garbage-collector",
        &[
            On("delete list watch", "core", "pods"),
            On("READ", "core", "nodes"),
            On("patch", "core", "pods/status"),
        ],
    ),
    seed(
        "system:controller:replicaset-controller",
        &[
            On("READ update", "apps extensions", "replicasets"),
            On("update", "apps extensions", "replicasets/status"),
            On("update", "apps extensions", "replicasets/finalizers"),
            On("create delete list patch watch", "core", "pods"),
            EVENTS,
        ],
    ),
    seed(
        "system:controller:root-ca-cert-publisher",
        &[On("create update", "core", "configmaps"), EVENTS],
    ),
    seed(
        "system:controller:service-account-controller",
        &[On("create", "core", "serviceaccounts"), EVENTS],
    ),
];
