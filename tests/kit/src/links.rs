//! What a person sees of a robot's links: `kedge links` at the robot, `/debug/paths` at the hub.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::edge::Edge;
use crate::hub::Hub;
use crate::paths;
use crate::process::run;

impl Edge<'_> {
    /// What `kedge links` prints.
    ///
    /// # Errors
    /// When edgecore does not answer.
    pub fn links(&self) -> Result<String> {
        self.ask_links(&[])
    }

    /// The same as JSON: `paths` and `session`.
    ///
    /// # Errors
    /// When edgecore does not answer.
    pub fn paths(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.ask_links(&["--json"])?)?)
    }

    /// The epoch of the session that the robot has: another session, another epoch.
    ///
    /// # Errors
    /// When edgecore does not answer, or there is no session.
    pub fn session(&self) -> Result<u64> {
        self.paths()?["session"]["epoch"].as_u64().context("no session")
    }

    fn ask_links(&self, flags: &[&str]) -> Result<String> {
        let mut command = self.command(&paths::ours("kedge"));
        command.args(["links", "--socket"]);
        run(command.arg(self.dir().join("run/edgecore.sock")).args(flags))
    }
}

/// One uplink's path as the hub sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Where its packets come from.
    pub remote: String,
    /// `up` or `suspect`.
    pub state: String,
}

impl Hub<'_> {
    /// The epoch of the session that the hub has with `node`, and its paths by their uplinks.
    ///
    /// # Errors
    /// When the hub does not answer, or has no session with it.
    pub fn session(&self, node: &str) -> Result<(u64, BTreeMap<String, Seen>)> {
        let all: Value = serde_json::from_str(&self.admin("/debug/paths")?)?;
        let session = &all[node];
        let epoch = session["epoch"].as_u64().context("no session")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let paths = session["paths"].as_array().context("paths")?.iter();
        let seen = paths.map(|path| {
            let seen = Seen {
                remote: text(&path["remote"]),
                state: text(&path["state"]),
            };
            (text(&path["uplink"]), seen)
        });
        Ok((epoch, seen.collect()))
    }
}
