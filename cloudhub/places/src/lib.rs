//! The places of a listener: so many connections at once, and when all are taken, the oldest stranger goes.
//!
//! - accept → [`Places::take`] → a [`Place`], held for as long as the connection → its task races [`Place::lost`]
//! - a caller who has proved who he is calls [`Place::keep`]: he is a stranger no more, and stays
//! - accept fails as no file is left → [`Places::make_room`]
//!
//! A stranger with nothing to say costs a place for as long as it is wanted by nobody else. A newcomer is let in before he can prove
//! anything, so that those who only sit there cannot keep him out; where all places are kept he is refused.
//!
//! State: the strangers by age and how many places are taken, under one lock that is never held for longer than a look.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::Notify;

/// The places of a listener, or of several that share them.
#[derive(Clone, Debug)]
pub struct Places {
    limit: usize,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    places: usize,
    strangers: BTreeMap<u64, Arc<Notify>>,
}

/// A connection's place; free again when it is dropped.
#[derive(Debug)]
pub struct Place {
    number: u64,
    lost: Arc<Notify>,
    taken: Arc<Mutex<Taken>>,
}

impl Places {
    /// `limit` connections at once.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            taken: Arc::default(),
        }
    }

    /// How many connections at once.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// A place for a newcomer; none where all are kept by callers who are known.
    pub fn take(&self) -> Option<Place> {
        let mut taken = lock(&self.taken);
        if taken.places >= self.limit && !taken.oust_oldest() {
            return None;
        }
        let (number, lost) = (taken.next, Arc::new(Notify::new()));
        taken.next += 1;
        taken.places += 1;
        taken.strangers.insert(number, lost.clone());
        Some(Place {
            number,
            lost,
            taken: self.taken.clone(),
        })
    }

    /// Takes the oldest stranger's place from him; false where there is none.
    pub fn make_room(&self) -> bool {
        lock(&self.taken).oust_oldest()
    }
}

impl Taken {
    fn oust_oldest(&mut self) -> bool {
        let oldest = self.strangers.pop_first();
        if let Some((_, lost)) = &oldest {
            lost.notify_one();
        }
        oldest.is_some()
    }
}

impl Place {
    /// The caller is known: nobody takes this place from him.
    pub fn keep(&self) {
        lock(&self.taken).strangers.remove(&self.number);
    }

    /// Waits until somebody else needs the place. Cancel safe.
    pub async fn lost(&self) {
        self.lost.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        taken.strangers.remove(&self.number);
        taken.places -= 1;
    }
}

fn lock(taken: &Mutex<Taken>) -> MutexGuard<'_, Taken> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets this process open as many files as the system allows it, and says how many: the soft limit is 1024 nearly everywhere, for
/// the sake of programs that use `select`.
///
/// # Errors
/// When the limit cannot be read or set.
pub fn raise_file_limit() -> Result<u64, nix::Error> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// `wanted` places, or a quarter of the files that this process may open where that is less: what else it holds needs files too.
pub fn within_files(wanted: usize) -> usize {
    let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    wanted.min(usize::try_from(files / 4).unwrap_or(usize::MAX)).max(1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    async fn is_lost(place: &Place) -> bool {
        timeout(Duration::from_millis(1), place.lost()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_stranger_goes_for_a_newcomer() {
        let places = Places::new(2);
        let (first, second) = (places.take().unwrap(), places.take().unwrap());
        assert!(!is_lost(&first).await);
        let third = places.take().unwrap();
        assert!(is_lost(&first).await);
        drop(first);
        assert!(!is_lost(&second).await && !is_lost(&third).await);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_known_stays_and_a_newcomer_is_refused_when_all_are() {
        let places = Places::new(2);
        let known = [places.take().unwrap(), places.take().unwrap()];
        known[0].keep();
        drop(places.take().unwrap());
        assert!(!is_lost(&known[0]).await);
        assert!(is_lost(&known[1]).await);
        let places = Places::new(1);
        let known = places.take().unwrap();
        known.keep();
        assert!(places.take().is_none());
        assert!(!places.make_room());
        drop(known);
        assert!(places.take().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_lost_before_it_is_looked_at_is_lost() {
        let places = Places::new(8);
        let place = places.take().unwrap();
        assert!(places.make_room());
        assert!(!places.make_room(), "he has been told");
        assert!(is_lost(&place).await);
    }

    #[test]
    fn a_flood_of_strangers_holds_no_more_than_the_limit_once_they_have_gone() {
        let places = Places::new(4);
        let mut held: Vec<Place> = (0..1000).map(|_| places.take().unwrap()).collect();
        assert_eq!(lock(&places.taken).strangers.len(), 4);
        held.drain(..996);
        assert_eq!(lock(&places.taken).places, 4);
    }

    #[test]
    fn the_soft_limit_of_files_is_raised_to_the_hard_one() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let low = hard.min(512);
        setrlimit(Resource::RLIMIT_NOFILE, low, hard).unwrap();
        assert_eq!(within_files(4096), usize::try_from(low / 4).unwrap());
        assert_eq!(raise_file_limit().unwrap(), hard);
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
    }
}
