//! A scenario file: the links, what happens to them, and between which namespaces they are. JSON or YAML.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::draw::derive;
use crate::{Direction, LinkSpec, units};

/// The largest scenario or trace that is read, in bytes.
const LARGEST: u64 = 64 << 20;
/// How many links one scenario may have: as many as there are blocks of public addresses.
pub(crate) const MOST_LINKS: usize = 8;

/// What is emulated.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Scenario {
    /// For the report.
    pub name: String,
    /// Names all that is random.
    pub seed: u64,
    /// Nanoseconds until it ends by itself; 0 is never.
    #[serde(deserialize_with = "units::de_duration")]
    pub duration: u64,
    /// The hub's side.
    pub hub: HubSpec,
    /// The edge's side.
    pub edge: EdgeSpec,
    /// Which namespaces are joined, and which are made.
    pub namespaces: Namespaces,
    /// The edge's uplinks, in the order of their routes' metrics.
    pub links: Vec<LinkSpec>,
}

/// The hub's one address.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HubSpec {
    /// Given to the hub's device, unless its namespace already has it.
    pub address: Ipv4Addr,
    /// The same for links with IPv6.
    pub address6: Ipv6Addr,
}

impl Default for HubSpec {
    fn default() -> Self {
        // Documentation prefixes (RFC 5737, RFC 3849): nothing else on a machine has them.
        Self {
            address: Ipv4Addr::new(203, 0, 113, 1),
            address6: Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1),
        }
    }
}

/// How the edge's machine is set up.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct EdgeSpec {
    /// `net.ipv4.conf.*.rp_filter`: 0 off, 1 strict, 2 loose.
    pub rp_filter: u8,
    /// Whether each uplink has a routing table of its own, used by its own address (`ip rule from`).
    pub source_rules: bool,
}

impl Default for EdgeSpec {
    fn default() -> Self {
        Self {
            rp_filter: 1,
            source_rules: false,
        }
    }
}

/// Names of network namespaces, as `ip netns` has them. What is not named is made, and removed at the end; the router's always is.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Namespaces {
    /// What those that are made begin with; by default one with the process's id, which the next start sweeps if this process is killed.
    pub prefix: Option<String>,
    /// The edge's.
    pub edge: Option<String>,
    /// The hub's.
    pub hub: Option<String>,
    /// Tells apart several emulations that share a hub: 0 to 63.
    pub number: u8,
}

impl Scenario {
    /// Reads the file at `path`. `trace: {file: PATH}` is replaced by that file, taken from the scenario's folder.
    ///
    /// # Errors
    /// When a file cannot be read, or is no scenario.
    pub fn load(path: &Path) -> Result<Self> {
        let folder = path.parent().unwrap_or(Path::new("."));
        Self::parse(&read(path)?, folder).with_context(|| format!("{}: not a scenario", path.display()))
    }

    /// Reads a scenario from text; traces are taken from `folder`.
    ///
    /// # Errors
    /// When it is none, or a trace cannot be read.
    pub fn parse(text: &str, folder: &Path) -> Result<Self> {
        // YAML is a superset of JSON. Through a value of JSON, because YAML has its own way to write an enum.
        let mut value: Value = serde_yaml_ng::from_str(text)?;
        inline_traces(&mut value, folder)?;
        let scenario: Self = serde_json::from_value(value)?;
        scenario.validate()?;
        Ok(scenario)
    }

    /// Both ways of link number `link`, up first, exactly as a run has them.
    ///
    /// # Panics
    /// When there is no such link, or [`Scenario::validate`] refuses it.
    #[must_use]
    pub fn directions(&self, link: usize) -> (Direction, Direction) {
        self.links[link].directions(derive(self.seed, link as u64))
    }

    /// Refuses what cannot be run.
    ///
    /// # Errors
    /// The first thing that is wrong, with the link's name.
    pub fn validate(&self) -> Result<()> {
        ensure!(
            (1..=MOST_LINKS).contains(&self.links.len()),
            "links: {} given, 1 to {MOST_LINKS} can be",
            self.links.len()
        );
        ensure!(
            self.edge.rp_filter <= 2,
            "edge.rpFilter is {}: 0, 1 or 2",
            self.edge.rp_filter
        );
        ensure!(
            self.namespaces.number < 64,
            "namespaces.number is {}: 0 to 63",
            self.namespaces.number
        );
        for (index, link) in self.links.iter().enumerate() {
            let name = &link.name;
            let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            // It is the name of a device, and appears in commands.
            if name.is_empty() || name.len() > 15 || !name.chars().all(is_plain) || name.starts_with('-') {
                bail!("link '{name}': a name is 1 to 15 of a-z, 0-9 and -");
            }
            ensure!(
                !["lo", "hub", "all", "default"].contains(&name.as_str()),
                "link '{name}': the name is taken"
            );
            ensure!(
                !self.links[..index].iter().any(|other| other.name == *name),
                "link '{name}': there are two"
            );
            ensure!(
                (68..=65_535).contains(&link.mtu),
                "link '{name}': mtu is {}: 68 to 65535",
                link.mtu
            );
            link.validate().with_context(|| format!("link '{name}'"))?;
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<String> {
    let size = fs::metadata(path).with_context(|| format!("{}", path.display()))?.len();
    ensure!(size <= LARGEST, "{}: {size} bytes, {LARGEST} are read", path.display());
    fs::read_to_string(path).with_context(|| format!("{}", path.display()))
}

fn inline_traces(value: &mut Value, folder: &Path) -> Result<()> {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                match field.get("file").and_then(Value::as_str) {
                    Some(file) if name == "trace" => *field = read(&folder.join(file))?.into(),
                    _ => inline_traces(field, folder)?,
                }
            }
            Ok(())
        }
        Value::Array(items) => items.iter_mut().try_for_each(|item| inline_traces(item, folder)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Loss, MS, Rate, SECOND};

    #[test]
    fn yaml_and_json_say_the_same_and_traces_come_from_files() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("lte.up"), "1\n5\n10\n").unwrap();
        let yaml = "seed: 7\nduration: 10s\nlinks:\n- name: lte\n  up: {rate: {trace: {file: lte.up}}, loss: {iid: 0.05}, delay: 30ms}\n  \
                    events: [{at: 2s, action: blackHole}]\n";
        let scenario = Scenario::parse(yaml, folder.path()).unwrap();
        assert_eq!((scenario.seed, scenario.duration), (7, 10 * SECOND));
        assert_eq!((scenario.edge.rp_filter, scenario.edge.source_rules), (1, false));
        let link = &scenario.links[0];
        assert!(matches!(&link.up.rate, Rate::Trace(trace) if trace.opportunities() == 3));
        assert_eq!((&link.up.loss, link.up.delay), (&Loss::Iid(0.05), 30 * MS));
        let json = r#"{"links": [{"name": "a", "down": {"rate": {"fixed": "5Mbit"}}}]}"#;
        assert_eq!(
            Scenario::parse(json, folder.path()).unwrap().links[0].down.rate,
            Rate::Fixed(5_000_000)
        );
    }

    #[test]
    fn wrong_scenarios_are_refused_by_what_is_wrong() {
        for (text, words) in [
            ("links: []", "0 given"),
            ("links: [{name: 'a b'}]", "'a b'"),
            ("links: [{name: hub}]", "taken"),
            ("links: [{name: a}, {name: a}]", "two"),
            ("links: [{name: a, up: {loss: {iid: 2}}}]", "loss.iid is 2"),
            ("links: [{name: a, up: {rate: {trace: {file: nowhere}}}}]", "nowhere"),
            ("links: [{name: a, mtu: 10}]", "mtu"),
            ("edge: {rpFilter: 3}\nlinks: [{name: a}]", "rpFilter"),
            ("link: [{name: a}]", "link"),
        ] {
            let error = format!("{:#}", Scenario::parse(text, Path::new("/nonexistent")).unwrap_err());
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
