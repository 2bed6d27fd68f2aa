//! How much of everything, and which.

use linkem::run::Report;

use super::contender::Contender;
use super::talk::Load;
use super::world::{Air, World};

/// What is run.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Runs of ours, and of each baseline.
    repetitions: (usize, usize),
    /// How often a run is tried that linkem calls invalid.
    pub(crate) tries: usize,
    pub(crate) baselines: bool,
    /// The kernel's TCP inside; losses in bursts.
    pub(crate) inner: bool,
    /// What is no TCP inside, of S1 and S2.
    pub(crate) plain: bool,
    pub(crate) bursts: bool,
    /// Of the links' rates.
    scale: f64,
    pub(crate) bulk_seconds: f64,
    pub(crate) trace_seconds: f64,
    pub(crate) control_seconds: f64,
    pub(crate) compared_seconds: f64,
    pub(crate) shared_seconds: f64,
    pub(crate) idle_seconds: f64,
    pub(crate) cable_seconds: f64,
    /// S4: under which loads, and for how long a link is dead, and as long watched after its return.
    pub(crate) loads: Vec<Load>,
    pub(crate) dead_seconds: f64,
    /// Silent deaths of each link under a load in order (half as many under others), and deaths of each other kind.
    pub(crate) black_holes: usize,
    pub(crate) other_deaths: usize,
    /// S5, and whether beside bulk.
    pub(crate) conditions: Vec<(Air, bool)>,
    /// S5, with which baselines.
    pub(crate) compared: Vec<Air>,
    /// S7: seconds, and which links return after them.
    pub(crate) outages: Vec<(f64, Vec<usize>)>,
}

/// Traces that S5 runs over.
const LTE: Air = Air::Lte { trace: 3, lossy: true };

impl Plan {
    /// What is quoted: under 100 minutes.
    pub(crate) fn full() -> Self {
        let conditions = [Air::Lossy, Air::Heavy, LTE];
        Self {
            repetitions: (3, 2),
            tries: 3,
            baselines: true,
            inner: true,
            plain: true,
            bursts: true,
            loads: vec![Load::Realtime, Load::Ordered],
            dead_seconds: 4.0,
            scale: 1.0,
            bulk_seconds: 30.0,
            trace_seconds: 60.0,
            control_seconds: 120.0,
            compared_seconds: 40.0,
            shared_seconds: 15.0,
            idle_seconds: 600.0,
            cable_seconds: 10.0,
            black_holes: 20,
            other_deaths: 5,
            conditions: conditions
                .iter()
                .flat_map(|air| [(*air, false), (*air, true)])
                .collect(),
            compared: vec![Air::Lossy, LTE],
            outages: vec![(10.0, vec![0, 1, 2]), (60.0, vec![1]), (120.0, vec![2])],
        }
    }

    /// The same in less than 20 minutes: to try it, not to quote.
    pub(crate) fn quick() -> Self {
        Self {
            repetitions: (2, 1),
            tries: 1,
            dead_seconds: 3.0,
            bulk_seconds: 10.0,
            trace_seconds: 15.0,
            control_seconds: 15.0,
            compared_seconds: 15.0,
            shared_seconds: 10.0,
            idle_seconds: 40.0,
            cable_seconds: 6.0,
            black_holes: 2,
            other_deaths: 1,
            conditions: vec![
                (Air::Lossy, false),
                (Air::Lossy, true),
                (Air::Heavy, false),
                (LTE, false),
            ],
            compared: vec![Air::Lossy],
            outages: vec![(5.0, vec![0]), (15.0, vec![2])],
            ..Self::full()
        }
    }

    /// What `tests/run` asks for, at rates that leave CPU time.
    pub(crate) fn gate() -> Self {
        Self {
            repetitions: (1, 0),
            baselines: false,
            inner: false,
            bursts: false,
            loads: vec![Load::Ordered],
            dead_seconds: 2.0,
            scale: 0.4,
            bulk_seconds: 6.0,
            control_seconds: 10.0,
            compared_seconds: 10.0,
            black_holes: 1,
            other_deaths: 0,
            conditions: vec![(Air::Lossy, false)],
            compared: vec![Air::Lossy],
            tries: 3,
            ..Self::quick()
        }
    }

    /// Of S1, S2 and S4 only the kernel's TCP inside.
    pub(crate) fn only_inner(self) -> Self {
        Self {
            baselines: false,
            plain: false,
            loads: Vec::new(),
            ..self
        }
    }

    pub(crate) fn world(&self, air: Air) -> World {
        World {
            scale: self.scale,
            ..World::new(air, 1)
        }
    }

    pub(crate) fn repetitions(&self, contender: Contender) -> usize {
        let (ours, baselines) = self.repetitions;
        if contender.is_kedge() { ours } else { baselines }
    }

    /// Of S3, whose runs are twice as long: two at most, baselines once.
    pub(crate) fn of_traces(&self) -> Self {
        let (ours, baselines) = self.repetitions;
        Self {
            repetitions: (ours.min(2), baselines.min(1)),
            ..self.clone()
        }
    }
}

/// Why runs do not count.
pub(crate) fn reasons(reports: &[Report]) -> Vec<String> {
    reports.iter().flat_map(|report| report.invalid.clone()).collect()
}
