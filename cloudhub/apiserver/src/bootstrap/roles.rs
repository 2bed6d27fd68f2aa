//! The default roles and bindings of the real server (1.36, default feature gates), as tables.

use super::Grant::{Named, On, Paths};
use super::{EVENTS, Grant, Seed};

const fn seed(name: &'static str, grants: &'static [Grant]) -> Seed {
    Seed {
        name,
        aggregates_to: "",
        grants,
    }
}

/// One that `view`, `edit` or `admin` gathers.
const fn part(name: &'static str, aggregates_to: &'static str, grants: &'static [Grant]) -> Seed {
    Seed {
        name,
        aggregates_to,
        grants,
    }
}

/// Each contains those before it.
pub(super) const AGGREGATED: &[&str] = &["view", "edit", "admin"];

const VIEW: &[Grant] = &[
    On(
        "READ",
        "core",
        "configmaps endpoints persistentvolumeclaims persistentvolumeclaims/status pods replicationcontrollers \
         replicationcontrollers/scale serviceaccounts services services/status",
    ),
    On(
        "READ",
        "core",
        "bindings limitranges namespaces/status pods/log pods/status replicationcontrollers/status resourcequotas \
         resourcequotas/status",
    ),
    On("READ", "core", "namespaces"),
    On("READ", "core events.k8s.io", "events"),
    On("READ", "discovery.k8s.io", "endpointslices"),
    On(
        "READ",
        "apps",
        "controllerrevisions daemonsets daemonsets/status deployments deployments/scale deployments/status replicasets \
         replicasets/scale replicasets/status statefulsets statefulsets/scale statefulsets/status",
    ),
    On(
        "READ",
        "autoscaling",
        "horizontalpodautoscalers horizontalpodautoscalers/status",
    ),
    On("READ", "batch", "cronjobs cronjobs/status jobs jobs/status"),
    On(
        "READ",
        "extensions",
        "daemonsets daemonsets/status deployments deployments/scale deployments/status ingresses ingresses/status \
         networkpolicies replicasets replicasets/scale replicasets/status replicationcontrollers/scale",
    ),
    On("READ", "policy", "poddisruptionbudgets poddisruptionbudgets/status"),
    On(
        "READ",
        "networking.k8s.io",
        "ingresses ingresses/status networkpolicies",
    ),
    On(
        "READ",
        "resource.k8s.io",
        "resourceclaims resourceclaims/status resourceclaimtemplates",
    ),
];

const EDIT: &[Grant] = &[
    On(
        "READ",
        "core",
        "pods/attach pods/exec pods/portforward pods/proxy secrets services/proxy",
    ),
    On("impersonate", "core", "serviceaccounts"),
    On(
        "WRITE",
        "core",
        "pods pods/attach pods/exec pods/portforward pods/proxy",
    ),
    On("create", "core", "pods/eviction"),
    On(
        "WRITE",
        "core",
        "configmaps persistentvolumeclaims replicationcontrollers replicationcontrollers/scale secrets serviceaccounts \
         services services/proxy",
    ),
    On("create", "core", "serviceaccounts/token"),
    On("WRITE", "core events.k8s.io", "events"),
    On(
        "WRITE",
        "apps",
        "daemonsets deployments deployments/rollback deployments/scale replicasets replicasets/scale statefulsets \
         statefulsets/scale",
    ),
    On("WRITE", "autoscaling", "horizontalpodautoscalers"),
    On("WRITE", "batch", "cronjobs jobs"),
    On(
        "WRITE",
        "extensions",
        "daemonsets deployments deployments/rollback deployments/scale ingresses networkpolicies replicasets \
         replicasets/scale replicationcontrollers/scale",
    ),
    On("WRITE", "policy", "poddisruptionbudgets"),
    On("WRITE", "networking.k8s.io", "ingresses networkpolicies"),
    On("READ WRITE", "coordination.k8s.io", "leases"),
    On("WRITE", "resource.k8s.io", "resourceclaims resourceclaimtemplates"),
];

const ADMIN: &[Grant] = &[
    On("create", "authorization.k8s.io", "localsubjectaccessreviews"),
    On("READ WRITE", "rbac.authorization.k8s.io", "rolebindings roles"),
];

/// Every node has these without a binding.
pub(super) const NODE: &[Grant] = &[
    On("create", "authentication.k8s.io", "tokenreviews"),
    On(
        "create",
        "authorization.k8s.io",
        "localsubjectaccessreviews subjectaccessreviews",
    ),
    On("READ", "core", "services"),
    On("create READ", "core", "nodes"),
    On("patch update", "core", "nodes/status"),
    On("patch update", "core", "nodes"),
    EVENTS,
    On("READ", "core", "pods"),
    On("create delete", "core", "pods"),
    On("patch update", "core", "pods/status"),
    On("create", "core", "pods/eviction"),
    On("READ", "core", "configmaps secrets"),
    On("get", "core", "persistentvolumeclaims persistentvolumes"),
    On("get", "core", "endpoints"),
    On("create READ", "certificates.k8s.io", "certificatesigningrequests"),
    On("create delete get patch update", "coordination.k8s.io", "leases"),
    On("get", "storage.k8s.io", "volumeattachments"),
    On("create", "core", "serviceaccounts/token"),
    On("get patch update", "core", "persistentvolumeclaims/status"),
    On("READ", "storage.k8s.io", "csidrivers"),
    On("create delete get patch update", "storage.k8s.io", "csinodes"),
    On("READ", "node.k8s.io", "runtimeclasses"),
    On("get", "resource.k8s.io", "resourceclaims"),
    On("deletecollection", "resource.k8s.io", "resourceslices"),
    On("get", "core", "serviceaccounts"),
];

const SCHEDULER: &[Grant] = &[
    EVENTS,
    On("create", "coordination.k8s.io", "leases"),
    Named("READ update", "coordination.k8s.io", "leases", "kube-scheduler"),
    On("READ WRITE", "coordination.k8s.io", "leasecandidates"),
    On("READ", "core", "nodes"),
    On("delete READ", "core", "pods"),
    On("create", "core", "bindings pods/binding"),
    On("patch update", "core", "pods/status"),
    On("READ", "core", "replicationcontrollers services"),
    On("READ", "apps extensions", "replicasets"),
    On("READ", "apps", "statefulsets"),
    On("READ", "policy", "poddisruptionbudgets"),
    On("READ", "core", "persistentvolumeclaims persistentvolumes"),
    On("create", "authentication.k8s.io", "tokenreviews"),
    On("create", "authorization.k8s.io", "subjectaccessreviews"),
    On("READ", "storage.k8s.io", "csinodes"),
    On("READ", "storage.k8s.io", "volumeattachments"),
    On("READ", "core", "namespaces"),
    On("READ", "storage.k8s.io", "csidrivers"),
    On("READ", "storage.k8s.io", "csistoragecapacities"),
    On("READ", "resource.k8s.io", "deviceclasses"),
    On("READ patch update", "resource.k8s.io", "resourceclaims"),
    On("READ patch update", "resource.k8s.io", "resourceclaims/status"),
    On("update", "core", "pods/finalizers"),
    On("READ", "resource.k8s.io", "resourceslices"),
    On("create delete", "resource.k8s.io", "resourceclaims"),
    On("patch update", "resource.k8s.io", "resourceclaims/binding"),
];

const CONTROLLER_MANAGER: &[Grant] = &[
    EVENTS,
    On("create", "coordination.k8s.io", "leases"),
    Named("get update", "coordination.k8s.io", "leases", "kube-controller-manager"),
    On("create", "core", "secrets serviceaccounts"),
    On("delete", "core", "secrets"),
    On("get", "core", "configmaps namespaces secrets serviceaccounts"),
    On("update", "core", "secrets serviceaccounts"),
    On("create", "authentication.k8s.io", "tokenreviews"),
    On("create", "authorization.k8s.io", "subjectaccessreviews"),
    On("list watch", "*", "*"),
    On("create", "core", "serviceaccounts/token"),
];

const CSRS: &str = "certificates.k8s.io";

pub(super) const CLUSTER: &[Seed] = &[
    seed("cluster-admin", &[On("*", "*", "*"), Paths("*", "*")]),
    seed(
        "system:discovery",
        &[Paths(
            "get",
            "/api /api/* /apis /apis/* /healthz /livez /openapi /openapi/* /readyz /version /version/",
        )],
    ),
    seed(
        "system:monitoring",
        &[
            Paths(
                "get",
                "/flagz /healthz /healthz/* /livez /livez/* /metrics /metrics/slis /readyz /readyz/* /statusz",
            ),
            On("get", "core", "nodes/metrics"),
        ],
    ),
    seed(
        "system:basic-user",
        &[
            On(
                "create",
                "authorization.k8s.io",
                "selfsubjectaccessreviews selfsubjectrulesreviews",
            ),
            On("create", "authentication.k8s.io", "selfsubjectreviews"),
        ],
    ),
    seed(
        "system:public-info-viewer",
        &[Paths("get", "/healthz /livez /readyz /version /version/")],
    ),
    part("system:aggregate-to-admin", "admin", ADMIN),
    part("system:aggregate-to-edit", "edit", EDIT),
    part("system:aggregate-to-view", "view", VIEW),
    seed(
        "system:heapster",
        &[
            On("READ", "core", "events namespaces nodes pods"),
            On("READ", "extensions", "deployments"),
        ],
    ),
    seed("system:node", NODE),
    seed(
        "system:node-problem-detector",
        &[On("get", "core", "nodes"), On("patch", "core", "nodes/status"), EVENTS],
    ),
    seed(
        "system:node-bootstrapper",
        &[On("create READ", CSRS, "certificatesigningrequests")],
    ),
    seed(
        "system:auth-delegator",
        &[
            On("create", "authentication.k8s.io", "tokenreviews"),
            On("create", "authorization.k8s.io", "subjectaccessreviews"),
        ],
    ),
    seed("system:kube-aggregator", &[On("READ", "core", "endpoints services")]),
    seed("system:kube-controller-manager", CONTROLLER_MANAGER),
    seed("system:kube-dns", &[On("list watch", "core", "endpoints services")]),
    seed(
        "system:persistent-volume-provisioner",
        &[
            On("create delete READ", "core", "persistentvolumes"),
            On("READ update", "core", "persistentvolumeclaims"),
            On("READ", "storage.k8s.io", "storageclasses"),
            On("watch", "core", "events"),
            EVENTS,
        ],
    ),
    seed(
        "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
        &[On("create", CSRS, "certificatesigningrequests/nodeclient")],
    ),
    seed(
        "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
        &[On("create", CSRS, "certificatesigningrequests/selfnodeclient")],
    ),
    seed(
        "system:volume-scheduler",
        &[
            On("READ patch update", "core", "persistentvolumes"),
            On("READ", "storage.k8s.io", "storageclasses"),
            On("READ patch update", "core", "persistentvolumeclaims"),
        ],
    ),
    seed(
        "system:certificates.k8s.io:legacy-unknown-approver",
        &[Named("approve", CSRS, "signers", "kubernetes.io/legacy-unknown")],
    ),
    seed(
        "system:certificates.k8s.io:kubelet-serving-approver",
        &[Named("approve", CSRS, "signers", "kubernetes.io/kubelet-serving")],
    ),
    seed(
        "system:certificates.k8s.io:kube-apiserver-client-approver",
        &[Named("approve", CSRS, "signers", "kubernetes.io/kube-apiserver-client")],
    ),
    seed(
        "system:certificates.k8s.io:kube-apiserver-client-kubelet-approver",
        &[Named(
            "approve",
            CSRS,
            "signers",
            "kubernetes.io/kube-apiserver-client-kubelet",
        )],
    ),
    seed(
        "system:service-account-issuer-discovery",
        &[Paths(
            "get",
            "/.well-known/openid-configuration /.well-known/openid-configuration/ /openid/v1/jwks /openid/v1/jwks/",
        )],
    ),
    seed(
        "system:kubelet-api-admin",
        &[
            On("READ", "core", "nodes"),
            On("proxy", "core", "nodes"),
            On("*", "core", "nodes/log nodes/metrics nodes/proxy nodes/stats"),
            On("*", "core", "nodes/configz nodes/healthz nodes/pods"),
        ],
    ),
    seed(
        "system:node-proxier",
        &[
            On("list watch", "core", "endpoints services"),
            On("READ", "core", "nodes"),
            EVENTS,
            On("list watch", "networking.k8s.io", "servicecidrs"),
            On("list watch", "discovery.k8s.io", "endpointslices"),
        ],
    ),
    seed("system:kube-scheduler", SCHEDULER),
];

/// ClusterRole (also the binding's name), subjects.
pub(super) const BINDINGS: &[(&str, &[&str])] = &[
    ("cluster-admin", &["group:system:masters"]),
    ("system:monitoring", &["group:system:monitoring"]),
    ("system:discovery", &["group:system:authenticated"]),
    ("system:basic-user", &["group:system:authenticated"]),
    (
        "system:public-info-viewer",
        &["group:system:authenticated", "group:system:unauthenticated"],
    ),
    ("system:node-proxier", &["user:system:kube-proxy"]),
    (
        "system:kube-controller-manager",
        &["user:system:kube-controller-manager"],
    ),
    ("system:kube-dns", &["account:kube-system/kube-dns"]),
    ("system:kube-scheduler", &["user:system:kube-scheduler"]),
    ("system:volume-scheduler", &["user:system:kube-scheduler"]),
    // Nodes have their rights by the Node authorizer: the binding is there, and binds nobody.
    ("system:node", &[]),
    (
        "system:service-account-issuer-discovery",
        &["group:system:serviceaccounts"],
    ),
];

/// Leases and candidates by which the parts of a control plane agree who leads.
const LEADING: &[Grant] = &[
    On("create READ update", "coordination.k8s.io", "leases"),
    On("create READ update", "coordination.k8s.io", "leasecandidates"),
];

/// Namespace, role.
pub(super) const NAMESPACED: &[(&str, Seed)] = &[
    (
        "kube-system",
        seed(
            "extension-apiserver-authentication-reader",
            &[Named(
                "READ",
                "core",
                "configmaps",
                "extension-apiserver-authentication",
            )],
        ),
    ),
    (
        "kube-system",
        seed("system::leader-locking-kube-controller-manager", LEADING),
    ),
    ("kube-system", seed("system::leader-locking-kube-scheduler", LEADING)),
];

/// Namespace, name, role, subjects.
pub(super) const NAMESPACED_BINDINGS: &[(&str, &str, &str, &[&str])] = &[
    (
        "kube-system",
        "system::extension-apiserver-authentication-reader",
        "extension-apiserver-authentication-reader",
        &["user:system:kube-controller-manager", "user:system:kube-scheduler"],
    ),
    (
        "kube-system",
        "system::leader-locking-kube-controller-manager",
        "system::leader-locking-kube-controller-manager",
        &[
            "user:system:kube-controller-manager",
            "account:kube-system/kube-controller-manager",
            "account:kube-system/leader-election-controller",
        ],
    ),
    (
        "kube-system",
        "system::leader-locking-kube-scheduler",
        "system::leader-locking-kube-scheduler",
        &["user:system:kube-scheduler", "account:kube-system/kube-scheduler"],
    ),
];
