//! What the node reports: rows of the store on their way to the hub.
//!
//! Status rows are sent when they differ from what this session has sent, and all of them at its start. Gone and event
//! rows are sent once a session and deleted when the hub has them.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use metastore::{Batch, ReadError, Store};
use relay::{Item, Link, SendError};
use wire::proto::{Event, Gone, Key, Status, Up, up};
use wire::{ClassId, Now};

pub(super) const STATUS: &str = "status/v1/";
pub(super) const GONE: &str = "gone/v1/";
pub(super) const EVENT: &str = "event/v1/";
/// Events that are read at once.
const EVENTS: usize = 64;

/// What this session has sent.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// Status rows as sent.
    sent: BTreeMap<String, Bytes>,
    /// Rows on their way, by token.
    waiting: HashMap<u64, String>,
    on_the_way: HashSet<String>,
    token: u64,
}

impl Outbox {
    /// Hands the link what is new and has room.
    pub(super) fn fill(&mut self, store: &Store, link: &mut Link, now: Now) -> Result<(), ReadError> {
        self.fill_status(store, link, now)?;
        for (prefix, class) in [(GONE, ClassId::GONE), (EVENT, ClassId::EVENT)] {
            for (row, value) in store.scan_from(prefix, None, EVENTS)? {
                if self.on_the_way.contains(&row) {
                    continue;
                }
                let Some(body) = durable_body(&row, &value) else {
                    continue;
                };
                self.token += 1;
                let payload = wire::encode(&Up { body: Some(body) });
                match link.send(
                    now,
                    Item {
                        token: self.token,
                        ..Item::new(class, payload)
                    },
                ) {
                    Ok(()) => {
                        self.waiting.insert(self.token, row.clone());
                        self.on_the_way.insert(row);
                    }
                    Err(SendError::Busy) => break,
                    Err(error) => tracing::error!(row, %error, "a row cannot be sent"),
                }
            }
        }
        Ok(())
    }

    fn fill_status(&mut self, store: &Store, link: &mut Link, now: Now) -> Result<(), ReadError> {
        let rows = store.scan(STATUS)?;
        let there: HashSet<&str> = rows.iter().map(|(row, _)| row.as_str()).collect();
        self.sent.retain(|row, _| there.contains(row.as_str()));
        for (row, value) in rows {
            if self.sent.get(&row) == Some(&value) {
                continue;
            }
            let Some((key, uid)) = parse(&row, STATUS) else {
                continue;
            };
            let body = up::Body::Status(Status {
                key: Some(key),
                uid,
                object: value.clone(),
            });
            let payload = wire::encode(&Up { body: Some(body) });
            match link.send(
                now,
                Item {
                    key: row.clone(),
                    ..Item::new(ClassId::STATUS, payload)
                },
            ) {
                Ok(()) => {
                    self.sent.insert(row, value);
                }
                Err(SendError::Busy) => break,
                Err(error) => tracing::error!(row, %error, "a status cannot be sent"),
            }
        }
        Ok(())
    }

    /// The hub has what `token` stands for: its row can go.
    pub(super) fn acked(&mut self, token: u64, batch: &mut Batch) {
        if let Some(row) = self.waiting.remove(&token) {
            self.on_the_way.remove(&row);
            batch.delete(row);
        }
    }
}

fn durable_body(row: &str, value: &Bytes) -> Option<up::Body> {
    if row.starts_with(EVENT) {
        return Some(up::Body::Event(Event { object: value.clone() }));
    }
    let (key, uid) = parse(row, GONE)?;
    Some(up::Body::Gone(Gone { key: Some(key), uid }))
}

/// `PREFIX kind/namespace/name/uid`.
fn parse(row: &str, prefix: &str) -> Option<(Key, String)> {
    let mut parts = row.strip_prefix(prefix)?.splitn(4, '/');
    let (kind, namespace, name, uid) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let own = |text: &str| if text == "-" { String::new() } else { text.to_owned() };
    Some((
        Key {
            kind: kind.to_owned(),
            namespace: own(namespace),
            name: name.to_owned(),
        },
        own(uid),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use relay::{Event as LinkEvent, Faults};

    async fn put(store: &Store, row: &str, value: &str) {
        let mut batch = Batch::new();
        batch.put(row, value.to_owned());
        store.commit(batch).await.unwrap();
    }

    /// Moves everything between two links; returns what arrived and what was acknowledged.
    fn exchange(edge: &mut Link, hub: &mut Link) -> (Vec<up::Body>, Vec<u64>) {
        let (mut arrived, mut acked) = (Vec::new(), Vec::new());
        for _ in 0..10 {
            while let Some(transmit) = edge.poll_transmit(Now::default()) {
                hub.handle_message(Now::default(), transmit.message).unwrap();
            }
            while let Some(event) = hub.poll_event() {
                if let LinkEvent::Received {
                    class, seq, payload, ..
                } = event
                {
                    arrived.push(wire::decode_up(payload).unwrap().unwrap());
                    hub.commit(class, seq);
                }
            }
            while let Some(transmit) = hub.poll_transmit(Now::default()) {
                edge.handle_message(Now::default(), transmit.message).unwrap();
            }
            while let Some(event) = edge.poll_event() {
                if let LinkEvent::Acked { token, .. } = event {
                    acked.push(token);
                }
            }
        }
        (arrived, acked)
    }

    #[tokio::test]
    async fn status_goes_again_only_when_it_differs_and_rows_go_when_the_hub_has_them() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), &metastore::Options::default()).unwrap();
        let (mut edge, mut hub) = (Link::new(Faults::default()), Link::new(Faults::default()));
        let mut outbox = Outbox::default();
        put(&store, "status/v1/Pod/default/web/u", "1").await;
        put(&store, "status/v1/Node/-/robot/-", "2").await;
        put(&store, "gone/v1/Pod/default/old/v", "{}").await;
        put(&store, "event/v1/00000000000000000001", "{}").await;
        outbox.fill(&store, &mut edge, Now::default()).unwrap();
        outbox.fill(&store, &mut edge, Now::default()).unwrap();
        let (arrived, acked) = exchange(&mut edge, &mut hub);
        assert_eq!(arrived.len(), 4, "{arrived:?}");
        assert!(arrived.iter().any(|b| matches!(b, up::Body::Gone(g) if g.uid == "v")));
        let mut batch = Batch::new();
        for token in acked {
            outbox.acked(token, &mut batch);
        }
        store.commit(batch).await.unwrap();
        assert!(store.scan(GONE).unwrap().is_empty() && store.scan(EVENT).unwrap().is_empty());
        assert_eq!(store.scan(STATUS).unwrap().len(), 2);
        put(&store, "status/v1/Pod/default/web/u", "3").await;
        outbox.fill(&store, &mut edge, Now::default()).unwrap();
        let (arrived, _) = exchange(&mut edge, &mut hub);
        assert!(
            matches!(&arrived[..], [up::Body::Status(s)] if s.object == "3"),
            "{arrived:?}"
        );
    }
}
