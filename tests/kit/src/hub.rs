//! Our cloudhub in the hub's namespace, above the real control plane or above its own embedded API.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::kubectl::Kubectl;
use crate::paths;
use crate::plane::{ControlPlane, Options};
use crate::process::{Daemon, run};
use crate::site::{API_PORT, HUB, JOIN_PORT, Site};
use crate::wait::{State, wait_for};

/// The hub answers within a second or two on an idle machine.
const START: Duration = Duration::from_secs(90);

/// The Kubernetes API that a hub uses.
#[derive(Debug)]
pub enum Above {
    /// An unmodified control plane, and the kubeconfig of the hub's account there.
    Kubernetes(Box<ControlPlane>, PathBuf),
    /// Its own.
    Embedded,
    /// Another that answers as one does, by this kubeconfig.
    Other(PathBuf),
}

/// A hub with what is above it.
#[derive(Debug)]
pub struct Hub<'a> {
    site: &'a Site,
    dir: PathBuf,
    daemon: Option<Daemon>,
    /// What it logs: `RUST_LOG`; taken at the next start.
    pub log: String,
    /// The API.
    pub above: Above,
    /// The administrator's kubeconfig.
    pub kubeconfig: PathBuf,
    /// kubectl as the admin.
    pub kubectl: Kubectl,
}

impl<'a> Hub<'a> {
    /// Starts a control plane and a hub that serves it.
    ///
    /// # Errors
    /// When a part does not come up.
    pub fn start(site: &'a Site) -> Result<Self> {
        Self::above(site, ControlPlane::start(site, &Options::default())?)
    }

    /// A hub above `plane`, with exactly the rights of `installer/deploy/`, and the CA that the API server trusts.
    ///
    /// # Errors
    /// When the role or the hub is refused.
    pub fn above(site: &'a Site, plane: ControlPlane) -> Result<Self> {
        let deploy = paths::repository().join("installer/deploy");
        plane
            .kubectl
            .run(&["apply", "-f", &deploy.join("rbac.yaml").display().to_string()])?;
        let account = plane.kubeconfig_for("kedge:cloudhub", &[])?;
        let secret = serde_json::json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "ca-serving", "namespace": "kedge-system"}, "type": "kubernetes.io/tls",
            "data": {"tls.crt": STANDARD.encode(&plane.serving.certificate), "tls.key": STANDARD.encode(&plane.serving.key)},
        });
        plane.kubectl.apply(&secret.to_string())?;
        let kubeconfig = plane.kubeconfig.clone();
        Self::make(site, Above::Kubernetes(Box::new(plane), account), kubeconfig)
    }

    /// A hub with its own API, whose data is in the site's folder `hub/data`.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn embedded(site: &'a Site) -> Result<Self> {
        Self::embedded_with(site, &Options::default())
    }

    /// The same with other times.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn embedded_with(site: &'a Site, options: &Options) -> Result<Self> {
        let dir = site.dir().join("hub");
        fs::create_dir_all(&dir)?;
        let config = serde_json::json!({
            "apiVersion": "kedge.dev/v1alpha1", "kind": "CloudhubConfig",
            "defaultNotReadyTolerationSeconds": options.toleration_seconds,
            "defaultUnreachableTolerationSeconds": options.toleration_seconds,
            "nodeMonitorGracePeriod": options.grace_seconds,
        });
        fs::write(dir.join("cloudhub.yaml"), serde_yaml_ng::to_string(&config)?)?;
        let kubeconfig = dir.join("data/admin.kubeconfig");
        let hub = Self::make(site, Above::Embedded, kubeconfig)?;
        hub.wait_default_account()?;
        Ok(hub)
    }

    /// A hub above whatever answers by `kubeconfig`.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn above_other(site: &'a Site, kubeconfig: &Path) -> Result<Self> {
        Self::make(site, Above::Other(kubeconfig.to_owned()), kubeconfig.to_owned())
    }

    fn make(site: &'a Site, above: Above, kubeconfig: PathBuf) -> Result<Self> {
        let kubectl = Kubectl::new(site, &kubeconfig);
        let mut hub = Self {
            site,
            dir: site.dir().join("hub"),
            daemon: None,
            log: std::env::var("KEDGE_LOG").unwrap_or_else(|_| "info".into()),
            above,
            kubeconfig,
            kubectl,
        };
        fs::create_dir_all(&hub.dir)?;
        hub.restart()?;
        Ok(hub)
    }

    /// A pod is refused before its ServiceAccount is there.
    fn wait_default_account(&self) -> Result<()> {
        let account = ["serviceaccount", "default"];
        wait_for("the default ServiceAccount is made", START, || {
            match self.kubectl.get(&account) {
                Ok(Some(_)) => State::Done(()),
                Ok(None) => State::Not(self.tail()),
                Err(error) => State::Not(format!("{error}\n{}", self.tail())),
            }
        })?;
        Ok(())
    }

    fn command(&self) -> Command {
        let mut command = self.site.command("hub", &paths::ours("cloudhub"));
        let listen = format!("0.0.0.0:{JOIN_PORT}");
        command.args(["--join-listen", &listen, "--tunnel-listen", &listen, "--advertise", HUB]);
        command.arg("--admin-socket").arg(self.dir.join("cloudhub.sock"));
        match &self.above {
            Above::Kubernetes(_, account) | Above::Other(account) => {
                command.arg("--kubeconfig").arg(account);
            }
            Above::Embedded => {
                command.arg("--config").arg(self.dir.join("cloudhub.yaml"));
                command.arg("--embedded").arg("--data").arg(self.dir.join("data"));
                command.args(["--listen", &format!("0.0.0.0:{API_PORT}")]);
            }
        }
        command
            .env("RUST_LOG", &self.log)
            .env("NO_COLOR", "1")
            .env("RUST_BACKTRACE", "1");
        command
    }

    /// Starts the hub (again) and waits until it is ready.
    ///
    /// # Errors
    /// When it does not; the text holds the end of its log.
    pub fn restart(&mut self) -> Result<()> {
        self.daemon = None;
        let daemon = Daemon::spawn("cloudhub", &mut self.command(), &self.dir.join("cloudhub.log"))?;
        self.daemon = Some(daemon);
        wait_for("cloudhub is ready", START, || match self.admin("/readyz") {
            Ok(_) => State::Done(()),
            Err(error) => State::Not(format!("{error}\n{}", self.tail())),
        })?;
        Ok(())
    }

    /// What the admin socket says at `page`.
    ///
    /// # Errors
    /// When it does not answer within 2 s, or with an error.
    pub fn admin(&self, page: &str) -> Result<String> {
        run(Command::new("curl")
            .args(["-sSf", "--max-time", "2", "--unix-socket"])
            .arg(self.dir.join("cloudhub.sock"))
            .arg(format!("http://hub{page}")))
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.daemon = None;
    }

    /// A clean stop.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop(&mut self) -> Result<()> {
        match self.daemon.take() {
            Some(mut daemon) => daemon.terminate(Duration::from_secs(20)),
            None => Ok(()),
        }
    }

    /// The folder of its files; the embedded API's objects are in `data` below it.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The hub's process id.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Daemon::pid)
    }

    /// The `kedge` command with the hub's administrator's kubeconfig.
    #[must_use]
    pub fn kedge(&self, args: &[&str]) -> Command {
        let mut command = self.site.command("hub", &paths::ours("kedge"));
        command.args(args).arg("--kubeconfig").arg(&self.kubeconfig);
        command
    }

    /// A join token for `node` and the CA hash to join with.
    ///
    /// # Errors
    /// When `kedge token create` fails or prints something else than a join command.
    pub fn token(&self, node: &str) -> Result<(String, String)> {
        let printed = run(&mut self.kedge(&["token", "create", node]))?;
        let value = |flag: &str| {
            let mut words = printed.split_whitespace();
            words.find(|w| *w == flag)?;
            words.next().map(str::to_owned)
        };
        let token = value("--token").with_context(|| format!("--token in: {printed}"))?;
        let hash = value("--ca-hash").with_context(|| format!("--ca-hash in: {printed}"))?;
        Ok((token, hash))
    }

    /// The end of the hub's log.
    #[must_use]
    pub fn tail(&self) -> String {
        self.daemon.as_ref().map(Daemon::tail).unwrap_or_default()
    }
}
