//! What the links suite prints: figures with their targets, a line each, and the same for machines.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::table::Samples;

/// Which side of the target is good.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Target {
    AtLeast(f64),
    AtMost(f64),
}

impl Target {
    /// By how much it is missed.
    fn short(self, value: f64) -> Option<f64> {
        match self {
            Self::AtLeast(least) if value >= least => None,
            Self::AtLeast(least) => Some(least - value),
            Self::AtMost(most) if value <= most => None,
            Self::AtMost(most) => Some(value - most),
        }
    }
}

/// One line: a quantity of one contender in one scenario, a sample a run.
#[derive(Debug, Clone)]
pub(crate) struct Figure {
    pub(crate) scenario: &'static str,
    pub(crate) air: &'static str,
    pub(crate) who: String,
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    samples: Option<Samples>,
    /// Whether more is better.
    more: bool,
    target: Option<Target>,
    /// Why runs do not count.
    invalid: Vec<String>,
    note: String,
}

impl Figure {
    /// A quantity of which less is better, without samples yet.
    pub(crate) fn new(scenario: &'static str, air: &'static str, who: String, what: &str, unit: &'static str) -> Self {
        Self {
            scenario,
            air,
            who,
            what: what.to_owned(),
            unit,
            samples: None,
            more: false,
            target: None,
            invalid: Vec::new(),
            note: String::new(),
        }
    }

    pub(crate) fn more(mut self) -> Self {
        self.more = true;
        self
    }

    pub(crate) fn samples(mut self, samples: Vec<f64>) -> Self {
        self.samples = Samples::new(samples);
        self
    }

    pub(crate) fn target(mut self, target: Option<Target>) -> Self {
        self.target = target;
        self
    }

    pub(crate) fn invalid(mut self, reasons: impl IntoIterator<Item = String>) -> Self {
        self.invalid.extend(reasons);
        self
    }

    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    fn median(&self) -> f64 {
        self.samples.as_ref().map_or(f64::NAN, Samples::median)
    }

    fn worst(&self) -> f64 {
        match &self.samples {
            Some(samples) if self.more => samples.percentile(0),
            Some(samples) => samples.worst(),
            None => f64::NAN,
        }
    }

    /// By how much median and worst miss the target.
    fn short(&self) -> Option<[Option<f64>; 2]> {
        let target = self.target?;
        Some([self.median(), self.worst()].map(|value| target.short(value)))
    }

    /// Whether median and worst meet the target.
    fn met(&self) -> Option<[bool; 2]> {
        self.short().map(|short| short.map(|by| by.is_none()))
    }

    fn cells(&self) -> Vec<String> {
        let target = match self.target {
            Some(Target::AtLeast(least)) => format!("≥ {}", digits(least)),
            Some(Target::AtMost(most)) => format!("≤ {}", digits(most)),
            None => String::new(),
        };
        let met = self.short().map(|short| {
            let word =
                |short: Option<f64>| short.map_or_else(|| "yes".to_owned(), |by| format!("NO by {}", digits(by)));
            short.map(word).join(", ")
        });
        let invalid = if self.invalid.is_empty() { "" } else { "INVALID" };
        vec![
            self.scenario.to_owned(),
            self.air.to_owned(),
            self.who.clone(),
            format!("{} [{}]", self.what, self.unit),
            self.samples.as_ref().map_or(0, Samples::len).to_string(),
            digits(self.median()),
            digits(self.worst()),
            target,
            met.unwrap_or_default(),
            [invalid, &self.note].join(" ").trim().to_owned(),
        ]
    }

    fn json(&self) -> Value {
        let target = match self.target {
            Some(Target::AtLeast(least)) => json!({"atLeast": least}),
            Some(Target::AtMost(most)) => json!({"atMost": most}),
            None => Value::Null,
        };
        json!({
            "scenario": self.scenario, "air": self.air, "who": self.who, "what": self.what, "unit": self.unit,
            "samples": self.samples.as_ref().map_or(0, Samples::len), "median": self.median(), "worst": self.worst(),
            "target": target, "met": self.met(), "invalid": self.invalid, "note": self.note,
        })
    }
}

/// The figures so far, each told at once.
#[derive(Debug, Default)]
pub(crate) struct Figures(Vec<Figure>);

impl Figures {
    pub(crate) fn push(&mut self, figure: Figure) {
        eprint!("{}", lines(&[figure.cells()]));
        self.0.push(figure);
    }

    /// The table as text; below it, why runs do not count.
    pub(crate) fn render(&self) -> String {
        let head = ["", "links", "who", "what", "n", "median", "worst", "target", "met", ""];
        let head = head.map(str::to_owned).to_vec();
        let cells: Vec<_> = std::iter::once(head).chain(self.0.iter().map(Figure::cells)).collect();
        let mut out = lines(&cells);
        for figure in self.0.iter().filter(|figure| !figure.invalid.is_empty()) {
            let why = figure.invalid.join("; ");
            let _ = writeln!(
                out,
                "* {} {}, {}, {}: {why}",
                figure.scenario, figure.air, figure.who, figure.what
            );
        }
        out
    }

    pub(crate) fn json(&self, about: &Value) -> Value {
        json!({"about": about, "figures": self.0.iter().map(Figure::json).collect::<Vec<_>>()})
    }
}

fn digits(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn lines(cells: &[Vec<String>]) -> String {
    let columns = cells.first().map_or(0, Vec::len);
    let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in cells {
        let padded = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        let line: Vec<String> = padded.collect();
        let _ = writeln!(out, "{}", line.join("  ").trim_end());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure() -> Figure {
        Figure::new("S1", "no loss", "kedge".to_owned(), "datagrams", "%")
    }

    #[test]
    fn median_and_worst_are_each_held_against_the_target() {
        let more = figure()
            .more()
            .samples(vec![98.0, 96.0, 99.0])
            .target(Some(Target::AtLeast(97.0)));
        assert_eq!(
            (more.median(), more.worst(), more.met()),
            (98.0, 96.0, Some([true, false]))
        );
        assert_eq!(more.cells()[8], "yes, NO by 1.00");
        let less = figure().samples(vec![1.0, 5.0]).target(Some(Target::AtMost(3.0)));
        assert_eq!((less.worst(), less.met()), (5.0, Some([true, false])));
        assert_eq!(figure().samples(vec![1.0]).met(), None);
    }

    #[test]
    fn no_sample_meets_no_target() {
        let none = figure().more().samples(Vec::new()).target(Some(Target::AtLeast(1.0)));
        assert_eq!(none.met(), Some([false, false]));
    }

    #[test]
    fn invalid_runs_are_marked_and_explained() {
        let mut figures = Figures::default();
        figures.push(
            figure()
                .samples(vec![1.0])
                .invalid(["CPU idle 3 %".to_owned()])
                .note("n"),
        );
        let text = figures.render();
        assert!(text.contains("INVALID n") && text.ends_with("CPU idle 3 %\n"), "{text}");
        assert_eq!(figures.json(&Value::Null)["figures"][0]["invalid"][0], "CPU idle 3 %");
    }
}
