//! What can go wrong in a controller.

use std::error::Error as _;

/// An error of the control plane.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A request to the API failed.
    #[error("{doing}")]
    Api {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: Box<kube::Error>,
    },
    /// An object cannot be turned into JSON, or an answer not into an object.
    #[error("encode {what}")]
    Encode {
        /// Which object.
        what: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A long-lived task ended by itself.
    #[error("task {0} ended")]
    Ended(String),
    /// An object asks for what cannot be.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// Whether another writer was faster: the next look settles it.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }

    /// The HTTP status of a refusal by the API.
    #[must_use]
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Api { source, .. } => code(source),
            _ => None,
        }
    }

    /// The error and its causes in one line.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }
}

fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// Says what a request was for.
pub(crate) trait Doing<T> {
    /// Names the operation in the error.
    fn doing(self, what: &'static str) -> Result<T, Error>;
    /// As [`Doing::doing`]; an object that is not there (any more) is `None`.
    fn if_there(self, what: &'static str) -> Result<Option<T>, Error>;
}

impl<T> Doing<T> for Result<T, kube::Error> {
    fn doing(self, what: &'static str) -> Result<T, Error> {
        self.map_err(|source| Error::Api {
            doing: what,
            source: Box::new(source),
        })
    }

    fn if_there(self, what: &'static str) -> Result<Option<T>, Error> {
        match self {
            Ok(value) => Ok(Some(value)),
            Err(error) if code(&error) == Some(404) => Ok(None),
            Err(error) => Err(error).doing(what),
        }
    }
}
