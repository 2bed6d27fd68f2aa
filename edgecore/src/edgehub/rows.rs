//! What the link keeps in the store, under `relay/v1/`.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::BoxFuture;
use metastore::{Batch, CommitError, ReadError, Store};
use relay::{Change, Held, Key, ReplicaState};
use serde::{Deserialize, Serialize};
use tunnel::EpochSource;
use wire::proto::Place;

const STATE: &str = "relay/v1/state";
const INCARNATION: &str = "relay/v1/incarnation";
const EPOCH: &str = "relay/v1/epoch";
const CLOCK: &str = "relay/v1/clock";
const OBJECTS: &str = "object/v1/";

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StateRow {
    identity: String,
    marks: BTreeMap<String, u64>,
    #[serde(default)]
    place: PlaceRow,
    synced: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    forked: Option<String>,
}

/// Where in the life of the API's database that was.
#[derive(Debug, Default, Serialize, Deserialize)]
struct PlaceRow {
    number: u64,
    id: u64,
    revision: u64,
}

/// From which API the objects came, and how old they are.
pub(super) fn read_state(store: &Store) -> Result<ReplicaState, ReadError> {
    let row = store
        .get(STATE)?
        .and_then(|bytes| serde_json::from_slice::<StateRow>(&bytes).ok());
    Ok(row.map_or_else(ReplicaState::default, |row| ReplicaState {
        identity: row.identity,
        marks: row.marks,
        place: Place {
            number: row.place.number,
            id: row.place.id,
            revision: row.place.revision,
        },
        synced: row.synced,
        forked: row.forked,
    }))
}

/// The objects that the store holds, by key.
pub(super) fn read_held(store: &Store) -> Result<BTreeMap<Key, Held>, ReadError> {
    let mut held = BTreeMap::new();
    for (key, object) in store.scan(OBJECTS)? {
        let mut parts = key[OBJECTS.len()..].splitn(3, '/');
        let (Some(kind), Some(namespace), Some(name)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let namespace = if namespace == "-" { "" } else { namespace };
        let uid = uid_of(&object);
        let version = relay::object_version(&object);
        held.insert(
            (kind.to_owned(), namespace.to_owned(), name.to_owned()),
            Held { uid, version },
        );
    }
    Ok(held)
}

/// Which version of which object the store holds: `kind/namespace/name` (`-` for no namespace) → the beginning of its version. No content.
pub(super) fn held_versions(held: BTreeMap<Key, Held>) -> BTreeMap<String, String> {
    let name = |key: Key| match key.1.as_str() {
        "" => format!("{}/-/{}", key.0, key.2),
        namespace => format!("{}/{namespace}/{}", key.0, key.2),
    };
    let short = |held: Held| {
        held.version[..8]
            .iter()
            .fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
    };
    held.into_iter().map(|(key, held)| (name(key), short(held))).collect()
}

fn uid_of(object: &[u8]) -> String {
    #[derive(Deserialize, Default)]
    struct Metadata {
        #[serde(default)]
        uid: String,
    }
    #[derive(Deserialize)]
    struct Object {
        #[serde(default)]
        metadata: Metadata,
    }
    serde_json::from_slice::<Object>(object)
        .map(|o| o.metadata.uid)
        .unwrap_or_default()
}

/// Puts the replica's changes into a batch.
pub(super) fn add_changes(batch: &mut Batch, changes: Vec<Change>) {
    let name = |key: &Key| {
        let namespace = if key.1.is_empty() { "-" } else { &key.1 };
        format!("{OBJECTS}{}/{namespace}/{}", key.0, key.2)
    };
    for change in changes {
        match change {
            Change::Put { key, object } => batch.put(name(&key), object),
            Change::Remove { key } => batch.delete(name(&key)),
            Change::State(state) => {
                let row = StateRow {
                    identity: state.identity,
                    marks: state.marks,
                    place: PlaceRow {
                        number: state.place.number,
                        id: state.place.id,
                        revision: state.place.revision,
                    },
                    synced: state.synced,
                    forked: state.forked,
                };
                batch.put(STATE, serde_json::to_vec(&row).expect("a map of numbers is JSON"))
            }
        };
    }
}

/// The store's random id, made with it.
pub(super) fn incarnation(store: &Store) -> Result<[u8; 16], super::EdgeError> {
    if let Some(id) = store
        .get(INCARNATION)?
        .and_then(|bytes| <[u8; 16]>::try_from(bytes.as_ref()).ok())
    {
        return Ok(id);
    }
    let id: [u8; 16] = rand::random();
    let mut batch = Batch::new();
    batch.put(INCARNATION, id.to_vec());
    // Once in a store's life, before there is any session.
    tokio::task::block_in_place(|| store.commit_blocking(batch))?;
    Ok(id)
}

/// The latest time that the hub has told, since 1970.
pub(super) fn read_clock(store: &Store) -> Result<Duration, ReadError> {
    let seconds = store
        .get(CLOCK)?
        .and_then(|bytes| <[u8; 8]>::try_from(bytes.as_ref()).ok());
    Ok(Duration::from_secs(seconds.map_or(0, u64::from_le_bytes)))
}

pub(super) async fn write_clock(store: &Store, clock: Duration) -> Result<(), CommitError> {
    let mut batch = Batch::new();
    batch.put(CLOCK, clock.as_secs().to_le_bytes().to_vec());
    store.commit(batch).await
}

/// Durable epochs.
pub(super) struct Epochs {
    store: Store,
}

impl Epochs {
    pub(super) fn new(store: Store) -> Self {
        Self { store }
    }
}

impl EpochSource for Epochs {
    fn next(&self, above: u64) -> BoxFuture<'_, Result<u64, String>> {
        Box::pin(async move {
            let last = self.store.get(EPOCH).map_err(|error| error.to_string())?;
            let last = last
                .and_then(|bytes| <[u8; 8]>::try_from(bytes.as_ref()).ok())
                .map_or(0, u64::from_le_bytes);
            let next = last.max(above) + 1;
            let mut batch = Batch::new();
            batch.put(EPOCH, next.to_le_bytes().to_vec());
            self.store.commit(batch).await.map_err(|error| error.to_string())?;
            Ok(next)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_the_replica_changes_is_what_it_finds_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), &metastore::Options::default()).unwrap();
        let object = bytes::Bytes::from_static(br#"{"metadata":{"name":"n","uid":"u"}}"#);
        let key = |kind: &str, namespace: &str| (kind.to_owned(), namespace.to_owned(), "n".to_owned());
        let state = ReplicaState {
            identity: "a".into(),
            marks: BTreeMap::from([("Pod".into(), 7)]),
            place: Place {
                number: 3,
                id: u64::MAX,
                revision: 9,
            },
            synced: true,
            forked: Some("older".into()),
        };
        let mut batch = Batch::new();
        let put = |key| Change::Put {
            key,
            object: object.clone(),
        };
        add_changes(
            &mut batch,
            vec![
                put(key("Pod", "default")),
                put(key("Node", "")),
                Change::State(state.clone()),
            ],
        );
        store.commit(batch).await.unwrap();
        assert_eq!(read_state(&store).unwrap(), state);
        let held = read_held(&store).unwrap();
        assert_eq!(
            held.keys().cloned().collect::<Vec<_>>(),
            [key("Node", ""), key("Pod", "default")]
        );
        assert!(
            held.values()
                .all(|h| h.uid == "u" && h.version == relay::object_version(&object))
        );
        let shown = held_versions(held);
        let version = relay::object_version(&object);
        assert_eq!(
            shown["Node/-/n"],
            format!("{:02x}{:02x}", version[0], version[1]) + &shown["Pod/default/n"][4..]
        );
        let mut batch = Batch::new();
        add_changes(&mut batch, vec![Change::Remove { key: key("Node", "") }]);
        store.commit(batch).await.unwrap();
        assert_eq!(read_held(&store).unwrap().len(), 1);
    }

    #[tokio::test]
    async fn epochs_only_grow_also_over_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let store = Store::open(&path, &metastore::Options::default()).unwrap();
        assert_eq!(Epochs::new(store.clone()).next(0).await, Ok(1));
        assert_eq!(Epochs::new(store.clone()).next(9).await, Ok(10));
        drop(store);
        let store = Store::open(&path, &metastore::Options::default()).unwrap();
        assert_eq!(Epochs::new(store).next(3).await, Ok(11));
    }
}
