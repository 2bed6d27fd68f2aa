//! Faults that a test can switch on, to see that its checker catches them. All off by default.

/// Named faults.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct Faults {
    /// Packets, messages and pieces of streams that were seen before are delivered again.
    pub dedup_off: bool,
    /// What is lost is not sent again.
    pub repair_off: bool,
    /// Packets of ordered flows are delivered as they come.
    pub order_off: bool,
    /// A path that does not answer is never suspected.
    pub suspect_never: bool,
    /// A path that was suspected once is never used again.
    pub readmit_never: bool,
    /// What there was no room for is acknowledged all the same.
    pub refused_acked: bool,
    /// Nothing is dropped however much waits.
    pub memory_unbounded: bool,
    /// Every path carries everything, whatever its policy.
    pub policy_ignored: bool,
}
