//! Logging: one line an event on standard error, `RUST_LOG` decides which, `info` by default.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts logging for the process; a second call does nothing.
pub fn start() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let format = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // An error only says that a test has started it already.
    let _ = format
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .try_init();
}
