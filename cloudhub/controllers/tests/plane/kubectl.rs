//! The real kubectl.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kit::paths;
use kit::wait::{State, wait_for};
use serde_json::Value;

/// How long a condition may take on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(40);

/// kubectl with one kubeconfig, and maybe one namespace.
#[derive(Debug, Clone)]
pub(crate) struct Kubectl {
    kubeconfig: PathBuf,
    home: PathBuf,
    namespace: String,
}

impl Kubectl {
    pub(crate) fn new(kubeconfig: &Path, home: &Path) -> Self {
        Self {
            kubeconfig: kubeconfig.to_owned(),
            home: home.to_owned(),
            namespace: "default".into(),
        }
    }

    /// The same in a namespace that is made.
    pub(crate) fn in_new(&self, namespace: &str) -> Result<Self> {
        self.run(&["create", "namespace", namespace])?;
        let kubectl = Self {
            namespace: namespace.into(),
            ..self.clone()
        };
        kubectl.wait(&["serviceaccount", "default"], "exists", |_| true)?;
        Ok(kubectl)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(paths::kube("kubectl"));
        command
            .args(["--kubeconfig".as_ref(), self.kubeconfig.as_os_str()])
            .args(["-n", &self.namespace])
            .args(args)
            .env("HOME", &self.home);
        command
    }

    /// What it printed; an error with what it complained about.
    pub(crate) fn run(&self, args: &[&str]) -> Result<String> {
        let output = self
            .command(args)
            .stdin(Stdio::null())
            .output()
            .context("start kubectl")?;
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!("kubectl {args:?}: {}{out}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(out)
    }

    /// `kubectl create -f -` of JSON.
    pub(crate) fn create(&self, object: &Value) -> Result<()> {
        let mut child = self
            .command(&["create", "-f", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child
            .stdin
            .take()
            .context("stdin is piped")?
            .write_all(object.to_string().as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("kubectl create: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// One object or list; `None` when it is not found.
    pub(crate) fn get(&self, args: &[&str]) -> Result<Option<Value>> {
        let mut all = vec!["get", "-o", "json"];
        all.extend(args);
        match self.run(&all) {
            Ok(text) => Ok(Some(serde_json::from_str(&text)?)),
            Err(error) if error.to_string().contains("NotFound") => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits until what `args` name satisfies `done`.
    pub(crate) fn wait(&self, args: &[&str], what: &str, done: impl Fn(&Value) -> bool) -> Result<Value> {
        let name = format!("{} {args:?}: {what}", self.namespace);
        let (value, _) = wait_for(&name, LIMIT, || match self.get(args) {
            Ok(Some(value)) if done(&value) => State::Done(value),
            Ok(Some(value)) => State::Not(value.get("status").unwrap_or(&value).to_string()),
            Ok(None) => State::Not("not found".into()),
            Err(error) => State::Not(error.to_string()),
        })?;
        Ok(value)
    }

    /// Waits until nothing is left of what `args` name.
    pub(crate) fn gone(&self, args: &[&str]) -> Result<()> {
        wait_for(&format!("{} {args:?} is gone", self.namespace), LIMIT, || {
            match self.get(args) {
                Ok(None) => State::Done(()),
                Ok(Some(value)) if value["items"].as_array().is_some_and(Vec::is_empty) => State::Done(()),
                Ok(Some(value)) => State::Not(value.to_string()),
                Err(error) => State::Not(error.to_string()),
            }
        })?;
        Ok(())
    }
}
