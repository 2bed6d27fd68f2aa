//! The hub's end of paths over QUIC: one endpoint, one task a connection.
//!
//! - packet → handshake (mTLS) → [`Admission`](crate::Admission) → Attach → the session (`super::attach`) → [`super::run`]
//!
//! A handshake that stalls is cut by a deadline; above [`RETRY_ABOVE`] pending ones a newcomer must prove its address first, above
//! [`MAX_PENDING`] it is refused.
//!
//! When a fleet comes back, more want a handshake than there is time for. Then handshakes begin only as fast as those that have
//! begun get on: [`IN_A_TURN`] each time that all other tasks have had their turn. The newest goes first, for the others may have
//! given up; who waited for [`STALE`] is not answered and tries again. Else the hub would work for edges that are gone, and none would get in.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::{Connection, Endpoint, Incoming, RecvStream, SendStream};
use rustls::pki_types::CertificateDer;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::newcomer::{self, Attached};
use super::{ATTACH_WITHIN, HANDSHAKE_WITHIN, Shared, attach, reason_of, run, wall_now};
use crate::congestion::controller::Told;
use crate::driver::PathInfo;
use crate::frame::{self, Control, RefusedFrame};
use crate::quic::{self, QuicPath};
use crate::session::Inner;
use crate::tls::PeerCertificate;
use crate::transport;
use crate::types::CloseReason;

/// How long a refused edge may take to read why.
const REFUSAL_WITHIN: Duration = Duration::from_secs(2);
/// Connections between first packet and Attach; each costs about 30 KiB.
const MAX_PENDING: usize = 4096;
/// Above so many, a newcomer must prove its address (QUIC Retry) before it costs anything.
const RETRY_ABOVE: usize = 256;
/// Handshakes that begin while each other task runs once. A handshake has about ten turns of half a millisecond in all.
const IN_A_TURN: usize = 4;
/// An edge gives up after 3 s; half a round trip is over, and the rest of the handshake is to come.
const STALE: Duration = Duration::from_secs(2);

/// Accepts until the endpoint is closed, and then waits for the last connection.
pub(super) async fn accept(endpoint: Endpoint, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    let pending = Arc::new(Semaphore::new(MAX_PENDING));
    let mut waiting: VecDeque<(Instant, Incoming)> = VecDeque::new();
    loop {
        tokio::select! {
            biased;
            Some(_) = connections.join_next() => {}
            incoming = endpoint.accept() => {
                let Some(incoming) = incoming else { break };
                let busy = MAX_PENDING - pending.available_permits() + waiting.len();
                if busy > RETRY_ABOVE && !incoming.remote_address_validated() && incoming.may_retry() {
                    let _ = incoming.retry();
                } else if busy < MAX_PENDING {
                    waiting.push_back((Instant::now(), incoming));
                } else {
                    incoming.refuse();
                }
            }
            () = tokio::task::yield_now(), if !waiting.is_empty() => {
                for incoming in next(&mut waiting) {
                    match pending.clone().try_acquire_owned() {
                        Ok(permit) => _ = connections.spawn(serve(incoming, shared.clone(), permit)),
                        Err(_) => incoming.refuse(),
                    }
                }
            }
        }
    }
    while connections.join_next().await.is_some() {}
}

/// The newest of those who wait; who waits for too long is not answered any more.
fn next(waiting: &mut VecDeque<(Instant, Incoming)>) -> Vec<Incoming> {
    while waiting.front().is_some_and(|(since, _)| since.elapsed() > STALE) {
        if let Some((_, stale)) = waiting.pop_front() {
            stale.ignore();
        }
    }
    let newest = waiting.len().saturating_sub(IN_A_TURN);
    waiting.drain(newest..).map(|(_, incoming)| incoming).collect()
}

/// One connection, from its first packet to its end.
async fn serve(incoming: Incoming, shared: Arc<Shared>, permit: OwnedSemaphorePermit) {
    // On the heap, for as long as it takes: a path that carries a session needs half of that, for days.
    let Some(begun) = Box::pin(begin(incoming, &shared, permit)).await else {
        return;
    };
    let (path, info, session, welcomed) = begun;
    run(&shared, &path, info, session, welcomed).await;
}

/// Up to Welcome: the path, whose it is (and whether that session is new), and whether the edge was told.
async fn begin(
    incoming: Incoming,
    shared: &Shared,
    permit: OwnedSemaphorePermit,
) -> Option<(Arc<QuicPath>, PathInfo, (Arc<Inner>, bool), bool)> {
    let remote = incoming.remote_address();
    let told = Told::default();
    let (connection, certificate) = shake_hands(incoming, shared, &told).await?;
    let node = certificate.node.clone();
    let attached = timeout(ATTACH_WITHIN, read_attach(&connection, &node)).await;
    let (newcomer, control) = match attached {
        Ok(Ok(attached)) => attached,
        Ok(Err(error)) => {
            tracing::info!(node, %remote, error = %error, "no usable Attach");
            refuse_at_once(&connection, error);
            return None;
        }
        Err(_) => {
            refuse_at_once(&connection, "no Attach in time".to_owned());
            return None;
        }
    };
    drop(permit);
    let session = match attach(shared, &newcomer, &certificate).await {
        Ok(session) => session,
        Err(refusal) => {
            tracing::warn!(node, %remote, reason = refusal.reason, "refused a session");
            refuse(&connection, control, refusal).await;
            return None;
        }
    };
    let path = QuicPath::new(connection, told, control);
    let welcomed = path.welcome((&shared.welcome()).into()).await;
    Some((path, newcomer.path, session, welcomed))
}

/// The handshake, and whether the certificate is let in.
async fn shake_hands(incoming: Incoming, shared: &Shared, told: &Told) -> Option<(Connection, PeerCertificate)> {
    let remote = incoming.remote_address();
    let config = transport::hub_connection(&shared.server, told);
    let connecting = incoming.accept_with(config).ok()?;
    let connection = match timeout(HANDSHAKE_WITHIN, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            tracing::info!(%remote, %error, "a handshake failed");
            return None;
        }
        Err(_) => return None,
    };
    let admitted = peer_certificate(&connection).and_then(|certificate| {
        shared.admission.admit(&certificate, wall_now())?;
        Ok(certificate)
    });
    match admitted {
        Ok(certificate) => Some((connection, certificate)),
        Err(reason) => {
            tracing::warn!(%remote, reason, "a node was not let in");
            refuse_at_once(&connection, reason);
            None
        }
    }
}

fn refuse_at_once(connection: &Connection, reason: String) {
    let refused = CloseReason::Refused {
        reason,
        current_epoch: None,
    };
    quic::close(connection, &refused);
}

fn peer_certificate(connection: &Connection) -> Result<PeerCertificate, String> {
    let chain = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok());
    newcomer::certificate(chain.as_ref().map(|chain| chain.as_slice()))
}

async fn read_attach(connection: &Connection, node: &str) -> Result<(Attached, (SendStream, RecvStream)), String> {
    let (writer, mut reader) = connection.accept_bi().await.map_err(|error| error.to_string())?;
    let first = frame::read(&mut reader).await.map_err(|error| error.to_string())?;
    let attached = newcomer::read(first, node, connection.remote_address())?;
    Ok((attached, (writer, reader)))
}

/// Says why on the control stream and waits until the edge has read it.
async fn refuse(connection: &Connection, mut control: (SendStream, RecvStream), refusal: RefusedFrame) {
    let reason = reason_of(&refusal);
    if frame::write(&mut control.0, Control::Refused(refusal)).await.is_ok() {
        let _ = timeout(REFUSAL_WITHIN, connection.closed()).await;
    }
    quic::close(connection, &reason);
}
