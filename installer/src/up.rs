//! `kedge up`: an embedded hub and one edge node on this machine, in the background; `kedge up --down` removes all of it.
//!
//! `installer/up` (a script) gets and builds what is needed and then calls this. Everything is under two folders ([`layout::Layout`]):
//! STATE (binaries, configuration, the hub's data, the node's, containerd's) and RUN (sockets, process records, mounts).
//!
//! ```text
//! containerd → images → cloudhub → token → join → edgecore → node Ready → demo workload → Running
//! ```
//!
//! Each step looks first whether it is done, so a second run converges: an unchanged service is left alone, a changed one restarted.
//! On failure it stops where it is and says which log to read; nothing is undone, and a second run goes on from there.

mod address;
mod cluster;
mod down;
mod kubectl;
mod layout;
mod service;
pub(crate) mod supervise;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use layout::Layout;

/// The hub's ports by default: not 6443 and 6444, which a cluster on this machine may have.
const API_PORT: u16 = 16443;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Remove everything that this command made
    #[arg(long)]
    down: bool,
    /// Where everything goes
    #[arg(long, default_value = "/var/lib/kedge-up")]
    state: PathBuf,
    /// Where sockets and process records go
    #[arg(long, default_value = "/run/kedge-up")]
    run: PathBuf,
    /// The node's name [default: this machine's host name]
    #[arg(long)]
    node: Option<String>,
    /// Port of the embedded API; the next one is the hub's for its edges
    #[arg(long, default_value_t = API_PORT)]
    port: u16,
    /// Folders of containerd, its shim and runc, before the system's own; more than once for more
    #[arg(long)]
    path: Vec<PathBuf>,
    /// Folder of the CNI plugins
    #[arg(long, default_value = "/opt/cni/bin")]
    cni: PathBuf,
    /// kubectl
    #[arg(long, default_value = "kubectl")]
    kubectl: PathBuf,
    /// Kubeconfig of a cluster to put the hub above, in place of an API of its own
    #[arg(long)]
    cluster: Option<PathBuf>,
    /// Start nothing by systemd, even where it runs
    #[arg(long)]
    no_systemd: bool,
    /// Start the hub and the node, but no demo workload
    #[arg(long)]
    no_demo: bool,
}

pub(crate) async fn run(args: Args) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("this needs root: containers, namespaces and mounts are made");
    }
    let layout = Layout::new(&args.state, &args.run)?;
    if args.down {
        return down::run(&layout).await;
    }
    up(&args, &layout).await
}

/// Says what is being done; the last word of progress is in the next line.
pub(crate) fn say(text: &str) {
    println!("kedge up: {text}");
}

async fn up(args: &Args, layout: &Layout) -> Result<()> {
    let node = node_name(args)?;
    layout.make()?;
    let services = service::Services::new(layout, args.no_systemd);
    ports_free(args.port, &services)?;
    let plan = plan(args, &node)?;
    say("containerd");
    layout.write_containerd(&plan)?;
    services.ensure(&layout.containerd_service(&plan)?)?;
    wait_for(
        "containerd answers",
        &layout.log("containerd"),
        Duration::from_secs(60),
        async || crate::up::cluster::containerd_version(layout).await,
    )
    .await?;
    import_images(layout)?;
    say("hub");
    if plan.cluster.is_none() {
        address::ensure(layout)?;
    }
    services.ensure(&layout.cloudhub_service(&plan)?)?;
    wait_for(
        "the hub is ready",
        &layout.log("cloudhub"),
        Duration::from_secs(90),
        async || cluster::ready(&layout.hub_socket(), "/readyz").await,
    )
    .await?;
    cluster::join(layout, &plan).await?;
    say(&format!("node {node}"));
    services.ensure(&layout.edgecore_service(&plan)?)?;
    let kubectl = kubectl::Kubectl::new(&args.kubectl, layout, layout.kubeconfig(&plan))?;
    wait_for(
        "the node is Ready",
        &layout.log("edgecore"),
        Duration::from_secs(120),
        async || kubectl.node_ready(&node),
    )
    .await?;
    if !args.no_demo {
        say("demo workload");
        kubectl.apply_demo()?;
        wait_for(
            "the demo is Running",
            &layout.log("edgecore"),
            Duration::from_secs(180),
            async || kubectl.demo_ready(),
        )
        .await?;
    }
    report(&kubectl, layout, &plan)
}

fn plan(args: &Args, node: &str) -> Result<layout::Plan> {
    let cluster = args.cluster.as_ref().map(|file| file.canonicalize());
    let cluster = cluster.transpose().context("find the kubeconfig of --cluster")?;
    Ok(layout::Plan {
        node: node.to_owned(),
        port: args.port,
        path: args.path.clone(),
        cni: args.cni.clone(),
        cluster,
    })
}

fn node_name(args: &Args) -> Result<String> {
    let node = match &args.node {
        Some(node) => node.clone(),
        None => nix::unistd::gethostname()?.to_string_lossy().to_lowercase(),
    };
    if !crate::token::is_node_name(&node) {
        bail!("{node:?} can be no node's name (lower case letters, digits, '-' and '.'): give one with --node");
    }
    Ok(node)
}

/// A port that another program has is told before anything is started.
fn ports_free(port: u16, services: &service::Services<'_>) -> Result<()> {
    if services.runs("cloudhub") {
        return Ok(());
    }
    for port in [port, port.saturating_add(1)] {
        TcpListener::bind(("127.0.0.1", port))
            .with_context(|| format!("port {port} of 127.0.0.1 is taken: give another with --port"))?;
    }
    Ok(())
}

fn import_images(layout: &Layout) -> Result<()> {
    say("images kedge.dev/pause:1 and kedge.dev/demo:1");
    let done = Command::new(layout.binary("images")?)
        .args(["import", "--namespace", "k8s.io", "--socket"])
        .arg(layout.containerd_socket())
        .args(["pause.tar", "demo.tar"].map(|name| layout.images().join(name)))
        .output()
        .context("run images import")?;
    if !done.status.success() {
        bail!("images import: {}", String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(())
}

/// Waits for `check`, saying each new reason for not being there yet.
async fn wait_for(
    what: &str,
    log: &Path,
    within: Duration,
    mut check: impl AsyncFnMut() -> Result<(), String>,
) -> Result<()> {
    let begun = Instant::now();
    let mut said = String::new();
    loop {
        let Err(reason) = check().await else {
            return Ok(());
        };
        if begun.elapsed() > within {
            bail!(
                "{what}: not within {} s: {reason}; see {}",
                within.as_secs(),
                log.display()
            );
        }
        if reason != said && begun.elapsed() > Duration::from_secs(2) {
            say(&format!("waiting until {what}: {reason}"));
            said = reason;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

fn report(kubectl: &kubectl::Kubectl, layout: &Layout, plan: &layout::Plan) -> Result<()> {
    println!("\n{}", kubectl.run(&["get", "nodes,pods", "-A", "-o", "wide"])?);
    println!("What to try next:\n");
    println!(
        "  export KUBECONFIG={} PATH={}:$PATH",
        layout.kubeconfig(plan).display(),
        layout.bin().display()
    );
    println!("  kubectl logs -f daemonset/demo-agent");
    println!("  kubectl exec -it deployment/demo -- sh");
    println!("  kubectl port-forward deployment/demo 8080:8080      # then: curl http://localhost:8080/");
    println!("  kubectl scale deployment/demo --replicas=4");
    println!(
        "\nLogs are in {}. Everything goes away with: installer/up --down",
        layout.logs().display()
    );
    Ok(())
}
