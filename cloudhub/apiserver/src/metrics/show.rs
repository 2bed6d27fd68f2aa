//! Metrics in the shapes that clients ask for: the objects, their metadata, and metrics-server's table (its pkg/api/table.go).

use serde_json::{Map, Value, json};

use super::resource::{self, Usage};
use crate::object;
use crate::table::{self, IncludeObject};

/// Group and version.
const API_VERSION: &str = "metrics.k8s.io/v1beta1";

/// What one node or pod uses.
#[derive(Debug)]
pub(crate) struct Metric {
    /// NodeMetrics or PodMetrics, without kind.
    pub(super) object: Value,
    /// Of all its containers.
    pub(super) sum: Usage,
}

/// What was asked for.
#[derive(Debug)]
pub(crate) struct Found {
    kind: &'static str,
    is_list: bool,
    metrics: Vec<Metric>,
}

impl Found {
    pub(super) fn one(kind: &'static str, metric: Metric) -> Self {
        Self {
            kind,
            is_list: false,
            metrics: vec![metric],
        }
    }

    pub(super) fn list(kind: &'static str, metrics: Vec<Metric>) -> Self {
        Self {
            kind,
            is_list: true,
            metrics,
        }
    }

    /// The object or the list.
    pub(crate) fn full(self) -> Value {
        let kind = self.kind;
        let mut objects: Vec<Value> = self.metrics.into_iter().map(|metric| metric.object).collect();
        if self.is_list {
            return list(format!("{kind}List"), API_VERSION, objects);
        }
        typed(kind, objects.pop().unwrap_or_default())
    }

    /// PartialObjectMetadata or a list of them.
    pub(crate) fn partial(self) -> Value {
        let mut objects: Vec<Value> = self.metrics.into_iter().map(|m| table::partial(m.object)).collect();
        if self.is_list {
            return list("PartialObjectMetadataList".into(), "meta.k8s.io/v1", objects);
        }
        objects.pop().unwrap_or_default()
    }

    /// A Table. The columns are those of the first row: without one there are none.
    pub(crate) fn table(self, include: IncludeObject) -> Value {
        let column = |name: &str, format: &str, description: &str| json!({"name": name, "type": "string", "format": format, "description": description, "priority": 0});
        let columns = [
            column("Name", "name", "Name of the resource"),
            column("cpu", "quantity", ""),
            column("memory", "quantity", ""),
            column("Window", "duration", ""),
        ];
        let kind = self.kind;
        let rows: Vec<Value> = self
            .metrics
            .into_iter()
            .map(|Metric { object, sum }| {
                let cells = json!([
                    object::name(&object),
                    resource::nano_cores(sum.nano_cores),
                    resource::bytes(sum.memory),
                    resource::window(sum.window),
                ]);
                json!({"cells": cells, "object": table::included(typed(kind, object), include)})
            })
            .collect();
        let columns = if rows.is_empty() { Value::Null } else { json!(columns) };
        json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {}, "columnDefinitions": columns, "rows": rows})
    }
}

fn list(kind: String, version: &str, items: Vec<Value>) -> Value {
    json!({"kind": kind, "apiVersion": version, "metadata": {}, "items": items})
}

fn typed(kind: &str, metrics: Value) -> Value {
    let mut typed = Map::new();
    typed.insert("kind".into(), kind.into());
    typed.insert("apiVersion".into(), API_VERSION.into());
    if let Value::Object(fields) = metrics {
        typed.extend(fields);
    }
    Value::Object(typed)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use time::OffsetDateTime;

    use super::*;

    fn metric(name: &str) -> Metric {
        let container = Usage {
            time: OffsetDateTime::UNIX_EPOCH,
            window: Duration::from_millis(10_062),
            nano_cores: 1_500_000,
            memory: 3 << 19,
        };
        Metric {
            object: json!({"metadata": {"name": name}, "window": "10.062s"}),
            sum: container.with(&container),
        }
    }

    #[test]
    fn a_table_has_metrics_servers_columns_and_sums_over_containers() {
        let table = Found::list("PodMetrics", vec![metric("a")]).table(IncludeObject::Metadata);
        let names = table["columnDefinitions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| &c["name"]);
        assert_eq!(names.collect::<Vec<_>>(), ["Name", "cpu", "memory", "Window"]);
        assert_eq!(table["rows"][0]["cells"], json!(["a", "3m", "3Mi", "10.062s"]));
        assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
        let none = Found::list("PodMetrics", Vec::new()).table(IncludeObject::Metadata);
        assert_eq!((&none["columnDefinitions"], &none["rows"]), (&json!(null), &json!([])));
    }

    #[test]
    fn objects_and_lists_say_what_they_are() {
        let one = Found::one("NodeMetrics", metric("n")).full();
        assert_eq!(
            (&one["kind"], &one["apiVersion"]),
            (&json!("NodeMetrics"), &json!(API_VERSION))
        );
        let list = Found::list("NodeMetrics", vec![metric("n")]).full();
        assert_eq!(list["kind"], "NodeMetricsList");
        assert!(list["items"][0]["kind"].is_null());
        let partial = Found::list("NodeMetrics", vec![metric("n")]).partial();
        assert_eq!(partial["items"][0]["kind"], "PartialObjectMetadata");
        let partial = Found::one("NodeMetrics", metric("n")).partial();
        assert_eq!(partial["metadata"]["name"], "n");
    }
}
