//! The links to the hub.

use serde::{Deserialize, Serialize};

use super::{ConfigError, MeteredConfig, check};

/// One link to the hub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UplinkConfig {
    /// What people call it.
    pub name: String,
    /// The network device that its packets leave by; none: the default route.
    #[serde(default)]
    pub device: Option<String>,
    /// The higher goes first; the others carry what it does not take at once, and all when it is dead. A metered one comes after all others.
    #[serde(default)]
    pub priority: i32,
    /// Each byte costs: what may go over it, and how much. `true` is control alone without a budget. None: everything goes.
    #[serde(
        default,
        deserialize_with = "super::metered::deserialize",
        skip_serializing_if = "Option::is_none"
    )]
    pub metered: Option<MeteredConfig>,
}

impl UplinkConfig {
    /// As the tunnel knows it, while its budget is not spent.
    pub fn policy(&self) -> tunnel::bond::Policy {
        tunnel::bond::Policy {
            priority: self.priority,
            ..self.metered.as_ref().map(MeteredConfig::policy).unwrap_or_default()
        }
    }
}

/// Whether these can be used beside each other.
pub(super) fn validate(uplinks: &[UplinkConfig]) -> Result<(), ConfigError> {
    for (at, uplink) in uplinks.iter().enumerate() {
        let named = (1..=64).contains(&uplink.name.len());
        check(named, "uplinks.name", &uplink.name, "a name of 1 to 64 bytes")?;
        let twice = uplinks[..at].iter().any(|other| other.name == uplink.name);
        check(!twice, "uplinks.name", &uplink.name, "a name that no other uplink has")?;
        uplink.metered.as_ref().map_or(Ok(()), MeteredConfig::validate)?;
    }
    Ok(())
}
