//! What an Attach does to the node's live session. Pure; `hub` carries it out.

/// What names a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionKey {
    /// Random, made with the edge's store.
    pub incarnation: [u8; 16],
    /// Durable, one more for each session of the incarnation.
    pub epoch: u64,
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
    /// An older session of the same store: refused, with the epoch that the hub knows.
    RefuseStale {
        /// The live session's epoch.
        current_epoch: u64,
    },
    /// Another store under the same name: a lost store takes over, unless the live session still answers a challenge. Then two
    /// machines live with one identity and both are quarantined.
    Challenge,
}

/// Judges a newcomer against the node's live session.
pub fn decide(live: Option<&SessionKey>, newcomer: &SessionKey) -> Decision {
    match live {
        None => Decision::Start,
        Some(live) if live.incarnation != newcomer.incarnation => Decision::Challenge,
        Some(live) if live.epoch == newcomer.epoch => Decision::AddPath,
        Some(live) if live.epoch < newcomer.epoch => Decision::Replace,
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

    #[test]
    fn the_epoch_decides_within_one_incarnation() {
        let live = key(1, 5);
        assert_eq!(decide(None, &key(1, 1)), Decision::Start);
        assert_eq!(decide(Some(&live), &key(1, 5)), Decision::AddPath);
        assert_eq!(decide(Some(&live), &key(1, 6)), Decision::Replace);
        assert_eq!(
            decide(Some(&live), &key(1, 4)),
            Decision::RefuseStale { current_epoch: 5 }
        );
    }

    #[test]
    fn another_incarnation_is_challenged_whatever_its_epoch() {
        for epoch in [0, 5, 9] {
            assert_eq!(decide(Some(&key(1, 5)), &key(2, epoch)), Decision::Challenge);
        }
    }
}
