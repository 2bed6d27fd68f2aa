//! Wires the hub: the only place that knows all parts.
//!
//! Tasks have names; the first that ends unexpectedly stops the process and is named. Stop order: not ready, goodbye to the
//! sessions, then everything else is dropped.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::admin;
use crate::config::Config;
use crate::identity::Identity;
use crate::identity::listener::JoinListener;
use crate::kube_api::KubeApi;
use crate::kubelet_proxy::authority::Authority;
use crate::kubelet_proxy::{self, KubeletProxy};
use crate::node_api::NodeApi;
use crate::registry::Registry;
use crate::reports::Reports;
use crate::session::{self, Deps};
use crate::writer::Writer;

/// How often a start that the API does not answer yet is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// A hub with its listeners bound.
pub struct App {
    tunnel: Arc<tunnel::Hub>,
    join_address: SocketAddr,
    tasks: JoinSet<&'static str>,
    stop: watch::Sender<bool>,
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
    let client = client(&config).await?;
    let admin_listener = admin::bind(&config.admin_socket)?;
    let identity = load_identity(client.clone()).await?;
    let api = KubeApi::new(client.clone());
    let registry = Registry::new(api.clone());
    let tunnel = Arc::new(bind_tunnel(&config, &identity)?);
    let tunnel_address = format!("{}:{}", config.advertise, tunnel.local_addr().port());
    let certificate = identity.serving(std::slice::from_ref(&config.advertise))?;
    let join = JoinListener::bind(config.join_listen, identity.clone(), certificate, vec![tunnel_address]).await?;
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

    let (stop, stopped) = watch::channel(false);
    let join_address = join.local_addr();
    let mut app = App {
        tunnel: tunnel.clone(),
        join_address,
        tasks: JoinSet::new(),
        stop,
    };
    app.spawn("registry", registry.clone().run());
    app.spawn("writer", writer.run());
    app.spawn("sessions", session::accept(tunnel.clone(), deps));
    app.spawn("join listener", join.run(stopped.clone()));
    let revoking = tunnel.clone();
    let revoked = move |node: &str| {
        revoking.revoke(node);
    };
    app.spawn("identity", identity.run(client, revoked, stopped));
    app.spawn(
        "admin socket",
        admin::serve(admin_listener, registry, serde_json::to_value(&config)?),
    );
    tracing::info!(tunnel = %tunnel.local_addr(), join = %join_address, advertise = config.advertise, "cloudhub is up");
    Ok(app)
}

async fn client(config: &Config) -> Result<kube::Client> {
    let kube_config = if config.kubeconfig.as_os_str().is_empty() {
        kube::Config::incluster().context("no kubeconfig is given, and this is no pod with a service account")?
    } else {
        let file = kube::config::Kubeconfig::read_from(&config.kubeconfig)
            .with_context(|| format!("read {}", config.kubeconfig.display()))?;
        kube::Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default()).await?
    };
    kube::Client::try_from(kube_config).context("set up the API client")
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
        certificate: identity.serving(std::slice::from_ref(&config.advertise))?,
        client_roots: Arc::new(identity.tunnel_ca().roots()?),
        hub_instance: rand::random(),
        addresses: Vec::new(),
        limits: tunnel::Limits::default(),
        keys: identity.quic_keys().clone(),
        admission: identity.nodes().clone(),
    };
    tunnel::Hub::bind(hub).context("open the tunnel")
}

impl App {
    /// Where the join listener listens.
    pub fn join_address(&self) -> SocketAddr {
        self.join_address
    }

    fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(async move {
            task.await;
            name
        });
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
            ended = self.tasks.join_next() => Some(ended),
        };
        self.stop.send_replace(true);
        self.tunnel.shutdown("the hub stops").await;
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
