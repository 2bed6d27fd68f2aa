use proptest::prelude::*;
use serde_json::json;

use super::*;

fn deployment() -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "default", "labels": {"app": "web"}},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "web"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {
                    "containers": [{
                        "name": "web",
                        "image": "web:1",
                        "ports": [{"containerPort": 8080, "name": "http", "protocol": "TCP"}],
                        "env": [{"name": "A", "value": "1"}],
                        "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
                        "readinessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 5},
                        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
                    }],
                    "terminationGracePeriodSeconds": 0,
                    "automountServiceAccountToken": false,
                    "volumes": [{"name": "tmp", "emptyDir": {}}],
                },
            },
        },
    })
}

fn pod(body: &Value) -> Result<Decoded, Status> {
    decode(&serde_json::to_vec(body).unwrap(), "v1", "Pod")
}

#[test]
fn a_typical_deployment_stays_as_it_is() {
    let body = deployment();
    let decoded = decode(&serde_json::to_vec(&body).unwrap(), "apps/v1", "Deployment").unwrap();
    assert_eq!(decoded.object, body);
    assert_eq!(decoded.faults, Vec::<String>::new());
    assert_eq!(conform(body, "apps/v1", "Deployment").unwrap(), decoded);
}

#[test]
fn ports_merge_by_container_port() {
    let spec = find("v1", "Pod")
        .and_then(|t| t.field("spec"))
        .and_then(|f| f.shape.target())
        .unwrap();
    let Shape::List(items) = spec.field("containers").unwrap().shape else {
        panic!("containers are a list")
    };
    let ports = items.target().and_then(|t| t.field("ports")).unwrap();
    assert!(ports.merge);
    assert_eq!(ports.merge_key, "containerPort");
}

#[test]
fn a_misspelt_field_is_found_at_any_depth() {
    let body = json!({"metadata": {"nmae": "a"}, "spec": {
        "containers": [{"name": "a"}, {"name": "b", "imagee": "x", "env": [{"name": "E", "valueFrom": {"fieldRef": {"feldPath": "x"}}}]}],
        "foo": {"deep": [1, {"x": null}]},
    }});
    let decoded = pod(&body).unwrap();
    assert_eq!(
        decoded.faults,
        [
            "unknown field \"metadata.nmae\"",
            "unknown field \"spec.containers[1].imagee\"",
            "unknown field \"spec.containers[1].env[0].valueFrom.fieldRef.feldPath\"",
            "unknown field \"spec.foo\"",
        ]
    );
    assert!(decoded.object["spec"].get("foo").is_none());
    let status = strict_error("Pod", "v1", &decoded.faults[3..]);
    assert_eq!(
        (status.code, status.reason, status.message.as_str()),
        (
            400,
            "BadRequest",
            "Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: unknown field \"spec.foo\""
        )
    );
}

#[test]
fn a_duplicate_field_is_found_and_the_last_one_counts() {
    let body = br#"{"spec": {"nodeName": "a", "nodeName": "b"}, "metadata": {"labels": {"x": "1", "x": "2"}}}"#;
    let decoded = decode(body, "v1", "Pod").unwrap();
    assert_eq!(
        decoded.faults,
        [
            "duplicate field \"spec.nodeName\"",
            "duplicate field \"metadata.labels.x\""
        ]
    );
    assert_eq!(decoded.object["spec"]["nodeName"], "b");
    assert_eq!(decoded.object["metadata"]["labels"]["x"], "2");
}

#[test]
fn a_wrong_type_is_refused_in_gos_words() {
    let refused = |value: Value, api_version: &str, kind: &str| {
        let status = decode(&serde_json::to_vec(&value).unwrap(), api_version, kind).unwrap_err();
        assert_eq!((status.code, status.reason), (400, "BadRequest"));
        status.message
    };
    assert_eq!(
        refused(json!({"spec": {"replicas": "two"}}), "apps/v1", "Deployment"),
        "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal string into Go struct field \
         DeploymentSpec.spec.replicas of type int32"
    );
    let cases = [
        (
            json!({"spec": {"containers": [{"env": [{"name": "a", "value": 1}]}]}}),
            "number into Go struct field EnvVar.spec.containers.env.value of type string",
        ),
        (
            json!({"spec": {"containers": {"name": "a"}}}),
            "object into Go struct field PodSpec.spec.containers of type []v1.Container",
        ),
        (
            json!({"spec": []}),
            "array into Go struct field Pod.spec of type v1.PodSpec",
        ),
        (
            json!({"metadata": {"labels": {"a": true}}}),
            "bool into Go struct field ObjectMeta.metadata.labels of type string",
        ),
        (
            json!({"spec": {"priority": 1.5}}),
            "number 1.5 into Go struct field PodSpec.spec.priority of type int32",
        ),
        (
            json!({"spec": {"priority": 3_000_000_000_u32}}),
            "number 3000000000 into Go struct field PodSpec.spec.priority of type int32",
        ),
        (json!([]), "array into Go value of type v1.Pod"),
    ];
    for (body, words) in cases {
        let message = refused(body, "v1", "Pod");
        assert!(message.ends_with(words), "{message}");
    }
}

#[test]
fn values_that_cannot_be_read_are_refused_in_their_readers_words() {
    let cases = [
        (json!({"data": {"a": "%%%"}}), "Secret", "illegal base64 data"),
        (
            json!({"metadata": {"creationTimestamp": "today"}}),
            "Pod",
            "parsing time",
        ),
        (
            json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "much"}}}]}}),
            "Pod",
            "quantities must match",
        ),
    ];
    for (body, kind, words) in cases {
        let status = decode(&serde_json::to_vec(&body).unwrap(), "v1", kind).unwrap_err();
        assert!(
            status
                .message
                .contains(&format!(" cannot be handled as a {kind}: {words}")),
            "{}",
            status.message
        );
    }
}

#[test]
fn what_go_leaves_out_is_left_out() {
    let body = json!({
        "metadata": {"name": "a", "labels": {}, "annotations": null, "creationTimestamp": null, "namespace": ""},
        "spec": {
            "hostNetwork": false, "nodeName": "", "terminationGracePeriodSeconds": 0, "enableServiceLinks": false,
            "tolerations": [], "securityContext": {}, "containers": [], "initContainers": null,
            "volumes": [{"name": "v", "emptyDir": {}}],
        },
    });
    assert_eq!(
        pod(&body).unwrap().object,
        json!({
            "metadata": {"name": "a"},
            "spec": {
                "terminationGracePeriodSeconds": 0, "enableServiceLinks": false, "securityContext": {}, "containers": [],
                "volumes": [{"name": "v", "emptyDir": {}}],
            },
        })
    );
}

#[test]
fn values_are_written_as_go_writes_them() {
    let body = json!({"spec": {"overhead": {"cpu": 0.5, "memory": "1024Mi"}}, "metadata": {"labels": {"a": null}},
        "status": {"startTime": "2026-01-02T03:04:05.6+01:00"}});
    let object = pod(&body).unwrap().object;
    assert_eq!(object["spec"]["overhead"], json!({"cpu": "500m", "memory": "1Gi"}));
    assert_eq!(object["metadata"]["labels"], json!({"a": ""}));
    assert_eq!(object["status"]["startTime"], "2026-01-02T02:04:05Z");
    let lease = json!({"spec": {"renewTime": "2026-01-02T04:04:05.000000+01:00"}});
    let lease = conform(lease, "coordination.k8s.io/v1", "Lease").unwrap().object;
    assert_eq!(lease["spec"]["renewTime"], "2026-01-02T03:04:05.000000Z");
}

#[test]
fn what_go_always_writes_is_added_once() {
    let mut object = json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "a"}]},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    complete(&mut object, "v1", "Pod");
    assert_eq!(
        object,
        json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "a", "resources": {}}]},
            "status": {"conditions": [{"type": "Ready", "status": "True", "lastProbeTime": null, "lastTransitionTime": null}]}})
    );
    let once = object.clone();
    complete(&mut object, "v1", "Pod");
    assert_eq!(object, once);
    let mut role = json!({"metadata": {"name": "a"}});
    complete(&mut role, "rbac.authorization.k8s.io/v1", "ClusterRole");
    assert_eq!(role, json!({"metadata": {"name": "a"}, "rules": null}));
    let mut deployment = json!({"metadata": {}, "spec": {"template": {"spec": {"containers": []}}}});
    complete(&mut deployment, "apps/v1", "Deployment");
    assert_eq!(
        deployment,
        json!({"metadata": {}, "status": {}, "spec": {
            "selector": null, "strategy": {}, "template": {"metadata": {}, "spec": {"containers": null}},
        }})
    );
}

#[test]
fn nesting_is_bounded() {
    let deep = |levels: usize| format!("{{\"data\":{}1{}}}", "[".repeat(levels), "]".repeat(levels));
    let decode = |levels| decode(deep(levels).as_bytes(), "apps/v1", "ControllerRevision");
    assert!(decode(90).is_ok());
    assert_eq!(decode(100_000).unwrap_err().code, 400);
    let unknown = format!("{{\"nope\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(super::decode(unknown.as_bytes(), "v1", "Pod").is_ok());
}

#[test]
fn identity_reads_version_and_kind_only() {
    let found = identity(br#"{"kind": "Pod", "spec": {"a": [1]}, "apiVersion": "v1"}"#).unwrap();
    assert_eq!(found, ("v1".to_owned(), "Pod".to_owned()));
    assert_eq!(identity(b"{}").unwrap(), (String::new(), String::new()));
    for bad in [&b"[]"[..], b"", b"{\"kind\": 1}", b"{} x", b"nope"] {
        assert_eq!(identity(bad).unwrap_err().code, 400);
    }
}

#[test]
fn a_struct_has_few_enough_fields_for_the_set_of_seen_ones() {
    assert!(types::all().iter().all(|t| t.fields.len() < 128));
    assert!(types::all().is_sorted_by_key(|t| t.name));
    assert!(types::all().iter().all(|t| t.fields.is_sorted_by_key(|f| f.name)));
}

#[test]
fn options_are_found_in_every_group() {
    for api_version in ["v1", "policy/v1", "meta.k8s.io/v1"] {
        let decoded = decode(br#"{"gracePeriodSeconds": 0}"#, api_version, "DeleteOptions").unwrap();
        assert_eq!(decoded.object, json!({"gracePeriodSeconds": 0}));
    }
    assert_eq!(decode(b"{}", "v1", "Deployment").unwrap_err().code, 400);
}

proptest! {
    #[test]
    fn mangled_bytes_never_panic(cuts in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8), end in any::<prop::sample::Index>()) {
        let mut bytes = serde_json::to_vec(&deployment()).unwrap();
        for (at, byte) in cuts {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = decode(&bytes, "apps/v1", "Deployment");
        let _ = identity(&bytes);
        bytes.truncate(end.index(bytes.len()));
        let _ = decode(&bytes, "apps/v1", "Deployment");
        let _ = identity(&bytes);
    }

    #[test]
    fn what_was_decoded_once_decodes_to_itself(cuts in prop::collection::vec((any::<prop::sample::Index>(), b'0'..=b'9'), 1..4)) {
        let mut bytes = serde_json::to_vec(&deployment()).unwrap();
        for (at, byte) in cuts {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(once) = decode(&bytes, "apps/v1", "Deployment") {
            let again = conform(once.object.clone(), "apps/v1", "Deployment").unwrap();
            prop_assert_eq!(again.object, once.object);
            prop_assert!(again.faults.is_empty());
        }
    }
}
