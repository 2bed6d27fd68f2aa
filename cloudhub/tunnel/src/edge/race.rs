//! Several addresses of one hub over one uplink, as RFC 8305 (happy eyeballs) has it: an uplink may have only one of the two families, and
//! nothing but an answer says which.

use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::ConnectError;
use super::dial::AttemptError;

/// After this time without an answer the next address is tried beside those before it. RFC 8305 §8 recommends 250 ms; mobile links take
/// that long for a round trip, and a second handshake costs them 5 KB.
const NEXT_AFTER: Duration = Duration::from_millis(500);
/// Addresses that are tried in one attempt; the next attempt begins with another.
pub(super) const MAX_ADDRESSES: usize = 4;

/// The order of one attempt: what the resolver says, the second family in second place (RFC 8305 §4), begun at another one each `turn`.
pub(super) fn order(mut addresses: Vec<SocketAddr>, turn: usize) -> Vec<SocketAddr> {
    if addresses.is_empty() {
        return addresses;
    }
    let start = turn % addresses.len();
    addresses.rotate_left(start);
    let other = addresses
        .iter()
        .position(|address| address.is_ipv4() != addresses[0].is_ipv4());
    if let Some(other) = other {
        let other = addresses.remove(other);
        addresses.insert(1, other);
    }
    addresses.truncate(MAX_ADDRESSES);
    addresses
}

/// The first that is up; the others are given up. Of failures the last, but a refusal at once.
pub(super) async fn race<T, F>(addresses: Vec<SocketAddr>, dial: impl Fn(SocketAddr) -> F) -> Result<T, AttemptError>
where
    F: Future<Output = Result<T, AttemptError>>,
{
    let mut addresses = addresses.into_iter();
    let mut dials = FuturesUnordered::new();
    let mut failed = AttemptError::Fatal(ConnectError::NoHub);
    loop {
        if let Some(next) = addresses.next() {
            dials.push(dial(next));
        }
        let more = addresses.len() > 0;
        tokio::select! {
            biased;
            ended = dials.next() => match ended {
                Some(Ok(up)) => return Ok(up),
                Some(Err(refused @ AttemptError::Fatal(_))) => return Err(refused),
                Some(Err(error)) => failed = error,
                None => return Err(failed),
            },
            () = tokio::time::sleep(NEXT_AFTER), if more => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    const V4: [&str; 2] = ["192.0.2.1:1", "192.0.2.2:1"];
    const V6: [&str; 2] = ["[2001:db8::1]:1", "[2001:db8::2]:1"];

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn both_families_are_among_the_first_two() {
        let all = addresses(&[V4[0], V4[1], V6[0], V6[1]]);
        assert_eq!(order(all.clone(), 0), addresses(&[V4[0], V6[0], V4[1], V6[1]]));
        assert_eq!(order(all.clone(), 3), addresses(&[V6[1], V4[0], V4[1], V6[0]]));
        assert_eq!(order(all.clone(), 4), order(all.clone(), 0));
        assert_eq!(order([all.clone(), all].concat(), 1).len(), MAX_ADDRESSES);
        assert_eq!(order(Vec::new(), 3), []);
    }

    #[tokio::test(start_paused = true)]
    async fn the_second_family_is_tried_while_the_first_is_silent() {
        let since = Instant::now();
        let up = race(addresses(&[V4[0], V6[0]]), |remote| async move {
            if remote.is_ipv4() {
                std::future::pending::<()>().await;
            }
            Ok(remote)
        });
        assert!(up.await.unwrap().is_ipv6());
        assert_eq!(since.elapsed(), NEXT_AFTER);
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_is_tried_at_once_when_one_fails_and_the_slow_first_may_still_win() {
        let since = Instant::now();
        let up = race(addresses(&[V4[0], V6[0], V4[1]]), |remote| async move {
            if remote.is_ipv6() {
                return Err(AttemptError::Timeout(remote));
            }
            tokio::time::sleep(NEXT_AFTER * 2).await;
            Ok(remote)
        });
        assert_eq!(up.await.unwrap(), addresses(&V4)[0]);
        assert_eq!(since.elapsed(), NEXT_AFTER * 2);
        let none = race(addresses(&V4), |remote| async move {
            Err::<(), _>(AttemptError::Timeout(remote))
        });
        assert!(matches!(none.await, Err(AttemptError::Timeout(remote)) if remote == addresses(&V4)[1]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_ends_it() {
        let refused = race(addresses(&V4), |remote| async move {
            if remote == addresses(&V4)[1] {
                std::future::pending::<()>().await;
            }
            let reason = "revoked".to_owned();
            Err::<(), _>(AttemptError::Fatal(ConnectError::Refused { reason }))
        });
        assert!(matches!(
            refused.await,
            Err(AttemptError::Fatal(ConnectError::Refused { .. }))
        ));
    }
}
