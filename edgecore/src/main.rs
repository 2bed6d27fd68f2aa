//! The node agent's program: reads its configuration, starts logging, builds the app and runs it.

use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use edgecore::config::{DEFAULT_PATH, EdgecoreConfig};

/// Kedge's node agent.
#[derive(Debug, Parser)]
#[command(version = edgecore::node::report::KUBELET_VERSION)]
struct Arguments {
    /// The configuration file.
    #[arg(long, env = "KEDGE_EDGECORE_CONFIG", default_value = DEFAULT_PATH)]
    config: PathBuf,
    /// The Node's name, in place of the file's.
    #[arg(long)]
    node_name: Option<String>,
    /// Check the configuration, print what it comes to, and end.
    #[arg(long)]
    check_config: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut config = EdgecoreConfig::load(&arguments.config)?;
    if let Some(name) = arguments.node_name {
        config.node_name = name;
        config.validate()?;
    }
    if arguments.check_config {
        print!("{}", config.to_yaml());
        return Ok(());
    }
    edgecore::telemetry::start();
    // Two workers and small stacks: the agent waits, it does not compute.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .thread_stack_size(512 * 1024)
        .enable_all()
        .build()
        .context("start the async runtime")?;
    let outcome = runtime.block_on(async { edgecore::app::build(config).await?.run().await });
    // What still blocks a thread (a read of a dead disk) does not hold up the end.
    runtime.shutdown_background();
    Ok(outcome?)
}
