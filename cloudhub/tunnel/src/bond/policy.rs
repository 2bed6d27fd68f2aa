//! What a path may carry and what it costs: the owner's word, which the scheduler obeys.
//!
//! - while an unmetered path lives, a metered one carries what [`Policy::allow`] says; when only metered ones live, [`Policy::when_alone`].
//!   Urgent traffic always goes: without it nobody could say anything
//! - what no live path may carry waits: messages and streams in their queues, which are then busy; packets of the tunnel until they expire
//! - an unmetered path goes before a metered one, then a higher priority before a lower one: the others take what has waited [`YIELD`]
//! - a rate is kept by a [`Bucket`]: urgent packets, acknowledgements and probes count and do not wait
//!
//! One exception keeps urgent messages moving: those that had begun before their path died fill a window that urgent ones need, too. When it
//! is full they are finished over a path that would not have begun them, at most 512 KiB.

use std::num::NonZeroU64;
use std::time::Duration;

use super::Bond;
use super::path::Path;
use crate::types::Priority;

/// How long a path leaves traffic to those that come before it: longer than a burst waits for a window to open, shorter than a person notices.
const YIELD: Duration = Duration::from_millis(50);
/// A metered path carries acknowledgements of others' packets when they have waited so long: then their own path has no room at all.
const METERED_HELPS: Duration = Duration::from_millis(100);
/// Bytes that may leave at once under a rate: two packets, or what it is in so long.
const MIN_BURST: u64 = 3000;
const BURST: Duration = Duration::from_millis(50);
/// QUIC's, UDP's and IP's headers around a packet of the bond.
const AROUND: u64 = 66;

/// Which priorities a path may carry; urgent ones always.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carries([bool; 4]);

impl Carries {
    /// Everything.
    pub const ALL: Self = Self([true; 4]);
    /// What must always go.
    pub const URGENT: Self = Self([true, false, false, false]);

    /// What is at least so urgent.
    #[must_use]
    pub fn from(least: Priority) -> Self {
        Self(Priority::ALL.map(|priority| priority <= least))
    }

    /// Whether it has a priority.
    #[must_use]
    pub fn has(self, priority: Priority) -> bool {
        self.0[priority.index()]
    }

    /// A bit a priority, the most urgent is 1.
    pub(crate) fn bits(self) -> u32 {
        let set = Priority::ALL.into_iter().filter(|priority| self.has(*priority));
        set.map(|priority| 1 << priority.index()).sum()
    }

    /// What bits say; unknown ones are ignored.
    pub(crate) fn from_bits(bits: u32) -> Self {
        Self(Priority::ALL.map(|priority| priority == Priority::Urgent || bits & (1 << priority.index()) != 0))
    }
}

/// What a path may carry and costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Each byte costs.
    pub metered: bool,
    /// What it carries; where it is metered, while an unmetered path lives.
    pub allow: Carries,
    /// What a metered one carries while no unmetered path lives.
    pub when_alone: Carries,
    /// Among paths of the same cost the higher goes first.
    pub priority: i32,
    /// Bytes a second that each end may send over it.
    pub rate: Option<NonZeroU64>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            metered: false,
            allow: Carries::ALL,
            when_alone: Carries::ALL,
            priority: 0,
            rate: None,
        }
    }
}

impl Policy {
    /// Each byte costs: urgent traffic alone.
    #[must_use]
    pub fn metered() -> Self {
        Self {
            metered: true,
            allow: Carries::URGENT,
            when_alone: Carries::URGENT,
            ..Self::default()
        }
    }

    /// The same after its budget is spent: urgent traffic alone, whatever else lives.
    #[must_use]
    pub fn spent(self) -> Self {
        Self {
            metered: true,
            allow: Carries::URGENT,
            when_alone: Carries::URGENT,
            ..self
        }
    }

    fn carries(&self, alone: bool) -> Carries {
        if self.metered && alone {
            self.when_alone
        } else {
            self.allow
        }
    }

    /// Which goes first: the greater.
    fn rank(&self) -> (bool, i32) {
        (!self.metered, self.priority)
    }
}

/// Counts what a rate allows. It may be overdrawn by what does not wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bucket {
    /// Bytes that may leave, in millionths.
    tokens: i128,
    at: Duration,
    /// Something waits for it.
    pub(crate) awaited: bool,
}

impl Bucket {
    pub(crate) fn new(now: Duration) -> Self {
        Self {
            tokens: 1,
            at: now,
            awaited: false,
        }
    }

    fn refill(&mut self, now: Duration, rate: u64) {
        let elapsed = now.saturating_sub(self.at).as_micros();
        let added = i128::try_from(elapsed).unwrap_or(i128::MAX).saturating_mul(rate.into());
        let burst = MIN_BURST.max(rate / 1000 * BURST.as_millis() as u64);
        self.tokens = self.tokens.saturating_add(added).min(i128::from(burst) * 1_000_000);
        self.at = self.at.max(now);
    }

    fn spend(&mut self, bytes: usize) {
        self.tokens -= i128::from(bytes as u64 + AROUND) * 1_000_000;
    }

    /// When something may leave again.
    fn opens_at(&self, rate: u64) -> Duration {
        let missing = u64::try_from(1 - self.tokens.min(0)).unwrap_or(u64::MAX);
        self.at + Duration::from_micros(missing.div_ceil(rate))
    }
}

impl Path {
    /// Whether its rate allows another packet now.
    pub(super) fn is_within_rate(&mut self, now: Duration) -> bool {
        let Some(rate) = self.policy.rate else { return true };
        self.bucket.refill(now, rate.get());
        self.bucket.tokens > 0
    }

    /// A packet leaves.
    pub(super) fn spend(&mut self, bytes: usize) {
        if self.policy.rate.is_some() {
            self.bucket.spend(bytes);
        }
    }

    /// When its rate allows what waits for it.
    pub(super) fn rate_timeout(&self) -> Option<Duration> {
        let rate = self.policy.rate.filter(|_| self.bucket.awaited)?;
        Some(self.bucket.opens_at(rate.get()))
    }
}

impl Bond {
    /// Whether no unmetered path lives, this one left out.
    fn is_alone_without(&self, left_out: Option<usize>) -> bool {
        let mut others = self.paths.iter().enumerate().filter(|(at, _)| Some(*at) != left_out);
        !others.any(|(_, path)| path.is_live() && !path.policy.metered)
    }

    fn carries_if(&self, path: &Path, alone: bool) -> Carries {
        if self.config.faults.policy_ignored {
            return Carries::ALL;
        }
        path.policy.carries(alone)
    }

    /// What a path may carry now, whatever its rate.
    pub(super) fn carries(&self, at: usize) -> Carries {
        self.carries_if(&self.paths[at], self.is_alone_without(None))
    }

    /// Which priorities no live path may carry; none while there is no live path.
    pub(super) fn barred(&self) -> [bool; 4] {
        let alone = self.is_alone_without(None);
        if self.live() == 0 {
            return [false; 4];
        }
        Priority::ALL.map(|priority| {
            let mut live = self.paths.iter().filter(|path| path.is_live());
            !live.any(|path| self.carries_if(path, alone).has(priority))
        })
    }

    /// Whether a path may carry a priority now.
    pub(super) fn may_carry(&self, at: usize, priority: Priority) -> bool {
        self.carries(at).has(priority)
    }

    /// Whether no other live path could carry all traffic in the place of this one: a false alarm would stop what only it carries.
    pub(super) fn is_irreplaceable(&self, at: usize) -> bool {
        let alone = self.is_alone_without(Some(at));
        let mut others = self.paths.iter().enumerate().filter(|(other, _)| *other != at);
        !others.any(|(_, path)| path.is_live() && self.carries_if(path, alone) == Carries::ALL)
    }

    /// Whether a path does not stand in for another before it must: those that come before it are asking and have not been given long.
    pub(super) fn is_its_turn(&mut self, now: Duration, at: usize, priority: Priority, since: Duration) -> bool {
        let own = self.paths[at].policy.rank();
        let yields =
            now.saturating_sub(since) < YIELD && self.others(now, at, priority).any(|path| path.policy.rank() > own);
        self.declined |= yields;
        !yields
    }

    /// Whether a path's acknowledgements of what others brought cost what the owner would not pay.
    pub(super) fn spares_acks(&self, at: usize) -> bool {
        self.paths[at].policy.metered && !self.is_alone_without(None) && !self.config.faults.policy_ignored
    }

    /// Whether a path that was not chosen carries an acknowledgement that has waited so long for those that were.
    pub(super) fn helps_with_acks(&self, at: usize, waited: Duration, eager: Duration) -> bool {
        let after = if self.spares_acks(at) { METERED_HELPS } else { eager };
        waited >= after && self.paths[at].is_live()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_priorities_survives_the_wire_and_always_has_the_urgent() {
        for least in Priority::ALL {
            let carries = Carries::from(least);
            assert_eq!(Carries::from_bits(carries.bits()), carries);
        }
        assert_eq!(Carries::from_bits(0), Carries::URGENT);
        assert_eq!(Carries::from_bits(u32::MAX), Carries::ALL);
    }

    #[test]
    fn a_bucket_gives_its_rate_and_is_never_ahead_by_more_than_a_burst() {
        let rate = 250_000;
        let mut bucket = Bucket::new(Duration::ZERO);
        let (mut now, mut sent) = (Duration::ZERO, 0);
        while now < Duration::from_secs(10) {
            bucket.refill(now, rate);
            if bucket.tokens > 0 {
                bucket.spend(1400);
                sent += 1400 + AROUND;
            } else {
                let opens = bucket.opens_at(rate);
                assert!(opens > now, "time stands still");
                now = opens;
            }
        }
        assert!((2_495_000..2_515_000).contains(&sent), "{sent}");
        // An hour of silence is not saved up.
        bucket.refill(now + Duration::from_secs(3600), rate);
        assert_eq!(bucket.tokens, 12_500 * 1_000_000);
    }
}
