//! Output that no log server has acknowledged yet, in files, so that it survives the agent.
//!
//! A spool directory holds one directory per run (`CREATED-RUNID`), each with
//!
//! | file | what |
//! |---|---|
//! | `run.json` | the run: format, ids, start |
//! | `lock` | flock held by the agent that writes or drains the run |
//! | `acked` | how far the log server has it: sequence and checksum, 12 bytes, written in place |
//! | `incomplete` | empty; there when the log server refused or lost lines, so that the digest of all says nothing |
//! | `NNNNNNNN.seg` | records in the order of their sequences; removed as a whole once acknowledged |
//!
//! Nothing is fsynced: the page cache survives every death of the agent, and a machine's crash ends the job too. After
//! such a crash checksums find what is torn, and it is cut off.
//!
//! Invariant: the files of a run never take more than the limit given to [`create`].

mod reader;
mod record;
mod recover;
mod state;
mod writer;

use std::fs::{self, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::access::{self, Access};
use crate::lock::Locked;
pub(crate) use reader::Reader;
pub(crate) use record::{Record, shorten};
pub(crate) use recover::recover;
pub(crate) use state::Spool;
pub(crate) use writer::{AppendError, Writer};

/// Version of the files' layout.
const FORMAT: u32 = 1;
/// Segments are begun anew at this size, or at an eighth of the limit if that is less.
const SEGMENT_BYTES: u64 = 4 << 20;

/// A run, as `run.json` keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunInfo {
    /// Layout of the directory.
    pub(crate) format: u32,
    /// Random.
    pub(crate) run_id: String,
    /// The task the worker belongs to.
    pub(crate) task_id: String,
    /// Pod or run-directory name.
    pub(crate) worker_id: String,
    /// Milliseconds since the Unix epoch.
    pub(crate) created_at_ms: u64,
}

impl RunInfo {
    /// A new run with a random id.
    pub(crate) fn new(task_id: &str, worker_id: &str, created_at_ms: u64) -> Self {
        RunInfo {
            format: FORMAT,
            run_id: uuid::Uuid::new_v4().to_string(),
            task_id: task_id.to_owned(),
            worker_id: worker_id.to_owned(),
            created_at_ms,
        }
    }
}

/// Begins a run in a directory of its own below `spool_dir`, which is made if it is not there. Its files take at most
/// `limit` bytes, of which `reserve` are kept for what is in the pipes when the job has ended.
///
/// # Errors
/// When the directory cannot be written; the message names it.
pub(crate) fn create(spool_dir: &Path, run: &RunInfo, limit: u64, reserve: u64) -> anyhow::Result<(Writer, Spool)> {
    let begin = || -> anyhow::Result<(Writer, Spool)> {
        let dir = spool_dir.join(format!("{:013}-{}", run.created_at_ms, run.run_id));
        access::make_dirs(&dir)?;
        let access = Access::of(&dir)?;
        let lock = lock(&dir)?.context("another process holds the lock of a directory that was just made")?;
        // Renamed into place, so that a run.json is always whole.
        let temporary = dir.join("run.json.tmp");
        access.write(&temporary, &serde_json::to_vec(run)?)?;
        fs::rename(&temporary, dir.join("run.json"))?;
        let acked = access.options().create_new(true).read(true).write(true).open(dir.join("acked"))?;
        let files = state::Files { dir, access, acked, lock };
        let spool = Spool::new(files, limit, reserve, state::State::default());
        let writer = Writer::begin(spool.clone(), SEGMENT_BYTES.min(limit / 8))?;
        Ok((writer, spool))
    };
    begin().with_context(|| format!("the spool directory {} (--spool-dir) cannot be used", spool_dir.display()))
}

/// Directories of runs that an earlier agent left, oldest first. None if there is no such directory.
///
/// # Errors
/// When the directory cannot be read.
pub(crate) fn leftovers(spool_dir: &Path) -> anyhow::Result<Vec<(PathBuf, RunInfo)>> {
    let entries = match fs::read_dir(spool_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("reading {}", spool_dir.display())),
    };
    let mut runs = Vec::new();
    for entry in entries {
        let dir = entry?.path();
        match read_run(&dir) {
            Ok(run) => runs.push((dir, run)),
            Err(error) if error.downcast_ref::<io::Error>().is_some_and(is_absent) => {}
            Err(error) => tracing::warn!("{} is left alone: {error:#}", dir.display()),
        }
    }
    runs.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(runs)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn read_run(dir: &Path) -> anyhow::Result<RunInfo> {
    let run: RunInfo =
        serde_json::from_slice(&fs::read(dir.join("run.json"))?).context("run.json is not understood")?;
    if run.format != FORMAT {
        bail!("format {} is not known to this version (accepted: {FORMAT})", run.format);
    }
    Ok(run)
}

/// The run's lock; `None`: another process holds it.
fn lock(dir: &Path) -> io::Result<Option<Locked>> {
    let file = Access::of(dir)?.options().create(true).truncate(false).write(true).open(dir.join("lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(Locked::new(file))),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:08}.seg"))
}

#[cfg(test)]
mod tests;
