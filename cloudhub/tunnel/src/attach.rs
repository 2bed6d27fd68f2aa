//! What an Attach does to the node's live session. Pure; `hub` carries it out.

/// What names a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionKey {
    /// Random, made with the edge's store.
    pub incarnation: [u8; 16],
    /// Durable, one more for each session of the incarnation.
    pub epoch: u64,
}

/// Who comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Newcomer {
    /// Its session.
    pub key: SessionKey,
    /// It is one more path of a session that was welcomed over another path.
    pub joins: bool,
}

/// What to do with a newcomer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The node has no live session: this is it.
    Start,
    /// The same session over one more path.
    AddPath,
    /// A newer session of the same store: it takes over.
    Replace,
    /// An older session of the same store, or a path of a session that is over: refused, with the epoch that the hub knows.
    RefuseStale {
        /// The live session's epoch, or that of the session that is over.
        current_epoch: u64,
    },
    /// Another store under the same name: a lost store takes over, unless the live session still answers a challenge. Then two
    /// machines live with one identity and both are quarantined.
    Challenge,
}

/// Judges a newcomer against the node's live session.
pub fn decide(live: Option<&SessionKey>, newcomer: &Newcomer) -> Decision {
    let key = &newcomer.key;
    match live {
        Some(live) if live == key => Decision::AddPath,
        // What the two ends know of each other is gone with the session: a path cannot bring it back.
        _ if newcomer.joins => Decision::RefuseStale {
            current_epoch: live.map_or(key.epoch, |live| live.epoch.max(key.epoch)),
        },
        None => Decision::Start,
        Some(live) if live.incarnation != key.incarnation => Decision::Challenge,
        Some(live) if live.epoch < key.epoch => Decision::Replace,
        Some(live) => Decision::RefuseStale {
            current_epoch: live.epoch,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(store: u8, epoch: u64) -> SessionKey {
        SessionKey {
            incarnation: [store; 16],
            epoch,
        }
    }

    fn starts(store: u8, epoch: u64) -> Newcomer {
        Newcomer {
            key: key(store, epoch),
            joins: false,
        }
    }

    #[test]
    fn the_epoch_decides_within_one_incarnation() {
        let live = key(1, 5);
        assert_eq!(decide(None, &starts(1, 1)), Decision::Start);
        assert_eq!(decide(Some(&live), &starts(1, 5)), Decision::AddPath);
        assert_eq!(decide(Some(&live), &starts(1, 6)), Decision::Replace);
        assert_eq!(
            decide(Some(&live), &starts(1, 4)),
            Decision::RefuseStale { current_epoch: 5 }
        );
    }

    #[test]
    fn another_incarnation_is_challenged_whatever_its_epoch() {
        for epoch in [0, 5, 9] {
            assert_eq!(decide(Some(&key(1, 5)), &starts(2, epoch)), Decision::Challenge);
        }
    }

    #[test]
    fn a_path_joins_its_own_session_and_starts_none() {
        let joins = |store, epoch| Newcomer {
            joins: true,
            ..starts(store, epoch)
        };
        assert_eq!(decide(Some(&key(1, 5)), &joins(1, 5)), Decision::AddPath);
        let cases = [
            (None, 5),
            (Some(key(1, 6)), 6),
            (Some(key(1, 4)), 5),
            (Some(key(2, 5)), 5),
        ];
        for (live, current_epoch) in cases {
            assert_eq!(
                decide(live.as_ref(), &joins(1, 5)),
                Decision::RefuseStale { current_epoch },
                "{live:?}"
            );
        }
    }
}
