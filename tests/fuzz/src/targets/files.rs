//! What disks give back: configurations, records of the store, image archives.

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::Path;

use clap::Parser as _;
use cloudhub::config::{Config, Flags};
use edgecore::config::EdgecoreConfig;
use images::{Architecture, Layout, recipe};

use super::texts;

pub(super) fn hub_configs() -> Vec<Vec<u8>> {
    let whole = serde_yaml_ng::to_string(&Config {
        embedded: true,
        advertise: "hub.example".into(),
        ..Config::default()
    });
    vec![
        whole.expect("a configuration is YAML").into_bytes(),
        b"{apiVersion: kedge.dev/v1alpha1, kind: CloudhubConfig, advertise: 192.0.2.1, kubeletPorts: 1-2}".to_vec(),
    ]
}

pub(super) fn hub_config(input: &[u8]) -> Result<(), String> {
    let failed = |error: std::io::Error| error.to_string();
    let mut file = tempfile::NamedTempFile::new().map_err(failed)?;
    file.write_all(input).map_err(failed)?;
    let flags = Flags::try_parse_from([OsStr::new("cloudhub"), OsStr::new("--config"), file.path().as_os_str()]);
    let Ok(config) = Config::load(&flags.map_err(|error| error.to_string())?) else {
        return Ok(());
    };
    // What was checked can be used.
    config.ports().map_err(|error| error.to_string())?;
    if config.embedded {
        config
            .services()
            .and(config.pods())
            .map_err(|error| error.to_string())?;
    }
    Ok(())
}

pub(super) fn edge_configs() -> Vec<Vec<u8>> {
    let least = "apiVersion: kedge.dev/v1alpha1\nkind: EdgecoreConfig\nnodeName: robot-1\n";
    let whole: EdgecoreConfig = serde_yaml_ng::from_str(least).expect("it is a configuration");
    let whole = serde_yaml_ng::to_string(&whole).expect("a configuration is YAML");
    let more = "hub: {addresses: ['hub:6444'], joinAddress: 'hub:6444'}\nuplinks: [{name: lte0, device: wwan0}]\nclusterDNS: [10.96.0.10]\nkubelet: {registerWithTaints: [{key: a, effect: NoSchedule}], systemReserved: {cpu: 100m}, evictionHard: {memory.available: 5%}, cgroupRoot: /x}\n";
    let mut all = texts(&[&whole]);
    all.push(format!("{least}{more}").into_bytes());
    all
}

pub(super) fn edge_config(input: &[u8]) -> Result<(), String> {
    let text = String::from_utf8_lossy(input);
    if let Ok(mut config) = EdgecoreConfig::parse(&text) {
        config.complete(Path::new("/etc/kedge"));
        // Refused or not: what counts is that it ends.
        let _ = config.validate();
    }
    Ok(())
}

const SECRET: [u8; 32] = [7; 32];
const KEY: &str = "object/v1/Pod/default/web";

pub(super) fn records() -> Vec<Vec<u8>> {
    let secrets = [None, Some(&SECRET)];
    let made = secrets.map(|secret| metastore::fuzzing::encode(secret, KEY, br#"{"kind":"Pod"}"#));
    made.into_iter().flatten().collect()
}

/// A record that is taken is one that was written: nobody finds another one by chance.
pub(super) fn record(input: &[u8]) -> Result<(), String> {
    for secret in [None, Some(&SECRET)] {
        let Some(value) = metastore::fuzzing::decode(secret, KEY, input) else {
            continue;
        };
        let again = metastore::fuzzing::encode(secret, KEY, &value);
        let back = again.and_then(|record| metastore::fuzzing::decode(secret, KEY, &record));
        if back.as_ref() != Some(&value) {
            return Err(format!("{value:?} is read back as {back:?}"));
        }
    }
    Ok(())
}

pub(super) fn archives() -> Vec<Vec<u8>> {
    let image = recipe::pause(vec![7; 300], Architecture::Amd64);
    vec![image.archive().expect("the recipe is good")]
}

pub(super) fn archive(input: &[u8]) -> Result<(), String> {
    // Refused or not: what counts is that it ends. Every blob of what is read has its digest, or reading has failed.
    let _ = Layout::read(input);
    Ok(())
}
