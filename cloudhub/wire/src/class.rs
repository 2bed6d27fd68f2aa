//! Classes of traffic: a class is a row, not code.

/// How the items of a class are delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// All of them, in order.
    Ordered,
    /// The newest of each key; an older one that has not been sent yet is replaced.
    LatestPerKey,
    /// Each at most once and never after its time to live.
    Expiring,
    /// Some of them: when the queue is full the oldest goes.
    Sampled,
}

/// Who goes first. Each priority has a queue of its own in the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Commands and session control.
    Urgent,
    /// Somebody waits for it.
    Interactive,
    /// Specs and status.
    Normal,
    /// Events and telemetry.
    Bulk,
}

/// A class's number on the wire: its index in [`CLASSES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassId(pub u8);

impl ClassId {
    /// Hello, Suspect, Adopt: the session's own words.
    pub const CONTROL: Self = Self(0);
    /// Desired state, hub to edge.
    pub const DESIRED: Self = Self(1);
    /// Status of pods and the node, edge to hub.
    pub const STATUS: Self = Self(2);
    /// Pods whose containers are gone.
    pub const GONE: Self = Self(3);
    /// Events.
    pub const EVENT: Self = Self(4);
    /// Commands to robots.
    pub const COMMAND: Self = Self(5);
    /// Telemetry of robots.
    pub const TELEMETRY: Self = Self(6);

    /// Its row.
    #[must_use]
    pub fn row(self) -> Option<&'static ClassRow> {
        CLASSES.get(usize::from(self.0))
    }
}

/// What a class promises and what it may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassRow {
    /// For logs and metrics.
    pub name: &'static str,
    /// Who goes first.
    pub priority: Priority,
    /// How it is delivered.
    pub delivery: Delivery,
    /// Whether the receiver acknowledges only what it has committed.
    pub durable: bool,
    /// How many copies of a message are sent at once.
    pub copies: u8,
    /// Items that may wait at the sender.
    pub queue: usize,
    /// Bytes that may be on their way, and that the receiver keeps for reassembly and order.
    pub budget: usize,
}

/// All classes; the index is the number on the wire.
pub const CLASSES: &[ClassRow] = &[
    ClassRow {
        name: "control",
        priority: Priority::Urgent,
        delivery: Delivery::Ordered,
        durable: false,
        copies: 1,
        queue: 64,
        budget: 8 << 20,
    },
    ClassRow {
        name: "desired",
        priority: Priority::Normal,
        delivery: Delivery::Ordered,
        durable: true,
        copies: 1,
        queue: 256,
        budget: 8 << 20,
    },
    ClassRow {
        name: "status",
        priority: Priority::Normal,
        delivery: Delivery::LatestPerKey,
        durable: false,
        copies: 1,
        queue: 2048,
        budget: 4 << 20,
    },
    ClassRow {
        name: "gone",
        priority: Priority::Interactive,
        delivery: Delivery::Ordered,
        durable: true,
        copies: 1,
        queue: 1024,
        budget: 1 << 20,
    },
    ClassRow {
        name: "event",
        priority: Priority::Bulk,
        delivery: Delivery::Ordered,
        durable: true,
        copies: 1,
        queue: 64,
        budget: 1 << 20,
    },
    ClassRow {
        name: "command",
        priority: Priority::Urgent,
        delivery: Delivery::Expiring,
        durable: true,
        copies: 2,
        queue: 64,
        budget: 1 << 20,
    },
    ClassRow {
        name: "telemetry",
        priority: Priority::Bulk,
        delivery: Delivery::Sampled,
        durable: false,
        copies: 1,
        queue: 256,
        budget: 1 << 20,
    },
];
