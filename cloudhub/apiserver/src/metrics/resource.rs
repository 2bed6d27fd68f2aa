//! kubelet's `/metrics/resource`, and what two readings of it say.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use time::OffsetDateTime;

/// A container is known by its own start only between these ages, as in metrics-server: younger is noise, older was seen before.
const FRESH: std::ops::Range<f64> = 10.0..60.0;

/// One node or container at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Point {
    time: OffsetDateTime,
    /// CPU time since its start, nanoseconds.
    cpu: u64,
    /// Bytes.
    memory: u64,
    /// When it started, seconds since 1970.
    started: Option<f64>,
}

/// Containers by name.
type Containers = BTreeMap<String, Point>;

/// One reading.
#[derive(Debug, Default)]
pub(super) struct Sample {
    pub(super) node: Option<Point>,
    /// By namespace and name.
    pub(super) pods: HashMap<(String, String), Containers>,
}

/// What is used, over a window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Usage {
    /// End of the window.
    pub(super) time: OffsetDateTime,
    pub(super) window: Duration,
    pub(super) nano_cores: u64,
    /// Bytes.
    pub(super) memory: u64,
}

impl Usage {
    /// Both together, of the time and the window of that which ended earlier.
    pub(super) fn with(&self, other: &Self) -> Self {
        let earlier = if other.time < self.time { other } else { self };
        Self {
            nano_cores: self.nano_cores.saturating_add(other.nano_cores),
            memory: self.memory.saturating_add(other.memory),
            ..*earlier
        }
    }
}

/// What is half read.
#[derive(Debug, Default)]
struct Draft {
    cpu: Option<(f64, OffsetDateTime)>,
    memory: Option<f64>,
    started: Option<f64>,
}

impl Draft {
    fn add(&mut self, metric: &str, value: f64, time: OffsetDateTime) {
        match metric {
            "cpu_usage_seconds_total" => self.cpu = Some((value, time)),
            "memory_working_set_bytes" => self.memory = Some(value),
            "start_time_seconds" => self.started = Some(value),
            _ => {}
        }
    }

    /// Both CPU and memory, or nothing.
    fn finish(self) -> Option<Point> {
        let (cpu, time) = self.cpu?;
        Some(Point {
            time,
            cpu: whole(cpu * 1e9),
            memory: whole(self.memory?),
            started: self.started,
        })
    }
}

/// A number of something that is never negative; the cast saturates.
fn whole(value: f64) -> u64 {
    value.round() as u64
}

/// Reads the Prometheus text; lines that are none are left out. `now` is the time of what has none.
pub(super) fn parse(text: &str, now: OffsetDateTime) -> Sample {
    let mut node = Draft::default();
    let mut containers: HashMap<(String, String, String), Draft> = HashMap::new();
    for line in text.lines() {
        let Some((name, labels, value, time)) = read(line) else {
            continue;
        };
        let time = time.unwrap_or(now);
        if let Some(metric) = name.strip_prefix("node_") {
            node.add(metric, value, time);
        } else if let Some(metric) = name.strip_prefix("container_") {
            let label = |wanted: &str| {
                let found = labels.iter().find(|(name, _)| *name == wanted);
                found.map(|(_, value)| value.clone()).unwrap_or_default()
            };
            let of = (label("namespace"), label("pod"), label("container"));
            containers.entry(of).or_default().add(metric, value, time);
        }
    }
    let mut sample = Sample {
        node: node.finish(),
        ..Sample::default()
    };
    for ((namespace, pod, container), draft) in containers {
        let Some(point) = draft.finish() else { continue };
        sample
            .pods
            .entry((namespace, pod))
            .or_default()
            .insert(container, point);
    }
    sample
}

/// Name, labels, value, time.
type Line<'a> = (&'a str, Vec<(&'a str, String)>, f64, Option<OffsetDateTime>);

fn read(line: &str) -> Option<Line<'_>> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let end = line.find(['{', ' '])?;
    let name = line.get(..end)?;
    let rest = line.get(end..)?;
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => read_labels(rest)?,
        None => (Vec::new(), rest),
    };
    let mut words = rest.split_whitespace();
    let value: f64 = words.next()?.parse().ok()?;
    if !value.is_finite() || value < 0.0 {
        return None;
    }
    let time = match words.next() {
        Some(millis) => Some(from_millis(millis.parse().ok()?)?),
        None => None,
    };
    Some((name, labels, value, time))
}

fn from_millis(millis: i64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000).ok()
}

/// `a="b",c="d"}`, and what follows.
fn read_labels(mut rest: &str) -> Option<(Vec<(&str, String)>, &str)> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(rest) = rest.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, after) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut characters = after.char_indices();
        let end = loop {
            match characters.next()? {
                (at, '"') => break at,
                (_, '\\') => match characters.next()?.1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (_, other) => value.push(other),
            }
        };
        labels.push((name, value));
        rest = after.get(end + 1..)?;
    }
}

/// What was used between two points; None when the first says nothing about that: it is missing, of another life, or no time has passed.
pub(super) fn usage(previous: Option<&Point>, last: &Point) -> Option<Usage> {
    let end = seconds(last.time);
    let same_life = |previous: &&Point| {
        previous.cpu <= last.cpu && last.started.is_none_or(|started| started <= seconds(previous.time))
    };
    let (cpu, start) = match previous.filter(same_life) {
        Some(previous) => (last.cpu - previous.cpu, seconds(previous.time)),
        None => (
            last.cpu,
            last.started.filter(|started| FRESH.contains(&(end - started)))?,
        ),
    };
    let window = Duration::try_from_secs_f64(end - start).ok()?;
    // Times are whole milliseconds; what a double adds below is noise.
    let window = Duration::from_millis((window + Duration::from_micros(500)).as_millis().try_into().ok()?);
    if window.is_zero() {
        return None;
    }
    Some(Usage {
        time: last.time,
        window,
        nano_cores: whole(cpu as f64 / window.as_secs_f64()),
        memory: last.memory,
    })
}

/// Since 1970; a double is exact to the microsecond.
fn seconds(time: OffsetDateTime) -> f64 {
    time.unix_timestamp_nanos() as f64 / 1e9
}

/// A quantity of cores, in its canonical form: `1500n` is `1500n`, `2000000n` is `2m`.
pub(super) fn nano_cores(nanos: u64) -> String {
    canonical(nanos, 1000, &["n", "u", "m", ""])
}

/// A quantity of bytes, in its canonical form.
pub(super) fn bytes(bytes: u64) -> String {
    canonical(bytes, 1024, &["", "Ki", "Mi", "Gi", "Ti"])
}

/// With the largest unit that leaves a whole number.
fn canonical(mut number: u64, step: u64, units: &[&str]) -> String {
    if number == 0 {
        return "0".to_owned();
    }
    let mut units = units.iter();
    let mut unit = units.next().copied().unwrap_or_default();
    while number.is_multiple_of(step) {
        let Some(next) = units.next() else { break };
        number /= step;
        unit = next;
    }
    format!("{number}{unit}")
}

/// A duration as Go prints it, to the millisecond: `10.062s`, `1m0s`.
pub(super) fn window(window: Duration) -> String {
    let millis = window.as_millis();
    let (minutes, millis) = (millis / 60_000, millis % 60_000);
    let (seconds, fraction) = (millis / 1000, millis % 1000);
    let fraction = if fraction == 0 {
        String::new()
    } else {
        format!(".{fraction:03}").trim_end_matches('0').to_owned()
    };
    match (minutes, seconds, fraction.is_empty()) {
        (0, 0, false) => format!("{millis}ms"),
        (0, ..) => format!("{seconds}{fraction}s"),
        _ => format!("{minutes}m{seconds}{fraction}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(at: i64, cpu: f64, started: Option<f64>) -> Point {
        Point {
            time: OffsetDateTime::from_unix_timestamp(at).unwrap(),
            cpu: whole(cpu * 1e9),
            memory: 1,
            started,
        }
    }

    #[test]
    fn kubelets_text_is_read_with_its_times() {
        let text = "# HELP x [STABLE] y\n# TYPE x counter\n\
                    container_cpu_usage_seconds_total{container=\"c\",namespace=\"n\",pod=\"p\"} 4.710169 1395066363000\n\
                    container_memory_working_set_bytes{container=\"c\",namespace=\"n\",pod=\"p\"} 1.253376e+06 1395066363000\n\
                    container_start_time_seconds{container=\"c\",namespace=\"n\",pod=\"p\"} 1.395066e+09\n\
                    container_cpu_usage_seconds_total{container=\"half\",namespace=\"n\",pod=\"p\"} 1\n\
                    node_cpu_usage_seconds_total 100 1395066363000\nnode_memory_working_set_bytes 5\nscrape_error 0\n";
        let sample = parse(text, OffsetDateTime::UNIX_EPOCH);
        let containers = &sample.pods[&("n".to_owned(), "p".to_owned())];
        assert_eq!(containers.len(), 1, "a container without memory is left out");
        let c = containers["c"];
        assert_eq!((c.memory, c.started), (1_253_376, Some(1.395_066e9)));
        assert_eq!(c.time, OffsetDateTime::from_unix_timestamp(1_395_066_363).unwrap());
        assert_eq!(sample.node.unwrap().memory, 5);
    }

    #[test]
    fn labels_may_hold_anything() {
        let (name, labels, value, _) = read(r#"m{a="x\"}\\,=\n",b=""} 2"#).unwrap();
        assert_eq!((name, value), ("m", 2.0));
        assert_eq!(labels, [("a", "x\"}\\,=\n".to_owned()), ("b", String::new())]);
        for broken in [
            "m",
            "m{",
            "m{a}",
            "m{a=\"} 1",
            "m{a=\"\\",
            "m NaN",
            "m -1",
            "m 1 x",
            "{} 1",
        ] {
            let _ = read(broken);
        }
        assert!(read("m NaN").is_none() && read("m 1 x").is_none() && read("m{a=\"\\").is_none());
    }

    #[test]
    fn a_rate_needs_two_points_of_one_life() {
        let last = point(1010, 3.0, Some(500.0));
        let rate = usage(Some(&point(1000, 1.0, Some(500.0))), &last).unwrap();
        assert_eq!((rate.nano_cores, rate.window), (200_000_000, Duration::from_secs(10)));
        assert!(usage(None, &last).is_none());
        assert!(
            usage(Some(&point(1010, 3.0, None)), &last).is_none(),
            "no time has passed"
        );
        assert!(
            usage(Some(&point(1000, 9.0, None)), &last).is_none(),
            "it has restarted"
        );
        let fresh = point(1010, 3.0, Some(990.0));
        let since_start = usage(Some(&point(980, 1.0, Some(100.0))), &fresh).unwrap();
        assert_eq!(
            (since_start.nano_cores, since_start.window),
            (150_000_000, Duration::from_secs(20))
        );
        assert!(usage(None, &point(1010, 3.0, Some(1005.0))).is_none(), "too young");
    }

    #[test]
    fn quantities_and_windows_are_in_canonical_form() {
        for (nanos, text) in [
            (0, "0"),
            (1, "1n"),
            (1_500, "1500n"),
            (2_000, "2u"),
            (500_000_000, "500m"),
            (3_000_000_000, "3"),
        ] {
            assert_eq!(nano_cores(nanos), text);
        }
        for (n, text) in [
            (1500, "1500"),
            (2048, "2Ki"),
            (1 << 20, "1Mi"),
            (5 << 40, "5Ti"),
            (1 << 50, "1024Ti"),
        ] {
            assert_eq!(bytes(n), text);
        }
        for (millis, text) in [
            (10_062, "10.062s"),
            (60_000, "1m0s"),
            (500, "500ms"),
            (15_100, "15.1s"),
            (61_500, "1m1.5s"),
        ] {
            assert_eq!(window(Duration::from_millis(millis)), text);
        }
    }
}
