//! A script: a YAML file of `objects` (bodies by name) and `steps`. A step:
//!
//! * `do`: method and path; `body`: an object, or the name of one; `text`: a body as it is
//! * `type`: of a PATCH `merge`, `json`, `strategic` (the default) or `apply`, or a media type; `accept`: `table`, `partial`,
//!   `partials`, `discovery` or a media type
//! * `as`: an impersonated user or `{user, groups}`; `token`: a bearer token, without the admin's certificate; `nobody: true`
//! * `set`: values by JSON pointer, put into the body ("(drop)" takes it out); `each`: such maps, the step is done once for each
//! * `events`: how many events of a watch are read; `prune`: what we do not serve is not compared
//! * `save`: variables, by name, from the answer's JSON pointers; `${NAME}` in paths and texts is replaced
//! * `differs`: JSON pointer of the answer (with `code`, `type`, `warnings`, `body`) → why it is not the real server's; in an
//!   `each` it stands beside the values

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::answer::{self, Difference};
use crate::client::{Ask, Client};

/// Values by JSON pointer.
type Values = Map<String, Value>;
type Variables = BTreeMap<String, String>;

/// One file.
#[derive(Debug)]
pub(crate) struct Script {
    pub(crate) name: String,
    file: File,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    objects: BTreeMap<String, Value>,
    steps: Vec<Step>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Step {
    r#do: String,
    body: Option<Value>,
    text: Option<String>,
    r#type: Option<String>,
    accept: Option<String>,
    r#as: Option<Value>,
    token: Option<String>,
    nobody: bool,
    set: Values,
    each: Vec<Values>,
    events: usize,
    prune: bool,
    save: BTreeMap<String, String>,
    differs: BTreeMap<String, String>,
}

/// The two servers' variables.
#[derive(Debug, Default)]
struct Both {
    real: Variables,
    ours: Variables,
}

impl Script {
    /// Reads a script.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let file = serde_yaml_ng::from_str(&fs::read_to_string(path)?).with_context(|| path.display().to_string())?;
        Ok(Self {
            name: name.unwrap_or_default(),
            file,
        })
    }

    /// Does every step at both; what differs, a text each.
    pub(crate) async fn run(&self, real: &Client, ours: &Client) -> Result<Vec<String>> {
        let mut variables = Both::default();
        let mut faults = Vec::new();
        for (index, step) in self.file.steps.iter().enumerate() {
            let none = [Values::new()];
            let each: &[Values] = if step.each.is_empty() { &none } else { &step.each };
            for values in each {
                let mut values = values.clone();
                let mut rows = step.differs.clone();
                if let Some(own) = values.shift_remove("differs") {
                    rows.extend(serde_json::from_value::<BTreeMap<String, String>>(own)?);
                }
                let shown = if values.is_empty() {
                    String::new()
                } else {
                    format!(" {}", Value::Object(values.clone()))
                };
                let what = format!("{} #{}: {}{shown}", self.name, index + 1, step.r#do);
                let asked = self.once(step, values, &mut variables, (real, ours)).await;
                let differences = asked.with_context(|| what.clone())?;
                let own = judge(differences, rows);
                if !own.is_empty() {
                    faults.push(format!("{what}\n    {}", own.join("\n    ")));
                }
            }
        }
        Ok(faults)
    }

    async fn once(
        &self,
        step: &Step,
        values: Values,
        variables: &mut Both,
        (real, ours): (&Client, &Client),
    ) -> Result<Vec<Difference>> {
        let real_ask = self.ask(step, &values, &variables.real)?;
        let ours_ask = self.ask(step, &values, &variables.ours)?;
        let (real_reply, ours_reply) = tokio::try_join!(real.ask(&real_ask), ours.ask(&ours_ask))?;
        let (mut left, mut right) = (answer::value(&real_reply), answer::value(&ours_reply));
        for (name, pointer) in &step.save {
            for (value, variables) in [(&left, &mut variables.real), (&right, &mut variables.ours)] {
                let found = value.pointer(&format!("/body{pointer}")).and_then(Value::as_str);
                let found = found.with_context(|| format!("{pointer} of {value}"))?;
                variables.insert(name.clone(), found.to_owned());
            }
        }
        answer::normalize(&mut left, &real.address);
        answer::normalize(&mut right, &ours.address);
        if step.prune {
            for value in [&mut left, &mut right] {
                if value.pointer("/body/openapi").is_some() {
                    answer::without_prose(value);
                }
            }
            answer::prune(&mut left, &mut right);
        }
        Ok(answer::differences(&left, &right))
    }

    fn ask(&self, step: &Step, values: &Values, variables: &Variables) -> Result<Ask> {
        let line = fill(&step.r#do, variables);
        let (method, path) = line
            .split_once(' ')
            .with_context(|| format!("{line:?} is not METHOD PATH"))?;
        let mut headers = Vec::new();
        let mut add = |name: &str, value: &str| headers.push((name.to_owned(), value.to_owned()));
        if step.body.is_some() || step.text.is_some() {
            add("content-type", media_type(step.r#type.as_deref(), method));
        }
        add("accept", accept(step.accept.as_deref()));
        match &step.r#as {
            None => {}
            Some(Value::String(user)) => add("impersonate-user", &fill(user, variables)),
            Some(who) => {
                add("impersonate-user", who["user"].as_str().context("as.user")?);
                for group in who["groups"].as_array().into_iter().flatten() {
                    add("impersonate-group", group.as_str().context("as.groups")?);
                }
            }
        }
        if let Some(token) = &step.token {
            add("authorization", &format!("Bearer {}", fill(token, variables)));
        }
        Ok(Ask {
            method: method.to_owned(),
            path: path.to_owned(),
            headers,
            body: self.body(step, values, variables)?,
            certificate: step.token.is_none() && !step.nobody,
            events: step.events,
        })
    }

    fn body(&self, step: &Step, values: &Values, variables: &Variables) -> Result<Bytes> {
        if let Some(text) = &step.text {
            return Ok(Bytes::from(fill(text, variables)));
        }
        let mut body = match &step.body {
            None => {
                ensure!(values.is_empty() && step.set.is_empty(), "values without a body");
                return Ok(Bytes::new());
            }
            Some(Value::String(name)) => self.file.objects.get(name).with_context(|| name.clone())?.clone(),
            Some(body) => body.clone(),
        };
        for (pointer, value) in step.set.iter().chain(values) {
            put(&mut body, pointer, value).with_context(|| pointer.clone())?;
        }
        Ok(Bytes::from(fill(&body.to_string(), variables)))
    }
}

/// Faults: differences that no row explains, and rows that explain none.
fn judge(differences: Vec<Difference>, rows: BTreeMap<String, String>) -> Vec<String> {
    let is_under = |at: &str, row: &str| {
        at.strip_prefix(row)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let mut faults = Vec::new();
    for row in rows.keys() {
        if !differences.iter().any(|difference| is_under(&difference.at, row)) {
            faults.push(format!("{row} no longer differs: take the row out"));
        }
    }
    for difference in differences {
        if !rows.keys().any(|row| is_under(&difference.at, row)) {
            faults.push(difference.to_string());
        }
    }
    faults
}

fn fill(text: &str, variables: &Variables) -> String {
    variables.iter().fold(text.to_owned(), |text, (name, value)| {
        text.replace(&format!("${{{name}}}"), value)
    })
}

fn media_type<'a>(named: Option<&'a str>, method: &str) -> &'a str {
    match (named, method) {
        (Some("merge"), _) => "application/merge-patch+json",
        (Some("json"), _) => "application/json-patch+json",
        (Some("strategic"), _) | (None, "PATCH") => "application/strategic-merge-patch+json",
        (Some("apply"), _) => "application/apply-patch+yaml",
        (Some(literal), _) => literal,
        (None, _) => "application/json",
    }
}

fn accept(named: Option<&str>) -> &str {
    match named {
        None => "application/json",
        Some("table") => "application/json;as=Table;v=v1;g=meta.k8s.io",
        Some("partial") => "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io",
        Some("partials") => "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
        Some("discovery") => "application/json;v=v2;g=apidiscovery.k8s.io;as=APIGroupDiscoveryList",
        Some(literal) => literal,
    }
}

/// Puts `value` at `pointer`, making objects on the way.
fn put(body: &mut Value, pointer: &str, value: &Value) -> Result<()> {
    let (parent, last) = pointer.rsplit_once('/').context("a pointer begins with /")?;
    let last = last.replace("~1", "/").replace("~0", "~");
    let mut at = body;
    for part in parent.split('/').skip(1) {
        let part = part.replace("~1", "/").replace("~0", "~");
        at = match at {
            Value::Array(items) => items.get_mut(part.parse::<usize>()?).context("no such item")?,
            at => {
                if !at.is_object() {
                    *at = Value::Object(Map::new());
                }
                at.as_object_mut()
                    .context("an object")?
                    .entry(part)
                    .or_insert(Value::Null)
            }
        };
    }
    let drop = value == "(drop)";
    match at {
        Value::Array(items) if last == "-" => items.push(value.clone()),
        Value::Array(items) if drop => {
            items.remove(last.parse()?);
        }
        Value::Array(items) => *items.get_mut(last.parse::<usize>()?).context("no such item")? = value.clone(),
        Value::Object(fields) if drop => {
            fields.shift_remove(&last);
        }
        Value::Object(fields) => {
            fields.insert(last, value.clone());
        }
        Value::Null => *at = Value::Object(Map::from_iter([(last, value.clone())])),
        other => bail!("{other} has no fields"),
    }
    Ok(())
}
