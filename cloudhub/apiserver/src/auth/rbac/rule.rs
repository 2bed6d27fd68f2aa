//! One PolicyRule: what it allows, and which rights another set of rules lacks of it.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::Attributes;
use crate::object::items;

/// `rbac/v1 PolicyRule`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) verbs: Vec<String>,
    pub(crate) groups: Vec<String>,
    pub(crate) resources: Vec<String>,
    pub(crate) names: Vec<String>,
    pub(crate) urls: Vec<String>,
}

impl Rule {
    pub(crate) fn from_json(rule: &Value) -> Self {
        let list = |pointer: &str| -> Vec<String> {
            let texts = items(rule, pointer).iter().filter_map(Value::as_str);
            texts.map(str::to_owned).collect()
        };
        Self {
            verbs: list("/verbs"),
            groups: list("/apiGroups"),
            resources: list("/resources"),
            names: list("/resourceNames"),
            urls: list("/nonResourceURLs"),
        }
    }

    /// As the API writes it.
    pub(crate) fn to_json(&self) -> Value {
        let mut out = Map::new();
        for (field, list) in [
            ("apiGroups", &self.groups),
            ("nonResourceURLs", &self.urls),
            ("resourceNames", &self.names),
            ("resources", &self.resources),
        ] {
            if !list.is_empty() {
                out.insert(field.into(), json!(list));
            }
        }
        out.insert("verbs".into(), json!(self.verbs));
        Value::Object(out)
    }

    pub(crate) fn allows(&self, attributes: &Attributes) -> bool {
        if !has(&self.verbs, &attributes.verb) {
            return false;
        }
        if !attributes.is_resource() {
            return self.urls.iter().any(|url| url_covers(url, &attributes.path));
        }
        has(&self.groups, &attributes.group)
            && self.covers_resource(attributes)
            && (self.names.is_empty() || self.names.contains(&attributes.name))
    }

    fn covers_resource(&self, attributes: &Attributes) -> bool {
        let combined = attributes.combined();
        self.resources.iter().any(|resource| {
            resource == "*"
                || *resource == combined
                || (!attributes.subresource.is_empty()
                    && resource.strip_prefix("*/") == Some(attributes.subresource.as_str()))
        })
    }

    /// Whether this allows all of `part`, which has at most one entry in each list.
    fn covers(&self, part: &Self) -> bool {
        let all = |mine: &[String], wanted: &[String]| wanted.iter().all(|one| has(mine, one));
        let resource = |wanted: &String| {
            let any = wanted.split_once('/').map(|(_, sub)| format!("*/{sub}"));
            has(&self.resources, wanted) || any.is_some_and(|any| self.resources.contains(&any))
        };
        let names = if part.names.is_empty() {
            self.names.is_empty()
        } else {
            self.names.is_empty() || part.names.iter().all(|name| self.names.contains(name))
        };
        let url = |wanted: &String| self.urls.iter().any(|url| url_covers(url, wanted));
        all(&self.verbs, &part.verbs)
            && all(&self.groups, &part.groups)
            && part.resources.iter().all(resource)
            && part.urls.iter().all(url)
            && names
    }

    /// The same in rules that have at most one entry in each list.
    fn parts(&self) -> Vec<Self> {
        let mut parts = Vec::new();
        for verb in &self.verbs {
            let verbs = vec![verb.clone()];
            for (group, resource) in self
                .groups
                .iter()
                .flat_map(|g| self.resources.iter().map(move |r| (g, r)))
            {
                let part = Self {
                    verbs: verbs.clone(),
                    groups: vec![group.clone()],
                    resources: vec![resource.clone()],
                    ..Self::default()
                };
                let named = self.names.iter().map(|name| Self {
                    names: vec![name.clone()],
                    ..part.clone()
                });
                parts.extend(named);
                if self.names.is_empty() {
                    parts.push(part);
                }
            }
            parts.extend(self.urls.iter().map(|url| Self {
                verbs: verbs.clone(),
                urls: vec![url.clone()],
                ..Self::default()
            }));
        }
        parts
    }

    /// How a refusal to escalate shows it.
    fn compact(&self) -> String {
        let shown = [
            ("APIGroups", &self.groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.urls),
            ("ResourceNames", &self.names),
            ("Verbs", &self.verbs),
        ];
        let shown = shown.iter().filter(|(_, list)| !list.is_empty());
        let shown: Vec<String> = shown.map(|(name, list)| format!("{name}:{}", go_list(list))).collect();
        format!("{{{}}}", shown.join(", "))
    }
}

/// A list of strings as Go's `%q` prints it.
pub(crate) fn go_list(list: &[String]) -> String {
    let quoted: Vec<String> = list.iter().map(|text| format!("{text:?}")).collect();
    format!("[{}]", quoted.join(" "))
}

/// Which rights of `wanted` the rules `owned` lack, shown and sorted; empty: none.
pub(crate) fn missing(owned: &[Rule], wanted: &[Rule]) -> Vec<String> {
    let parts = wanted.iter().flat_map(Rule::parts);
    // Those that differ only in the verb are shown as one.
    let mut lacking: BTreeMap<[Vec<String>; 4], Rule> = BTreeMap::new();
    for part in parts.filter(|part| !owned.iter().any(|rule| rule.covers(part))) {
        let mut key = [
            part.groups.clone(),
            part.resources.clone(),
            part.names.clone(),
            part.urls.clone(),
        ];
        if !part.urls.is_empty() {
            // Paths are never joined.
            key[0].clone_from(&part.verbs);
        }
        let together = lacking.entry(key).or_insert_with(|| Rule {
            verbs: Vec::new(),
            ..part.clone()
        });
        together.verbs.extend(part.verbs);
    }
    let mut shown: Vec<String> = lacking.values().map(Rule::compact).collect();
    shown.sort();
    shown.dedup();
    shown
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|one| one == "*" || one == wanted)
}

fn url_covers(url: &str, path: &str) -> bool {
    url == "*" || url == path || (url.ends_with('*') && path.starts_with(url.trim_end_matches('*')))
}
