//! Images: pull policy, credentials of imagePullSecrets, and the digest that lets a pod start again with the registry out of reach.
//!
//! * `ensure` gives the runtime's reference of a container's image, or why it cannot be had, in kubelet's words;
//! * the reference that a pod's container last ran is kept in the store: with policy Always and a registry that does not answer, that container
//!   starts from it, with an event. A registry that answers "no" (unknown, unauthorized) is believed.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use cri::{Auth, ErrorKind, ImageSpec};
use serde::Deserialize;

use super::api::{Container, Pod, PullPolicy};
use super::events::Severity;
use super::memory::Waiting;
use super::objects::{self, Kind, Objects};
use super::registry::Shared;
use super::rows::local_prefix;

/// How long a registry may take to answer before a container that ran here starts from what is here. A black-holed link makes the runtime wait
/// for minutes; a robot's program must be back sooner.
const REGISTRY_PATIENCE: Duration = Duration::from_secs(20);

/// What an image check gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The runtime's reference.
    Ready(String),
    /// Not had, and why.
    Failed(Waiting),
}

fn failed(reason: &str, message: String) -> Outcome {
    Outcome::Failed(Waiting {
        reason: reason.to_owned(),
        message,
    })
}

/// Has the image here by the container's pull policy.
pub async fn ensure(shared: &Shared, pod: &Pod, container: &Container) -> Outcome {
    let outcome = try_ensure(shared, pod, container).await;
    if let Outcome::Failed(waiting) = &outcome {
        let text = format!("Error: {}", waiting.reason);
        shared.event((pod, Some(container)), Severity::Warning, "Failed", &text);
    }
    outcome
}

async fn try_ensure(shared: &Shared, pod: &Pod, container: &Container) -> Outcome {
    let image = container.image.as_str();
    if !is_reference(image) {
        let message = format!(
            "Failed to apply default image tag \"{image}\": couldn't parse image name \"{image}\": invalid reference format"
        );
        shared.event((pod, Some(container)), Severity::Warning, "InspectFailed", &message);
        return failed("InvalidImageName", message);
    }
    let present = match shared.runtime.image_status(image).await {
        Ok(present) => present,
        Err(error) => {
            let message = format!("Failed to inspect image \"{image}\": {}", error.rpc());
            shared.event((pod, Some(container)), Severity::Warning, "InspectFailed", &message);
            return failed("ImageInspectError", message);
        }
    };
    match (container.pull_policy(), present) {
        (PullPolicy::Never | PullPolicy::IfNotPresent, Some(here)) => {
            let message = format!("Container image \"{image}\" already present on machine");
            shared.event((pod, Some(container)), Severity::Normal, "Pulled", &message);
            Outcome::Ready(reference(&here, image))
        }
        (PullPolicy::Never, None) => {
            let message = format!("Container image \"{image}\" is not present with pull policy of Never");
            shared.event((pod, Some(container)), Severity::Warning, "ErrImageNeverPull", &message);
            failed("ErrImageNeverPull", message)
        }
        (PullPolicy::Always | PullPolicy::IfNotPresent, _) => pull(shared, pod, container).await,
    }
}

async fn pull(shared: &Shared, pod: &Pod, container: &Container) -> Outcome {
    let image = container.image.as_str();
    shared.event(
        (pod, Some(container)),
        Severity::Normal,
        "Pulling",
        &format!("Pulling image \"{image}\""),
    );
    let recorded = recorded(shared, pod, container).await;
    let started = tokio::time::Instant::now();
    let attempt = try_pull(shared, pod, image);
    let result = match &recorded {
        None => attempt.await,
        Some(_) => tokio::time::timeout(REGISTRY_PATIENCE, attempt)
            .await
            .unwrap_or_else(|_| {
                let said = "the registry did not answer in time";
                Err(cri::Error::new("PullImage", image, ErrorKind::Deadline, said))
            }),
    };
    match result {
        Ok(reference) => {
            let took = go_duration(started.elapsed());
            let size = shared.runtime.image_status(&reference).await.ok().flatten();
            let size = size.map_or(0, |image| image.size);
            let message = format!(
                "Successfully pulled image \"{image}\" in {took} ({took} including waiting). Image size: {size} bytes."
            );
            shared.event((pod, Some(container)), Severity::Normal, "Pulled", &message);
            Outcome::Ready(reference)
        }
        Err(error) => {
            let out_of_reach = !matches!(
                error.kind,
                ErrorKind::NotFound | ErrorKind::Unauthorized | ErrorKind::InvalidArgument
            );
            if let Some(reference) = recorded.filter(|_| out_of_reach) {
                let message = format!(
                    "Registry out of reach ({}); starting \"{image}\" from {reference}, which ran here before",
                    error.message
                );
                shared.event((pod, Some(container)), Severity::Warning, "PulledFromRecord", &message);
                return Outcome::Ready(reference);
            }
            let said = told(&error);
            let message = format!("Failed to pull image \"{image}\": {said}");
            shared.event((pod, Some(container)), Severity::Warning, "Failed", &message);
            failed("ErrImagePull", said)
        }
    }
}

/// A failed pull as kubelet tells it: the code is left out where it says nothing.
fn told(error: &cri::Error) -> String {
    if error.code == "Unknown" {
        error.message.clone()
    } else {
        error.rpc()
    }
}

/// A duration in whole milliseconds as Go prints it: `12ms`, `1.5s`, `1m30.25s`, `1h0m0s`.
fn go_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis == 0 {
        return "0s".to_owned();
    }
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let (minutes, rest) = (millis / 60_000, millis % 60_000);
    let fraction = format!(".{:03}", rest % 1000);
    let seconds = format!(
        "{}{}s",
        rest / 1000,
        fraction.trim_end_matches('0').trim_end_matches('.')
    );
    match (minutes / 60, minutes % 60) {
        (0, 0) => seconds,
        (0, minutes) => format!("{minutes}m{seconds}"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
    }
}

/// Tries each credential that fits the registry, then none.
async fn try_pull(shared: &Shared, pod: &Pod, image: &str) -> cri::Result<String> {
    let mut last = None;
    let credentials = credentials(&shared.rows, pod, image);
    for auth in credentials
        .iter()
        .map(Some)
        .chain(credentials.is_empty().then_some(None))
    {
        match shared.runtime.pull_image(&ImageSpec::from(image), auth, None).await {
            Ok(reference) => return Ok(reference),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| cri::Error::new("PullImage", image, ErrorKind::Other, "no attempt was made")))
}

fn key(pod: &Pod, container: &str) -> String {
    format!("{}image/{container}", local_prefix(&pod.metadata.uid))
}

/// The row that remembers what a container runs: `image name, newline, reference`.
pub fn record(pod: &Pod, container: &Container, reference: &str) -> (String, Option<Bytes>) {
    (
        key(pod, &container.name),
        Some(format!("{}\n{reference}", container.image).into()),
    )
}

/// What this pod's container last ran under the same image name, if the runtime still has it.
async fn recorded(shared: &Shared, pod: &Pod, container: &Container) -> Option<String> {
    let row = shared.rows.get(&key(pod, &container.name)).ok()??;
    let text = std::str::from_utf8(&row).ok()?;
    let (image, reference) = text.split_once('\n')?;
    if image != container.image {
        return None;
    }
    shared.runtime.image_status(reference).await.ok()??;
    Some(reference.to_owned())
}

fn reference(image: &cri::Image, asked: &str) -> String {
    if image.id.is_empty() {
        asked.to_owned()
    } else {
        image.id.clone()
    }
}

/// Whether a text can be an image name (distribution's reference grammar, roughly: what is refused here is refused there).
fn is_reference(image: &str) -> bool {
    let name = image.split('@').next().unwrap_or_default();
    let path = name.rsplit_once('/').map_or(name, |(_, last)| last);
    let repository = path.split(':').next().unwrap_or_default();
    !image.is_empty()
        && image.len() <= 4096
        && !repository.is_empty()
        && repository
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c))
        && image
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "._-/:@+[]".contains(c))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DockerConfig {
    auths: std::collections::BTreeMap<String, Entry>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    username: String,
    password: String,
    auth: String,
    identitytoken: String,
    registrytoken: String,
}

/// The credentials in the pod's imagePullSecrets that are for the image's registry, the most specific entry first.
pub(crate) fn credentials(objects: &dyn Objects, pod: &Pod, image: &str) -> Vec<Auth> {
    let mut found = Vec::new();
    for secret in &pod.spec.image_pull_secrets {
        let Ok(data) = objects::data(objects, Kind::Secret, &pod.metadata.namespace, &secret.name) else {
            continue;
        };
        let config = if let Some(text) = data.get(".dockerconfigjson") {
            serde_json::from_slice::<DockerConfig>(text).unwrap_or_default()
        } else if let Some(text) = data.get(".dockercfg") {
            DockerConfig {
                auths: serde_json::from_slice(text).unwrap_or_default(),
            }
        } else {
            continue;
        };
        for (server, entry) in config.auths {
            if let Some(length) = fits(&server, image) {
                found.push((length, auth(entry)));
            }
        }
    }
    found.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    found.into_iter().map(|(_, auth)| auth).collect()
}

/// The server's address stays empty, as kubelet leaves it: containerd takes it for a URL, which `host:port` is not.
fn auth(entry: Entry) -> Auth {
    let mut auth = Auth {
        username: entry.username,
        password: entry.password,
        identity_token: entry.identitytoken,
        registry_token: entry.registrytoken,
        ..Auth::default()
    };
    if auth.username.is_empty()
        && let Ok(decoded) = STANDARD.decode(entry.auth.trim())
        && let Some((user, password)) = String::from_utf8_lossy(&decoded).split_once(':')
    {
        auth.username = user.to_owned();
        auth.password = password.trim_end_matches('\0').to_owned();
    }
    auth
}

/// How much of an image's name an entry of a Docker configuration covers; None if it is for another registry.
fn fits(server: &str, image: &str) -> Option<usize> {
    let server = server.trim_start_matches("https://").trim_start_matches("http://");
    let server = server
        .trim_end_matches('/')
        .trim_end_matches("/v1")
        .trim_end_matches("/v2");
    let (first, _) = image.split_once('/').unwrap_or(("", image));
    let has_registry = first.contains(['.', ':']) || first == "localhost";
    let full = if has_registry {
        image.to_owned()
    } else {
        format!("docker.io/{image}")
    };
    let server = if server == "index.docker.io" {
        "docker.io"
    } else {
        server
    };
    let (want, host) = (server.split('/').next()?, full.split('/').next()?);
    let host_fits = match want.strip_prefix("*.") {
        Some(suffix) => host.split_once('.').is_some_and(|(_, rest)| rest == suffix),
        None => want == host,
    };
    let path_fits = match (server.split_once('/'), full.split_once('/')) {
        (None, _) => true,
        (Some((_, want)), Some((_, path))) => path == want || path.starts_with(&format!("{want}/")),
        (Some(_), None) => false,
    };
    (host_fits && path_fits).then_some(server.len())
}

#[cfg(test)]
mod tests {
    use super::super::objects::MapObjects;
    use super::*;
    use serde_json::json;

    #[test]
    fn credentials_go_to_their_registry_only() {
        assert!(fits("https://reg.example:5000/v2/", "reg.example:5000/a/b:1").is_some());
        assert!(fits("reg.example:5000", "reg.example/a").is_none());
        assert!(fits("https://index.docker.io/v1/", "busybox").is_some());
        assert!(fits("*.example.com", "a.example.com/x").is_some());
        assert!(fits("r.io/team", "r.io/teams/x").is_none());
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {"namespace": "n"}, "spec": {"imagePullSecrets": [{"name": "s"}, {"name": "none"}]}}),
        )
        .expect("pod");
        let objects = MapObjects::default();
        let config = json!({"auths": {"r.io": {"auth": STANDARD.encode("u:p:q")}, "r.io/team": {"username": "t", "password": "x"}}}).to_string();
        objects.put(
            "Secret",
            "n",
            "s",
            &json!({"data": {".dockerconfigjson": STANDARD.encode(config)}}),
        );
        let found = credentials(&objects, &pod, "r.io/team/image:1");
        assert_eq!(
            found.iter().map(|a| a.username.as_str()).collect::<Vec<_>>(),
            ["t", "u"]
        );
        assert_eq!(found[1].password, "p:q");
    }

    #[test]
    fn durations_are_printed_as_go_prints_them() {
        let printed =
            [0, 7, 1000, 1500, 59_999, 60_000, 90_250, 3_600_000].map(|ms| go_duration(Duration::from_millis(ms)));
        assert_eq!(
            printed,
            ["0s", "7ms", "1s", "1.5s", "59.999s", "1m0s", "1m30.25s", "1h0m0s"]
        );
    }

    #[test]
    fn names_that_no_registry_takes_are_refused_here() {
        for good in ["a", "a:1", "r.io:5000/a/b@sha256:00", "kedge.dev/demo:1"] {
            assert!(is_reference(good), "{good}");
        }
        for bad in ["", "A", "a b", "r.io/", "a:1;rm", ":1"] {
            assert!(!is_reference(bad), "{bad}");
        }
    }
}
