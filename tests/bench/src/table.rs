//! Rows with their budgets: the arithmetic, the table and the JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// Samples of one quantity, ascending. Never empty.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// `None` of no sample: a measurement that measured nothing has no median.
    pub(crate) fn new(mut samples: Vec<f64>) -> Option<Self> {
        samples.sort_by(f64::total_cmp);
        (!samples.is_empty()).then_some(Self(samples))
    }

    /// One measurement.
    pub(crate) fn one(sample: f64) -> Self {
        Self(vec![sample])
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The middle one, or the mean of the two in the middle.
    pub(crate) fn median(&self) -> f64 {
        let (low, high) = ((self.0.len() - 1) / 2, self.0.len() / 2);
        f64::midpoint(self.0[low], self.0[high])
    }

    /// The smallest sample that `percent` of all do not exceed.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0[rank - 1]
    }

    pub(crate) fn worst(&self) -> f64 {
        self.0[self.0.len() - 1]
    }
}

/// Which figure of the samples the budget is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    /// The median.
    Median,
    /// The 99th percentile.
    P99,
    /// The largest.
    Worst,
}

/// The most that a row may be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Budget {
    pub(crate) gate: Gate,
    pub(crate) limit: f64,
}

/// One line of the table. Smaller is better in all of them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    /// Above which API, or of which build.
    pub(crate) above: String,
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    pub(crate) samples: Samples,
    pub(crate) budget: Option<Budget>,
    /// What others need for it, from design.md §4; empty where nobody has measured.
    pub(crate) reference: &'static str,
    /// What a reader must know of how it was measured.
    pub(crate) note: String,
}

impl Row {
    pub(crate) fn new(above: &str, what: impl Into<String>, unit: &'static str, samples: Samples) -> Self {
        Self {
            above: above.to_owned(),
            what: what.into(),
            unit,
            samples,
            budget: None,
            reference: "",
            note: String::new(),
        }
    }

    pub(crate) fn budget(mut self, gate: Gate, limit: f64) -> Self {
        self.budget = Some(Budget { gate, limit });
        self
    }

    pub(crate) fn reference(mut self, text: &'static str) -> Self {
        self.reference = text;
        self
    }

    pub(crate) fn note(mut self, text: impl Into<String>) -> Self {
        self.note = text.into();
        self
    }

    /// Whether the budget is met; `None` without one.
    pub(crate) fn is_met(&self) -> Option<bool> {
        let budget = self.budget?;
        let figure = match budget.gate {
            Gate::Median => self.samples.median(),
            Gate::P99 => self.samples.percentile(99),
            Gate::Worst => self.samples.worst(),
        };
        Some(figure <= budget.limit)
    }

    fn json(&self) -> Value {
        let budget = self
            .budget
            .map(|b| json!({"figure": gate_name(b.gate), "limit": b.limit}));
        json!({
            "above": self.above, "row": self.what, "unit": self.unit, "samples": self.samples.len(),
            "median": self.samples.median(), "p99": self.samples.percentile(99), "worst": self.samples.worst(),
            "budget": budget, "reference": self.reference, "met": self.is_met(), "note": self.note,
        })
    }

    fn cells(&self) -> [String; 9] {
        let budget = self
            .budget
            .map_or_else(String::new, |b| format!("{} ≤ {}", gate_name(b.gate), figure(b.limit)));
        let met = match self.is_met() {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "",
        };
        [
            self.above.clone(),
            format!("{} [{}]", self.what, self.unit),
            self.samples.len().to_string(),
            figure(self.samples.median()),
            figure(self.samples.percentile(99)),
            figure(self.samples.worst()),
            budget,
            met.to_owned(),
            self.reference.to_owned(),
        ]
    }
}

/// The rows so far; each is told at once, so that a measurement that fails later has not taken all with it.
#[derive(Debug, Default)]
pub(crate) struct Rows(Vec<Row>);

impl Rows {
    pub(crate) fn push(&mut self, row: Row) {
        eprint!("{}", lines(&[row.cells()]));
        self.0.push(row);
    }

    pub(crate) fn extend(&mut self, rows: impl IntoIterator<Item = Row>) {
        rows.into_iter().for_each(|row| self.push(row));
    }

    pub(crate) fn finish(self) -> Vec<Row> {
        self.0
    }
}

fn gate_name(gate: Gate) -> &'static str {
    match gate {
        Gate::Median => "median",
        Gate::P99 => "p99",
        Gate::Worst => "worst",
    }
}

/// Three figures or so: more say nothing.
fn figure(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{value:.digits$}");
    let trimmed = text.trim_end_matches('0').trim_end_matches('.');
    (if digits == 0 { text.as_str() } else { trimmed }).to_owned()
}

/// Cells below each other, columns as wide as they must be.
fn lines(cells: &[[String; 9]]) -> String {
    let width = |column: usize| cells.iter().map(|c| c[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..9).map(width).collect();
    let mut out = String::new();
    for row in cells {
        let padded = row.iter().zip(&widths);
        let line: Vec<String> = padded.map(|(cell, width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(out, "{}", line.join("  ").trim_end());
    }
    out
}

/// The table as text, notes below.
pub(crate) fn render(rows: &[Row]) -> String {
    let head = [
        "above",
        "what",
        "n",
        "median",
        "p99",
        "worst",
        "budget",
        "met",
        "reference",
    ]
    .map(str::to_owned);
    let cells: Vec<[String; 9]> = std::iter::once(head).chain(rows.iter().map(Row::cells)).collect();
    let mut out = lines(&cells);
    for row in rows.iter().filter(|row| !row.note.is_empty()) {
        let _ = writeln!(out, "* {}, {}: {}", row.above, row.what, row.note);
    }
    out
}

/// All of it, for machines. `about`: when, where, how.
pub(crate) fn to_json(about: &Value, rows: &[Row]) -> Value {
    json!({"about": about, "rows": rows.iter().map(Row::json).collect::<Vec<_>>()})
}

/// What `bytes` in `seconds` come to in a day, MB.
pub(crate) fn megabytes_a_day(bytes: u64, seconds: f64) -> f64 {
    bytes as f64 / seconds * 86_400.0 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[f64]) -> Samples {
        Samples::new(values.to_vec()).unwrap()
    }

    #[test]
    fn the_median_is_in_the_middle_however_many_there_are() {
        assert_eq!(Samples::new(Vec::new()), None);
        assert_eq!(Samples::one(3.0).median(), 3.0);
        assert_eq!(samples(&[9.0, 1.0, 5.0]).median(), 5.0);
        assert_eq!(samples(&[4.0, 1.0, 2.0, 9.0]).median(), 3.0);
    }

    #[test]
    fn a_percentile_is_a_sample_that_so_many_do_not_exceed() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(samples(&hundred).percentile(99), 99.0);
        assert_eq!(samples(&hundred).percentile(100), 100.0);
        assert_eq!(samples(&[7.0]).percentile(99), 7.0);
        assert_eq!(samples(&[1.0, 2.0]).percentile(99), 2.0, "few samples: the worst");
        assert_eq!(samples(&[1.0, 2.0]).percentile(0), 1.0);
    }

    #[test]
    fn a_budget_is_held_against_its_own_figure() {
        let row = || Row::new("embedded", "x", "ms", samples(&[1.0, 2.0, 30.0]));
        assert_eq!(row().is_met(), None);
        assert_eq!(row().budget(Gate::Median, 2.0).is_met(), Some(true));
        assert_eq!(row().budget(Gate::Worst, 29.9).is_met(), Some(false));
        assert_eq!(row().budget(Gate::P99, 30.0).is_met(), Some(true));
    }

    #[test]
    fn traffic_is_extrapolated_to_a_day() {
        assert_eq!(megabytes_a_day(1_000_000, 86_400.0), 1.0);
        assert_eq!(megabytes_a_day(1_000, 60.0), 1.44);
    }

    #[test]
    fn the_table_lines_up_and_says_what_was_missed() {
        let rows = [
            Row::new("embedded", "pod start", "ms", samples(&[120.0, 180.4])).budget(Gate::Median, 50.0),
            Row::new("-", "binary", "MB", Samples::one(9.5))
                .budget(Gate::Worst, 12.0)
                .reference("kubelet 84.5")
                .note("static"),
        ];
        let text = render(&rows);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(lines[1].contains("NO") && lines[1].contains("150"), "{text}");
        assert!(lines[2].contains("yes") && lines[2].ends_with("kubelet 84.5"), "{text}");
        assert_eq!(
            lines[0].find("met"),
            lines[2].find("yes").map(|at| at - 2),
            "≤ has three bytes: {text}"
        );
        assert_eq!(lines[3], "* -, binary: static");
    }

    #[test]
    fn figures_have_three_digits_or_so() {
        for (value, text) in [
            (1234.5, "1234"),
            (12.34, "12.3"),
            (0.5, "0.5"),
            (100.0, "100"),
            (0.0, "0"),
        ] {
            assert_eq!(figure(value), text);
        }
    }

    #[test]
    fn json_has_all_figures() {
        let row = Row::new("embedded", "x", "ms", samples(&[1.0, 3.0])).budget(Gate::Median, 1.0);
        let value = to_json(&json!({"quick": true}), &[row]);
        assert_eq!(value["rows"][0]["median"], 2.0);
        assert_eq!(value["rows"][0]["met"], false);
        assert_eq!(value["rows"][0]["budget"]["figure"], "median");
    }
}
