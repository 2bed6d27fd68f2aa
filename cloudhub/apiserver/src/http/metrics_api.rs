//! metrics.k8s.io: what `kubectl top` and autoscalers read.

use http::{Method, Response};

use super::Call;
use super::answer::{self, Shape};
use super::route::Place;
use crate::kubelet::Body;
use crate::selector::Labels;
use crate::status::Status;
use crate::table::IncludeObject;

pub(super) async fn answer(call: &Call, place: &Place) -> Result<Response<Body>, Status> {
    if call.method != Method::GET || !place.subresource.is_empty() {
        return Err(Status::method_not_allowed());
    }
    let labels = Labels::parse(call.query.get("labelSelector"))?;
    let name = (!place.name.is_empty()).then_some(place.name.as_str());
    let metrics = &call.shared.metrics;
    let store = call.shared.registry.store();
    let found = if place.plural == "nodes" {
        metrics.nodes(&call.shared.kubelets, store, name, &labels).await?
    } else {
        let namespace = (!place.namespace.is_empty()).then_some(place.namespace.as_str());
        metrics
            .pods(&call.shared.kubelets, store, (namespace, name), &labels)
            .await?
    };
    let value = match call.accept.shape {
        Shape::Full => found.full(),
        Shape::Metadata => found.partial(),
        Shape::Table => found.table(IncludeObject::parse(call.query.get("includeObject"))?),
    };
    Ok(answer::json(200, &value))
}
