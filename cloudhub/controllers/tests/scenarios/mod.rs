//! What kubectl does, and what must come of it. Each scenario has its own namespace.

mod cluster;
mod daemonset;
mod deployment;
mod scheduling;

use anyhow::Result;

use crate::World;

type Scenario = fn(&World) -> Result<()>;

/// All scenarios by name.
pub(crate) const ALL: &[(&str, Scenario)] = &[
    ("a deployment is scaled, rolled, undone and paused", deployment::life),
    ("a rollout that does not progress is reported", deployment::deadline),
    ("recreate never mixes templates", deployment::recreate),
    ("cascades: background, orphan, foreground", deployment::cascades),
    ("a daemonset covers the nodes and is rolled", daemonset::life),
    ("an unschedulable pod says why and is tried again", scheduling::waits),
    ("host ports and extended resources are counted", scheduling::counts),
    ("budgets allow and refuse evictions", scheduling::budgets),
    ("a silent node loses its pods and comes back", cluster::silence),
    ("a namespace goes with all that is in it", cluster::namespace),
    ("each node has its own range, also after its deletion", cluster::ranges),
    ("pods of missing nodes go", cluster::orphans),
];
