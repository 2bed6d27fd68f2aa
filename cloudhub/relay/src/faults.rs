//! Faults that a test can switch on, to see that its checker catches them. All off by default.

/// Named faults.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct Faults {
    /// The receiver acknowledges what its owner has not committed.
    pub ack_before_commit: bool,
    /// The edge takes a snapshot whose count and digest do not match.
    pub count_ignored: bool,
    /// The edge takes a snapshot that is older than what it has.
    pub older_snapshot_accepted: bool,
    /// The edge does not look at the lineage of the API's database.
    pub lineage_ignored: bool,
    /// The receiver delivers what has expired.
    pub expired_delivered: bool,
    /// The sender puts a superseded state behind the newer one.
    pub superseded_last: bool,
}
