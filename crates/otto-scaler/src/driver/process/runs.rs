//! `DATA_DIR/runs`: all run directories, held by one scaler at a time.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};

use super::run_dir::RunDir;
use crate::driver::name::is_worker_name;

/// What is being removed. Begins with a dot, so it is no worker's name.
const TRASH: &str = ".removed";
/// Held by the scaler.
const SCALER_LOCK: &str = ".scaler";
/// The lock of a scaler that was killed may be held a moment longer, by a child that it was just starting.
const LOCK_WITHIN: Duration = Duration::from_secs(3);

/// The directory of run directories.
#[derive(Debug)]
pub(super) struct Runs {
    path: PathBuf,
    removed: AtomicU64,
    _lock: File,
}

impl Runs {
    /// Makes the directory where it is missing, and takes it for this scaler.
    ///
    /// # Errors
    /// When it cannot be made or written, or another scaler has it. Blocks for a few seconds at most.
    pub(super) fn open(data_dir: &Path) -> anyhow::Result<Self> {
        let data_dir = std::path::absolute(data_dir).with_context(|| format!("--data-dir {}", data_dir.display()))?;
        let path = data_dir.join("runs");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("cannot make the directory {} (--data-dir)", path.display()))?;
        let lock = path.join(SCALER_LOCK);
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock)
            .with_context(|| format!("cannot write {} (--data-dir)", lock.display()))?;
        let start = Instant::now();
        while let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(error).with_context(|| format!("cannot lock {} (--data-dir)", lock.display()));
            }
            if start.elapsed() > LOCK_WITHIN {
                anyhow::bail!(
                    "{} is locked by another process: each otto-scaler needs a --data-dir of its own",
                    path.display()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let runs = Self { path, removed: AtomicU64::new(0), _lock: file };
        runs.empty_trash();
        Ok(runs)
    }

    pub(super) fn dir(&self, name: &str) -> RunDir {
        RunDir::new(self.path.join(name))
    }

    /// Names of all run directories.
    pub(super) fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if let Ok(name) = entry.file_name().into_string()
                && is_worker_name(&name)
                && entry.file_type().is_ok_and(|kind| kind.is_dir())
            {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// Removes a run directory. Renamed first: half removed under its name, it would look as if it had never started.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        let trash = self.path.join(TRASH);
        let target = trash.join(format!("{name}.{}", self.removed.fetch_add(1, Ordering::Relaxed)));
        let rename = || fs::rename(self.path.join(name), &target);
        match rename() {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if !self.path.join(name).exists() {
                    return Ok(());
                }
                fs::create_dir_all(&trash)?;
                rename()?;
            }
            Err(error) => return Err(error),
        }
        fs::remove_dir_all(&target)
    }

    fn empty_trash(&self) {
        let trash = self.path.join(TRASH);
        if let Err(error) = fs::remove_dir_all(&trash)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, directory = %trash.display(), "removed run directories cannot be deleted");
        }
    }
}
