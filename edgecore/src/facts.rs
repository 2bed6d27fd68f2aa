//! What pods need to know of their node, kept in step with what the node manager finds out.

use std::sync::Arc;

use tokio::sync::watch;

use crate::node::{Amounts, NodeInfo};
use crate::pods::NodeFacts;
use crate::pods::api::Map;

fn quantities(amounts: &Amounts) -> Map {
    Map::from([
        ("cpu".to_owned(), format!("{}m", amounts.cpu_milli)),
        ("memory".to_owned(), amounts.memory.to_string()),
        ("ephemeral-storage".to_owned(), amounts.ephemeral_storage.to_string()),
        ("pods".to_owned(), amounts.pods.to_string()),
    ])
}

fn facts(info: &NodeInfo) -> NodeFacts {
    NodeFacts {
        host_ips: info.addresses.iter().map(ToString::to_string).collect(),
        capacity: quantities(&info.capacity),
        allocatable: quantities(&info.allocatable),
        labels: info.labels.clone(),
    }
}

/// The facts as they are now, and the task that keeps them so.
pub fn follow(
    mut info: watch::Receiver<Arc<NodeInfo>>,
) -> (
    watch::Receiver<Arc<NodeFacts>>,
    impl Future<Output = std::convert::Infallible>,
) {
    let (sender, receiver) = watch::channel(Arc::new(facts(&info.borrow_and_update())));
    let task = async move {
        while info.changed().await.is_ok() {
            let now = facts(&info.borrow_and_update());
            sender.send_if_modified(|last| {
                let differs = **last != now;
                if differs {
                    *last = Arc::new(now);
                }
                differs
            });
        }
        // The node manager's own end is reported by its supervisor.
        std::future::pending().await
    };
    (receiver, task)
}
