//! Whether each uplink has a way to the hub of its own, and hears the answers.

use std::net::IpAddr;

use serde_yaml_ng::Value;
use uplinks::check::{self, Question};

use super::Finding;

/// What the kernel says of the uplinks: those that the configuration lists, or else those that edgecore would find.
pub(super) fn findings(config: &Value, hubs: &[IpAddr]) -> Vec<Finding> {
    let read = || {
        let kernel = uplinks::read()?;
        let rp_filters = check::rp_filters(&kernel)?;
        Ok::<_, std::io::Error>((kernel, rp_filters))
    };
    let (kernel, rp_filters) = match read() {
        Ok(read) => read,
        Err(error) => {
            return vec![Finding::Warning(format!(
                "the kernel does not say how its network is set up: {error}"
            ))];
        }
    };
    let question = Question {
        kernel: &kernel,
        hubs,
        listed: &listed(config),
        rp_filters,
    };
    question.findings().into_iter().map(finding).collect()
}

fn finding(finding: check::Finding) -> Finding {
    match finding {
        check::Finding::Good(text) => Finding::Good(text),
        check::Finding::Warning(text) => Finding::Warning(text),
        check::Finding::Bad(text) => Finding::Bad(text),
    }
}

/// The devices of `uplinks`.
fn listed(config: &Value) -> Vec<String> {
    let uplinks = config.get("uplinks").and_then(Value::as_sequence);
    let devices = uplinks
        .into_iter()
        .flatten()
        .filter_map(|uplink| uplink.get("device")?.as_str());
    devices.map(ToOwned::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_devices_are_those_that_have_one() {
        let config = "uplinks: [{name: a, device: wwan0}, {name: b}, {name: c, device: eth0}]";
        let config = serde_yaml_ng::from_str(config).unwrap();
        assert_eq!(listed(&config), ["wwan0", "eth0"]);
        assert_eq!(listed(&Value::Null), [] as [&str; 0]);
    }
}
