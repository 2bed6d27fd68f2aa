//! Wires the hub: the only place that knows all parts.
//!
//! Tasks have names; the first that ends unexpectedly stops the process and is named. Stop order: not ready, goodbye to the
//! sessions, then the embedded API where there is one, then everything else is dropped.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::admin;
use crate::config::Config;
use crate::embedded;
use crate::identity::Identity;
use crate::identity::listener::JoinListener;
use crate::kube_api::KubeApi;
use crate::kubelet_proxy::authority::Authority;
use crate::kubelet_proxy::{self, KubeletProxy};
use crate::lineage::Points;
use crate::node_api::NodeApi;
use crate::registry::Registry;
use crate::reports::Reports;
use crate::session::{self, Deps};
use crate::writer::Writer;

/// How often a start that the API does not answer yet is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// How long the embedded API may take to end after the sessions have.
const API_END: Duration = Duration::from_secs(5);

/// The hub's tasks by name.
#[derive(Debug, Default)]
pub(crate) struct Tasks(JoinSet<&'static str>);

impl Tasks {
    pub(crate) fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(async move {
            task.await;
            name
        });
    }

    /// Waits until task `name` has ended, or no task is left.
    async fn ended(&mut self, name: &str) {
        while let Some(ended) = self.0.join_next().await {
            if ended.is_ok_and(|ended| ended == name) {
                return;
            }
        }
    }
}

/// A hub with its listeners bound.
pub struct App {
    tunnel: Arc<tunnel::Hub>,
    join_address: SocketAddr,
    tasks: Tasks,
    stop: watch::Sender<bool>,
    /// What the API in this process stops by.
    stop_api: watch::Sender<bool>,
    embedded: bool,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App")
            .field("join_address", &self.join_address)
            .finish_non_exhaustive()
    }
}

/// Builds every part and binds every listener.
///
/// # Errors
/// When a listener cannot be bound, or the API refuses what the hub needs.
pub async fn build(config: Config) -> Result<App> {
    let admin_listener = admin::bind(&config.admin_socket)?;
    let ((stop, stopped), (stop_api, api_stopped)) = (watch::channel(false), watch::channel(false));
    let mut tasks = Tasks::default();
    let kube_config = if config.embedded {
        Box::pin(embedded::start(&config, &mut tasks, api_stopped)).await?
    } else {
        kube_config(&config).await?
    };
    let api = KubeApi::new(kube_config).context("set up the API client")?;
    let client = api.client().clone();
    let identity = load_identity(client.clone()).await?;
    let points = if config.embedded { Points::ByApi } else { Points::ByHub };
    let registry = Registry::new(api.clone(), points);
    let tunnel = Arc::new(bind_tunnel(&config, &identity)?);
    let join = bind_join(&config, &identity, &tunnel).await?;
    let proxy = Arc::new(KubeletProxy::new(kubelet_proxy::Config {
        advertise: config.advertise.clone(),
        ports: config.ports()?,
        identity: identity.clone(),
        authority: Authority::new(api.clone()),
        tunnel: tunnel.clone(),
        registry: registry.clone(),
    }));
    let writer = Writer::new(api, registry.clone(), identity.clone(), proxy);
    let reports: Arc<dyn Reports> = Arc::new(writer.clone());
    let deps = Deps {
        registry: registry.clone(),
        reports,
        node_api: NodeApi::new(writer.clone(), identity.clone()),
    };

    let join_address = join.local_addr();
    tasks.spawn("registry", registry.clone().run());
    tasks.spawn("writer", writer.run());
    tasks.spawn("sessions", session::accept(tunnel.clone(), deps));
    tasks.spawn("join listener", join.run(stopped.clone()));
    let revoking = tunnel.clone();
    let revoked = move |node: &str| {
        revoking.revoke(node);
    };
    tasks.spawn("identity", identity.run(client, revoked, stopped));
    let pages = admin::Pages {
        registry,
        tunnel: tunnel.clone(),
        config: serde_json::to_value(&config)?,
    };
    tasks.spawn("admin socket", admin::serve(admin_listener, pages));
    tracing::info!(tunnel = %tunnel.local_addr(), join = %join_address, advertise = config.advertise, "cloudhub is up");
    Ok(App {
        tunnel,
        join_address,
        tasks,
        stop,
        stop_api,
        embedded: config.embedded,
    })
}

/// The join listener, whose port the tunnel shares for sites that block UDP.
async fn bind_join(config: &Config, identity: &Arc<Identity>, tunnel: &tunnel::Hub) -> Result<JoinListener> {
    let tunnel_address = format!("{}:{}", config.advertise, tunnel.local_addr().port());
    let certificate = identity.serving(std::slice::from_ref(&config.advertise))?;
    let listener = JoinListener::bind(config.join_listen, identity.clone(), certificate, vec![tunnel_address]);
    Ok(listener.await?.shared_with(tunnel.tcp_door()))
}

async fn kube_config(config: &Config) -> Result<kube::Config> {
    if config.kubeconfig.as_os_str().is_empty() {
        return kube::Config::incluster().context("no kubeconfig is given, and this is no pod with a service account");
    }
    let file = kube::config::Kubeconfig::read_from(&config.kubeconfig)
        .with_context(|| format!("read {}", config.kubeconfig.display()))?;
    Ok(kube::Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default()).await?)
}

/// A hub that starts before its API waits for it.
async fn load_identity(client: kube::Client) -> Result<Arc<Identity>> {
    for _ in 0..30 {
        match Identity::load(client.clone()).await {
            Ok(identity) => return Ok(identity),
            Err(error) => tracing::warn!(error = format!("{:#}", anyhow::Error::from(error)), "no identities yet"),
        }
        tokio::time::sleep(RETRY).await;
    }
    bail!("the API does not give the hub its identities; the warnings above say why")
}

fn bind_tunnel(config: &Config, identity: &Arc<Identity>) -> Result<tunnel::Hub> {
    let hub = tunnel::HubConfig {
        listen: config.tunnel_listen,
        listen_tcp: config.tunnel_tcp_listen.clone(),
        certificate: identity.serving(std::slice::from_ref(&config.advertise))?,
        client_roots: Arc::new(identity.tunnel_ca().roots()?),
        hub_instance: rand::random(),
        addresses: Vec::new(),
        limits: tunnel::Limits::default(),
        keys: identity.quic_keys().clone(),
        admission: identity.nodes().clone(),
        dormant_for: tunnel::DORMANT_FOR,
    };
    tunnel::Hub::bind(hub).context("open the tunnel")
}

impl App {
    /// Where the join listener listens.
    pub fn join_address(&self) -> SocketAddr {
        self.join_address
    }

    /// Runs until SIGTERM or SIGINT.
    ///
    /// # Errors
    /// When a task ends that should not: it is named.
    pub async fn run(mut self) -> Result<()> {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let ended = tokio::select! {
            _ = terminate.recv() => None,
            _ = tokio::signal::ctrl_c() => None,
            ended = self.tasks.0.join_next() => Some(ended),
        };
        self.stop.send_replace(true);
        self.tunnel.shutdown("the hub stops").await;
        self.stop_api.send_replace(true);
        if self.embedded
            && ended.is_none()
            && tokio::time::timeout(API_END, self.tasks.ended("embedded API"))
                .await
                .is_err()
        {
            tracing::warn!("the embedded API did not end within {API_END:?}");
        }
        match ended {
            None => {
                tracing::info!("stopped");
                Ok(())
            }
            Some(Some(Ok(name))) => bail!("task {name} ended unexpectedly"),
            Some(Some(Err(error))) => bail!("a task failed: {error}"),
            Some(None) => bail!("no task is left"),
        }
    }
}
