//! What a worker says of its pod: the status, its row in the store, the view for the kubelet API, and the last rows when all is gone.

use std::sync::{Arc, PoisonError};

use super::super::PodView;
use super::super::memory::Now;
use super::super::report::PodStatus;
use super::super::rows::{Change, RowError, gone_key, status_key};
use super::super::status::{self, Inputs};
use super::Worker;

impl Worker {
    /// The status now. Once the runtime has forgotten the pod, or is about to, what was said last stays said.
    pub(super) fn status(&self, now: Now) -> PodStatus {
        let forgotten = self.finishing || self.memory.finished == Some(true);
        if forgotten && !self.memory.prior.phase.is_empty() {
            let observed_generation = self.pod.metadata.generation;
            return PodStatus {
                observed_generation,
                ..self.memory.prior.clone()
            };
        }
        let host_ips = self.shared.node.borrow().host_ips.clone();
        let inputs = Inputs {
            pod: &self.pod,
            observed: &self.observed,
            memory: &self.memory,
            now,
        };
        status::status(inputs, &host_ips)
    }

    pub(super) async fn publish(&mut self, now: Now) {
        let status = self.status(now);
        let changed = self.published.as_ref() != Some(&status);
        if !self.memory.removed {
            let mut rows = self.rows.clone();
            let m = &self.pod.metadata;
            if changed {
                let value = serde_json::json!({"metadata": {"uid": m.uid}, "status": status}).to_string();
                rows.push((status_key(&m.namespace, &m.name, &m.uid), Some(value.into())));
            }
            if self.gone && self.pod.is_deleted() {
                rows.push((gone_key(&m.namespace, &m.name, &m.uid), Some("{}".into())));
            }
            match self.commit(rows).await {
                Ok(()) => {
                    self.published = Some(status.clone());
                    self.gone = false;
                    self.rows.clear();
                }
                Err(error) => tracing::error!(pod = self.pod.full_name(), %error, "status not kept"),
            }
        }
        // After a restart the status may well be what it was: it is shown once it has been looked at again.
        if changed || self.memory.prior != status || !self.shown {
            self.shown = true;
            let view = PodView {
                object: self.pod.clone(),
                raw: self.raw.clone(),
                status: Arc::new(status.clone()),
            };
            self.shared.show(&self.pod.metadata.uid, Some(view));
        }
        self.memory.prior = status;
    }

    async fn commit(&self, rows: Vec<Change>) -> Result<(), RowError> {
        if rows.is_empty() {
            return Ok(());
        }
        self.shared.rows.commit(rows).await
    }

    /// Nothing is left: the last rows go.
    pub(super) async fn forget(self) {
        let m = &self.pod.metadata;
        self.shared.show(&m.uid, None);
        self.shared
            .ids
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|_, owner| owner != &m.uid);
        self.shared
            .admitted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&m.uid);
        let row = status_key(&m.namespace, &m.name, &m.uid);
        if let Err(error) = self.shared.rows.commit(vec![(row, None)]).await {
            tracing::warn!(pod = self.pod.full_name(), %error, "the status row stays");
        }
        tracing::info!(pod = self.pod.full_name(), uid = m.uid, "pod is gone");
    }
}
