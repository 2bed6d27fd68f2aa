//! The handle: opening, reading, committing.

use std::any::Any;
use std::fmt;
use std::fs::{self, File};
use std::ops::{Bound, Deref};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::batch::Batch;
use crate::error::{CommitError, OpenError, ReadError};
use crate::memory::Memory;
use crate::record::Codec;
use crate::watch::{Watch, Watches};
use crate::writer::{QUEUE, Request, Writer, WriterEnd};

/// Keys a leaf: every flush rewrites the whole leaf. 16 writes 14 KB for a 1 KiB record, the default of 1024 writes
/// 826 KB (twins-security-scale.md B.5). It is part of the file format.
const LEAF_FANOUT: usize = 16;
/// zstd's level for leaves, of 16 values at most. sled makes a context for each; those of its own level, 3, have tables of 768 KiB to clear,
/// which took a third of a commit's CPU time. What level 1 writes is as large.
const COMPRESSION: i32 = 1;
/// sled's cache. The store of an edge is about a megabyte.
const CACHE: usize = 4 << 20;
/// rayon's threads, which sled uses for its flush; their stacks count in the memory budget.
const POOL_THREADS: usize = 2;
const POOL_STACK: usize = 256 * 1024;

pub(crate) type Db = sled::Db<LEAF_FANOUT>;
pub(crate) type Fatal = Arc<dyn Fn(&str) + Send + Sync>;

/// How a store is opened.
#[derive(Clone)]
pub struct Options {
    /// The key that records are encrypted with (AES-256-GCM).
    pub key: Option<[u8; 32]>,
    /// The largest value, bytes.
    pub max_value: usize,
    /// How long a flush may take before the store counts as failed.
    pub flush_deadline: Duration,
    /// How long the reading of all records at the opening may take.
    pub check_deadline: Duration,
    /// Called when the store has failed. It should end the process at once, without dropping the store; the default
    /// prints the reason and exits with 74 (EX_IOERR).
    pub on_fatal: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            key: None,
            max_value: 8 << 20,
            flush_deadline: Duration::from_secs(30),
            check_deadline: Duration::from_secs(20),
            on_fatal: Arc::new(|reason| {
                eprintln!("{reason}; the process exits to start again on the store");
                std::process::exit(74);
            }),
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("encrypted", &self.key.is_some())
            .field("max_value", &self.max_value)
            .field("flush_deadline", &self.flush_deadline)
            .field("check_deadline", &self.check_deadline)
            .finish_non_exhaustive()
    }
}

/// A handle on the store; clones share it. It closes with the last one.
#[derive(Clone)]
pub struct Store {
    backing: Backing,
}

/// Where the records are.
#[derive(Clone)]
enum Backing {
    Disk(Arc<Shared>),
    Memory(Arc<Memory>),
}

/// What all handles of a store on the disk share.
struct Shared {
    /// sled's handle is not `Sync`, and each clone has caches of its own: readers share one. Reads are short.
    reader: Mutex<Option<Db>>,
    codec: Arc<Codec>,
    watches: Watches,
    requests: Option<mpsc::Sender<Request>>,
    writer: Option<JoinHandle<WriterEnd>>,
    max_value: usize,
}

impl Drop for Shared {
    /// Waits for the writer, so that the store can be opened again at once.
    fn drop(&mut self) {
        self.requests = None;
        let end = self.writer.take().map(JoinHandle::join);
        let reader = self.reader.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if !matches!(end, Some(Ok(WriterEnd::Closed))) {
            // After a failed flush, sled's own flush in `Drop` would never return.
            std::mem::forget(reader);
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.backing {
            Backing::Disk(shared) => f
                .debug_struct("Store")
                .field("codec", &shared.codec)
                .finish_non_exhaustive(),
            Backing::Memory(_) => f.write_str("Store(in memory)"),
        }
    }
}

impl Store {
    /// Opens the store at `path`, makes it when it is not there, and checks every record. Blocks.
    ///
    /// # Errors
    /// When sled refuses the folder, a record fails its checks, or a file cannot be synced.
    pub fn open(path: &Path, options: &Options) -> Result<Self, OpenError> {
        start_pool();
        let fresh = !path.join("durability_cookie").exists();
        let db = open_sled(path)?;
        if fresh {
            sync_new(path)?;
        }
        let codec = Arc::new(Codec::new(options.key.as_ref()));
        if let Err(error) = check_records(&db, &codec, path, options.check_deadline) {
            std::mem::forget(db);
            return Err(error);
        }
        let watches = Watches::default();
        let (requests, receiver) = mpsc::channel(QUEUE);
        let writer = Writer {
            db: db.clone(),
            watches: watches.clone(),
            fatal: options.on_fatal.clone(),
            flush_deadline: options.flush_deadline,
        };
        let writer = writer.start(receiver).map_err(OpenError::Thread)?;
        let shared = Shared {
            reader: Mutex::new(Some(db)),
            codec,
            watches,
            requests: Some(requests),
            writer: Some(writer),
            max_value: options.max_value,
        };
        Ok(Self {
            backing: Backing::Disk(Arc::new(shared)),
        })
    }

    /// A store that is gone with its last handle and survives nothing.
    #[must_use]
    pub fn in_memory() -> Self {
        Self {
            backing: Backing::Memory(Arc::default()),
        }
    }

    /// Commits `batch`: all of it or nothing. It is on the disk when this returns `Ok`.
    ///
    /// Not undone by cancellation: a batch that was handed over is committed.
    ///
    /// # Errors
    /// When a value is too large (nothing is written), or the store is closed or failed (not known what is written).
    pub async fn commit(&self, batch: Batch) -> Result<(), CommitError> {
        let shared = match &self.backing {
            Backing::Disk(shared) => shared,
            Backing::Memory(memory) => {
                memory.commit(batch);
                return Ok(());
            }
        };
        let request = shared.encode(batch)?;
        let Some((request, done)) = request else { return Ok(()) };
        shared.requests().send(request).await.map_err(|_| CommitError::Closed)?;
        done.await.map_err(|_| CommitError::Closed)?
    }

    /// [`Self::commit`] for a thread that may block.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn commit_blocking(&self, batch: Batch) -> Result<(), CommitError> {
        let shared = match &self.backing {
            Backing::Disk(shared) => shared,
            Backing::Memory(memory) => {
                memory.commit(batch);
                return Ok(());
            }
        };
        let request = shared.encode(batch)?;
        let Some((request, done)) = request else { return Ok(()) };
        shared
            .requests()
            .blocking_send(request)
            .map_err(|_| CommitError::Closed)?;
        done.blocking_recv().map_err(|_| CommitError::Closed)?
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// When sled fails or the record is not valid.
    pub fn get(&self, key: &str) -> Result<Option<Bytes>, ReadError> {
        match &self.backing {
            Backing::Disk(shared) => shared.get(key),
            Backing::Memory(memory) => Ok(memory.get(key)),
        }
    }

    /// All keys that start with `prefix`, ascending, with their values.
    ///
    /// # Errors
    /// When sled fails or a record is not valid.
    pub fn scan(&self, prefix: &str) -> Result<Vec<(String, Bytes)>, ReadError> {
        self.scan_from(prefix, None, usize::MAX)
    }

    /// At most `limit` keys that start with `prefix` and come after `start_after`, ascending, with their values.
    ///
    /// # Errors
    /// When sled fails or a record is not valid.
    pub fn scan_from(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Bytes)>, ReadError> {
        let start = match start_after {
            Some(after) if after >= prefix => Bound::Excluded(after.to_owned()),
            _ => Bound::Included(prefix.to_owned()),
        };
        match &self.backing {
            Backing::Disk(shared) => shared.range(prefix, start, limit),
            Backing::Memory(memory) => Ok(memory.range(prefix, start, limit)),
        }
    }

    /// The keys alone that start with `prefix`, ascending.
    ///
    /// # Errors
    /// When sled fails.
    pub fn keys(&self, prefix: &str) -> Result<Vec<String>, ReadError> {
        match &self.backing {
            Backing::Disk(shared) => shared.keys(prefix),
            Backing::Memory(memory) => {
                let all = memory.range(prefix, Bound::Included(prefix.to_owned()), usize::MAX);
                Ok(all.into_iter().map(|(key, _)| key).collect())
            }
        }
    }

    /// Watches the keys that start with `prefix`.
    #[must_use]
    pub fn watch(&self, prefix: &str) -> Watch {
        match &self.backing {
            Backing::Disk(shared) => shared.watches.add(prefix),
            Backing::Memory(memory) => memory.watches.add(prefix),
        }
    }
}

impl Shared {
    fn requests(&self) -> &mpsc::Sender<Request> {
        self.requests
            .as_ref()
            .expect("only taken when the last handle is dropped")
    }

    fn reader(&self) -> MappedDb<'_> {
        MappedDb(self.reader.lock().unwrap_or_else(PoisonError::into_inner))
    }

    #[expect(clippy::type_complexity, reason = "a request and its reply, used twice just above")]
    fn encode(
        &self,
        batch: Batch,
    ) -> Result<Option<(Request, oneshot::Receiver<Result<(), CommitError>>)>, CommitError> {
        if batch.is_empty() {
            return Ok(None);
        }
        let mut changes = Vec::with_capacity(batch.changes.len());
        for (key, value) in batch.changes {
            let record = match value {
                Some(value) if value.len() > self.max_value => {
                    return Err(CommitError::TooLarge {
                        key,
                        size: value.len(),
                        limit: self.max_value,
                    });
                }
                Some(value) => Some(self.codec.encode(&key, &value)?),
                None => None,
            };
            changes.push((key, record));
        }
        let (reply, done) = oneshot::channel();
        Ok(Some((Request { changes, reply }, done)))
    }

    fn get(&self, key: &str) -> Result<Option<Bytes>, ReadError> {
        let record = self.reader().get(key.as_bytes())?;
        record.map(|record| self.codec.decode(key, &record)).transpose()
    }

    fn range(&self, prefix: &str, start: Bound<String>, limit: usize) -> Result<Vec<(String, Bytes)>, ReadError> {
        let start = start.map(String::into_bytes);
        let mut found = Vec::new();
        for entry in self.reader().range::<Vec<u8>, _>((start, Bound::Unbounded)) {
            let (key, record) = entry?;
            if found.len() >= limit || !key.starts_with(prefix.as_bytes()) {
                break;
            }
            let key = str::from_utf8(&key).map_err(|_| ReadError::Key)?.to_owned();
            let value = self.codec.decode(&key, &record)?;
            found.push((key, value));
        }
        Ok(found)
    }

    fn keys(&self, prefix: &str) -> Result<Vec<String>, ReadError> {
        let mut found = Vec::new();
        for entry in self
            .reader()
            .range::<Vec<u8>, _>((Bound::Included(prefix.as_bytes().to_vec()), Bound::Unbounded))
        {
            let (key, _) = entry?;
            if !key.starts_with(prefix.as_bytes()) {
                break;
            }
            found.push(str::from_utf8(&key).map_err(|_| ReadError::Key)?.to_owned());
        }
        Ok(found)
    }
}

/// The readers' handle, locked.
struct MappedDb<'a>(MutexGuard<'a, Option<Db>>);

impl Deref for MappedDb<'_> {
    type Target = Db;

    fn deref(&self) -> &Db {
        self.0.as_ref().expect("only taken when the last handle is dropped")
    }
}

fn start_pool() {
    // An error says that the pool is there already, which is what is wanted.
    let _ = rayon::ThreadPoolBuilder::new()
        .num_threads(POOL_THREADS)
        .stack_size(POOL_STACK)
        .thread_name(|n| format!("store-pool-{n}"))
        .build_global();
}

fn open_sled(path: &Path) -> Result<Db, OpenError> {
    let config = sled::Config::new()
        .path(path)
        .cache_capacity_bytes(CACHE)
        .zstd_compression_level(COMPRESSION)
        .flush_every_ms(None);
    match catch_unwind(AssertUnwindSafe(|| config.open::<LEAF_FANOUT>())) {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(source)) => Err(OpenError::Open {
            path: path.to_owned(),
            source,
        }),
        Err(panic) => Err(OpenError::Panicked {
            path: path.to_owned(),
            message: panic_text(&*panic),
        }),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no text".into())
}

/// sled never syncs its settings file, nor the folders: a power cut right after the creation would lose the store.
fn sync_new(path: &Path) -> Result<(), OpenError> {
    let parent = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut targets: Vec<PathBuf> = vec![path.join("durability_cookie")];
    if let Ok(entries) = fs::read_dir(path) {
        targets.extend(entries.flatten().map(|e| e.path()).filter(|p| p.is_dir()));
    }
    targets.extend([path.to_owned(), parent.to_owned()]);
    for target in targets {
        File::open(&target)
            .and_then(|file| file.sync_all())
            .map_err(|source| OpenError::Sync { path: target, source })?;
    }
    Ok(())
}

/// Reads every record in a thread of its own: on a damaged page sled's search may spin for ever.
fn check_records(db: &Db, codec: &Arc<Codec>, path: &Path, limit: Duration) -> Result<(), OpenError> {
    let (db, codec, at) = (db.clone(), codec.clone(), path.to_owned());
    let (sender, checked) = std::sync::mpsc::sync_channel(1);
    std::thread::Builder::new()
        .name("store-check".into())
        .stack_size(512 * 1024)
        .spawn(move || {
            let result = catch_unwind(AssertUnwindSafe(|| read_all(&db, &codec, &at))).unwrap_or_else(|panic| {
                Err(OpenError::Panicked {
                    path: at.clone(),
                    message: panic_text(&*panic),
                })
            });
            if result.is_err() {
                // Its flush in `Drop` may not return on a damaged store.
                std::mem::forget(db);
            } else {
                // Before the answer: whoever opens the store again must not find this handle's lock.
                drop(db);
            }
            // Nobody listens any more when the deadline is over.
            let _ = sender.send(result);
        })
        .map_err(OpenError::Thread)?;
    checked.recv_timeout(limit).unwrap_or_else(|_| {
        Err(OpenError::Hung {
            path: path.to_owned(),
            limit,
        })
    })
}

fn read_all(db: &Db, codec: &Codec, path: &Path) -> Result<(), OpenError> {
    for entry in db.iter() {
        let (key, record) = entry.map_err(|source| OpenError::Open {
            path: path.to_owned(),
            source,
        })?;
        let name = String::from_utf8_lossy(&key).into_owned();
        codec.decode(&name, &record).map_err(|source| OpenError::Record {
            path: path.to_owned(),
            key: name.clone(),
            source,
        })?;
    }
    Ok(())
}
