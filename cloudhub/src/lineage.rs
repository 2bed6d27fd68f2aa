//! The lineage of the API's database ([`relay::Lineage`]), in Secret `kedge-system/lineage`: by it an edge knows a database that
//! was restored from a backup though it has counted past what the edge saw.
//!
//! - the hub's own API adds a point in the first write of each of its starts ([`first_write`]): exact
//! - above a cluster the hub adds one at its own start and each hour ([`Points::ByHub`]): a backup that is younger than the
//!   last point that an edge saw is noticed by resourceVersions that go back, or not at all
//!
//! The object is the database's, so a backup has it as it was. Whoever removes it makes all edges suspect.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::Method;
use relay::Lineage;
use serde_json::{Value, json};

use crate::identity::NAMESPACE;
use crate::kube_api::{ApiError, As, KubeApi, Send};

/// The Secret's name.
const NAME: &str = "lineage";
/// Its one value: a line a point.
const KEY: &str = "points";

/// Who adds points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Points {
    /// The API itself, at each start.
    ByApi,
    /// This hub.
    ByHub,
}

/// What the hub's own API writes first at each start.
pub(crate) fn first_write() -> apiserver::FirstWrite {
    apiserver::FirstWrite {
        plural: "secrets",
        namespace: NAMESPACE.into(),
        name: NAME.into(),
        change: |secret, revision| {
            let mut lineage = of(secret);
            lineage.grow(rand::random(), revision);
            put(secret, &lineage);
        },
    }
}

fn of(secret: &Value) -> Lineage {
    let encoded = secret["data"][KEY].as_str().unwrap_or_default();
    let bytes = BASE64_STANDARD.decode(encoded).unwrap_or_default();
    Lineage::parse(&String::from_utf8_lossy(&bytes))
}

fn put(secret: &mut Value, lineage: &Lineage) {
    secret["data"] = json!({KEY: BASE64_STANDARD.encode(lineage.to_string())});
}

/// Reads it; with `add`, or where there is none yet, adds a point before.
///
/// # Errors
/// What the API answers. Somebody else's write in between is a conflict: try again.
pub(crate) async fn read(api: &KubeApi, add: bool) -> Result<Lineage, ApiError> {
    let folder = format!("/api/v1/namespaces/{NAMESPACE}/secrets");
    let path = format!("{folder}/{NAME}");
    let (mut secret, is_new) = match api.get(As::Hub, &path).await {
        Ok(secret) => (secret, false),
        Err(error) if error.code() == Some(404) => {
            let metadata = json!({"name": NAME, "namespace": NAMESPACE});
            let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata});
            (secret, true)
        }
        Err(error) => return Err(error),
    };
    let mut lineage = of(&secret);
    if !add && !is_new {
        return Ok(lineage);
    }
    lineage.grow(rand::random(), 0);
    put(&mut secret, &lineage);
    let (method, path) = if is_new {
        (Method::POST, folder)
    } else {
        (Method::PUT, path)
    };
    api.call(As::Hub, method, &path, Send::Json(&secret)).await?;
    Ok(lineage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_write_of_a_start_adds_a_point_at_its_revision_and_keeps_the_others() {
        let mut secret = json!({"metadata": {"name": NAME}});
        let first = first_write();
        (first.change)(&mut secret, 7);
        let before = of(&secret);
        (first.change)(&mut secret, 90);
        let after = of(&secret);
        assert!(after.continues(&before));
        assert_eq!((before.number(), after.number()), (1, 2));
        assert_eq!(after.descent(1).next, 90);
        assert_eq!(after.descent(1).id, before.place(0).id);
    }
}
