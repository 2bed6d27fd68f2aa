//! metrics.k8s.io: what `kubectl top` and autoscalers read.

use http::{Method, Response};

use super::route::Place;
use super::{Call, answer};
use crate::kubelet::Body;
use crate::selector::Labels;
use crate::status::Status;

pub(super) async fn answer(call: &Call, place: &Place) -> Result<Response<Body>, Status> {
    if call.method != Method::GET || !place.subresource.is_empty() {
        return Err(Status::method_not_allowed());
    }
    let labels = Labels::parse(call.query.get("labelSelector"))?;
    let name = (!place.name.is_empty()).then_some(place.name.as_str());
    let metrics = &call.shared.metrics;
    let store = call.shared.registry.store();
    let value = if place.plural == "nodes" {
        metrics.nodes(&call.shared.kubelets, store, name, &labels).await?
    } else {
        let namespace = (!place.namespace.is_empty()).then_some(place.namespace.as_str());
        metrics
            .pods(&call.shared.kubelets, store, (namespace, name), &labels)
            .await?
    };
    Ok(answer::json(200, &value))
}
