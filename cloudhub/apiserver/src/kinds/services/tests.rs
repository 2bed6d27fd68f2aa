//! Tests of Services as a whole: defaults, addresses, changes of type.

use tempfile::TempDir;
use tokio::task::JoinSet;

use super::*;
use crate::status::Status;
use crate::store::{Expect, Key, Store};

fn service(name: &str, spec: Value) -> Value {
    json!({"metadata": {"name": name, "namespace": "a"}, "spec": spec})
}

fn created(name: &str, spec: Value) -> Value {
    let mut object = service(name, spec);
    Strategy::default(&Services, &mut object);
    Services.prepare_create(&mut object);
    object
}

fn faults(object: &Value) -> Vec<String> {
    let mut errors = Errors::default();
    Services.validate(object, &mut errors);
    said(&errors)
}

fn said(errors: &Errors) -> Vec<String> {
    let causes = errors.causes().iter();
    causes.map(|c| format!("{}: {}", c.field, c.message)).collect()
}

fn updated(current: &Value, spec: Value) -> (Value, Vec<String>) {
    let mut object = service("s", spec);
    Strategy::default(&Services, &mut object);
    Services.prepare_update(&mut object, current);
    let mut errors = Errors::default();
    Services.validate(&object, &mut errors);
    Services.validate_update(&object, current, &mut errors);
    (object, said(&errors))
}

struct Book {
    store: Store,
    _folder: TempDir,
    _tasks: JoinSet<()>,
}

impl Book {
    fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (store, committer) = Store::open(folder.path()).unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(committer.run());
        Self {
            store,
            _folder: folder,
            _tasks: tasks,
        }
    }

    fn allocated(&self, mut object: Value) -> Result<Value, Status> {
        let ranges = Ranges::parse("10.7.0.0/28").unwrap();
        allocate(&self.store, &mut object, &ranges).map(|()| object)
    }

    async fn put(&self, object: Value) -> Value {
        let object = self.allocated(object).unwrap();
        let name = crate::object::name(&object).to_owned();
        let key = Key::new(STORAGE, "a", &name);
        self.store.put(key, Expect::Absent, object.clone()).await.unwrap();
        object
    }
}

#[test]
fn a_service_gets_its_defaults_once() {
    let mut object = created("s", json!({"ports": [{"port": 80}]}));
    assert_eq!(
        object["spec"],
        json!({
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
            "sessionAffinity": "None", "type": "ClusterIP", "internalTrafficPolicy": "Cluster",
            "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"],
        })
    );
    assert_eq!(object["status"], json!({"loadBalancer": {}}));
    assert!(faults(&object).is_empty());
    let once = object.clone();
    Strategy::default(&Services, &mut object);
    assert_eq!(object, once);
    let sticky = created("s", json!({"ports": [{"port": 80}], "sessionAffinity": "ClientIP"}));
    assert_eq!(
        sticky["spec"]["sessionAffinityConfig"],
        json!({"clientIP": {"timeoutSeconds": 10800}})
    );
}

#[test]
fn a_headless_service_may_have_no_ports() {
    let object = created("s", json!({"clusterIP": "None", "selector": {"a": "b"}}));
    assert_eq!(object["spec"]["clusterIPs"], json!(["None"]));
    assert_eq!(object["spec"]["ipFamilies"], json!(["IPv4"]));
    assert!(faults(&object).is_empty());
    let open = created("s", json!({"clusterIP": "None"}));
    assert_eq!(open["spec"]["ipFamilyPolicy"], "RequireDualStack");
    assert!(faults(&open).is_empty());
}

#[test]
fn what_makes_no_sense_is_named() {
    assert_eq!(faults(&created("s", json!({}))), ["spec.ports: Required value"]);
    let ports = json!([{"port": 80}, {"port": 80, "name": "b", "nodePort": 30000}]);
    assert_eq!(
        faults(&created("s", json!({"ports": ports}))),
        [
            "spec.ports[0].name: Required value",
            "spec.ports[1].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
            "spec.ports[1]: Duplicate value: {\"Name\":\"\",\"Protocol\":\"TCP\",\"AppProtocol\":null,\"Port\":80,\"TargetPort\":0,\"NodePort\":0}",
        ]
    );
    assert_eq!(
        faults(&created("s", json!({"type": "ExternalName"}))),
        ["spec.externalName: Required value"]
    );
    let wrong = json!({"ports": [{"port": 0, "targetPort": "x_"}], "clusterIP": "x", "type": "Other"});
    let fields: Vec<String> = faults(&created("s", wrong))
        .iter()
        .map(|f| f.split(": ").next().unwrap().to_owned())
        .collect();
    assert_eq!(
        fields,
        [
            "spec.ports[0].port",
            "spec.ports[0].targetPort",
            "spec.clusterIPs[0]",
            "spec.type"
        ]
    );
    let six = created("s", json!({"ports": [{"port": 1}], "ipFamilies": ["IPv6"]}));
    assert_eq!(
        faults(&six),
        ["spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster"]
    );
}

#[tokio::test]
async fn addresses_are_given_once_and_come_back() {
    let book = Book::open();
    let mut seen = std::collections::BTreeSet::new();
    for index in 0..14 {
        let object = book
            .put(created(&format!("s{index}"), json!({"ports": [{"port": 80}]})))
            .await;
        assert!(faults(&object).is_empty());
        assert!(seen.insert(cluster_ip(&object).to_owned()));
    }
    assert!(seen.contains("10.7.0.1") && seen.contains("10.7.0.14"));
    let more = created("more", json!({"ports": [{"port": 80}]}));
    assert_eq!(book.allocated(more.clone()).unwrap_err().code, 500);
    let key = Key::new(STORAGE, "a", "s3");
    let version = book.store.get(&key).unwrap().resource_version;
    book.store.delete(key, Expect::Version(version), None).await.unwrap();
    assert!(book.allocated(more).is_ok());
}

#[tokio::test]
async fn an_address_may_be_asked_for() {
    let book = Book::open();
    let asking = |name: &str, address: &str| created(name, json!({"ports": [{"port": 80}], "clusterIP": address}));
    let first = book.put(asking("s", "10.7.0.1")).await;
    assert_eq!(book.allocated(first.clone()).unwrap(), first, "its own");
    for (address, fault) in [
        ("10.7.0.1", "provided IP is already allocated"),
        (
            "10.8.0.1",
            "the provided IP (10.8.0.1) is not in the valid range. The range of valid IPs is 10.7.0.0/28",
        ),
        (
            "10.7.0.15",
            "the provided IP (10.7.0.15) is not in the valid range. The range of valid IPs is 10.7.0.0/28",
        ),
    ] {
        let status = book.allocated(asking("t", address)).unwrap_err();
        assert_eq!(status.code, 422);
        assert_eq!(
            status.message,
            format!(
                "Service \"t\" is invalid: spec.clusterIPs: Invalid value: [\"{address}\"]: failed to allocate IP {address}: {fault}"
            )
        );
    }
}

#[tokio::test]
async fn node_ports_are_shared_by_the_protocols_of_a_port() {
    let book = Book::open();
    let ports = json!([
        {"name": "a", "port": 53, "protocol": "TCP"},
        {"name": "b", "port": 53, "protocol": "UDP"},
        {"name": "c", "port": 80, "nodePort": 30080},
    ]);
    let object = book
        .put(created("s", json!({"type": "NodePort", "ports": ports})))
        .await;
    let given: Vec<i64> = items(&object, "/spec/ports")
        .iter()
        .map(|p| number(p, "nodePort"))
        .collect();
    assert_eq!(given[0], given[1]);
    assert!((30_000..=32_767).contains(&given[0]) && given[2] == 30080);
    for (port, fault) in [
        (30080, "provided port is already allocated"),
        (
            80,
            "provided port is not in the valid range. The range of valid ports is 30000-32767",
        ),
    ] {
        let spec = json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": port}]});
        let status = book.allocated(created("t", spec)).unwrap_err();
        assert!(
            status
                .message
                .ends_with(&format!("spec.ports[0].nodePort: Invalid value: {port}: {fault}"))
        );
    }
    let local = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{"port": 1}]});
    let local = book.put(created("l", local)).await;
    assert!(number(&local["spec"], "healthCheckNodePort") >= 30_000);
    assert!(faults(&local).is_empty());
}

#[tokio::test]
async fn an_update_keeps_what_was_allocated() {
    let book = Book::open();
    let spec = json!({"type": "NodePort", "ports": [{"port": 80}]});
    let current = book.put(created("s", spec.clone())).await;
    let (object, faults) = updated(&current, spec);
    assert!(faults.is_empty(), "{faults:?}");
    assert_eq!(object["spec"]["clusterIP"], current["spec"]["clusterIP"]);
    assert_eq!(object["spec"]["clusterIPs"], current["spec"]["clusterIPs"]);
    assert_eq!(object["spec"]["ports"], current["spec"]["ports"]);
    let mut moved = current["spec"].clone();
    moved["clusterIP"] = json!("10.7.0.99");
    let (_, faults) = updated(&current, moved);
    assert_eq!(
        faults,
        ["spec.clusterIPs[0]: Invalid value: [\"10.7.0.99\"]: may not change once set"]
    );
}

#[tokio::test]
async fn a_change_of_type_drops_what_is_no_use_any_more() {
    let book = Book::open();
    let spec = json!({"type": "NodePort", "ports": [{"port": 80}]});
    let current = book.put(created("s", spec)).await;
    let mut spec = current["spec"].clone();
    spec["type"] = json!("ClusterIP");
    let (object, faults) = updated(&current, spec.clone());
    assert!(faults.is_empty(), "{faults:?}");
    assert_eq!(number(&object["spec"]["ports"][0], "nodePort"), 0);
    assert!(object["spec"].get("externalTrafficPolicy").is_none());
    spec["type"] = json!("ExternalName");
    spec["externalName"] = json!("example.com.");
    let (object, faults) = updated(&current, spec);
    assert!(faults.is_empty(), "{faults:?}");
    assert!(object["spec"].get("clusterIP").is_none() && object["spec"].get("ipFamilies").is_none());
    let (object, faults) = updated(&object, json!({"ports": [{"port": 80}]}));
    assert!(faults.is_empty(), "{faults:?}");
    assert_eq!(object["spec"]["ipFamilies"], json!(["IPv4"]));
    assert_ne!(cluster_ip(&book.allocated(object).unwrap()), "");
}

#[test]
fn a_row_shows_where_it_is_reached() {
    let object = json!({
        "spec": {
            "type": "LoadBalancer", "clusterIPs": ["10.7.0.2"], "selector": {"b": "2", "a": "1"},
            "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}],
        },
    });
    assert_eq!(
        Services.cells(&object),
        [
            "LoadBalancer",
            "10.7.0.2",
            "<pending>",
            "80:30080/TCP,53/UDP",
            "a=1,b=2"
        ]
    );
    let object = json!({"spec": {"type": "ClusterIP", "clusterIPs": ["None"]}});
    assert_eq!(
        Services.cells(&object),
        ["ClusterIP", "None", "<none>", "<none>", "<none>"]
    );
    assert_eq!(Services.warnings(&object).len(), 2);
}

#[test]
fn a_range_is_configured() {
    assert_eq!(Ranges::parse("10.96.0.0/16").unwrap(), Ranges::default());
    assert_eq!(Ranges::default().first().to_string(), "10.96.0.1");
    assert_eq!(
        Ranges::parse("10.96.3.4/16").unwrap(),
        Ranges::default(),
        "host bits do not count"
    );
    for wrong in ["10.96.0.0", "10.96.0.0/8", "::/64", "10.96.0.0/31"] {
        assert!(Ranges::parse(wrong).is_err(), "{wrong}");
    }
}
