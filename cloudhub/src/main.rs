//! cloudhub: the cloud side of Kedge.

use anyhow::Result;
use clap::Parser as _;
use cloudhub::app;
use cloudhub::config::{Config, Flags};
use tracing_subscriber::EnvFilter;

/// musl's own takes one lock for all threads (`cloudhub/README.md`).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    let flags = Flags::parse();
    let config = Config::load(&flags)?;
    if flags.check_config {
        println!("{}", serde_yaml_ng::to_string(&config)?);
        return Ok(());
    }
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    match places::raise_file_limit() {
        Ok(files) => tracing::info!(files, "files that this process may open"),
        Err(error) => tracing::warn!(%error, "the limit of open files cannot be raised"),
    }
    let _ = tunnel::tls::provider().as_ref().clone().install_default();
    tracing::info!(config = serde_json::to_string(&config)?, "starting");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async { Box::pin(app::build(config)).await?.run().await })
}
