//! The bond and its congestion controller in virtual time, over linkem's model of bad links.
//!
//! - `transport`: a QUIC connection as quinn runs it, as far as it matters: window, pacing, acknowledgements, loss, probes
//! - `cubic`: CUBIC as a controller, for inner TCP and as the neighbour on the same link
//! - `world`: two bonds over links, with owners who send and check
//! - `congestion`: the controller alone and with neighbours on one link
//! - `scenarios`: bonding.md §8's S1, S2, S4, S5, S7; `outages`: what happens to machines and links in the long run
//! - `properties`: thousands of seeded runs against the checker, which named faults prove
//! - `policy`: what a path may carry and costs
//! - `hostile`: an authenticated peer that breaks the rules

mod congestion;
mod cubic;
mod echo;
mod hostile;
mod inner;
mod outages;
mod policy;
mod properties;
mod scenarios;
mod transport;
mod world;

use std::time::Duration;

/// Milliseconds.
fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// The value below which a share of all values lies.
fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let place = (values.len() as f64 * share) as usize;
    values
        .get(place.min(values.len().saturating_sub(1)))
        .copied()
        .unwrap_or(0.0)
}
