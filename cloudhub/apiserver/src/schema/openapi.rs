//! The OpenAPI v3 documents: `/openapi/v3` and one document a group and version.
//!
//! A document's paths come from the rows of [`crate::kinds`] (see [`super::paths`]), its components from what `build.rs` packed. It
//! is made when first asked for and kept compressed: unpacked, all of them are a few megabytes that nobody asks for twice.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::sync::OnceLock;

use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::paths;
use super::types::{self, Shape, Type};
use crate::kinds::{self, Row};

static COMPONENTS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/components.gz"));

/// Begins every reference to a component.
pub(super) const REF: &str = "#/components/schemas/";

/// What no type of ours is made from.
const PATCH: &str = r#"{"description":"A patch: what it is depends on its media type.","type":"object"}"#;

/// One group and version.
struct Document {
    /// `api/v1`, `apis/apps/v1`.
    path: String,
    /// Changes when the document does: clients keep documents by it.
    hash: String,
    /// The value of `paths`, as JSON.
    paths: String,
    /// The document, compressed, once it was asked for.
    gzip: OnceLock<Bytes>,
}

fn documents() -> &'static [Document] {
    static DOCUMENTS: OnceLock<Vec<Document>> = OnceLock::new();
    DOCUMENTS.get_or_init(|| make(&kinds::rows().collect::<Vec<_>>()))
}

/// All documents, without their components.
fn make(rows: &[&Row]) -> Vec<Document> {
    let documents = paths::groups(rows).into_iter().map(|(group, version)| {
        let path = if group.is_empty() {
            format!("api/{version}")
        } else {
            format!("apis/{group}/{version}")
        };
        let paths = Value::Object(paths::of_group(rows, group, version)).to_string();
        let mut digest = Sha256::new();
        digest.update(COMPONENTS);
        digest.update(&paths);
        let hash = digest.finalize().iter().map(|b| format!("{b:02X}")).collect();
        Document {
            path,
            hash,
            paths,
            gzip: OnceLock::new(),
        }
    });
    documents.collect()
}

/// What `GET /openapi/v3` answers.
pub(crate) fn openapi_index() -> Value {
    index(documents())
}

fn index(documents: &[Document]) -> Value {
    let entry = |d: &Document| {
        let url = format!("/openapi/v3/{}?hash={}", d.path, d.hash);
        (d.path.clone(), json!({"serverRelativeURL": url}))
    };
    json!({"paths": documents.iter().map(entry).collect::<Map<_, _>>()})
}

/// What `GET /openapi/v3/PATH` answers, compressed with gzip; PATH without slashes around it.
pub(crate) fn openapi_document_gzip(path: &str) -> Option<Bytes> {
    let document = documents().iter().find(|d| d.path == path)?;
    Some(document.gzip().clone())
}

/// The same, not compressed: for clients that do not accept gzip.
pub(crate) fn openapi_document(path: &str) -> Option<Bytes> {
    openapi_document_gzip(path).map(|gzip| Bytes::from(unpack(&gzip)))
}

fn unpack(gzip: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    GzDecoder::new(gzip)
        .read_to_end(&mut out)
        .expect("we compressed it ourselves, and it is in memory");
    out
}

impl Document {
    fn gzip(&self) -> &Bytes {
        self.gzip.get_or_init(|| {
            let components = String::from_utf8(unpack(COMPONENTS)).expect("build.rs wrote text");
            let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
            self.write(&components, &mut gzip)
                .and_then(|()| gzip.finish())
                .map(Bytes::from)
                .expect("a vector takes all that is written to it")
        })
    }

    fn write(&self, components: &str, out: &mut impl Write) -> std::io::Result<()> {
        let wanted = reachable(&self.paths);
        write!(
            out,
            r#"{{"openapi":"3.0.0","info":{{"title":"Kubernetes","version":"v1.36"}},"paths":{},"components":{{"schemas":{{"#,
            self.paths
        )?;
        let lines = components.lines().filter_map(|l| l.split_once('\t'));
        let own = Some((paths::PATCH, PATCH)).filter(|_| self.paths.contains(paths::PATCH));
        let all = lines.filter(|(n, _)| wanted.contains(n)).chain(own);
        for (number, (name, schema)) in all.enumerate() {
            let comma = if number == 0 { "" } else { "," };
            write!(out, r#"{comma}"{name}":{schema}"#)?;
        }
        out.write_all(b"}}}")
    }
}

/// The components that a document needs: those that its paths name, and all that these are made of.
fn reachable(paths: &str) -> BTreeSet<&'static str> {
    let mut wanted = BTreeSet::new();
    let named = paths.split(REF).skip(1).filter_map(|rest| rest.split('"').next());
    let mut todo: Vec<&Type> = named.filter_map(by_name).collect();
    while let Some(of) = todo.pop() {
        if wanted.insert(of.name) {
            todo.extend(of.fields.iter().filter_map(|f| innermost(f.shape).target()));
        }
    }
    wanted
}

fn by_name(name: &str) -> Option<&'static Type> {
    let all = types::all();
    all.binary_search_by(|t| t.name.cmp(name)).ok().map(|i| &all[i])
}

/// What a list or map is of.
fn innermost(shape: Shape) -> Shape {
    match shape {
        Shape::List(inner) | Shape::Map(inner) => innermost(*inner),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::Strategy;

    #[derive(Debug)]
    struct Plain;

    impl Strategy for Plain {}

    const fn row(group: &'static str, kind: &'static str, plural: &'static str, namespaced: bool) -> Row {
        Row {
            group,
            version: "v1",
            kind,
            plural,
            singular: "",
            short_names: &[],
            categories: &[],
            namespaced,
            storage: plural,
            status: true,
            scale: !group.is_empty(),
            generation: true,
            selectable: &[],
            columns: &[],
            strategy: &Plain,
        }
    }

    static POD: Row = row("", "Pod", "pods", true);
    static NAMESPACE: Row = row("", "Namespace", "namespaces", false);
    static DEPLOYMENT: Row = row("apps", "Deployment", "deployments", true);

    fn document(path: &str) -> Value {
        let documents = make(&[&POD, &NAMESPACE, &DEPLOYMENT]);
        let document = documents.iter().find(|d| d.path == path).expect("a document");
        serde_json::from_slice(&unpack(document.gzip())).expect("a document is JSON")
    }

    #[test]
    fn the_index_names_each_group_with_a_hash() {
        let index = index(&make(&[&POD, &DEPLOYMENT]));
        let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
        let hash = url.strip_prefix("/openapi/v3/apis/apps/v1?hash=").unwrap();
        assert_eq!(hash.len(), 64);
        assert!(index["paths"]["api/v1"].is_object());
        assert!(index["paths"]["apis/authorization.k8s.io/v1"].is_object());
    }

    #[test]
    fn a_patch_has_the_parameters_and_bodies_by_which_kubectl_decides() {
        let document = document("apis/apps/v1");
        let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        let parameters: Vec<&str> = patch["parameters"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|p| p["name"].as_str())
            .collect();
        assert_eq!(parameters, ["dryRun", "fieldManager", "fieldValidation", "force"]);
        let bodies: Vec<&String> = patch["requestBody"]["content"].as_object().unwrap().keys().collect();
        assert_eq!(
            bodies,
            [
                "application/json-patch+json",
                "application/merge-patch+json",
                "application/strategic-merge-patch+json"
            ]
        );
        assert_eq!(
            patch["x-kubernetes-group-version-kind"],
            json!({"group": "apps", "version": "v1", "kind": "Deployment"})
        );
        assert_eq!(patch["operationId"], "patchAppsV1NamespacedDeployment");
        assert_eq!(patch["x-kubernetes-action"], "patch");
    }

    #[test]
    fn all_references_in_a_document_lead_somewhere_and_nothing_is_left_over() {
        for path in [
            "api/v1",
            "apis/apps/v1",
            "apis/authorization.k8s.io/v1",
            "apis/authentication.k8s.io/v1",
        ] {
            let document = document(path);
            let text = document.to_string();
            let named: BTreeSet<&str> = text.split(REF).skip(1).filter_map(|r| r.split('"').next()).collect();
            let there = document["components"]["schemas"].as_object().unwrap();
            let there: BTreeSet<&str> = there.keys().map(String::as_str).collect();
            assert_eq!(named, there, "{path}");
        }
        let apps = document("apis/apps/v1");
        assert!(
            apps["components"]["schemas"]
                .get("io.k8s.api.core.v1.NodeSpec")
                .is_none()
        );
    }

    #[test]
    fn a_document_has_descriptions_and_merge_keys() {
        let document = document("api/v1");
        let schemas = &document["components"]["schemas"];
        let container = &schemas["io.k8s.api.core.v1.Container"];
        assert!(container["properties"]["image"]["description"].as_str().unwrap().len() > 20);
        let ports = &container["properties"]["ports"];
        assert_eq!(ports["x-kubernetes-patch-merge-key"], "containerPort");
        assert_eq!(ports["x-kubernetes-patch-strategy"], "merge");
        assert_eq!(ports["x-kubernetes-list-type"], "map");
        assert_eq!(
            ports["x-kubernetes-list-map-keys"],
            json!(["containerPort", "protocol"])
        );
        let volumes = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["volumes"];
        assert_eq!(volumes["x-kubernetes-patch-strategy"], "merge,retainKeys");
        let pod = &schemas["io.k8s.api.core.v1.Pod"];
        assert_eq!(
            pod["x-kubernetes-group-version-kind"],
            json!([{"group": "", "version": "v1", "kind": "Pod"}])
        );
        assert!(pod.get("required").is_none());
        let port = &schemas["io.k8s.apimachinery.pkg.util.intstr.IntOrString"];
        assert_eq!(port["format"], "int-or-string");
        assert_eq!(document["openapi"], "3.0.0");
    }

    #[test]
    fn every_operation_id_is_unique() {
        let document = document("api/v1");
        let mut seen = BTreeSet::new();
        for item in document["paths"].as_object().unwrap().values() {
            for operation in item
                .as_object()
                .unwrap()
                .values()
                .filter(|o| o["operationId"].is_string())
            {
                assert!(
                    seen.insert(operation["operationId"].to_string()),
                    "{}",
                    operation["operationId"]
                );
            }
        }
        assert!(seen.contains("\"listCoreV1PodForAllNamespaces\""));
        assert!(seen.contains("\"createCoreV1NamespacedPodEviction\""));
    }
}
