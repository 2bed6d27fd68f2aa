//! The real kubectl, run in the hub's namespace.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::paths;
use crate::site::Site;
use crate::wait::{State, wait_for};

/// kubectl with one kubeconfig.
#[derive(Debug, Clone)]
pub struct Kubectl {
    namespace: String,
    kubeconfig: PathBuf,
    home: PathBuf,
}

impl Kubectl {
    /// kubectl for `kubeconfig` in the hub's namespace of `site`.
    #[must_use]
    pub fn new(site: &Site, kubeconfig: &Path) -> Self {
        Self {
            namespace: site.namespace("hub"),
            kubeconfig: kubeconfig.to_owned(),
            home: site.dir().join("home"),
        }
    }

    /// The command with `args`, not yet started.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.namespace))
            .arg(paths::kube("kubectl"));
        command
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .args(args)
            .env("HOME", &self.home);
        command
    }

    /// Runs it to the end, whatever the end.
    ///
    /// # Errors
    /// When it cannot start.
    pub fn output(&self, args: &[&str]) -> Result<Output> {
        self.command(args)
            .stdin(Stdio::null())
            .output()
            .context("start kubectl")
    }

    /// Runs it and returns what it printed.
    ///
    /// # Errors
    /// When it fails: the text is its standard error.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        let output = self.output(args)?;
        if !output.status.success() {
            bail!(
                "kubectl {args:?}: {}{}",
                String::from_utf8_lossy(&output.stderr),
                String::from_utf8_lossy(&output.stdout)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs it with `input` on its standard input.
    ///
    /// # Errors
    /// When it fails: the text is its standard error.
    pub fn run_with(&self, args: &[&str], input: &str) -> Result<String> {
        let mut command = self.command(args);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child
            .stdin
            .take()
            .context("stdin is piped")?
            .write_all(input.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("kubectl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// `kubectl apply -f -`.
    ///
    /// # Errors
    /// When kubectl fails.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        self.run_with(&["apply", "-f", "-"], yaml)
    }

    /// One object or list as JSON; `None` when it is not found.
    ///
    /// # Errors
    /// When kubectl fails for another reason.
    pub fn get(&self, args: &[&str]) -> Result<Option<Value>> {
        let mut all = vec!["get", "-o", "json"];
        all.extend(args);
        let output = self.output(&all)?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        if error.contains("NotFound") || error.contains("not found") {
            return Ok(None);
        }
        if !output.status.success() {
            bail!("kubectl {all:?}: {error}");
        }
        Ok(Some(serde_json::from_slice(&output.stdout)?))
    }

    /// Waits until the object that `args` name satisfies `done`, and returns it with the time it took.
    ///
    /// # Errors
    /// After `limit`, with the object's last status.
    pub fn wait(&self, args: &[&str], limit: Duration, done: impl Fn(&Value) -> bool) -> Result<(Value, Duration)> {
        wait_for(&format!("kubectl get {args:?}"), limit, || match self.get(args) {
            Ok(Some(value)) if done(&value) => State::Done(value),
            Ok(Some(value)) => State::Not(value.get("status").unwrap_or(&value).to_string()),
            Ok(None) => State::Not("not found".into()),
            Err(error) => State::Not(error.to_string()),
        })
    }

    /// Waits until pod `name` is Ready, and returns it with the time it took.
    ///
    /// # Errors
    /// After `limit`, with its last status.
    pub fn wait_ready(&self, name: &str, limit: Duration) -> Result<(Value, Duration)> {
        self.wait(&["pod", name], limit, |pod| is_true(pod, "Ready"))
    }

    /// Waits until what `args` name is gone.
    ///
    /// # Errors
    /// After `limit`, with what is still there.
    pub fn wait_gone(&self, args: &[&str], limit: Duration) -> Result<Duration> {
        let ((), took) = wait_for(&format!("{args:?} is gone"), limit, || match self.get(args) {
            Ok(None) => State::Done(()),
            Ok(Some(value)) => State::Not(value["metadata"].to_string()),
            Err(error) => State::Not(error.to_string()),
        })?;
        Ok(took)
    }
}

/// Whether `object`'s status condition `kind` is True.
#[must_use]
pub fn is_true(object: &Value, kind: &str) -> bool {
    condition(object, kind).is_some_and(|c| c["status"] == "True")
}

/// `object`'s status condition `kind`.
#[must_use]
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"]
        .as_array()?
        .iter()
        .find(|c| c["type"] == kind)
}
