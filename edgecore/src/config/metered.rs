//! What a metered uplink may carry and cost: `uplinks[].metered`, which is `true` or says more.
//!
//! ```yaml
//! uplinks:
//! - {name: wifi, device: wlan0, priority: 10}
//! - name: lte
//!   device: wwan0
//!   metered: {allow: interactive, whenAlone: control, monthlyBudget: 5Gi, rateBudget: 2M, resetDay: 1}
//! ```

use std::num::NonZeroU64;

use serde::de::{MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize};
use tunnel::Priority;
use tunnel::bond::{Carries, Policy};

use super::{ConfigError, check};
use crate::node::quantity;

/// The least rate, bits a second: one packet takes 0.2 s then.
const MIN_RATE: u64 = 64_000;
/// Months have at least so many days.
const MAX_RESET_DAY: u8 = 28;

/// What may go over an uplink; each includes those before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Traffic {
    /// Commands, acknowledgements, the session's own words. It always goes.
    #[default]
    Control,
    /// exec, attach, logs, port-forward, and what else somebody waits for.
    Interactive,
    /// Pods' specs and status.
    Normal,
    /// Events, telemetry.
    All,
}

impl Traffic {
    /// As the tunnel knows it.
    pub fn carries(self) -> Carries {
        Carries::from(match self {
            Self::Control => Priority::Urgent,
            Self::Interactive => Priority::Interactive,
            Self::Normal => Priority::Normal,
            Self::All => Priority::Bulk,
        })
    }
}

/// An uplink on which each byte costs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MeteredConfig {
    /// What goes over it while an uplink that is not metered works.
    pub allow: Traffic,
    /// What goes over it while none does.
    pub when_alone: Traffic,
    /// Bytes a month, both ways, as a quantity; after them control alone goes. Empty: no limit.
    pub monthly_budget: String,
    /// Bits a second each way, as a quantity (as in kubernetes.io/egress-bandwidth). Empty: no limit.
    pub rate_budget: String,
    /// The day of the month on which the budget begins anew, 1 to 28, UTC.
    pub reset_day: u8,
}

impl Default for MeteredConfig {
    fn default() -> Self {
        Self {
            allow: Traffic::Control,
            when_alone: Traffic::Control,
            monthly_budget: String::new(),
            rate_budget: String::new(),
            reset_day: 1,
        }
    }
}

/// Thousandths of a quantity, in whole units.
fn whole(text: &str) -> Option<u64> {
    Some(quantity::parse(text)?.div_ceil(1000))
}

impl MeteredConfig {
    /// Bytes a month; None: no limit.
    pub fn budget(&self) -> Option<u64> {
        whole(&self.monthly_budget)
    }

    /// As the tunnel knows it, while its budget is not spent.
    pub fn policy(&self) -> Policy {
        Policy {
            allow: self.allow.carries(),
            when_alone: self.when_alone.carries(),
            rate: whole(&self.rate_budget).and_then(|bits| NonZeroU64::new(bits / 8)),
            ..Policy::metered()
        }
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let unless_empty = |text: &str, least: u64| text.is_empty() || whole(text).is_some_and(|value| value >= least);
        check(
            unless_empty(&self.monthly_budget, 1),
            "uplinks.metered.monthlyBudget",
            &self.monthly_budget,
            "a quantity of bytes above zero, such as 5Gi",
        )?;
        check(
            unless_empty(&self.rate_budget, MIN_RATE),
            "uplinks.metered.rateBudget",
            &self.rate_budget,
            "a quantity of bits a second of at least 64k, such as 2M",
        )?;
        check(
            (1..=MAX_RESET_DAY).contains(&self.reset_day),
            "uplinks.metered.resetDay",
            &self.reset_day.to_string(),
            "a day from 1 to 28",
        )
    }
}

/// `true`, `false`, or a [`MeteredConfig`].
pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<MeteredConfig>, D::Error> {
    struct Either;
    impl<'de> Visitor<'de> for Either {
        type Value = Option<MeteredConfig>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("true, false, or what a metered uplink may carry and cost")
        }

        fn visit_bool<E>(self, metered: bool) -> Result<Self::Value, E> {
            Ok(metered.then(MeteredConfig::default))
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
            MeteredConfig::deserialize(MapAccessDeserializer::new(map)).map(Some)
        }
    }
    deserializer.deserialize_any(Either)
}
