//! Waiting for a condition: poll, never sleep blindly, and say the last state when time is up.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(50);

/// What a condition says when it is looked at.
#[derive(Debug)]
pub enum State<T> {
    /// It holds.
    Done(T),
    /// Not yet; the text is what was seen.
    Not(String),
}

/// Polls `look` until it is done, and returns its value with the time it took.
///
/// # Errors
/// After `limit`: the name of the condition and the last state seen.
pub fn wait_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> State<T>) -> Result<(T, Duration)> {
    let start = Instant::now();
    loop {
        match look() {
            State::Done(value) => return Ok((value, start.elapsed())),
            State::Not(seen) if start.elapsed() > limit => {
                bail!("{what}: not after {limit:?}; last seen: {seen}")
            }
            State::Not(_) => thread::sleep(POLL),
        }
    }
}
