//! `images`: builds Kedge's own images, and gives image archives to containerd without a registry.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use images::{Architecture, Containerd, import::CRI_NAMESPACE, recipe};

/// Image archives without a registry.
#[derive(Debug, Parser)]
#[command(name = "images", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build pause.tar and demo.tar
    Build(Build),
    /// Import archives
    Import {
        #[command(flatten)]
        at: At,
        /// OCI archives of one image each
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// List images
    List {
        #[command(flatten)]
        at: At,
    },
    /// Remove images that were imported, that no container uses and that are not to be kept
    Prune {
        #[command(flatten)]
        at: At,
        /// An image to keep; more than once for more
        #[arg(long)]
        keep: Vec<String>,
    },
}

#[derive(Debug, clap::Args)]
struct Build {
    /// The static pause binary
    #[arg(long)]
    pause: PathBuf,
    /// The static kedge-demo binary
    #[arg(long)]
    demo: PathBuf,
    /// Debian's static busybox
    #[arg(long, default_value = "/bin/busybox")]
    busybox: PathBuf,
    /// What the binaries run on: amd64 or arm64 [default: this machine's]
    #[arg(long)]
    arch: Option<Architecture>,
    /// The folder that gets the archives
    #[arg(long)]
    out: PathBuf,
}

#[derive(Debug, clap::Args)]
struct At {
    /// containerd's socket
    #[arg(long, default_value = "/run/containerd/containerd.sock")]
    socket: PathBuf,
    /// containerd's namespace
    #[arg(long, default_value = CRI_NAMESPACE)]
    namespace: String,
}

impl At {
    fn connect(&self) -> Result<Containerd> {
        Ok(Containerd::new(&self.socket, &self.namespace)?)
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start")
        .and_then(|runtime| runtime.block_on(run(cli.command)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("images: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<()> {
    match command {
        Command::Build(args) => build(&args)?,
        Command::Import { at, files } => {
            let containerd = at.connect()?;
            for file in files {
                let imported = containerd.import(&file).await?;
                println!("{} {}", imported.name, imported.digest);
            }
        }
        Command::List { at } => {
            for image in at.connect()?.list().await? {
                println!(
                    "{} {}{}",
                    image.name,
                    image.digest,
                    if image.ours { " imported" } else { "" }
                );
            }
        }
        Command::Prune { at, keep } => {
            for name in at.connect()?.prune(&keep).await? {
                println!("removed {name}");
            }
        }
    }
    Ok(())
}

fn build(args: &Build) -> Result<()> {
    let read = |path: &PathBuf| std::fs::read(path).with_context(|| format!("read {}", path.display()));
    let arch = args.arch.unwrap_or_else(Architecture::native);
    let images = [
        ("pause.tar", recipe::pause(read(&args.pause)?, arch)),
        ("demo.tar", recipe::demo(read(&args.demo)?, read(&args.busybox)?, arch)),
    ];
    std::fs::create_dir_all(&args.out).with_context(|| format!("make {}", args.out.display()))?;
    for (file, image) in images {
        let path = args.out.join(file);
        let partial = path.with_extension("partial");
        std::fs::write(&partial, image.archive()?).with_context(|| format!("write {}", partial.display()))?;
        std::fs::rename(&partial, &path).with_context(|| format!("write {}", path.display()))?;
        println!("{} {}", image.name, path.display());
    }
    Ok(())
}
