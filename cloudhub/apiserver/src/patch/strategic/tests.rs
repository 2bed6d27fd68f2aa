use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::schema::find;

fn patch(current: &Value, patch: &Value, api_version: &str, kind: &str) -> Result<Value, Status> {
    let of = find(api_version, kind).expect("a kind that there is");
    apply(current, patch.as_object().expect("an object"), of)
}

fn pod_spec(current: Value, by: Value) -> Result<Value, Status> {
    let patched = patch(&json!({"spec": current}), &json!({"spec": by}), "v1", "Pod")?;
    Ok(patched["spec"].clone())
}

fn names(items: &Value) -> Vec<&str> {
    items
        .as_array()
        .unwrap()
        .iter()
        .map(|i| i["name"].as_str().unwrap())
        .collect()
}

#[test]
fn containers_merge_by_name() {
    let current =
        json!({"containers": [{"name": "a", "image": "a:1", "args": ["x", "y"]}, {"name": "b", "image": "b:1"}]});
    let by = json!({"containers": [{"name": "b", "image": "b:2"}, {"name": "a", "args": ["z"]}, {"name": "c", "image": "c:1"}]});
    assert_eq!(
        pod_spec(current, by).unwrap(),
        json!({"containers": [
            {"name": "b", "image": "b:2"},
            {"name": "a", "image": "a:1", "args": ["z"]},
            {"name": "c", "image": "c:1"},
        ]})
    );
}

#[test]
fn what_the_patch_does_not_name_keeps_its_place() {
    let list = |names: &[&str]| json!({"containers": names.iter().map(|n| json!({"name": n})).collect::<Vec<_>>()});
    let cases: [(&[&str], &[&str], &[&str]); 5] = [
        (&["a", "b", "c"], &["b"], &["a", "b", "c"]),
        (&["a", "b", "c"], &["c", "a"], &["b", "c", "a"]),
        (&["a", "b"], &["c"], &["c", "a", "b"]),
        (&["a", "b"], &["c", "b"], &["c", "a", "b"]),
        (&[], &["c"], &["c"]),
    ];
    for (current, by, patched) in cases {
        let result = pod_spec(list(current), list(by)).unwrap();
        assert_eq!(names(&result["containers"]), patched, "{current:?} by {by:?}");
    }
}

#[test]
fn set_element_order_orders() {
    let current = json!({"containers": [{"name": "a"}, {"name": "b"}, {"name": "side"}]});
    let by = json!({
        "$setElementOrder/containers": [{"name": "c"}, {"name": "b"}, {"name": "a"}],
        "containers": [{"name": "c", "image": "c:1"}, {"name": "a", "image": "a:2"}],
    });
    let patched = pod_spec(current.clone(), by).unwrap();
    assert_eq!(names(&patched["containers"]), ["c", "b", "a", "side"]);
    assert_eq!(patched["containers"][2]["image"], "a:2");
    let only_order = json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]});
    let patched = pod_spec(current.clone(), only_order).unwrap();
    assert_eq!(names(&patched["containers"]), ["b", "a", "side"]);
    let wrong = json!({
        "$setElementOrder/containers": [{"name": "b"}, {"name": "a"}],
        "containers": [{"name": "a"}, {"name": "b"}],
    });
    let refused = pod_spec(current, wrong).unwrap_err();
    assert!(
        refused.message.contains("doesn't match $setElementOrder list"),
        "{}",
        refused.message
    );
}

#[test]
fn ports_merge_by_container_port_below_containers() {
    let current = json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "name": "http"}]}]});
    let by = json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 81}]}]});
    assert_eq!(
        pod_spec(current, by).unwrap()["containers"][0]["ports"],
        json!([{"containerPort": 80, "name": "http", "protocol": "TCP"}, {"containerPort": 81}])
    );
}

#[test]
fn directives_on_items_delete_and_replace() {
    let current = json!({"containers": [{"name": "a"}, {"name": "b"}]});
    let delete = json!({"containers": [{"name": "a", "$patch": "delete"}]});
    assert_eq!(
        pod_spec(current.clone(), delete).unwrap(),
        json!({"containers": [{"name": "b"}]})
    );
    let replace = json!({"containers": [{"$patch": "replace"}, {"name": "x"}]});
    assert_eq!(
        pod_spec(current.clone(), replace).unwrap(),
        json!({"containers": [{"name": "x"}]})
    );
    for odd in ["merge", "nonsense"] {
        let by = json!({"containers": [{"name": "a", "$patch": odd}]});
        assert_eq!(pod_spec(current.clone(), by).unwrap_err().code, 500);
    }
}

#[test]
fn directives_on_objects_delete_and_replace() {
    let current = json!({"securityContext": {"runAsUser": 1, "fsGroup": 2}});
    let replace = json!({"securityContext": {"$patch": "replace", "runAsUser": 3}});
    assert_eq!(
        pod_spec(current.clone(), replace).unwrap(),
        json!({"securityContext": {"runAsUser": 3}})
    );
    let delete = json!({"securityContext": {"$patch": "delete"}});
    assert_eq!(
        pod_spec(current.clone(), delete.clone()).unwrap(),
        json!({"securityContext": {}})
    );
    assert_eq!(pod_spec(json!({}), delete).unwrap(), json!({}));
    let odd = json!({"securityContext": {"$patch": "maybe"}});
    assert!(
        pod_spec(current, odd)
            .unwrap_err()
            .message
            .starts_with("unknown patch type: maybe in map: map[")
    );
}

#[test]
fn null_deletes_and_is_not_kept_in_what_is_new() {
    let current = json!({"nodeName": "n", "nodeSelector": {"a": "1", "b": "2"}});
    let by = json!({"nodeName": null, "nodeSelector": {"a": null, "c": "3"}, "dnsConfig": {"searches": null, "options": [{"name": "x", "value": null}]}});
    assert_eq!(
        pod_spec(current, by).unwrap(),
        json!({"nodeSelector": {"b": "2", "c": "3"}, "dnsConfig": {"options": [{"name": "x"}]}})
    );
}

#[test]
fn lists_without_a_strategy_are_replaced() {
    let current = json!({"tolerations": [{"key": "a"}, {"key": "b"}]});
    let by = json!({"tolerations": [{"key": "c"}]});
    assert_eq!(pod_spec(current, by.clone()).unwrap(), by);
    let node = json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}});
    let by = json!({"spec": {"taints": [{"key": "b", "effect": "NoExecute"}]}});
    assert_eq!(patch(&node, &by, "v1", "Node").unwrap(), by);
}

#[test]
fn finalizers_are_a_set() {
    let current = json!({"metadata": {"finalizers": ["a", "b"]}});
    let by = json!({"metadata": {"finalizers": ["c", "a"]}});
    let patched = patch(&current, &by, "v1", "Pod").unwrap();
    assert_eq!(patched["metadata"]["finalizers"], json!(["c", "a", "b"]));
    let by = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a", "x"]}});
    let patched = patch(&current, &by, "v1", "Pod").unwrap();
    assert_eq!(patched["metadata"], json!({"finalizers": ["b"]}));
    let by = json!({"metadata": {"$deleteFromPrimitiveList": ["a"]}});
    assert_eq!(patch(&current, &by, "v1", "Pod").unwrap_err().code, 400);
}

#[test]
fn retain_keys_clears_the_rest() {
    let current = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
    let by = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
    let patched = patch(&current, &by, "apps/v1", "Deployment").unwrap();
    assert_eq!(patched, json!({"spec": {"strategy": {"type": "Recreate"}}}));
    let by = json!({"spec": {"strategy": {"$retainKeys": [], "type": "Recreate"}}});
    assert_eq!(patch(&current, &by, "apps/v1", "Deployment").unwrap_err().code, 400);
    let volumes = json!({"volumes": [{"name": "v", "emptyDir": {}}]});
    let by = json!({"volumes": [{"name": "v", "$retainKeys": ["name", "configMap"], "configMap": {"name": "c"}}]});
    let patched = pod_spec(volumes, by).unwrap();
    assert_eq!(patched, json!({"volumes": [{"name": "v", "configMap": {"name": "c"}}]}));
}

#[test]
fn a_budgets_selector_is_replaced_as_a_whole() {
    let current = json!({"spec": {"selector": {"matchLabels": {"a": "1"}}}});
    let by = json!({"spec": {"selector": {"matchLabels": {"b": "2"}}}});
    assert_eq!(patch(&current, &by, "policy/v1", "PodDisruptionBudget").unwrap(), by);
}

#[test]
fn an_item_without_its_key_is_named() {
    let refused = pod_spec(
        json!({"containers": [{"name": "a"}]}),
        json!({"containers": [{"image": "x"}]}),
    )
    .unwrap_err();
    assert_eq!(
        (refused.code, refused.message.as_str()),
        (500, "map: map[image:x] does not contain declared merge key: name")
    );
    let mixed = pod_spec(json!({"containers": [{"name": "a"}]}), json!({"containers": ["a"]})).unwrap_err();
    assert!(mixed.message.starts_with("list element types are not identical"));
    let nested = pod_spec(json!({"containers": [[]]}), json!({"containers": [[]]})).unwrap_err();
    assert_eq!(nested.code, 422);
}

#[test]
fn an_unknown_field_goes_on_to_the_schema() {
    let patched = pod_spec(json!({"nodeName": "n"}), json!({"foo": {"bar": [1]}})).unwrap();
    assert_eq!(patched, json!({"nodeName": "n", "foo": {"bar": [1]}}));
}

#[test]
fn data_without_a_schema_merges_as_objects() {
    let current = json!({"data": {"a": {"b": [1], "c": 1}}});
    let by = json!({"data": {"a": {"b": [2]}}});
    let patched = patch(&current, &by, "apps/v1", "ControllerRevision").unwrap();
    assert_eq!(patched, json!({"data": {"a": {"b": [2], "c": 1}}}));
}

fn value() -> impl Strategy<Value = Value> {
    let name = prop::sample::select(vec![
        "name",
        "containers",
        "env",
        "$patch",
        "$retainKeys",
        "$setElementOrder/containers",
        "finalizers",
        "$deleteFromPrimitiveList/finalizers",
        "spec",
        "metadata",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0..3_i64).prop_map(Value::from),
        prop::sample::select(vec!["a", "b", "delete", "replace", "name"]).prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(name.clone().prop_map(str::to_owned), inner, 0..5)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_patch_panics(spec in value(), by in value(), metadata in value(), meta_by in value()) {
        let _ = patch(&json!({"spec": spec, "metadata": metadata}), &json!({"spec": by, "metadata": meta_by}), "v1", "Pod");
    }

    #[test]
    fn a_merged_list_has_every_name_once_and_a_second_time_changes_nothing(
        current in prop::collection::btree_set(0..12_u8, 0..8),
        by in prop::collection::btree_set(0..12_u8, 0..8),
        turn in any::<bool>(),
    ) {
        let list = |set: &mut dyn Iterator<Item = &u8>| set.map(|n| json!({"name": format!("c{n}")})).collect::<Vec<_>>();
        let by_list = if turn { list(&mut by.iter().rev()) } else { list(&mut by.iter()) };
        let by_value = json!({"containers": by_list});
        let once = pod_spec(json!({"containers": list(&mut current.iter())}), by_value.clone()).unwrap();
        let mut found = names(&once["containers"]);
        found.sort_unstable();
        let mut wanted: Vec<String> = current.union(&by).map(|n| format!("c{n}")).collect();
        wanted.sort();
        prop_assert_eq!(&found, &wanted);
        let again = pod_spec(once.clone(), by_value).unwrap();
        prop_assert_eq!(again, once);
    }
}
