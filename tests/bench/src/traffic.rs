//! Bytes of the tunnel, counted by nftables in the hub's namespace: IP packets of the tunnel's UDP port, both ways.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};
use kit::Site;
use kit::process::run;
use kit::site::JOIN_PORT;
use serde_json::Value;

/// A counter in the hub's namespace; it goes with the namespace.
#[derive(Debug)]
pub(crate) struct Traffic {
    namespace: String,
}

impl Traffic {
    /// Begins to count.
    ///
    /// # Errors
    /// When nft refuses.
    pub(crate) fn count(site: &Site) -> Result<Self> {
        let namespace = site.namespace("hub");
        let chain = |hook: &str, end: &str| {
            format!(
                " chain {hook} {{\n  type filter hook {hook} priority -10; policy accept;\n  udp {end} {JOIN_PORT} counter\n }}\n"
            )
        };
        let rules = format!(
            "table inet bench {{\n{}{}}}\n",
            chain("input", "dport"),
            chain("output", "sport")
        );
        let file = site.dir().join("bench.nft");
        fs::write(&file, rules)?;
        run(Command::new("ip")
            .args(["netns", "exec", &namespace, "nft", "-f"])
            .arg(&file))?;
        Ok(Self { namespace })
    }

    /// Bytes since the beginning.
    ///
    /// # Errors
    /// When nft does not answer.
    pub(crate) fn bytes(&self) -> Result<u64> {
        let mut list = Command::new("ip");
        list.args([
            "netns",
            "exec",
            &self.namespace,
            "nft",
            "-j",
            "list",
            "table",
            "inet",
            "bench",
        ]);
        let text = run(&mut list)?;
        total(&serde_json::from_str(&text).context("nft's JSON")?)
            .with_context(|| format!("two counters in nft's answer {text}"))
    }
}

/// The sum of the two rules' counters.
fn total(answer: &Value) -> Option<u64> {
    let rules = answer["nftables"].as_array()?.iter().filter_map(|o| o.get("rule"));
    let counters = rules.flat_map(|rule| rule["expr"].as_array().into_iter().flatten());
    let bytes: Vec<u64> = counters.filter_map(|e| e["counter"]["bytes"].as_u64()).collect();
    (bytes.len() == 2).then(|| bytes.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_counters_are_added_up_and_one_alone_is_no_answer() {
        let rule = |bytes: u64| serde_json::json!({"rule": {"expr": [{"match": {}}, {"counter": {"packets": 1, "bytes": bytes}}]}});
        let answer = |rules: Vec<Value>| serde_json::json!({ "nftables": rules });
        assert_eq!(
            total(&answer(vec![rule(5), serde_json::json!({"table": {}}), rule(7)])),
            Some(12)
        );
        assert_eq!(total(&answer(vec![rule(5)])), None);
    }
}
