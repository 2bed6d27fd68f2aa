//! Who calls a node's kubelet API, and whether it may: as kubelet decides it with webhook authentication and authorization.
//!
//! - a client certificate of the cluster's client CA (ConfigMap kube-system/extension-apiserver-authentication), or a bearer token
//!   that TokenReview knows; else 401
//! - SubjectAccessReview on `nodes/SUBRESOURCE` with the request's verb (kubelet's table); else 403
//!
//! Answers are kept for [`CACHE_FOR`]. An API that does not answer means 503, never a yes.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use http::Method;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, PostParams};
use rustls::RootCertStore;
use rustls::server::{ResolvesServerCert, WebPkiClientVerifier};
use tokio::time::Instant;

/// How long a decision is believed: the time within which a withdrawn right ends.
const CACHE_FOR: Duration = Duration::from_secs(10);
/// Decisions kept; above, all are forgotten.
const CACHE_SIZE: usize = 4096;
/// A review that takes longer is given up.
const REVIEW_WITHIN: Duration = Duration::from_secs(5);
/// How often the cluster's client CA is read again.
const RELOAD_EVERY: Duration = Duration::from_secs(60);
/// Until it was read the first time.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// An authenticated caller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Caller {
    /// User name.
    pub user: String,
    /// Groups.
    pub groups: Vec<String>,
    /// Uid, or empty.
    pub uid: String,
    /// Extra attributes of a token.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// A caller could not be judged.
#[derive(Debug, thiserror::Error)]
pub enum CallerError {
    /// The API did not answer.
    #[error("ask the API for a {review}")]
    Review {
        /// What was asked.
        review: &'static str,
        /// Cause.
        #[source]
        source: Box<kube::Error>,
    },
    /// The API did not answer in time.
    #[error("the API did not answer a {0} in time")]
    Deadline(&'static str),
    /// A certificate that rustls let through has no readable subject.
    #[error("read a client certificate's subject")]
    Subject,
    /// TLS.
    #[error("set up TLS with the cluster's client CA")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Judges callers.
#[async_trait]
pub trait Callers: Send + Sync {
    /// The CA of client certificates; `None` while it is unknown.
    fn roots(&self) -> Option<Arc<RootCertStore>>;

    /// Whose token this is; `None` for nobody's.
    ///
    /// # Errors
    /// The API cannot be asked.
    async fn of_token(&self, token: &str) -> Result<Option<Caller>, CallerError>;

    /// Whether `caller` may `verb` on `nodes/SUBRESOURCE` of `node`.
    ///
    /// # Errors
    /// The API cannot be asked.
    async fn may(&self, caller: &Caller, node: &str, verb: &str, subresource: &str) -> Result<bool, CallerError>;
}

/// Asks the Kubernetes API.
pub struct KubeCallers {
    client: kube::Client,
    roots: RwLock<Option<Arc<RootCertStore>>>,
    tokens: Cache<String, Option<Caller>>,
    rights: Cache<(Caller, String, String, String), bool>,
}

impl std::fmt::Debug for KubeCallers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubeCallers").finish_non_exhaustive()
    }
}

impl KubeCallers {
    /// Over the hub's own account; knows no client CA until [`Self::run`] has read it.
    pub fn new(client: kube::Client) -> Self {
        Self {
            client,
            roots: RwLock::default(),
            tokens: Cache::default(),
            rights: Cache::default(),
        }
    }

    /// Reads the cluster's client CA, again and again, until it is dropped.
    pub async fn run(&self) {
        loop {
            let next = match self.load().await {
                Ok(()) => RELOAD_EVERY,
                Err(error) => {
                    tracing::warn!(%error, "cannot read the cluster's client CA: kubelet APIs take tokens only");
                    FIRST_RETRY
                }
            };
            tokio::time::sleep(next).await;
        }
    }

    async fn load(&self) -> Result<(), CallerError> {
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), "kube-system");
        let map = review("ConfigMap", api.get_opt("extension-apiserver-authentication")).await?;
        let pem = map
            .and_then(|map| map.data)
            .and_then(|mut data| data.remove("client-ca-file"));
        let roots = match pem {
            Some(pem) => {
                let roots = tunnel::tls::roots_from_pem(pem.as_bytes()).map_err(|e| CallerError::Tls(e.into()))?;
                Some(Arc::new(roots))
            }
            None => None,
        };
        *self.roots.write().unwrap_or_else(PoisonError::into_inner) = roots;
        Ok(())
    }
}

async fn review<T>(name: &'static str, asked: impl Future<Output = Result<T, kube::Error>>) -> Result<T, CallerError> {
    match tokio::time::timeout(REVIEW_WITHIN, asked).await {
        Ok(answer) => answer.map_err(|source| CallerError::Review {
            review: name,
            source: Box::new(source),
        }),
        Err(_) => Err(CallerError::Deadline(name)),
    }
}

#[async_trait]
impl Callers for KubeCallers {
    fn roots(&self) -> Option<Arc<RootCertStore>> {
        self.roots.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn of_token(&self, token: &str) -> Result<Option<Caller>, CallerError> {
        // The token itself is not kept.
        let key = digest(token);
        if let Some(known) = self.tokens.get(&key) {
            return Ok(known);
        }
        let question = TokenReview {
            spec: TokenReviewSpec {
                token: token.to_owned(),
                audiences: None,
            },
            ..TokenReview::default()
        };
        let api = Api::<TokenReview>::all(self.client.clone());
        let answer = review("TokenReview", api.create(&PostParams::default(), &question)).await?;
        let status = answer.status.unwrap_or_default();
        let user = status.user.filter(|_| status.authenticated == Some(true));
        let caller = user.map(|user| Caller {
            user: user.username.unwrap_or_default(),
            groups: user.groups.unwrap_or_default(),
            uid: user.uid.unwrap_or_default(),
            extra: user.extra.unwrap_or_default(),
        });
        self.tokens.put(key, caller.clone());
        Ok(caller)
    }

    async fn may(&self, caller: &Caller, node: &str, verb: &str, subresource: &str) -> Result<bool, CallerError> {
        let key = (caller.clone(), node.to_owned(), verb.to_owned(), subresource.to_owned());
        if let Some(known) = self.rights.get(&key) {
            return Ok(known);
        }
        let question = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(caller.user.clone()),
                groups: Some(caller.groups.clone()),
                uid: Some(caller.uid.clone()).filter(|uid| !uid.is_empty()),
                extra: Some(caller.extra.clone()).filter(|extra| !extra.is_empty()),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.to_owned()),
                    version: Some("v1".to_owned()),
                    resource: Some("nodes".to_owned()),
                    subresource: Some(subresource.to_owned()),
                    name: Some(node.to_owned()),
                    ..ResourceAttributes::default()
                }),
                non_resource_attributes: None,
            },
            ..SubjectAccessReview::default()
        };
        let api = Api::<SubjectAccessReview>::all(self.client.clone());
        let answer = review("SubjectAccessReview", api.create(&PostParams::default(), &question)).await?;
        let allowed = answer.status.is_some_and(|status| status.allowed);
        self.rights.put(key, allowed);
        Ok(allowed)
    }
}

fn digest(token: &str) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(token.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The identity in a client certificate that TLS has verified: CN is the user, each O a group.
///
/// # Errors
/// It has no readable subject.
pub fn of_certificate(der: &[u8]) -> Result<Caller, CallerError> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).map_err(|_| CallerError::Subject)?;
    let subject = certificate.subject();
    let user = subject
        .iter_common_name()
        .next()
        .and_then(|name| name.as_str().ok())
        .ok_or(CallerError::Subject)?;
    let groups = subject
        .iter_organization()
        .filter_map(|name| name.as_str().ok().map(str::to_owned));
    Ok(Caller {
        user: user.to_owned(),
        groups: groups.chain(["system:authenticated".to_owned()]).collect(),
        ..Caller::default()
    })
}

/// TLS of the kubelet APIs: a client certificate is optional, and one that is shown must verify.
///
/// # Errors
/// The CA cannot be used.
pub fn server_config(
    roots: Option<Arc<RootCertStore>>,
    certificate: Arc<dyn ResolvesServerCert>,
) -> Result<rustls::ServerConfig, CallerError> {
    let tls = |source: Box<dyn std::error::Error + Send + Sync>| CallerError::Tls(source);
    let builder = rustls::ServerConfig::builder_with_provider(tunnel::tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|e| tls(e.into()))?;
    let builder = match roots {
        Some(roots) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, tunnel::tls::provider())
                .allow_unauthenticated()
                .build()
                .map_err(|e| tls(e.into()))?;
            builder.with_client_cert_verifier(verifier)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Resumed sessions would show a certificate that was verified against an older CA.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// kubelet's table: the verb and the subresources of `nodes` of which one must be allowed, the finest first.
pub fn attributes(method: &Method, path: &str) -> (&'static str, &'static [&'static str]) {
    let under = |prefix: &str| path == prefix || path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'));
    let subresources: &[&str] = match () {
        () if under("/stats") => &["stats"],
        () if under("/metrics") => &["metrics"],
        () if under("/logs") => &["log"],
        () if under("/checkpoint") => &["checkpoint"],
        () if under("/pods") || under("/runningpods") => &["pods", "proxy"],
        () if under("/healthz") => &["healthz", "proxy"],
        () if under("/configz") => &["configz", "proxy"],
        () => &["proxy"],
    };
    let streams = ["/exec", "/attach", "/portForward", "/run"];
    // Since 1.35 these need `create` also when the upgrade is a GET.
    let verb = match *method {
        Method::GET | Method::HEAD if streams.iter().any(|prefix| under(prefix)) => "create",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    };
    (verb, subresources)
}

/// Answers with the time at which they expire.
struct Cache<K, V> {
    entries: Mutex<HashMap<K, (V, Instant)>>,
}

impl<K, V> Default for Cache<K, V> {
    fn default() -> Self {
        Self {
            entries: Mutex::default(),
        }
    }
}

impl<K: Eq + std::hash::Hash, V: Clone> Cache<K, V> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, (V, Instant)>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, key: &K) -> Option<V> {
        self.lock()
            .get(key)
            .filter(|(_, until)| *until > Instant::now())
            .map(|(value, _)| value.clone())
    }

    fn put(&self, key: K, value: V) {
        let mut entries = self.lock();
        if entries.len() >= CACHE_SIZE {
            entries.clear();
        }
        entries.insert(key, (value, Instant::now() + CACHE_FOR));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_kubelets() {
        let of = |method: Method, path: &str| attributes(&method, path);
        assert_eq!(of(Method::GET, "/containerLogs/a/b/c"), ("get", &["proxy"][..]));
        assert_eq!(of(Method::GET, "/exec/a/b/c"), ("create", &["proxy"][..]));
        assert_eq!(of(Method::POST, "/exec/a/b/c"), ("create", &["proxy"][..]));
        assert_eq!(of(Method::GET, "/metrics/resource"), ("get", &["metrics"][..]));
        assert_eq!(of(Method::GET, "/stats/summary"), ("get", &["stats"][..]));
        assert_eq!(of(Method::GET, "/pods"), ("get", &["pods", "proxy"][..]));
        assert_eq!(of(Method::GET, "/statsome"), ("get", &["proxy"][..]));
        assert_eq!(of(Method::GET, "/logs/"), ("get", &["log"][..]));
    }

    #[test]
    fn a_certificate_names_user_and_groups() {
        let mut params = rcgen::CertificateParams::default();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "kube-apiserver-kubelet-client");
        params
            .distinguished_name
            .push(rcgen::DnType::OrganizationName, "system:masters");
        let key = rcgen::KeyPair::generate().unwrap();
        let caller = of_certificate(params.self_signed(&key).unwrap().der()).unwrap();
        assert_eq!(caller.user, "kube-apiserver-kubelet-client");
        assert_eq!(caller.groups, ["system:masters", "system:authenticated"]);
        assert!(of_certificate(b"no certificate").is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_decision_is_believed_for_ten_seconds() {
        let cache = Cache::default();
        cache.put("k", true);
        assert_eq!(cache.get(&"k"), Some(true));
        tokio::time::advance(CACHE_FOR).await;
        assert_eq!(cache.get(&"k"), None);
    }
}
