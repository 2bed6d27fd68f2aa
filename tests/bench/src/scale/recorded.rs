//! Many more edges than an API of this machine has room for: below a hub above a [`Feed`].
//!
//! All their objects are there before the first of them comes, and stay: what is measured is the hub, its sessions and its watches.
//! Nobody writes but the hub; a change is the feed's own, so no API's write is in a time.

use anyhow::Result;
use kit::{Hub, Site};

use super::feed::Feed;
use super::feed::recording::Recording;
use super::{Above, Bench, Extent, Row, Samples, Upstream, fleet, say};
use crate::world;

impl Upstream for Feed {
    const FROM: &'static str = "from the API's event";
    const NOTE: &'static str =
        "simulated edges, store in memory; they and the feed have the same cores as the hub: an upper bound";
    const ANSWERS: bool = false;

    async fn set(&self, name: &str, value: &str) -> Result<()> {
        Feed::set(self, name, value)
    }
}

/// All rows above a feed that is recorded first.
///
/// # Errors
/// The first measurement that could not be made.
pub(super) fn run(site: &Site, extent: Extent) -> Result<Vec<Row>> {
    let runtime = world::enter(site)?;
    say("recording one edge above kube-apiserver");
    let recording = Recording::make(site, &runtime)?;
    say(&format!("multiplying what {} events told", recording.events));
    fleet::multiply(site, &recording.nodes_ca, extent.edges)?;
    let feed = Feed::start(site, recording.multiply(extent.edges)?)?;
    let mut hub = Hub::above_other(site, &feed.kubeconfig)?;
    let mut bench = Bench::new(Above::Recorded, extent, site, runtime);
    match all(&mut bench, &feed, &mut hub) {
        Ok(()) => Ok(bench.rows.finish()),
        Err(error) => Err(error.context(hub.tail())),
    }
}

fn all(bench: &mut Bench<'_>, feed: &Feed, hub: &mut Hub<'_>) -> Result<()> {
    say("sessions");
    let (fleet, times) = bench.come_back(hub)?;
    for (what, took) in ["all have a session", "all have a snapshot with their pod"]
        .into_iter()
        .zip(times)
    {
        let what = format!("{} edges, {} at once: {what}", bench.extent.edges, bench.extent.wave);
        bench
            .rows
            .push(Row::new(bench.above, what, "s", Samples::one(took.as_secs_f64())));
    }
    bench.times(feed, hub, &fleet)
}
