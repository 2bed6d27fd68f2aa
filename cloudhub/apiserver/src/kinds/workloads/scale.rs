//! The subresource `scale` of Deployment and ReplicaSet: `autoscaling/v1 Scale`.

use serde_json::{Map, Value, json};

use super::template::number;
use crate::kinds::Row;
use crate::kinds::fields::{At, selector_text};
use crate::object::{map, name, text, uid};
use crate::status::{Errors, Status};

/// The Scale of `object`.
pub(crate) fn read_scale(_row: &Row, object: &Value) -> Value {
    let mut metadata = Map::new();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object.pointer(&format!("/metadata/{field}")) {
            metadata.insert(field.into(), value.clone());
        }
    }
    // `spec.replicas` is left out at 0, as the real server leaves it out.
    let replicas = number(object, "/spec/replicas");
    let spec = if replicas == 0 {
        json!({})
    } else {
        json!({"replicas": replicas})
    };
    let mut status = json!({"replicas": number(object, "/status/replicas")});
    let selector = selector_text(object.pointer("/spec/selector"));
    if !selector.is_empty() {
        status["selector"] = json!(selector);
    }
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status})
}

/// Makes `object` have the replicas of `scale`. Its resourceVersion, where it has one, becomes the object's: the precondition of
/// the update that follows.
///
/// # Errors
/// Negative replicas (422); another object's uid or name.
pub(crate) fn apply_scale(row: &Row, object: &mut Value, scale: &Value) -> Result<(), Status> {
    let own = name(object).to_owned();
    let replicas = At::root(scale).down(&["spec", "replicas"]);
    let mut errors = Errors::default();
    replicas.non_negative(&mut errors);
    if !errors.is_empty() {
        return Err(Status::invalid("autoscaling", "Scale", &own, errors));
    }
    let resource = format!("{}/scale", row.plural);
    if !uid(scale).is_empty() && uid(scale) != uid(object) {
        let why = format!(
            "Precondition failed: UID in precondition: {}, UID in object meta: {}",
            uid(scale),
            uid(object)
        );
        return Err(Status::conflict(row.group, &resource, &own, &why));
    }
    map(object, "spec").insert("replicas".into(), json!(replicas.number().unwrap_or_default()));
    let version = text(scale, "/metadata/resourceVersion");
    if !version.is_empty() {
        map(object, "metadata").insert("resourceVersion".into(), json!(version));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_is_read_and_applied() {
        let row = &super::super::ROWS[0];
        let mut object = json!({"metadata": {"name": "d", "namespace": "n", "uid": "u", "resourceVersion": "7", "labels": {}},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"b": "2", "a": "1"}}}, "status": {"replicas": 1}});
        let mut scale = read_scale(row, &object);
        assert_eq!(
            scale,
            json!({"kind": "Scale", "apiVersion": "autoscaling/v1",
                "metadata": {"name": "d", "namespace": "n", "uid": "u", "resourceVersion": "7"},
                "spec": {"replicas": 2}, "status": {"replicas": 1, "selector": "a=1,b=2"}})
        );
        scale["spec"]["replicas"] = json!(0);
        scale["metadata"]["resourceVersion"] = json!("6");
        apply_scale(row, &mut object, &scale).unwrap();
        assert_eq!(object["spec"]["replicas"], 0);
        assert_eq!(object["metadata"]["resourceVersion"], "6");
        scale["spec"]["replicas"] = json!(-1);
        assert_eq!(apply_scale(row, &mut object, &scale).unwrap_err().code, 422);
        scale["spec"]["replicas"] = json!(1);
        scale["metadata"]["uid"] = json!("other");
        assert_eq!(apply_scale(row, &mut object, &scale).unwrap_err().code, 409);
    }
}
