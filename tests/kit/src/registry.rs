//! Debian's docker-registry on a machine's loopback, with TLS by a CA of its own and a password. It goes with the machine.
//!
//! Nothing is reachable from the internet where the tests run, so what pods pull is pushed there first: [`Registry::push`]. The machine's
//! containerd knows the CA by `certs.d/127.0.0.1:5443/hosts.toml`, as an administrator would write it.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use crate::edge::Edge;
use crate::paths;
use crate::pki::{Authority, write_pair};
use crate::process::Daemon;
use crate::wait::{State, wait_for};

/// Where it is, seen from the machine.
pub const HOST: &str = "127.0.0.1:5443";
/// Who may push and pull.
pub const USER: &str = "robot";
/// The password.
pub const PASSWORD: &str = "anchor";
/// The same as htpasswd has it; docker-registry takes bcrypt alone.
const HASH: &str = "$2y$05$kedgekedgekedgekedgekeLxgSghbbLGgNq1blliLHK.mFrjD.X2i";

/// It starts in a tenth of a second on an idle machine.
const START: Duration = Duration::from_secs(60);

/// A running registry; killed on drop. What was pushed stays in its folder.
#[derive(Debug)]
pub struct Registry {
    dir: PathBuf,
    daemon: Daemon,
}

impl Registry {
    /// Starts it on `edge` with what was pushed there before, and waits until it answers.
    ///
    /// # Errors
    /// When it does not; the text holds the end of its log.
    pub fn start(edge: &Edge) -> Result<Self> {
        let dir = edge.dir().join("registry");
        if !dir.exists() {
            fs::create_dir_all(&dir)?;
            let ca = Authority::new("registry-ca")?;
            fs::write(dir.join("ca.crt"), &ca.certificate)?;
            write_pair(&dir, "registry", &ca.server(&["registry"], &["127.0.0.1"])?)?;
            fs::write(dir.join("htpasswd"), format!("{USER}:{HASH}\n"))?;
            let hosts = edge.dir().join("certs.d").join(HOST);
            fs::create_dir_all(&hosts)?;
            let ca = dir.join("ca.crt");
            let text = format!(
                "server = \"https://{HOST}\"\n[host.\"https://{HOST}\"]\ncapabilities = [\"pull\", \"resolve\", \"push\"]\nca = \"{}\"\n",
                ca.display()
            );
            fs::write(hosts.join("hosts.toml"), text)?;
        }
        let at = |name: &str| dir.join(name);
        let config = json!({
            "version": 0.1, "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": at("data")}},
            "auth": {"htpasswd": {"realm": "kedge", "path": at("htpasswd")}},
            "http": {"addr": HOST, "secret": "one registry needs none", "tls": {"certificate": at("registry.crt"), "key": at("registry.key")}},
        });
        fs::write(at("config.yml"), serde_yaml_ng::to_string(&config)?)?;
        let mut command = edge.command(&paths::unpacked("docker-registry").join("usr/bin/docker-registry"));
        command.arg("serve").arg(at("config.yml"));
        let daemon = Daemon::spawn("docker-registry", &mut command, &at("registry.log"))?;
        let registry = Self { dir, daemon };
        wait_for("docker-registry answers", START, || registry.answers(edge))?;
        Ok(registry)
    }

    fn answers(&self, edge: &Edge) -> State<()> {
        let mut curl = edge.command(std::path::Path::new("curl"));
        curl.args([
            "-s",
            "--max-time",
            "5",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "--cacert",
        ])
        .arg(self.dir.join("ca.crt"))
        .arg(format!("https://{HOST}/v2/"));
        match curl.output() {
            // Who does not say who he is may not even look.
            Ok(output) if output.stdout == b"401" => State::Done(()),
            Ok(output) => State::Not(format!("{output:?}\n{}", self.daemon.tail())),
            Err(error) => State::Not(error.to_string()),
        }
    }

    /// Pushes the machine's image `from` as `to` (a name and a tag), and gives the name by which pods pull it. The machine forgets it.
    ///
    /// # Errors
    /// When ctr fails.
    pub fn push(&self, edge: &Edge, from: &str, to: &str) -> Result<String> {
        let name = format!("{HOST}/{to}");
        let user = format!("{USER}:{PASSWORD}");
        let hosts = edge.dir().join("certs.d").display().to_string();
        edge.ctr(&["images", "tag", "--force", from, &name])?;
        edge.ctr(&["images", "push", "--hosts-dir", &hosts, "--user", &user, &name])?;
        edge.ctr(&["images", "rm", "--sync", &name])?;
        Ok(name)
    }
}

/// A Secret `name` for imagePullSecrets with this password.
#[must_use]
pub fn pull_secret(name: &str, password: &str) -> Value {
    let config = json!({"auths": {HOST: {"username": USER, "password": password}}}).to_string();
    json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": config},
    })
}
