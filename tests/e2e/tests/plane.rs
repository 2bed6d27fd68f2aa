//! The harness itself: the real control plane starts in a namespace and goes away with its site.

use kit::{ControlPlane, Site};

#[test]
fn real_control_plane_answers_kubectl() {
    let site = Site::new().expect("a site");
    let plane = ControlPlane::start(&site, &kit::plane::Options::default()).expect("a control plane");
    let version = plane.kubectl.run(&["version", "-o", "json"]).expect("kubectl version");
    let version: serde_json::Value = serde_json::from_str(&version).expect("JSON");
    assert_eq!(version["serverVersion"]["gitVersion"], kit::paths::KUBERNETES);
    assert_eq!(version["clientVersion"]["gitVersion"], kit::paths::KUBERNETES);
}
