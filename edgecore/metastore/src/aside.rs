//! A store that is not valid is renamed and a new one is made in its place.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::OpenError;
use crate::store::{Options, Store};

/// What was set aside, and why.
#[derive(Debug)]
pub struct SetAside {
    /// Where the old store lies now.
    pub path: PathBuf,
    /// Why it did not open.
    pub reason: OpenError,
}

impl Store {
    /// Opens the store at `path`; when it does not open or a record fails its checks, renames it to
    /// `PATH.aside-N` and opens a new, empty one.
    ///
    /// When sled hangs on the old one, [`Options::on_fatal`] is called after the renaming.
    ///
    /// # Errors
    /// When the old store cannot be renamed, or the new one does not open either.
    pub fn open_or_set_aside(path: &Path, options: &Options) -> Result<(Self, Option<SetAside>), OpenError> {
        let reason = match Self::open(path, options) {
            Ok(store) => return Ok((store, None)),
            Err(reason) => reason,
        };
        let aside = free_name(path);
        fs::rename(path, &aside).map_err(|source| OpenError::SetAside {
            path: path.to_owned(),
            source,
        })?;
        if matches!(reason, OpenError::Hung { .. }) {
            // A thread spins in sled and cannot be ended but with the process; the next start finds no store here.
            (options.on_fatal)(&format!("{reason}; it is set aside as {}", aside.display()));
        }
        let store = Self::open(path, options)?;
        Ok((store, Some(SetAside { path: aside, reason })))
    }
}

fn free_name(path: &Path) -> PathBuf {
    (1_u32..)
        .map(|n| {
            let mut name = path.as_os_str().to_owned();
            name.push(format!(".aside-{n}"));
            PathBuf::from(name)
        })
        .find(|candidate| !candidate.exists())
        .expect("a folder has fewer than 2^32 entries")
}
