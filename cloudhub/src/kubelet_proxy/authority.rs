//! Who may call a node's kubelet API: authenticated by the cluster's client CA or TokenReview, authorized by
//! SubjectAccessReview, as kubelet does (pkg/kubelet/server/auth.go).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Method, header};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::kube_api::{As, KubeApi, Send};

/// How long an answer of the API is believed.
const BELIEVE: Duration = Duration::from_secs(10);
/// Answers that are kept.
const KEPT: usize = 1024;
/// How often the cluster's client CA is read.
const REREAD: Duration = Duration::from_secs(60);

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Caller {
    /// User name.
    pub user: String,
    /// Groups.
    pub groups: Vec<String>,
}

/// Judges callers.
#[derive(Debug)]
pub struct Authority {
    api: KubeApi,
    allowed: Mutex<HashMap<String, (bool, Instant)>>,
    client_ca: Mutex<Option<(Arc<RootCertStore>, Instant)>>,
}

impl Authority {
    /// Asks this API.
    pub fn new(api: KubeApi) -> Self {
        Self {
            api,
            allowed: Mutex::default(),
            client_ca: Mutex::default(),
        }
    }

    /// A verifier of client certificates by the cluster's client CA; a certificate is optional, for a token may do.
    pub async fn verifier(&self) -> Option<Arc<dyn ClientCertVerifier>> {
        let roots = self.client_roots().await?;
        let builder = WebPkiClientVerifier::builder_with_provider(roots, tunnel::tls::provider());
        builder.allow_unauthenticated().build().ok()
    }

    async fn client_roots(&self) -> Option<Arc<RootCertStore>> {
        let known = self.client_ca.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((roots, at)) = &known
            && at.elapsed() < REREAD
        {
            return Some(roots.clone());
        }
        let path = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication";
        let map = match self.api.get(As::Hub, path).await {
            Ok(map) => map,
            Err(error) => {
                tracing::warn!(%error, "cannot read the cluster's client CA");
                return known.map(|(roots, _)| roots);
            }
        };
        let pem = map["data"]["client-ca-file"].as_str()?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()).flatten() {
            roots.add(certificate).ok()?;
        }
        let roots = Arc::new(roots);
        *self.client_ca.lock().unwrap_or_else(PoisonError::into_inner) = Some((roots.clone(), Instant::now()));
        Some(roots)
    }

    /// Who calls: by the certificate that TLS has verified, else by the bearer token.
    pub async fn authenticate(&self, certificate: Option<&[u8]>, headers: &http::HeaderMap) -> Option<Caller> {
        if let Some(caller) = certificate.and_then(caller_of) {
            return Some(caller);
        }
        let token = headers
            .get(header::AUTHORIZATION)?
            .to_str()
            .ok()?
            .strip_prefix("Bearer ")?;
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
        let path = "/apis/authentication.k8s.io/v1/tokenreviews";
        let answer = self
            .api
            .call(As::Hub, Method::POST, path, Send::Json(&review))
            .await
            .ok()?;
        let status = &answer["status"];
        if status["authenticated"] != true {
            return None;
        }
        let groups = status["user"]["groups"].as_array().into_iter().flatten();
        Some(Caller {
            user: status["user"]["username"].as_str()?.to_owned(),
            groups: groups.filter_map(Value::as_str).map(str::to_owned).collect(),
        })
    }

    /// Whether `caller` may do this on `node`.
    pub async fn authorize(&self, caller: &Caller, node: &str, method: &Method, path: &str) -> bool {
        let (verb, subresources) = attributes(method, path);
        for subresource in subresources {
            let key = format!("{caller:?} {node} {verb} {subresource}");
            let known = self
                .allowed
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get(&key)
                .copied();
            let allowed = match known.filter(|(_, at)| at.elapsed() < BELIEVE) {
                Some((allowed, _)) => allowed,
                None => {
                    let Some(allowed) = self.review(caller, node, (verb, subresource)).await else {
                        return false;
                    };
                    let mut all = self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
                    all.retain(|_, (_, at)| at.elapsed() < BELIEVE);
                    if all.len() < KEPT {
                        all.insert(key, (allowed, Instant::now()));
                    }
                    allowed
                }
            };
            if allowed {
                return true;
            }
        }
        false
    }

    async fn review(&self, caller: &Caller, node: &str, (verb, subresource): (&str, &str)) -> Option<bool> {
        let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {
            "user": caller.user, "groups": caller.groups,
            "resourceAttributes": {"verb": verb, "version": "v1", "resource": "nodes", "subresource": subresource, "name": node}}});
        let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        match self.api.call(As::Hub, Method::POST, path, Send::Json(&review)).await {
            Ok(answer) => Some(answer["status"]["allowed"] == true),
            Err(error) => {
                tracing::warn!(node, %error, "cannot ask whether a caller may use the kubelet API");
                None
            }
        }
    }
}

/// kubelet's mapping: the fine-grained subresource first, then `proxy`.
fn attributes(method: &Method, path: &str) -> (&'static str, Vec<&'static str>) {
    let under = |root: &str| path == root || path.starts_with(&format!("{root}/"));
    let streams = ["/exec", "/attach", "/portForward", "/run"];
    let verb = match *method {
        // An upgrade is a GET and still runs a command: `get` on nodes/proxy must not be enough.
        Method::GET if streams.iter().any(|root| under(root)) => "create",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    };
    let subresources = if under("/stats") {
        vec!["stats"]
    } else if under("/metrics") {
        vec!["metrics"]
    } else if under("/logs") {
        vec!["log"]
    } else if under("/pods") || under("/runningpods") {
        vec!["pods", "proxy"]
    } else if under("/healthz") {
        vec!["healthz", "proxy"]
    } else if under("/configz") {
        vec!["configz", "proxy"]
    } else {
        vec!["proxy"]
    };
    (verb, subresources)
}

/// User and groups in a client certificate: common name and organizations.
fn caller_of(certificate: &[u8]) -> Option<Caller> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let subject = certificate.subject();
    let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = subject
        .iter_organization()
        .filter_map(|o| o.as_str().ok())
        .map(str::to_owned)
        .collect();
    Some(Caller { user, groups })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_map_to_subresources_as_in_kubelet() {
        assert_eq!(attributes(&Method::GET, "/metrics/resource"), ("get", vec!["metrics"]));
        assert_eq!(attributes(&Method::GET, "/containerLogs/a/b/c"), ("get", vec!["proxy"]));
        assert_eq!(attributes(&Method::POST, "/exec/a/b/c"), ("create", vec!["proxy"]));
        assert_eq!(attributes(&Method::GET, "/exec/a/b/c"), ("create", vec!["proxy"]));
        assert_eq!(attributes(&Method::GET, "/pods"), ("get", vec!["pods", "proxy"]));
        assert_eq!(attributes(&Method::GET, "/metricsfoo"), ("get", vec!["proxy"]));
    }
}
