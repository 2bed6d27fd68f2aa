//! The controllers above an unmodified kube-apiserver without kube-controller-manager and kube-scheduler: what kubectl does
//! there behaves as with the real ones.
//!
//! One API server for all scenarios, each in its own namespace and all at once.

mod plane;
mod scenarios;

use std::path::Path;
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context, Result, bail};
use kit::Real;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use plane::{Kubectl, Nodes};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// Everything a scenario gets.
#[derive(Clone)]
struct World {
    kubectl: Kubectl,
    nodes: Nodes,
}

async fn client(kubeconfig: &Path) -> Result<Client> {
    let config = Kubeconfig::read_from(kubeconfig)?;
    let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// As `user` with its groups, by impersonation: the real default roles decide.
async fn acting(kubeconfig: &Path, user: controllers::User) -> Result<Client> {
    let config = Kubeconfig::read_from(kubeconfig)?;
    let mut config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
    config.auth_info.impersonate = Some(user.name.into());
    config.auth_info.impersonate_groups = Some(user.groups.iter().map(|group| (*group).to_owned()).collect());
    Ok(Client::try_from(config)?)
}

fn config() -> controllers::Config {
    controllers::Config {
        root_ca: "-----BEGIN CERTIFICATE-----".into(),
        node_grace: Duration::from_secs(4),
        node_period: Duration::from_millis(300),
        orphan_quarantine: Duration::from_secs(1),
        ..controllers::Config::default()
    }
}

/// Runs all scenarios above the API of `kubeconfig`.
fn run_all(kubeconfig: &Path, kubectl: &Kubectl) -> Result<()> {
    let runtime = Runtime::new()?;
    let manifest = kubeconfig.with_file_name("controllers.yaml");
    fs::write(&manifest, controllers::RBAC)?;
    kubectl.run(&["apply", "-n", "kedge-system", "-f", &manifest.to_string_lossy()])?;
    let client = runtime.block_on(client(kubeconfig))?;
    let nodes = Nodes::new(&client, &["edge-1", "edge-2", plane::AWAY]);
    let mut tasks = JoinSet::new();
    let guard = runtime.enter();
    tasks.spawn({
        let nodes = nodes.clone();
        async move {
            nodes.run().await;
            Ok(())
        }
    });
    let clients = runtime.block_on(controllers::Clients::connect(async |user| {
        acting(kubeconfig, user).await
    }))?;
    tasks.spawn(controllers::run(clients, config(), std::future::pending()));
    drop(guard);
    let world = World {
        kubectl: kubectl.clone(),
        nodes,
    };
    let failures = run_scenarios(&world);
    if let Some(ended) = runtime.block_on(async { tasks.try_join_next() }) {
        bail!("a task ended: {ended:?}; {failures:?}");
    }
    if !failures.is_empty() {
        bail!("{}", failures.join("\n"));
    }
    Ok(())
}

fn run_scenarios(world: &World) -> Vec<String> {
    thread::scope(|scope| {
        let running: Vec<_> = scenarios::ALL
            .iter()
            .map(|(name, scenario)| (name, scope.spawn(move || scenario(world))))
            .collect();
        running
            .into_iter()
            .filter_map(|(name, handle)| match handle.join() {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(format!("{name}: {error:#}")),
                Err(_) => Some(format!("{name}: panicked")),
            })
            .collect()
    })
}

#[test]
fn kubectl_sees_a_whole_control_plane_above_kube_apiserver() -> Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let real = Real::start().context("start the API server")?;
    run_all(&real.kubeconfig, &Kubectl::new(&real.kubeconfig, real.dir()))
}
