//! This node's certificate: loading it, and renewing it at two thirds of its life.
//!
//! [`pki`] owns the files and the swap that a crash cannot break. [`Rotation::run`] is the loop: wait until due and a session is up → new key
//! and CSR → `POST /v1/certificate` over a stream of the session → check → swap the files → [`tunnel::Edge::set_certificate`].
//! A certificate that ran out while the machine was away opens no session: then [`rejoin`] asks the join listener, with the old key
//! as proof.
//!
//! On failure the old certificate stays, and the next try comes after [`RETRY_AFTER`] or with the next session.

pub(crate) mod exchange;
pub mod pki;
pub mod rejoin;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use tokio::sync::watch;
use tokio::time::timeout;
use tunnel::{ClockFloor, Edge, Presence, Session};

pub use pki::{Identity, Pki, PkiError};

/// The hub is asked again so long after a failure.
const RETRY_AFTER: Duration = Duration::from_secs(3600);
/// Sleeps are cut into such pieces, because monotonic time stands still while the machine is suspended.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);
/// A round trip and a signature, over a bad link.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// The files.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The key or the request.
    #[error("make a certificate request")]
    Request(#[from] rcgen::Error),
    /// The stream or what goes over it.
    #[error("ask the hub for a certificate: {0}")]
    Exchange(String),
    /// The hub said no.
    #[error("the hub refused to renew the certificate [{status}]: {message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Its words.
        message: String,
    },
    /// The tunnel does not take it.
    #[error("use the new certificate")]
    Connect(#[from] tunnel::ConnectError),
}

fn exchange_error(error: impl std::fmt::Display) -> RenewError {
    RenewError::Exchange(error.to_string())
}

/// What the rotation works with.
#[derive(Clone, Debug)]
pub struct Rotation {
    /// The node's certificate files.
    pub pki: Pki,
    /// The hub's join listener, `host:port`; empty = a certificate that ran out stays so.
    pub join_address: String,
    /// Time that has passed for sure.
    pub floor: ClockFloor,
}

/// When a certificate is to be renewed: at two thirds of its life, all since 1970.
pub fn renew_at(not_before: Duration, not_after: Duration) -> Duration {
    not_before + not_after.saturating_sub(not_before) * 2 / 3
}

impl Rotation {
    /// Renews until `stop`. `sessions` holds the live session, if there is one.
    pub async fn run(
        self,
        edge: Arc<Edge>,
        mut sessions: watch::Receiver<Option<Session>>,
        mut stop: watch::Receiver<bool>,
    ) {
        let stopped = async {
            let _ = stop.wait_for(|stop| *stop).await;
        };
        let renewing = async {
            loop {
                if let Err(error) = self.renew_when_due(&edge, &mut sessions).await {
                    let source = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(%error, ?source, "could not renew this node's certificate");
                    let _ = timeout(RETRY_AFTER, sessions.changed()).await;
                }
            }
        };
        tokio::select! {
            biased;
            () = stopped => {}
            () = renewing => {}
        }
    }

    async fn renew_when_due(
        &self,
        edge: &Edge,
        sessions: &mut watch::Receiver<Option<Session>>,
    ) -> Result<(), RenewError> {
        let identity = self.pki.load()?;
        let due = renew_at(identity.not_before, identity.not_after);
        loop {
            let left = due.saturating_sub(now(&self.floor));
            if left.is_zero() {
                break;
            }
            tokio::time::sleep(left.min(LOOK_AGAIN)).await;
        }
        let renewed = if now(&self.floor) >= identity.not_after && !self.join_address.is_empty() {
            rejoin::rejoin(self, &identity.node).await?
        } else {
            let session = answering(sessions).await;
            renew(&self.pki, &session, &identity.node).await?
        };
        let days = renewed.not_after.saturating_sub(now(&self.floor)).as_secs() / 86_400;
        edge.set_certificate(renewed.certificate).await?;
        tracing::info!(node = identity.node, days, "renewed this node's certificate");
        Ok(())
    }
}

/// Waits for a session whose hub is there; for ever when the owner of sessions is gone, for the process ends then.
async fn answering(sessions: &mut watch::Receiver<Option<Session>>) -> Session {
    loop {
        let session = sessions.wait_for(Option::is_some).await.ok();
        let Some(session) = session.and_then(|session| session.clone()) else {
            return std::future::pending().await;
        };
        let mut presence = session.presence();
        tokio::select! {
            biased;
            _ = session.closed() => {}
            here = presence.wait_for(|presence| *presence == Presence::Here) => if here.is_ok() {
                return session;
            },
        }
        let _ = timeout(RETRY_AFTER, sessions.changed()).await;
    }
}

/// max(clock, floor), since 1970.
fn now(floor: &ClockFloor) -> Duration {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    clock.max(floor.get())
}

/// Gets a certificate for a new key over the session, and swaps the files.
///
/// # Errors
/// The hub does not answer or refuses, the answer is not for us, or the files cannot be written.
pub async fn renew(pki: &Pki, session: &Session, node: &str) -> Result<Identity, RenewError> {
    let key = KeyPair::generate()?;
    let csr = request(&key, node)?;
    let chain = timeout(ANSWER_WITHIN, ask(session, csr))
        .await
        .map_err(|_| exchange_error("no answer in time"))??;
    Ok(pki.replace(&chain, &key.serialize_pem(), node)?)
}

fn request(key: &KeyPair, node: &str) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params
        .distinguished_name
        .push(DnType::CommonName, format!("system:node:{node}"));
    params.serialize_request(key)?.pem()
}

async fn ask(session: &Session, csr: String) -> Result<String, RenewError> {
    let stream = session.open_stream().await.map_err(exchange_error)?;
    exchange::post(stream, "/v1/certificate", "application/x-pem-file", csr).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_at_two_thirds_of_its_life() {
        let days = |days: u64| Duration::from_secs(days * 86_400);
        assert_eq!(renew_at(days(100), days(190)), days(160));
        assert_eq!(renew_at(days(100), days(100)), days(100));
        assert_eq!(renew_at(days(100), days(50)), days(100), "nonsense is renewed soon");
    }
}
