//! Puts the parts together: opens the store, makes what must be there, binds the listener.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::auth::{self, Auth};
use crate::bootstrap;
use crate::http::{self, Shared};
use crate::kinds::{self, services::Ranges};
use crate::kubelet::Kubelets;
use crate::metrics::Metrics;
use crate::object;
use crate::pki::{self, Pki, PkiError};
use crate::registry::Registry;
use crate::status::Status;
use crate::store::{Committer, Expect, Key, Store};

/// The Kubernetes minor that is implemented.
pub const KUBERNETES: &str = "v1.36.3";
/// Events are kept for an hour, as kube-apiserver's `--event-ttl`.
const EVENT_TTL: time::Duration = time::Duration::hours(1);
const EVENT_SWEEP: Duration = Duration::from_secs(60);
const ISSUER: &str = "https://kubernetes.default.svc";

/// What the API server must know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Holds store/, pki/ and admin.kubeconfig.
    pub data: PathBuf,
    /// Where to listen.
    pub listen: SocketAddr,
    /// DNS names and addresses of the serving certificate, beside those of the `kubernetes` Service and of this machine.
    pub names: Vec<String>,
    /// First address and prefix length of the Services' network.
    pub service_range: (Ipv4Addr, u8),
    /// Default toleration of not-ready, seconds.
    pub not_ready_toleration_seconds: i64,
    /// Default toleration of unreachable, seconds.
    pub unreachable_toleration_seconds: i64,
    /// Namespace and name of the Secret whose `tls.crt` signs the kubelet APIs' certificates.
    pub kubelet_ca: (String, String),
    /// What each start writes before anything else can be written.
    pub first_write: Option<FirstWrite>,
}

/// A change of an object, where it is there, that each start makes before any other write: so a database that is put back
/// to an earlier state shows where it went on.
#[derive(Debug, Clone)]
pub struct FirstWrite {
    /// The object's kind.
    pub plural: &'static str,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The change; it is told the resourceVersion that it gets.
    pub change: fn(&mut Value, u64),
}

/// Why the API server did not start.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The store.
    #[error("open the API's store in {path}")]
    Store {
        /// Where.
        path: PathBuf,
        /// Cause.
        source: Box<metastore::OpenError>,
    },
    /// Certificates.
    #[error("the API's certificates")]
    Pki(#[from] PkiError),
    /// The service account key.
    #[error("the key of service account tokens: {0}")]
    Accounts(String),
    /// The Services' network.
    #[error("the range of Services: {0}")]
    Ranges(String),
    /// An object that must be there could not be made.
    #[error("make {what}")]
    Bootstrap {
        /// Which.
        what: String,
        /// Cause.
        source: Box<Status>,
    },
    /// The socket.
    #[error("listen on {address}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Cause.
        source: std::io::Error,
    },
}

/// An API server that is ready to run.
pub struct Server {
    pki: Pki,
    listener: TcpListener,
    address: SocketAddr,
    tls: TlsAcceptor,
    shared: Arc<Shared>,
    tasks: JoinSet<&'static str>,
}

/// Opens everything; nothing is served before [`Server::run`].
///
/// # Errors
/// [`BuildError`] names what failed.
pub async fn build(config: Config) -> Result<Server, BuildError> {
    let pki = Pki::load(&config.data)?;
    let (store, committer) = open(config.data.join("store")).await?;
    let mut tasks = JoinSet::new();
    tasks.spawn(commit(committer));
    write_first(&store, config.first_write.as_ref()).await?;
    let auth = auth::Config {
        issuer: ISSUER.into(),
        audiences: vec![ISSUER.into()],
        signing_key_pem: pki.accounts_key.clone(),
        not_ready_toleration_seconds: config.not_ready_toleration_seconds,
        unreachable_toleration_seconds: config.unreachable_toleration_seconds,
    };
    let auth = Auth::new(store.clone(), auth).map_err(BuildError::Accounts)?;
    let (network, bits) = config.service_range;
    let ranges = Ranges::parse(&format!("{network}/{bits}")).map_err(BuildError::Ranges)?;
    let service = ranges.first().to_string();
    let registry = Registry::new(store.clone(), auth.admission(), ranges);
    let bind = |source| BuildError::Bind {
        address: config.listen,
        source,
    };
    let listener = TcpListener::bind(config.listen).await.map_err(bind)?;
    let address = listener.local_addr().map_err(bind)?;
    make_objects(&registry, &pki).await?;
    for (plural, object) in own_service(&config, address, &service) {
        made(&format!("{plural} kubernetes"), keep(&registry, plural, object).await)?;
    }
    let tls = pki.tls(&names(&config, service))?;
    let client = pki.client("kube-apiserver-kubelet-client", &["system:masters"])?;
    let kubelets = Kubelets::new(
        store.clone(),
        (client.certificate, client.key),
        config.kubelet_ca.clone(),
    );
    let shared = Shared {
        registry,
        auth,
        kubelets,
        metrics: Metrics::default(),
        places: Shared::places(),
        version: version(),
        address,
    };
    tasks.spawn(sweep_events(store));
    let server = Server {
        pki,
        listener,
        address,
        tls: TlsAcceptor::from(Arc::new(tls)),
        shared: Arc::new(shared),
        tasks,
    };
    pki::write_secret(
        &config.data.join("admin.kubeconfig"),
        &server.kubeconfig("admin", &["system:masters"])?,
    )?;
    Ok(server)
}

async fn open(path: PathBuf) -> Result<(Store, Committer), BuildError> {
    let at = path.clone();
    let opened = tokio::task::spawn_blocking(move || {
        std::fs::create_dir_all(&path).ok();
        Store::open(&path)
    });
    let opened = opened
        .await
        .expect("opening does not panic: metastore catches sled's panics");
    opened.map_err(|source| BuildError::Store {
        path: at,
        source: Box::new(source),
    })
}

async fn write_first(store: &Store, first: Option<&FirstWrite>) -> Result<(), BuildError> {
    let Some(first) = first else { return Ok(()) };
    let what = format!("{} {}", first.plural, first.name);
    let row = kinds::rows().find(|row| row.plural == first.plural);
    let Some(row) = row else {
        return made(&what, Err(Status::no_such_path()));
    };
    let key = Key::new(row.storage, &first.namespace, &first.name);
    let Some(stored) = store.latest(&key) else {
        return Ok(());
    };
    let mut object = stored.value();
    (first.change)(&mut object, store.version() + 1);
    let put = store.put(key, Expect::Version(stored.resource_version), object).await;
    made(
        &what,
        put.map(|_| ()).map_err(|error| crate::registry::unavailable(&error)),
    )
}

async fn commit(committer: Committer) -> &'static str {
    committer.run().await;
    "store"
}

/// What the serving certificate is for.
fn names(config: &Config, service: String) -> Vec<String> {
    let fixed = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ];
    let mut names: Vec<String> = fixed
        .into_iter()
        .chain(["localhost", "127.0.0.1"])
        .map(str::to_owned)
        .collect();
    names.push(service);
    let listen = config.listen.ip();
    if !listen.is_unspecified() {
        names.push(listen.to_string());
    }
    for name in &config.names {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}

fn version() -> Value {
    json!({"major": "1", "minor": "36", "gitVersion": format!("{KUBERNETES}+kedge"), "gitCommit": "", "gitTreeState": "clean",
           "buildDate": "", "goVersion": "", "compiler": "rustc", "platform": format!("linux/{}", architecture())})
}

/// Go's word for this machine's architecture.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn made(what: &str, result: Result<(), Status>) -> Result<(), BuildError> {
    result.map_err(|source| BuildError::Bootstrap {
        what: what.into(),
        source: Box::new(source),
    })
}

async fn make_objects(registry: &Registry, pki: &Pki) -> Result<(), BuildError> {
    for (group, plural, object) in bootstrap::objects() {
        let what = format!("{plural} {}", object::name(&object));
        let version = object::text(&object, "/apiVersion")
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .to_owned();
        let result = match kinds::row(group, &version, plural) {
            Some(row) => registry.ensure(row, object).await,
            None => Err(Status::internal(format!("{what} is of a kind that is not served"))),
        };
        made(&what, result)?;
    }
    let authentication = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
        "data": {"client-ca-file": pki.ca},
    });
    made(
        "ConfigMap extension-apiserver-authentication",
        keep(registry, "configmaps", authentication).await,
    )
}

/// The `kubernetes` Service at its address, and where it leads.
fn own_service(config: &Config, address: SocketAddr, service: &str) -> [(&'static str, Value); 2] {
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let named = config.names.iter().find(|name| name.parse::<Ipv4Addr>().is_ok());
    let endpoint = if address.ip().is_unspecified() {
        named.cloned()
    } else {
        Some(address.ip().to_string())
    };
    let endpoint = endpoint.unwrap_or_else(|| "127.0.0.1".into());
    [
        (
            "services",
            json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
                "spec": {"type": "ClusterIP", "clusterIP": service, "clusterIPs": [service], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
                         "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": address.port()}],
                         "sessionAffinity": "None", "internalTrafficPolicy": "Cluster"},
            }),
        ),
        (
            "endpointslices",
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
                "endpoints": [{"addresses": [endpoint], "conditions": {"ready": true}}],
                "ports": [{"name": "https", "protocol": "TCP", "port": address.port()}],
            }),
        ),
    ]
}

/// Makes the object, or makes the one that is there say the same: what it says follows this start's configuration.
async fn keep(registry: &Registry, plural: &str, wanted: Value) -> Result<(), Status> {
    let row = kinds::rows()
        .find(|r| r.plural == plural)
        .ok_or_else(Status::no_such_path)?;
    registry.ensure(row, wanted.clone()).await?;
    let store = registry.store();
    let key = Key::new(row.storage, object::namespace(&wanted), object::name(&wanted));
    let Some(stored) = store.latest(&key) else {
        return Ok(());
    };
    let current = stored.value();
    let mut object = current.clone();
    for field in ["data", "spec", "endpoints", "ports", "addressType"] {
        if let Some(value) = wanted.get(field) {
            object[field] = value.clone();
        }
    }
    row.strategy.default(&mut object);
    if object == current {
        return Ok(());
    }
    let put = store.put(key, Expect::Version(stored.resource_version), object).await;
    put.map(|_| ()).map_err(|error| crate::registry::unavailable(&error))
}

/// Removes events that nobody has touched for an hour.
async fn sweep_events(store: Store) -> &'static str {
    loop {
        tokio::time::sleep(EVENT_SWEEP).await;
        let old = object::now() - EVENT_TTL;
        let (_, events) = store.list("events", None, None, usize::MAX);
        for stored in events {
            let event = stored.value();
            let last = [
                "/series/lastObservedTime",
                "/lastTimestamp",
                "/eventTime",
                "/metadata/creationTimestamp",
            ]
            .iter()
            .filter_map(|pointer| object::parse_time(object::text(&event, pointer)))
            .max();
            if last.is_some_and(|last| last < old) {
                // One that was just touched again stays.
                let _ = store
                    .delete(stored.key.clone(), Expect::Version(stored.resource_version), None)
                    .await;
            }
        }
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// The bound address.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The CA of the serving certificate, PEM.
    pub fn root_ca(&self) -> &str {
        &self.pki.ca
    }

    /// A kubeconfig of `user` in `groups`, with a certificate of its own.
    ///
    /// # Errors
    /// When the certificate cannot be made.
    pub fn kubeconfig(&self, user: &str, groups: &[&str]) -> Result<String, BuildError> {
        let host = if self.address.ip().is_unspecified() {
            "127.0.0.1".into()
        } else {
            self.address.ip().to_string()
        };
        let url = format!("https://{host}:{}", self.address.port());
        Ok(self.pki.kubeconfig(&url, user, groups)?)
    }

    /// Serves until `stop` says so. Ends earlier only when a part of it does.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        tracing::info!(address = %self.address, "the embedded Kubernetes API is up");
        let serving = http::serve(self.listener, self.tls, self.shared);
        tokio::select! {
            () = serving => {}
            ended = self.tasks.join_next() => tracing::error!(task = ?ended, "a part of the embedded API ended"),
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTED: &str = "/metadata/annotations/at";

    fn config(data: &std::path::Path) -> Config {
        Config {
            data: data.to_owned(),
            listen: "127.0.0.1:0".parse().unwrap(),
            names: Vec::new(),
            service_range: (Ipv4Addr::new(10, 96, 0, 0), 16),
            not_ready_toleration_seconds: 300,
            unreachable_toleration_seconds: 300,
            kubelet_ca: ("kedge-system".into(), "ca-serving".into()),
            first_write: Some(FirstWrite {
                plural: "configmaps",
                namespace: "kube-system".into(),
                name: "extension-apiserver-authentication".into(),
                change: |object, revision| object["metadata"]["annotations"] = json!({"at": revision.to_string()}),
            }),
        }
    }

    /// The last start's tasks let go of the store a moment after they were dropped.
    async fn start(data: &std::path::Path) -> Server {
        for _ in 0..100 {
            match Box::pin(build(config(data))).await {
                Ok(server) => return server,
                Err(BuildError::Store { .. }) => tokio::time::sleep(Duration::from_millis(50)).await,
                Err(error) => panic!("{error}"),
            }
        }
        panic!("the store stays locked");
    }

    fn noted(server: &Server) -> (String, u64) {
        let key = Key::new("configmaps", "kube-system", "extension-apiserver-authentication");
        let stored = server.shared.registry.store().get(&key).unwrap();
        (object::text(&stored.value(), NOTED).to_owned(), stored.resource_version)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_first_write_of_a_start_is_above_all_that_was_and_below_all_that_comes() {
        let dir = tempfile::tempdir().unwrap();
        let mut server = start(dir.path()).await;
        assert_eq!(noted(&server).0, "", "there was nothing to change");
        for _ in 0..2 {
            let before = server.shared.registry.store().version();
            drop(server);
            server = start(dir.path()).await;
            assert_eq!(noted(&server), ((before + 1).to_string(), before + 1));
        }
    }
}
