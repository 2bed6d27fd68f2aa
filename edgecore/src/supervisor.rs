//! Owns every long-lived task by name. The first that ends when nobody asked for it stops the process, and is named.

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};

/// How long tasks have to end after the stop: the goodbye to the hub takes a round trip, and the longest links have seconds.
pub const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// A task ended that should not have.
#[derive(Debug, thiserror::Error)]
#[error("task {task} ended: {how}")]
pub struct Ended {
    task: &'static str,
    how: String,
}

/// The tasks of the process.
#[derive(Debug)]
pub struct Supervisor {
    tasks: JoinSet<Result<(), String>>,
    names: Vec<(Id, &'static str)>,
    stop: watch::Sender<bool>,
}

impl Default for Supervisor {
    fn default() -> Self {
        Self {
            tasks: JoinSet::new(),
            names: Vec::new(),
            stop: watch::channel(false).0,
        }
    }
}

/// Waits for the stop.
pub async fn stopped(mut stop: watch::Receiver<bool>) {
    // The sender outlives the tasks; without it there is nobody to stop for.
    let _ = stop.wait_for(|stop| *stop).await;
}

impl Supervisor {
    /// What tasks wait for to end: true is the stop.
    pub fn stop(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    /// Starts a task that runs until the process ends; it is dropped at the stop, wherever it is.
    pub fn forever(
        &mut self,
        name: &'static str,
        task: impl Future<Output = std::convert::Infallible> + Send + 'static,
    ) {
        let stop = self.stop();
        self.until_stop(name, async move {
            tokio::select! {
                biased;
                () = stopped(stop) => Ok::<(), String>(()),
                never = task => match never {},
            }
        });
    }

    /// Starts a task that ends in order after [`Supervisor::stop`]; an error, or an end before that, is unexpected.
    pub fn until_stop<E: ToString>(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let handle = self
            .tasks
            .spawn(async move { task.await.map_err(|error| error.to_string()) });
        self.names.push((handle.id(), name));
    }

    /// The names of the tasks that run.
    pub fn names(&self) -> Vec<&'static str> {
        self.names.iter().map(|(_, name)| *name).collect()
    }

    /// Runs until `signal`, or until a task ends; then stops all.
    ///
    /// # Errors
    /// The task that ended before the signal.
    pub async fn run(mut self, signal: impl Future<Output = &'static str>) -> Result<(), Ended> {
        let outcome = tokio::select! {
            biased;
            ended = self.next() => ended.map_or(Ok(()), Err),
            signal = signal => {
                tracing::info!(signal, "stopping; containers go on");
                Ok(())
            }
        };
        self.stop.send_replace(true);
        self.drain().await;
        outcome
    }

    async fn next(&mut self) -> Option<Ended> {
        let joined = self.tasks.join_next_with_id().await?;
        Some(self.ended(joined))
    }

    fn ended(&mut self, joined: Result<(Id, Result<(), String>), JoinError>) -> Ended {
        let (id, how) = match joined {
            Ok((id, Ok(()))) => (id, "without being asked".to_owned()),
            Ok((id, Err(error))) => (id, error),
            Err(error) => (error.id(), error.to_string()),
        };
        let at = self.names.iter().position(|(known, _)| *known == id);
        let task = at.map_or("unknown", |at| self.names.swap_remove(at).1);
        Ended { task, how }
    }

    /// Waits for the rest, then gives up on them by name.
    async fn drain(mut self) {
        let all = async {
            while let Some(joined) = self.tasks.join_next_with_id().await {
                let failed = !matches!(joined, Ok((_, Ok(()))));
                let ended = self.ended(joined);
                if failed {
                    tracing::warn!(task = ended.task, how = ended.how, "a task failed while stopping");
                }
            }
        };
        if tokio::time::timeout(STOP_DEADLINE, all).await.is_err() {
            let names: Vec<&str> = self.names.iter().map(|(_, name)| *name).collect();
            tracing::warn!(tasks = ?names, "these tasks did not stop in time and are dropped");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_unexpected_end_is_named_and_stops_the_rest() {
        let mut supervisor = Supervisor::default();
        let stop = supervisor.stop();
        supervisor.until_stop("good", async move {
            stopped(stop).await;
            Ok::<(), String>(())
        });
        supervisor.until_stop("bad", async { Err::<(), _>("boom") });
        let error = supervisor.run(std::future::pending()).await.unwrap_err();
        assert_eq!(error.to_string(), "task bad ended: boom");
    }

    #[tokio::test]
    async fn a_panic_is_an_end() {
        let mut supervisor = Supervisor::default();
        supervisor.until_stop("bad", async { if true { panic!("oh") } else { Ok::<(), String>(()) } });
        let error = supervisor.run(std::future::pending()).await.unwrap_err();
        assert!(error.to_string().starts_with("task bad ended: "), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_signal_stops_all_and_a_stuck_task_is_dropped() {
        let mut supervisor = Supervisor::default();
        supervisor.forever("forever", std::future::pending());
        supervisor.until_stop("stuck", std::future::pending::<Result<(), String>>());
        assert_eq!(supervisor.names(), ["forever", "stuck"]);
        supervisor.run(async { "SIGTERM" }).await.unwrap();
    }
}
