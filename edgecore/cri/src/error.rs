//! What can go wrong in a call to the container runtime.
//!
//! One type for the real client and the fake: the operation, the object it was about, a kind that code branches on, and the runtime's own
//! words (containerd's `desc`), which go into events unchanged.

use std::fmt;

/// The result of a call to the runtime.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed call to the container runtime.
#[derive(Debug, Clone, thiserror::Error)]
pub struct Error {
    /// The operation, in CRI's words: `RunPodSandbox`, `PullImage`, ...
    pub operation: &'static str,
    /// The id, name or image that it was about; may be empty.
    pub object: String,
    /// What code branches on.
    pub kind: ErrorKind,
    /// The status code of the answer, as gRPC's Go library names it.
    pub code: &'static str,
    /// The runtime's own message.
    pub message: String,
}

/// The kinds of failure that callers treat differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The runtime does not know the object.
    NotFound,
    /// The name is taken or reserved: list before trying again.
    AlreadyExists,
    /// The socket does not answer.
    Unavailable,
    /// No answer before the call's deadline. What the runtime did is unknown.
    Deadline,
    /// This runtime has no such call.
    Unimplemented,
    /// The request can never succeed as it is.
    InvalidArgument,
    /// The registry refused the credentials.
    Unauthorized,
    /// Everything else; see the message.
    Other,
}

impl ErrorKind {
    /// The code of an error that has no status of its own.
    fn code(self) -> &'static str {
        match self {
            Self::NotFound => "NotFound",
            Self::AlreadyExists => "AlreadyExists",
            Self::Unavailable => "Unavailable",
            Self::Deadline => "DeadlineExceeded",
            Self::Unimplemented => "Unimplemented",
            Self::InvalidArgument => "InvalidArgument",
            Self::Unauthorized | Self::Other => "Unknown",
        }
    }
}

impl Error {
    /// Builds an error.
    pub fn new(
        operation: &'static str,
        object: impl Into<String>,
        kind: ErrorKind,
        message: impl Into<String>,
    ) -> Self {
        Self {
            operation,
            object: object.into(),
            kind,
            code: kind.code(),
            message: message.into(),
        }
    }

    /// The error as kubelet shows it where it shows all of it: code and message, in the words of gRPC's Go library.
    pub fn rpc(&self) -> String {
        format!("rpc error: code = {} desc = {}", self.code, self.message)
    }

    /// Whether the runtime does not know the object.
    pub fn is_not_found(&self) -> bool {
        self.kind == ErrorKind::NotFound
    }

    /// Whether the same call can succeed later with nothing changed by us.
    pub fn is_transient(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::Unavailable | ErrorKind::Deadline | ErrorKind::Other
        )
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.object.is_empty() {
            write!(f, "{}: {}", self.operation, self.message)
        } else {
            write!(f, "{} {:?}: {}", self.operation, self.object, self.message)
        }
    }
}
