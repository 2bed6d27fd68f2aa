//! A path over TCP in a running session, for as long as QUIC does not work over its uplink.
//!
//! QUIC goes on being tried ([`super::super::keep`]). When it has carried the session for [`CARRIED`], the path over TCP is closed: on one
//! link the two would be in each other's way.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::FALLBACK_AFTER;
use crate::backoff::Backoff;
use crate::edge::Uplink;
use crate::edge::dial::{AttemptError, Welcomed};
use crate::edge::keep::{Keeper, WORKED};
use crate::liveness::TICK;
use crate::path::Transport;

/// A site that lets the first packets through may block what follows.
const CARRIED: Duration = Duration::from_secs(5);

/// Keeps it until the session is over or the uplink is gone; `first` is one that the session has.
pub(in crate::edge) async fn keep(
    keeper: Arc<Keeper>,
    kept: watch::Receiver<Uplink>,
    mut first: Option<Welcomed>,
    gone: CancellationToken,
) {
    let (mut backoff, mut turn) = (Backoff::default(), 0);
    loop {
        let uplink = kept.borrow().clone();
        let joined = match first.take() {
            Some(first) => Ok(Some(first)),
            None => tokio::select! {
                () = gone.cancelled() => return,
                () = keeper.session.ended() => return,
                joined = join(&keeper, &uplink, turn) => joined,
            },
        };
        turn += 1;
        match joined {
            Ok(Some(welcomed)) => {
                let since = Instant::now();
                run(&keeper, &kept, welcomed, &gone).await;
                if since.elapsed() >= WORKED {
                    backoff.reset();
                }
            }
            Ok(None) => continue,
            Err(AttemptError::StaleEpoch(epoch)) => return keeper.is_over(&uplink, epoch),
            Err(error) => tracing::info!(uplink = uplink.name, %error, "no path over TCP"),
        }
        tokio::select! {
            () = gone.cancelled() => return,
            () = keeper.session.ended() => return,
            () = sleep(backoff.next(rand::random())) => {}
        }
    }
}

fn works(keeper: &Keeper, uplink: &Uplink) -> bool {
    keeper.session.is_carried(&uplink.name, |by| *by == Transport::Quic)
}

/// Waits until QUIC has not, or has, carried the session over this uplink for so long.
async fn quic_is(keeper: &Keeper, uplink: &Uplink, working: bool, long: Duration) {
    let mut since = Instant::now();
    while since.elapsed() < long {
        sleep(TICK).await;
        if works(keeper, uplink) != working {
            since = Instant::now();
        }
    }
}

/// One path when it is needed; `None` when QUIC worked again in the meantime.
async fn join(keeper: &Keeper, uplink: &Uplink, turn: usize) -> Result<Option<Welcomed>, AttemptError> {
    quic_is(keeper, uplink, false, FALLBACK_AFTER).await;
    let dialled = keeper.dialler.dial_tcp(uplink, turn).await?;
    if works(keeper, uplink) {
        return Ok(None);
    }
    let welcomed = keeper.admit(dialled).await?;
    tracing::info!(uplink = uplink.name, remote = %welcomed.peer.remote, "UDP does not get through: over TCP");
    Ok(Some(welcomed))
}

/// Runs it until it ends, the uplink goes away, or QUIC has taken over.
async fn run(keeper: &Arc<Keeper>, kept: &watch::Receiver<Uplink>, welcomed: Welcomed, gone: &CancellationToken) {
    let uplink = kept.borrow().clone();
    let over = gone.child_token();
    let path = keeper.clone().run(welcomed, Some(kept.clone()), over.clone());
    tokio::pin!(path);
    tokio::select! {
        () = &mut path => return,
        () = quic_is(keeper, &uplink, true, CARRIED) => {}
    }
    tracing::info!(uplink = uplink.name, "QUIC carries again: the path over TCP is closed");
    over.cancel();
    path.await;
}
