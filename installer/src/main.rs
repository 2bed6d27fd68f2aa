//! `kedge`: the command for who runs a fleet (with a kubeconfig) and for who sits at a machine.
//!
//! - with a kubeconfig: `token`, `node`, `ca`, `adopt`; everything goes through the Kubernetes API, never past it
//! - on a machine: `join`, `reset`, `check`, `links`, `up`
//!
//! Exit status: 0 done, 1 refused or failed (the reason on stderr), 2 wrong usage.

mod admin;
mod adopt;
mod api;
mod ca;
mod check;
mod files;
mod join;
mod links;
mod node;
mod pinned;
mod reset;
mod token;
mod up;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Kedge: Kubernetes pods on robots and other edge machines.
#[derive(Debug, Parser)]
#[command(name = "kedge", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Kubeconfig of the Kubernetes API above the hub [default: $KUBECONFIG, then the embedded hub's, then ~/.kube/config]
    #[arg(long, global = true, env = "KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Join tokens: one node, one use, one hour
    #[command(subcommand)]
    Token(token::Command),
    /// Nodes that joined, and their identities
    #[command(subcommand)]
    Node(node::Command),
    /// The hub's CAs: take them along to a new cluster, else every node must join again
    #[command(subcommand)]
    Ca(ca::Command),
    /// Make a node that says DesiredStateSuspect take this API's word as the truth
    Adopt(adopt::Args),
    /// Join this machine to a hub
    Join(join::Args),
    /// Forget this machine's identity, store and configuration
    Reset(reset::Args),
    /// See whether this machine has what edgecore needs
    Check(check::Args),
    /// Show over which uplinks this machine reaches its hub, and how good each is
    Links(links::Args),
    /// Start an embedded hub and one node on this machine, or remove them again (installer/up calls this)
    Up(up::Args),
    /// Run one service where there is no systemd
    #[command(hide = true)]
    Supervise(up::supervise::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("kedge: start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(cli)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("kedge: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let kubeconfig = cli.kubeconfig.as_deref();
    match cli.command {
        Command::Token(command) => token::run(command, kubeconfig).await?,
        Command::Node(command) => node::run(command, kubeconfig).await?,
        Command::Ca(command) => ca::run(command, kubeconfig).await?,
        Command::Adopt(args) => adopt::run(args, kubeconfig).await?,
        Command::Join(args) => join::run(args).await?,
        Command::Reset(args) => reset::run(&args)?,
        Command::Check(args) => return check::run(&args).await,
        Command::Links(args) => links::run(args).await?,
        Command::Up(args) => up::run(args).await?,
        Command::Supervise(args) => up::supervise::run(args).await?,
    }
    Ok(ExitCode::SUCCESS)
}
