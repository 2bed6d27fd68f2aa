//! Doors for `tests/fuzz`: what is read of requests and of objects. Not for anybody else.

use crate::kubelet_api::{query, target};
use crate::pods::api::Pod;
use crate::pods::images;
use crate::pods::objects::Objects;

/// A request's path, as the kubelet API takes it apart.
pub fn path(path: &str) {
    let path = query::decode(path);
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    if let [what, rest @ ..] = segments.as_slice() {
        target(what, rest);
    }
}

/// How many credentials the pod's pull secrets have for an image.
pub fn credentials(objects: &dyn Objects, pod: &Pod, image: &str) -> usize {
    images::credentials(objects, pod, image).len()
}
