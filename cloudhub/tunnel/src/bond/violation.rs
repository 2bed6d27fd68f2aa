//! What an authenticated peer may not do. Each closes the session with its reason; memory and work up to it are bounded.

use super::frame::FrameError;

/// The peer broke the rules of the bond: close the session and say this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A packet that is none.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A number far beyond anything that could be on its way.
    #[error("a {0} number jumps further ahead than anything on its way")]
    Jump(&'static str),
    /// It acknowledges what was never sent.
    #[error("a packet is acknowledged that was never sent")]
    AckOfNothing,
    /// It reports the same packet as lost again and again.
    #[error("the same bytes are reported lost again and again")]
    NackStorm,
    /// It sends mostly what it has sent before.
    #[error("packets are repeated in a flood")]
    DuplicateFlood,
    /// It begins more messages than its window allows, or tells two sizes of one.
    #[error("messages exceed the window or contradict themselves")]
    MessageFlood,
    /// It opens more streams than were allowed.
    #[error("more streams are opened than were allowed")]
    StreamFlood,
    /// It sends more on a stream than it has credit for.
    #[error("a stream exceeds its credit")]
    Credit,
    /// Two frames tell different ends of a stream.
    #[error("a stream has two ends")]
    TwoEnds,
}

impl Violation {
    /// One CamelCase word, for events and metrics.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Frame(_) => "MalformedPacket",
            Self::Jump(_) => "AbsurdSequence",
            Self::AckOfNothing => "AckOfNothing",
            Self::NackStorm => "NackStorm",
            Self::DuplicateFlood => "DuplicateFlood",
            Self::MessageFlood => "MessageFlood",
            Self::StreamFlood => "StreamFlood",
            Self::Credit => "CreditExceeded",
            Self::TwoEnds => "StreamContradiction",
        }
    }
}
