//! Prometheus' text format 0.0.4, read strictly: what <https://prometheus.io/docs/instrumenting/exposition_formats/> does not allow is an error.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail, ensure};

/// One value, and what tells it from others of its family.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// By their names.
    pub labels: BTreeMap<String, String>,
    /// What it is now.
    pub value: f64,
}

impl Sample {
    /// Whether it has these labels, among others.
    #[must_use]
    pub fn has(&self, labels: &[(&str, &str)]) -> bool {
        let mut wanted = labels.iter();
        wanted.all(|(name, value)| self.labels.get(*name).is_some_and(|have| have == value))
    }
}

/// A metric.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Family {
    /// `gauge` or `counter`.
    pub kind: String,
    /// In their order.
    pub samples: Vec<Sample>,
}

/// All families of `text` by their names. Histograms and summaries are not known here, nor times: nothing of ours has them.
///
/// # Errors
/// The first line that is wrong.
pub fn parse(text: &str) -> Result<BTreeMap<String, Family>> {
    ensure!(text.is_empty() || text.ends_with('\n'), "the last line has no end");
    let mut reader = Reader::default();
    for line in text.lines() {
        reader.read(line).with_context(|| line.to_owned())?;
    }
    let bare = reader.families.iter().find(|(_, family)| family.samples.is_empty());
    match bare {
        Some((name, _)) => bail!("{name} has no samples"),
        None => Ok(reader.families),
    }
}

#[derive(Default)]
struct Reader {
    families: BTreeMap<String, Family>,
    helps: BTreeSet<String>,
    /// The family whose lines these are: they are together.
    current: String,
}

impl Reader {
    fn read(&mut self, line: &str) -> Result<()> {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, text) = help.split_once(' ').context("a help without a text")?;
            ensure!(!text.is_empty() && self.helps.insert(name.to_owned()), "one help each");
            return Ok(());
        }
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').context("a type without a kind")?;
            ensure!(is_name(name, true), "a name");
            ensure!(["gauge", "counter"].contains(&kind), "a kind");
            let family = Family {
                kind: kind.to_owned(),
                samples: Vec::new(),
            };
            ensure!(self.families.insert(name.to_owned(), family).is_none(), "one type each");
            name.clone_into(&mut self.current);
            return Ok(());
        }
        ensure!(!line.starts_with('#'), "neither help nor type");
        self.sample(line)
    }

    fn sample(&mut self, line: &str) -> Result<()> {
        let end = line.find(['{', ' ']).context("a name and a value")?;
        let (name, rest) = line.split_at(end);
        ensure!(name == self.current, "it is not below its type");
        let (labels, value) = match rest.strip_prefix('{') {
            Some(rest) => labels(rest)?,
            None => (BTreeMap::new(), rest),
        };
        let value = value.strip_prefix(' ').context("a space before the value")?;
        let value: f64 = value.parse().context("one number")?;
        let family = self.families.get_mut(name).context("a type")?;
        ensure!(family.kind == "gauge" || value >= 0.0, "a counter only grows");
        let twice = family.samples.iter().any(|have| have.labels == labels);
        ensure!(!twice, "the same series twice");
        family.samples.push(Sample { labels, value });
        Ok(())
    }
}

/// `a="x",b="y"}` and what comes behind it.
fn labels(mut rest: &str) -> Result<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        let (name, value) = rest.split_once("=\"").context("a label")?;
        ensure!(is_name(name, false), "a label's name");
        let mut text = String::new();
        let mut chars = value.char_indices();
        let end = loop {
            match chars.next().context("a label without an end")? {
                (at, '"') => break at,
                (_, '\\') => text.push(match chars.next() {
                    Some((_, 'n')) => '\n',
                    Some((_, plain @ ('\\' | '"'))) => plain,
                    _ => bail!("an escape"),
                }),
                (_, plain) => text.push(plain),
            }
        };
        ensure!(labels.insert(name.to_owned(), text).is_none(), "a label twice");
        rest = &value[end + 1..];
        match (rest.strip_prefix(','), rest.strip_prefix('}')) {
            (Some(more), _) => rest = more,
            (_, Some(behind)) => return Ok((labels, behind)),
            _ => bail!("neither a comma nor the end behind a label"),
        }
    }
}

fn is_name(text: &str, colons: bool) -> bool {
    let may = |c: char| c.is_ascii_alphanumeric() || c == '_' || (colons && c == ':');
    text.chars().all(may) && text.starts_with(|c: char| !c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# HELP a_total How many.\n# TYPE a_total counter\na_total{x=\"1\",y=\"q\\\"\\\\\\n\"} 3\na_total{x=\"2\"} 1.5e3\n\
                        # HELP b b\n# TYPE b gauge\nb -1\n";

    #[test]
    fn families_have_their_samples() {
        let families = parse(GOOD).unwrap();
        let a = &families["a_total"];
        assert_eq!((a.kind.as_str(), a.samples.len()), ("counter", 2));
        assert!(a.samples[0].has(&[("y", "q\"\\\n")]) && !a.samples[0].has(&[("x", "2")]));
        assert_eq!((a.samples[1].value, families["b"].samples[0].value), (1500.0, -1.0));
    }

    #[test]
    fn what_prometheus_would_refuse_is_refused() {
        for (from, to) in [
            ("b -1\n", "b -1"),
            ("b -1\n", "b\n"),
            ("b -1\n", "b  -1\n"),
            ("b -1\n", "b few\n"),
            ("b -1\n", "b -1\nb -1\n"),
            ("b -1\n", "b -1\na_total{x=\"3\"} 3\n"),
            ("b -1\n", ""),
            ("# TYPE b gauge\n", ""),
            ("# TYPE b gauge\n", "# TYPE b gauge\n# TYPE b gauge\n"),
            ("gauge", "gouge"),
            ("{x=\"2\"}", "{x=\"1\",y=\"q\\\"\\\\\\n\"}"),
            ("{x=\"2\"}", "{x=\"2\""),
            ("{x=\"2\"}", "{x=\"2\\t\"}"),
            ("{x=\"2\"}", "{2=\"2\"}"),
            ("{x=\"2\"}", "{x=\"2\",x=\"3\"}"),
            ("1.5e3", "-1"),
        ] {
            let text = GOOD.replace(from, to);
            assert_ne!(text, GOOD, "{from} is not there");
            assert!(parse(&text).is_err(), "{text}");
        }
    }
}
