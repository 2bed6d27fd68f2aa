//! How many pods may be started at a time: starting all at once is no faster and makes the first one wait (node-agent.md §3.3).

use std::collections::BinaryHeap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

/// What is to be started. Of pods of one priority, those that have begun are finished first, so that they run one after another and not
/// all at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// A pod's sandbox.
    Sandbox,
    /// A container in one.
    Container,
}

/// Permits for starting, given by priority, then stage, then age. Clone = handle.
#[derive(Debug, Clone)]
pub struct Gate(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    free: usize,
    sequence: u64,
    queue: BinaryHeap<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    priority: i64,
    stage: Stage,
    sequence: u64,
    grant: oneshot::Sender<Permit>,
}

impl PartialEq for Waiter {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Waiter {}
impl PartialOrd for Waiter {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Waiter {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let rank = |waiter: &Self| (waiter.priority, waiter.stage, std::cmp::Reverse(waiter.sequence));
        rank(self).cmp(&rank(other))
    }
}

/// One start; dropping it lets the next one go.
#[derive(Debug)]
pub struct Permit(Option<Gate>);

impl Gate {
    /// A gate for `size` starts at a time.
    pub fn new(size: usize) -> Self {
        Self(Arc::new(Mutex::new(State {
            free: size.max(1),
            sequence: 0,
            queue: BinaryHeap::new(),
        })))
    }

    /// Waits for a permit. Cancel safe.
    pub async fn enter(&self, priority: i64, stage: Stage) -> Permit {
        let granted = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if state.free > 0 {
                state.free -= 1;
                return Permit(Some(self.clone()));
            }
            state.sequence += 1;
            let sequence = state.sequence;
            let (grant, granted) = oneshot::channel();
            state.queue.push(Waiter {
                priority,
                stage,
                sequence,
                grant,
            });
            granted
        };
        match granted.await {
            Ok(permit) => permit,
            // Only when the gate itself was dropped, which `self` prevents.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        // A waiter that gave up hands its permit back by dropping it: outside the lock.
        let Some(gate) = self.0.take() else { return };
        loop {
            let next = {
                let mut state = gate.0.lock().unwrap_or_else(PoisonError::into_inner);
                let next = state.queue.pop();
                if next.is_none() {
                    state.free += 1;
                }
                next
            };
            let Some(waiter) = next else { return };
            match waiter.grant.send(Permit(Some(gate.clone()))) {
                Ok(()) => return,
                Err(mut refused) => drop(refused.0.take()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn lets_few_in_by_priority_and_survives_waiters_that_give_up() {
        use Stage::{Container, Sandbox};
        let gate = Gate::new(1);
        let first = gate.enter(0, Sandbox).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let inside = Arc::new(AtomicUsize::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        for asked in [(1, Sandbox), (3, Sandbox), (5, Sandbox), (3, Container)] {
            let (gate, order, inside) = (gate.clone(), order.clone(), inside.clone());
            tasks.spawn(async move {
                let _permit = gate.enter(asked.0, asked.1).await;
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                order.lock().expect("lock").push(asked);
                tokio::task::yield_now().await;
                inside.fetch_sub(1, Ordering::SeqCst);
            });
        }
        let abandoned = gate.enter(9, Container);
        assert!(futures::poll!(std::pin::pin!(abandoned)).is_pending());
        tokio::task::yield_now().await;
        drop(first);
        while let Some(done) = tasks.join_next().await {
            done.expect("task");
        }
        let inside = [(5, Sandbox), (3, Container), (3, Sandbox), (1, Sandbox)];
        assert_eq!(*order.lock().expect("lock"), inside);
        let _again = gate.enter(0, Sandbox).await;
    }
}
