//! How busy the machine is, by `/proc/stat`.

use std::fs;
use std::io;

/// Ticks of all CPUs since the machine began.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ticks {
    idle: u64,
    all: u64,
}

impl Ticks {
    /// As they are now.
    ///
    /// # Errors
    /// When `/proc/stat` cannot be read.
    pub(crate) fn now() -> io::Result<Self> {
        let text = fs::read_to_string("/proc/stat")?;
        Self::parse(&text).ok_or_else(|| io::Error::other("/proc/stat has no line of all CPUs"))
    }

    fn parse(text: &str) -> Option<Self> {
        let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
        // user nice system idle iowait irq softirq steal; guest time is in user already.
        let ticks: Vec<u64> = line
            .split_whitespace()
            .take(8)
            .filter_map(|word| word.parse().ok())
            .collect();
        Some(Self {
            idle: ticks.get(3)? + ticks.get(4)?,
            all: ticks.iter().sum(),
        })
    }

    /// The share of the time since `before` that was idle; all of it when no time has passed.
    pub(crate) fn idle_since(self, before: Self) -> f64 {
        match self.all.saturating_sub(before.all) {
            0 => 1.0,
            all => self.idle.saturating_sub(before.idle) as f64 / all as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_is_what_neither_works_nor_is_stolen() {
        let before = Ticks::parse("cpu  10 0 10 50 10 0 0 20 0 0\ncpu0 1 1 1 1\n").unwrap();
        let after = Ticks::parse("cpu  20 0 20 80 20 0 0 60 9 9\n").unwrap();
        assert!((after.idle_since(before) - 0.4).abs() < 1e-9);
        assert!((after.idle_since(after) - 1.0).abs() < 1e-9);
        assert!(Ticks::parse("intr 1").is_none());
    }
}
