//! A run directory: the files through which scaler and agent know of each other (ARCHITECTURE.md, "Run directory").
//!
//! Every function here makes a few short system calls on files of some hundred bytes, written moments ago.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, RenameFlags, flock};
use serde::{Deserialize, Serialize};

use super::launch::LaunchFile;
use crate::task::{Class, Millis, Outcome};

pub(super) const STARTED: &str = "started";
pub(super) const EXIT: &str = "exit.json";
pub(super) const DRAINED: &str = "drained";
/// The agent's own messages.
pub(super) const AGENT_LOG: &str = "agent.log";
const LAUNCH: &str = "launch.json";
const LOCK: &str = "lock";
const SPOOL: &str = "spool";

/// The agent's messages are cut when they grow past this.
const AGENT_LOG_MAX: u64 = 1 << 20;
/// No file of a run directory that is read as a whole is larger.
const FILE_MAX: u64 = 8 << 20;

/// One run directory.
#[derive(Clone, Debug)]
pub(super) struct RunDir {
    path: PathBuf,
}

/// `started`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Started {
    pid: i32,
    started_at_ms: Millis,
}

/// `exit.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Exit {
    #[serde(default)]
    exit_code: Option<i32>,
    #[serde(default)]
    signal: Option<i32>,
    class: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    started_at_ms: Option<Millis>,
    ended_at_ms: Millis,
}

/// Whether an agent holds the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lock {
    Free,
    Held,
}

/// Milliseconds since the Unix epoch.
pub(super) fn now() -> Millis {
    millis(SystemTime::now())
}

fn millis(time: SystemTime) -> Millis {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX))
}

impl RunDir {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the directory. False: there was one.
    pub(super) fn make(&self) -> io::Result<bool> {
        match fs::DirBuilder::new().mode(0o700).create(&self.path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// `Ok(None)`: it was never completed, so nothing was started here. An error of the kind `InvalidData`: it is damaged,
    /// and will be found so again; any other says nothing about it.
    pub(super) fn launch(&self) -> io::Result<Option<LaunchFile>> {
        match self.read(LAUNCH)? {
            None => Ok(None),
            Some(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error)),
        }
    }

    /// Writes `launch.json`, whole or not at all.
    ///
    /// Not synced: a killed scaler needs it in the page cache only. Should the machine go down, what matters is the start
    /// mark, which the agent syncs together with its directory before the job's first instruction. Without it nothing ran;
    /// with it but a lost `launch.json`, the directory is never started again, and its attempt counts as lost.
    pub(super) fn write_launch(&self, launch: &LaunchFile) -> io::Result<()> {
        let bytes = serde_json::to_vec(launch)?;
        let temporary = self.path.join("launch.json.new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&bytes)?;
        fs::rename(&temporary, self.path.join(LAUNCH))
    }

    /// Looks whether an agent holds the lock, by taking a shared one for a moment. An agent that comes just then ends
    /// without having started anything: who calls this and finds it free must be ready to start one.
    pub(super) fn lock(&self) -> io::Result<Lock> {
        let file = match File::open(self.path.join(LOCK)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Lock::Free),
            Err(error) => return Err(error),
        };
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => {
                // Not left to the closing: a fork elsewhere may hold a copy of the descriptor for a moment.
                flock(&file, FlockOperation::Unlock)?;
                Ok(Lock::Free)
            }
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(Lock::Held),
            Err(error) => Err(error.into()),
        }
    }

    /// The pid written into the lock. Meaningful only while the lock is held.
    pub(super) fn lock_pid(&self) -> Option<i32> {
        let bytes = self.read(LOCK).ok()??;
        std::str::from_utf8(&bytes).ok()?.trim().parse().ok()
    }

    pub(super) fn is_started(&self) -> bool {
        self.path.join(STARTED).exists()
    }

    /// When the job began; `None`: it has not.
    pub(super) fn started_at(&self) -> Option<Millis> {
        let file = self.path.join(STARTED);
        let metadata = fs::metadata(&file).ok()?;
        let started: Started =
            self.read(STARTED).ok()?.and_then(|b| serde_json::from_slice(&b).ok()).unwrap_or_default();
        if started.started_at_ms > 0 { Some(started.started_at_ms) } else { metadata.modified().ok().map(millis) }
    }

    /// The agent's pid from the start mark.
    pub(super) fn started_pid(&self) -> Option<i32> {
        let started: Started = serde_json::from_slice(&self.read(STARTED).ok()??).ok()?;
        Some(started.pid).filter(|pid| *pid > 0)
    }

    /// How the job ended and when; `Ok(None)`: it has not. What can be read and makes no sense is an end of which nothing
    /// else is known.
    ///
    /// # Errors
    /// When nobody can look now (too many open files, a failing disk): the job may run.
    pub(super) fn outcome(&self) -> io::Result<Option<(Millis, Outcome)>> {
        let file = self.path.join(EXIT);
        let unreadable = |error: String| {
            let at = fs::metadata(&file).ok().and_then(|m| m.modified().ok()).map_or_else(now, millis);
            let message = format!("nobody knows how the job ended: {} cannot be read: {error}", file.display());
            (at, Outcome { class: Class::AgentLost, exit_code: None, signal: None, message })
        };
        let Some(bytes) = self.read(EXIT)? else { return Ok(None) };
        let exit: Exit = match serde_json::from_slice(&bytes) {
            Ok(exit) => exit,
            Err(error) => return Ok(Some(unreadable(error.to_string()))),
        };
        let class = serde_json::from_value(serde_json::Value::String(exit.class.clone()));
        let class = class.unwrap_or(match exit.exit_code {
            Some(0) => Class::Success,
            Some(_) => Class::Exited,
            None => Class::Infrastructure,
        });
        let outcome = Outcome { class, exit_code: exit.exit_code, signal: exit.signal, message: exit.message };
        Ok(Some((exit.ended_at_ms, outcome)))
    }

    /// Takes the start mark, so that no agent ever starts a job here. False: one has.
    pub(super) fn forbid_start(&self) -> io::Result<bool> {
        let mark = OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.path.join(STARTED));
        match mark {
            Ok(mut file) => {
                file.write_all(b"{}")?;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes `exit.json` in an agent's place, unless there is one. True: it is ours.
    pub(super) fn write_outcome(&self, outcome: &Outcome, ended_at_ms: Millis) -> io::Result<bool> {
        let exit = Exit {
            exit_code: outcome.exit_code,
            signal: outcome.signal,
            class: outcome.class.as_str().to_owned(),
            message: outcome.message.clone(),
            started_at_ms: self.started_at(),
            ended_at_ms,
        };
        let temporary = self.path.join("exit.json.scaler");
        fs::write(&temporary, serde_json::to_vec(&exit)?)?;
        let target = self.path.join(EXIT);
        match rustix::fs::renameat_with(rustix::fs::CWD, &temporary, rustix::fs::CWD, &target, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::EXIST) => {
                fs::remove_file(&temporary)?;
                Ok(false)
            }
            // A file system that cannot: the agent is dead, nobody else writes here.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                fs::rename(&temporary, &target)?;
                Ok(true)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The log server has all output, or it was given up.
    pub(super) fn is_drained(&self) -> bool {
        self.path.join(DRAINED).exists()
    }

    /// What the agent said is missing when it gave up.
    pub(super) fn undelivered(&self) -> Option<String> {
        let bytes = self.read(DRAINED).ok()??;
        let text = String::from_utf8_lossy(&bytes).trim().to_owned();
        (!text.is_empty()).then_some(text)
    }

    /// There is output that no agent has sent yet.
    pub(super) fn has_spool(&self) -> bool {
        fs::read_dir(self.path.join(SPOOL)).is_ok_and(|mut entries| entries.next().is_some())
    }

    /// For the agent's stderr.
    pub(super) fn open_agent_log(&self) -> io::Result<File> {
        OpenOptions::new().append(true).create(true).mode(0o600).open(self.path.join(AGENT_LOG))
    }

    /// Cuts the agent's messages when they have grown too long. It appends, so it goes on at the new end.
    pub(super) fn bound_agent_log(&self) -> io::Result<()> {
        let path = self.path.join(AGENT_LOG);
        if fs::metadata(&path).map_or(0, |metadata| metadata.size()) > AGENT_LOG_MAX {
            let mut file = OpenOptions::new().append(true).open(path)?;
            file.set_len(0)?;
            file.write_all(b"(earlier messages were removed here: there were more than 1 MiB)\n")?;
        }
        Ok(())
    }

    /// The last lines of the agent's messages, at most 500 bytes, for a sentence to people.
    pub(super) fn agent_log_tail(&self) -> String {
        let tail = || -> io::Result<Vec<u8>> {
            let mut file = File::open(self.path.join(AGENT_LOG))?;
            let length = file.metadata()?.size();
            file.seek(SeekFrom::Start(length.saturating_sub(500)))?;
            let mut bytes = Vec::new();
            file.take(500).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        String::from_utf8_lossy(&tail().unwrap_or_default()).trim().to_owned()
    }

    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(self.path.join(name)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(FILE_MAX).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }
}
