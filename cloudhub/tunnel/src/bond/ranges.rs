//! Sets of numbers kept as ranges, sliding windows of numbers seen, and numbers that travel as their low 32 bits.

use std::collections::VecDeque;
use std::ops::Range;

/// The number nearest to `near` whose low 32 bits are `low`.
pub(crate) fn expand(low: u32, near: u64) -> u64 {
    const SPAN: u64 = 1 << 32;
    let same = (near & !(SPAN - 1)) | u64::from(low);
    if same + SPAN / 2 < near {
        same + SPAN
    } else if same > near + SPAN / 2 && same >= SPAN {
        same - SPAN
    } else {
        same
    }
}

/// Disjoint ranges in ascending order that do not touch.
#[derive(Debug, Clone, Default)]
pub(crate) struct RangeSet {
    ranges: VecDeque<Range<u64>>,
}

impl RangeSet {
    /// Adds a range; returns how many of its numbers are new.
    pub(crate) fn insert(&mut self, range: Range<u64>) -> u64 {
        if range.is_empty() {
            return 0;
        }
        if let Some(last) = self.ranges.back_mut()
            && last.end == range.start
        {
            last.end = range.end;
            return range.end - range.start;
        }
        let at = self.ranges.partition_point(|have| have.end < range.start);
        let (mut merged, mut covered) = (range.clone(), 0);
        while let Some(have) = self.ranges.get(at)
            && have.start <= range.end
        {
            covered += have.end.min(range.end).saturating_sub(have.start.max(range.start));
            merged = merged.start.min(have.start)..merged.end.max(have.end);
            self.ranges.remove(at);
        }
        self.ranges.insert(at, merged);
        range.end - range.start - covered
    }

    /// Takes a range out.
    pub(crate) fn remove(&mut self, range: &Range<u64>) {
        if range.is_empty() {
            return;
        }
        let mut at = self.ranges.partition_point(|have| have.end <= range.start);
        while let Some(have) = self.ranges.get(at).cloned()
            && have.start < range.end
        {
            self.ranges.remove(at);
            if have.end > range.end {
                self.ranges.insert(at, range.end..have.end);
            }
            if have.start < range.start {
                self.ranges.insert(at, have.start..range.start);
                at += 1;
            }
            if have.end > range.end {
                return;
            }
        }
    }

    /// Whether all numbers of the range are in the set.
    pub(crate) fn covers(&self, range: &Range<u64>) -> bool {
        let at = self.ranges.partition_point(|have| have.end <= range.start);
        range.is_empty()
            || self
                .ranges
                .get(at)
                .is_some_and(|have| have.start <= range.start && have.end >= range.end)
    }

    /// Whether a number is in the set.
    pub(crate) fn contains(&self, value: u64) -> bool {
        self.covers(&(value..value + 1))
    }

    /// The lowest range.
    pub(crate) fn first(&self) -> Option<Range<u64>> {
        self.ranges.front().cloned()
    }

    /// Takes the lowest range out.
    pub(crate) fn pop_first(&mut self) -> Option<Range<u64>> {
        self.ranges.pop_front()
    }

    /// The ranges, the highest first.
    pub(crate) fn iter_down(&self) -> impl Iterator<Item = &Range<u64>> {
        self.ranges.iter().rev()
    }

    /// How many ranges there are.
    pub(crate) fn len(&self) -> usize {
        self.ranges.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.ranges.clear();
    }
}

/// Which of the last numbers were seen; what is older than the window counts as seen.
#[derive(Debug)]
pub(crate) struct Window {
    /// Number of the first bit, a multiple of 64.
    base: u64,
    bits: VecDeque<u64>,
    span: u64,
}

impl Window {
    /// A window over at least the last `span` numbers (a multiple of 64): span / 8 bytes when it is full of holes.
    pub(crate) fn new(span: u64) -> Self {
        Self {
            base: 0,
            bits: VecDeque::new(),
            span,
        }
    }

    /// One more than the highest number that the window reaches.
    pub(crate) fn end(&self) -> u64 {
        self.base + 64 * self.bits.len() as u64
    }

    /// Whether a number was seen or is too old to tell.
    pub(crate) fn contains(&self, value: u64) -> bool {
        if value < self.base {
            return true;
        }
        let word = usize::try_from((value - self.base) / 64).unwrap_or(usize::MAX);
        self.bits.get(word).is_some_and(|bits| bits & (1 << (value % 64)) != 0)
    }

    /// Notes a number.
    pub(crate) fn insert(&mut self, value: u64) {
        if value < self.base {
            return;
        }
        if value - self.base >= self.span * 2 {
            self.bits.clear();
            self.base = value - value % 64;
        }
        while value >= self.end() {
            if self.bits.len() as u64 * 64 >= self.span {
                self.bits.pop_front();
                self.base += 64;
            }
            self.bits.push_back(0);
        }
        let word = (value - self.base) / 64;
        if let Some(bits) = usize::try_from(word).ok().and_then(|word| self.bits.get_mut(word)) {
            *bits |= 1 << (value % 64);
        }
        while self.bits.len() > 1 && self.bits.front() == Some(&u64::MAX) {
            self.bits.pop_front();
            self.base += 64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_number_travels_as_its_low_bits() {
        for near in [0, 5, 0xffff_ffff, 0x1_0000_0000, 0x1_8000_0000, 0x7_0000_0123] {
            for away in [0, 1, 1000, 0x7fff_0000] {
                for value in [near + away, u64::saturating_sub(near, away)] {
                    let low = (value & 0xffff_ffff) as u32;
                    assert_eq!(expand(low, near), value, "{near} {away}");
                }
            }
        }
    }

    #[test]
    fn ranges_are_a_set() {
        let mut seed = 7_u64;
        let mut next = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % below
        };
        let (mut set, mut model) = (RangeSet::default(), BTreeSet::new());
        for _ in 0..20_000 {
            let start = next(200);
            let range = start..start + next(20);
            if next(3) == 0 {
                set.remove(&range);
                range.for_each(|value| {
                    model.remove(&value);
                });
            } else {
                let new = range.clone().filter(|value| model.insert(*value)).count();
                assert_eq!(set.insert(range), new as u64);
            }
            let (start, length) = (next(200), next(8));
            let asked = start..start + length;
            assert_eq!(set.covers(&asked), asked.clone().all(|value| model.contains(&value)));
            let listed: Vec<u64> = set.ranges.iter().cloned().flatten().collect();
            assert!(listed.iter().eq(model.iter()), "{:?}", set.ranges);
            let ranges: Vec<_> = set.ranges.iter().cloned().collect();
            assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }

    #[test]
    fn a_window_forgets_only_what_is_old() {
        let mut window = Window::new(128);
        for value in [0, 3, 64, 130] {
            assert!(!window.contains(value));
            window.insert(value);
            assert!(window.contains(value));
        }
        assert!(!window.contains(131) && !window.contains(65));
        window.insert(1000);
        assert!(window.contains(900 - 128 - 64) && !window.contains(999));
        window.insert(1_000_000);
        assert!(window.contains(1000) && !window.contains(1_000_001));
        assert!(window.bits.len() <= 3);
    }
}
