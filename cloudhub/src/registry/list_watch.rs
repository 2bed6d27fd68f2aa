//! List, then watch, then list again when the watch cannot go on: one loop for every kind.

use std::time::Duration;

use futures::StreamExt as _;
use rand::Rng as _;
use serde_json::Value;

use crate::kube_api::{ApiError, As, KubeApi};

/// Objects a page.
const PAGE: usize = 500;
/// How long the API keeps a watch open; it is renewed without a list.
const WATCH_SECONDS: u64 = 300;
/// A watch that is silent for longer is dead: bookmarks come about every minute.
const SILENCE: Duration = Duration::from_secs(WATCH_SECONDS + 30);
pub(super) const BACKOFF_MIN: Duration = Duration::from_millis(200);
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(20);

/// What a loop reports.
#[derive(Debug)]
pub enum Change {
    /// All objects, as of a resourceVersion.
    List(Vec<Value>, u64),
    /// One was added or changed.
    Apply(Value),
    /// One was deleted.
    Delete(Value),
    /// Everything up to this resourceVersion has been seen.
    Bookmark(u64),
    /// The list is refused.
    Refused(u16),
}

/// Who is told of the changes.
pub trait Taker {
    /// A list begins: what was told of one that broke off does not count.
    fn begins(&self) {}
    /// Whether an object of a list is to be kept until the list is whole. A cluster's pods are more than a hub has room for.
    fn wants(&self, _object: &Value) -> bool {
        true
    }
    /// Sees every change in order.
    fn take(&self, change: Change);
}

impl<F: Fn(Change)> Taker for F {
    fn take(&self, change: Change) {
        self(change);
    }
}

/// What to list and watch, and as whom.
#[derive(Debug, Clone)]
pub struct Target {
    /// The collection's path.
    pub path: String,
    /// `fieldSelector`, or empty.
    pub fields: String,
    /// The node to be, or the hub itself.
    pub node: Option<String>,
}

impl Target {
    fn who(&self) -> As<'_> {
        self.node.as_deref().map_or(As::Hub, As::Node)
    }

    fn url(&self, rest: &str) -> String {
        let fields = if self.fields.is_empty() {
            String::new()
        } else {
            format!("fieldSelector={}&", self.fields)
        };
        format!("{}?{fields}{rest}", self.path)
    }
}

/// Runs until it is dropped. A hub has thousands of these, which wait for the next event nearly always: what lists and connects is not part of
/// what they keep.
pub async fn run(api: &KubeApi, target: &Target, taker: impl Taker) {
    let mut backoff = BACKOFF_MIN;
    loop {
        match Box::pin(list(api, target, &taker)).await {
            Ok((items, rv)) => {
                backoff = BACKOFF_MIN;
                taker.take(Change::List(items, rv));
                let error = watch(api, target, rv, &taker).await;
                tracing::debug!(path = target.path, fields = target.fields, error, "listing again");
            }
            Err(error) => {
                if let Some(code) = error.code() {
                    taker.take(Change::Refused(code));
                }
                tracing::debug!(path = target.path, fields = target.fields, %error, "list failed");
            }
        }
        let jitter = rand::rng().random_range(0.5..1.0);
        tokio::time::sleep(backoff.mul_f64(jitter)).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

pub(super) async fn list(api: &KubeApi, target: &Target, taker: &impl Taker) -> Result<(Vec<Value>, u64), ApiError> {
    taker.begins();
    let mut items = Vec::new();
    let mut next = String::new();
    loop {
        let mut page = api
            .get(target.who(), &target.url(&format!("limit={PAGE}&continue={next}")))
            .await?;
        if let Some(Value::Array(found)) = page.get_mut("items").map(Value::take) {
            items.extend(found.into_iter().filter(|item| taker.wants(item)));
        }
        match page["metadata"]["continue"].as_str() {
            Some(token) if !token.is_empty() => token.clone_into(&mut next),
            _ => return Ok((items, version(&page))),
        }
    }
}

/// Watches until the API cannot go on from where the watch is; returns why.
async fn watch(api: &KubeApi, target: &Target, mut rv: u64, taker: &impl Taker) -> String {
    loop {
        let url = target.url(&format!(
            "watch=true&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}&resourceVersion={rv}"
        ));
        let mut events = match Box::pin(api.watch(target.who(), &url)).await {
            Ok(events) => events,
            Err(error) => return error.to_string(),
        };
        loop {
            let mut event = match tokio::time::timeout(SILENCE, events.next()).await {
                Ok(Some(Ok(event))) => event,
                Ok(Some(Err(error))) => return error.to_string(),
                Ok(None) => break,
                Err(_) => return "the watch is silent".into(),
            };
            let object = event["object"].take();
            match event["type"].as_str() {
                Some("ERROR") => return object["message"].to_string(),
                Some("BOOKMARK") => {
                    rv = version(&object);
                    taker.take(Change::Bookmark(rv));
                }
                Some("DELETED") => {
                    rv = version(&object);
                    taker.take(Change::Delete(object));
                }
                _ => {
                    rv = version(&object);
                    taker.take(Change::Apply(object));
                }
            }
        }
    }
}

/// metadata.resourceVersion as a number (KEP-5504 lets clients compare them).
pub(crate) fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"]
        .as_str()
        .and_then(|rv| rv.parse().ok())
        .unwrap_or_default()
}
