//! Prometheus' text format (https://prometheus.io/docs/instrumenting/exposition_formats/), for what the two ends say of sessions and paths.

use std::fmt::Write as _;

use crate::bond::SessionStats;

/// What a family's values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// They go up and down.
    Gauge,
    /// They grow, and begin anew with the process or the session.
    Counter,
}

/// Families of metrics, one after another.
#[derive(Clone, Debug, Default)]
pub struct Exposition(String);

type Count = fn(&SessionStats) -> u64;

/// A value and what tells it from others of its family.
pub type Sample<'a> = (Vec<(&'static str, &'a str)>, f64);

impl Exposition {
    /// Adds a family; one without samples is left out.
    pub fn family<'a>(
        &mut self,
        (name, kind, help): (&str, Kind, &str),
        samples: impl IntoIterator<Item = Sample<'a>>,
    ) {
        let kind = match kind {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
        };
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return;
        }
        // Writing into a String cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            self.0.push_str(name);
            for (at, (label, text)) in labels.iter().enumerate() {
                let _ = write!(
                    self.0,
                    "{}{label}=\"{}\"",
                    if at == 0 { '{' } else { ',' },
                    escaped(text)
                );
            }
            let end = if labels.is_empty() { "" } else { "}" };
            let _ = writeln!(self.0, "{end} {value}");
        }
    }

    /// Adds what sessions have repaired, each with what tells it from the others.
    pub fn repairs(&mut self, sessions: &[(Vec<(&'static str, &str)>, SessionStats)]) {
        let counters: [(&str, &str, Count); 4] = [
            (
                "kedge_session_repaired_total",
                "Packets and pieces of streams that were lost and sent again.",
                |stats| stats.repaired,
            ),
            (
                "kedge_session_reinjected_total",
                "What went elsewhere because its path did not answer.",
                |stats| stats.reinjected,
            ),
            (
                "kedge_session_duplicated_total",
                "Packets and messages that came more than once.",
                |stats| stats.duplicated,
            ),
            (
                "kedge_session_skipped_total",
                "Packets that their flow went on without.",
                |stats| stats.skipped,
            ),
        ];
        for (name, help, value) in counters {
            let samples = sessions
                .iter()
                .map(|(labels, stats)| (labels.clone(), value(stats) as f64));
            self.family((name, Kind::Counter, help), samples);
        }
    }

    /// The text.
    #[must_use]
    pub fn into_text(self) -> String {
        self.0
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_as_prometheus_reads_them() {
        let mut text = Exposition::default();
        text.family(
            ("a_seconds", Kind::Gauge, "How long."),
            [(vec![("uplink", "l\"t\\e\n"), ("d", "x")], 0.25)],
        );
        text.family(("b_total", Kind::Counter, "How many."), [(Vec::new(), 3.0)]);
        text.family(("c", Kind::Gauge, "None."), []);
        assert_eq!(
            text.into_text(),
            "# HELP a_seconds How long.\n# TYPE a_seconds gauge\na_seconds{uplink=\"l\\\"t\\\\e\\n\",d=\"x\"} 0.25\n\
             # HELP b_total How many.\n# TYPE b_total counter\nb_total 3\n"
        );
    }
}
