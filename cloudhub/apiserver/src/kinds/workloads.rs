//! Workloads of apps/v1: Deployment, ReplicaSet, DaemonSet, ControllerRevision.
//!
//! * `template`: what they have in common
//! * `deployment`, `daemonset`: their strategies
//! * `scale`: the subresource

mod daemonset;
mod deployment;
mod scale;
mod template;

pub(crate) use scale::{apply_scale, read_scale};
pub(crate) use template::{at_most_all, number_or_percent};

use crate::kinds::{Column, Row, Strategy, column, number, wide};

/// What the rows of this file have in common.
const fn row(names: [&'static str; 3], short_names: &'static [&'static str], strategy: &'static dyn Strategy) -> Row {
    let [kind, plural, singular] = names;
    Row {
        group: "apps",
        version: "v1",
        kind,
        plural,
        singular,
        short_names,
        categories: &["all"],
        namespaced: true,
        storage: plural,
        status: true,
        scale: false,
        generation: true,
        selectable: &[],
        columns: &[],
        strategy,
    }
}

const REPLICA_SET_COLUMNS: &[Column] = &[
    number("Desired"),
    number("Current"),
    number("Ready"),
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];

pub(super) const ROWS: &[Row] = &[
    Row {
        scale: true,
        columns: &[
            column("Ready"),
            column("Up-to-date"),
            column("Available"),
            wide("Containers"),
            wide("Images"),
            wide("Selector"),
        ],
        ..row(
            ["Deployment", "deployments", "deployment"],
            &["deploy"],
            &deployment::Deployments,
        )
    },
    Row {
        scale: true,
        columns: REPLICA_SET_COLUMNS,
        ..row(
            ["ReplicaSet", "replicasets", "replicaset"],
            &["rs"],
            &deployment::ReplicaSets,
        )
    },
    Row {
        columns: &[
            number("Desired"),
            number("Current"),
            number("Ready"),
            number("Up-to-date"),
            number("Available"),
            column("Node Selector"),
            wide("Containers"),
            wide("Images"),
            wide("Selector"),
        ],
        ..row(
            ["DaemonSet", "daemonsets", "daemonset"],
            &["ds"],
            &daemonset::DaemonSets,
        )
    },
    Row {
        categories: &[],
        status: false,
        generation: false,
        columns: &[column("Controller"), column("Revision")],
        ..row(
            ["ControllerRevision", "controllerrevisions", "controllerrevision"],
            &[],
            &daemonset::ControllerRevisions,
        )
    },
];

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::status::Errors;

    fn workload(kind: &str) -> (&'static Row, Value) {
        let row = ROWS.iter().find(|r| r.kind == kind).unwrap();
        let mut object = json!({"metadata": {"name": "w"}, "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "a", "image": "b:1"}]}}}});
        row.strategy.default(&mut object);
        row.strategy.prepare_create(&mut object);
        (row, object)
    }

    fn faults(row: &Row, object: &Value) -> Vec<String> {
        let mut errors = Errors::default();
        row.strategy.validate(object, &mut errors);
        errors
            .causes()
            .iter()
            .map(|c| format!("{}: {}", c.field, c.message))
            .collect()
    }

    #[test]
    fn workloads_get_the_real_defaults_and_are_then_right() {
        let (row, object) = workload("Deployment");
        let spec = &object["spec"];
        assert_eq!(spec["replicas"], 1);
        assert_eq!(spec["revisionHistoryLimit"], 10);
        assert_eq!(spec["progressDeadlineSeconds"], 600);
        assert_eq!(
            spec["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}})
        );
        let pod = &spec["template"]["spec"];
        assert_eq!(pod["dnsPolicy"], "ClusterFirst");
        assert!(pod.get("enableServiceLinks").is_none(), "only pods get it");
        assert_eq!(object["status"], json!({}));
        assert!(faults(row, &object).is_empty(), "{:?}", faults(row, &object));
        let (row, object) = workload("DaemonSet");
        assert_eq!(
            object["spec"]["updateStrategy"]["rollingUpdate"],
            json!({"maxUnavailable": 1, "maxSurge": 0})
        );
        assert_eq!(
            object["metadata"]["annotations"]["deprecated.daemonset.template.generation"],
            "1"
        );
        assert_eq!(object["status"]["numberReady"], 0);
        assert!(faults(row, &object).is_empty());
        let (row, object) = workload("ReplicaSet");
        assert_eq!(object["status"], json!({"replicas": 0}));
        assert!(faults(row, &object).is_empty());
    }

    #[test]
    fn the_selector_must_match_the_template_and_stay() {
        let (row, current) = workload("Deployment");
        let mut object = current.clone();
        object["spec"]["selector"]["matchLabels"]["app"] = json!("other");
        assert_eq!(
            faults(row, &object),
            [
                "spec.template.metadata.labels: Invalid value: {\"app\":\"web\"}: `selector` does not match template `labels`"
            ]
        );
        let mut errors = Errors::default();
        row.strategy.validate_update(&object, &current, &mut errors);
        assert_eq!(
            errors.causes()[0].message,
            "Invalid value: {\"matchLabels\":{\"app\":\"other\"}}: field is immutable"
        );
        object["spec"].as_object_mut().unwrap().remove("selector");
        assert_eq!(faults(row, &object)[0], "spec.selector: Required value");
        object["spec"]["selector"] = json!({});
        assert_eq!(
            faults(row, &object),
            ["spec.selector: Invalid value: {}: empty selector is invalid for deployment"]
        );
    }

    #[test]
    fn a_rolling_update_must_be_able_to_move() {
        let (row, mut object) = workload("Deployment");
        object["spec"]["strategy"]["rollingUpdate"] = json!({"maxUnavailable": 0, "maxSurge": "0%"});
        assert_eq!(
            faults(row, &object),
            ["spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0"]
        );
        let (row, mut object) = workload("DaemonSet");
        object["spec"]["updateStrategy"]["rollingUpdate"] = json!({"maxUnavailable": "101%", "maxSurge": 1});
        assert_eq!(faults(row, &object).len(), 2);
        object["spec"]["template"]["spec"]["restartPolicy"] = json!("Never");
        assert!(faults(row, &object)[0].starts_with("spec.template.spec.restartPolicy: Unsupported value: \"Never\""));
    }

    #[test]
    fn a_changed_template_of_a_daemon_set_is_counted() {
        let (row, current) = workload("DaemonSet");
        let mut object = current.clone();
        object["metadata"]["annotations"] = json!({});
        row.strategy.prepare_update(&mut object, &current);
        assert_eq!(object["metadata"], current["metadata"]);
        object["spec"]["template"]["spec"]["containers"][0]["image"] = json!("b:2");
        row.strategy.prepare_update(&mut object, &current);
        assert_eq!(
            object["metadata"]["annotations"]["deprecated.daemonset.template.generation"],
            "2"
        );
    }

    #[test]
    fn the_data_of_a_revision_stays() {
        let row = &ROWS[3];
        let current = json!({"metadata": {"ownerReferences": [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d",
            "controller": true}]}, "data": {"a": 1}, "revision": 3});
        let mut object = current.clone();
        object["data"]["a"] = json!(2);
        let mut errors = Errors::default();
        row.strategy.validate_update(&object, &current, &mut errors);
        assert_eq!(
            errors.causes()[0].message,
            "Invalid value: {\"a\":2}: field is immutable"
        );
        assert_eq!(row.strategy.cells(&current), [json!("daemonset.apps/d"), json!(3)]);
        assert_eq!(faults(row, &json!({})), ["data: Required value: data is mandatory"]);
    }

    #[test]
    fn cells_and_columns_are_as_many() {
        for row in ROWS {
            assert_eq!(row.strategy.cells(&json!({})).len(), row.columns.len(), "{}", row.kind);
        }
        let (row, object) = workload("Deployment");
        let cells = row.strategy.cells(&object);
        assert_eq!(
            cells,
            [
                json!("0/1"),
                json!(0),
                json!(0),
                json!("a"),
                json!("b:1"),
                json!("app=web")
            ]
        );
    }
}
