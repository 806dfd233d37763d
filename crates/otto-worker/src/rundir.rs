//! The run directory: what makes sure that a job is started at most once, whatever is killed when
//! (ARCHITECTURE.md, "Run directory").

use std::fmt::Write as _;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::process::getpid;
use serde::{Deserialize, Serialize};

use crate::child::{Lost, Mark, PID_DIGITS, boot_id, session, ticks};

/// A run directory whose lock is ours.
pub(crate) struct RunDir {
    path: PathBuf,
    /// Held to our end, and never given to the job.
    _lock: File,
}

/// What a run directory allows.
pub(crate) enum Claim {
    /// The job was never started; it may be started here.
    Fresh(RunDir),
    /// It was started by an agent that is gone.
    Started(RunDir),
}

/// How a job ended, as others are told. Values of `class` are fixed in ARCHITECTURE.md.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Exit {
    /// 128+n after signal n. Absent: nobody knows.
    pub(crate) exit_code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) class: Class,
    /// A sentence for people; empty after a success.
    pub(crate) message: String,
    pub(crate) started_at_ms: u64,
    pub(crate) ended_at_ms: u64,
}

/// `exit.json` as somebody wrote it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Ended {
    pub(crate) exit_code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) message: String,
    pub(crate) ended_at_ms: u64,
}

impl From<&Exit> for Ended {
    fn from(exit: &Exit) -> Self {
        Ended {
            exit_code: exit.exit_code,
            signal: exit.signal,
            message: exit.message.clone(),
            ended_at_ms: exit.ended_at_ms,
        }
    }
}

/// What kind of an end it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Class {
    Success,
    /// Ended by itself with another code than 0, or by a signal that was not ours.
    Exited,
    /// Ran longer than it may.
    Deadline,
    /// Told to stop.
    Stopped,
    /// The program does not exist or cannot be run.
    Image,
    /// The agent was killed.
    #[default]
    AgentLost,
    /// Something of the machine.
    Infrastructure,
}

/// The start mark, as far as it can be read: an agent killed in its middle leaves less.
#[derive(Debug, Default, Deserialize)]
struct Started {
    #[serde(default)]
    started_at_ms: u64,
    #[serde(flatten)]
    lost: Option<Lost>,
}

impl RunDir {
    /// Takes the lock.
    ///
    /// # Errors
    /// When another agent holds it, or the directory cannot be used.
    pub(crate) fn claim(path: &Path) -> anyhow::Result<Claim> {
        let open = || -> anyhow::Result<Claim> {
            DirBuilder::new().recursive(true).mode(0o700).create(path)?;
            let mut lock =
                File::options().create(true).truncate(false).read(true).write(true).open(path.join("lock"))?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => bail!("another agent runs here: it holds the lock"),
                Err(TryLockError::Error(error)) => return Err(error).context("locking"),
            }
            lock.set_len(0)?;
            lock.write_all(getpid().as_raw_nonzero().to_string().as_bytes())?;
            let dir = RunDir { path: path.to_owned(), _lock: lock };
            Ok(if dir.path.join("started").try_exists()? { Claim::Started(dir) } else { Claim::Fresh(dir) })
        };
        open().with_context(|| format!("the run directory {} (--run-dir)", path.display()))
    }

    /// Makes the start mark; from then on the job counts as started, whether it was or not. On disk when this returns.
    /// The job's process completes it with its pid.
    ///
    /// # Errors
    /// When it cannot be written; then nothing may be started, and there is no mark, unless there was one before.
    pub(crate) fn mark_started(&self, started_at_ms: u64, run_id: &str) -> anyhow::Result<Mark> {
        let session = session();
        let pid = getpid().as_raw_nonzero();
        // Both ids are hexadecimal: nothing to escape.
        let mut text = format!(
            r#"{{"pid":{pid},"started_at_ms":{started_at_ms},"session":{session},"since_ticks":{},"boot_id":"{}","run_id":"{run_id}","job_pid":"#,
            ticks(),
            boot_id()
        );
        let pid_at = text.len() as u64;
        let _ = write!(text, "{:>PID_DIGITS$}}}", 0);
        let file = self.make_mark(|file| file.write_all(text.as_bytes()))?;
        Ok(Mark { file, pid_at })
    }

    fn make_mark(&self, fill: impl FnOnce(&mut File) -> io::Result<()>) -> anyhow::Result<File> {
        let path = self.path.join("started");
        let context = || format!("making the start mark {}", path.display());
        let mut file = File::options().write(true).create_new(true).open(&path).with_context(context)?;
        let keep = || -> io::Result<()> {
            fill(&mut file)?;
            file.sync_all()?;
            self.sync()?;
            // The directory's own entry, which whoever made it did not sync. What was journaled by now costs nothing more.
            match self.path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                Some(parent) => File::open(parent)?.sync_all(),
                None => Ok(()),
            }
        };
        if let Err(error) = keep() {
            // The lock is ours and nothing was launched: left there, the mark would say that the job had begun.
            if let Err(error) = fs::remove_file(&path).and_then(|()| self.sync()) {
                tracing::error!("the start mark of a job that was not started stays: {error}");
            }
            return Err(error).with_context(context);
        }
        Ok(file)
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    /// When the job was started (milliseconds since the Unix epoch) and which processes are its own, as far as the start
    /// mark tells.
    pub(crate) fn started(&self) -> (u64, Option<Lost>) {
        let started: Started = fs::read(self.path.join("started"))
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default();
        (started.started_at_ms, started.lost)
    }

    /// How the job ended, if that was noted, by an agent or by the scaler.
    ///
    /// # Errors
    /// When the file is there but cannot be read.
    pub(crate) fn ended(&self) -> anyhow::Result<Option<Ended>> {
        let path = self.path.join("exit.json");
        match fs::read(&path) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text).unwrap_or_else(|error| {
                let message = format!("nobody knows how the job ended: {} is damaged: {error}", path.display());
                Ended { message, ..Ended::default() }
            }))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// Notes how the job ended.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn write_exit(&self, exit: &Exit) -> anyhow::Result<()> {
        self.replace("exit.json", &serde_json::to_vec(exit)?)
    }

    /// Notes that nothing more will be sent: the log server has everything, or (`missing`) all that there is. While the
    /// rest may still be sent by somebody, this is not to be noted.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn write_drained(&self, missing: &str) -> anyhow::Result<()> {
        self.replace("drained", missing.as_bytes())
    }

    /// Whether [`RunDir::write_drained`] was called.
    pub(crate) fn is_drained(&self) -> bool {
        self.path.join("drained").exists()
    }

    fn replace(&self, name: &str, text: &[u8]) -> anyhow::Result<()> {
        let path = self.path.join(name);
        let temporary = self.path.join(format!("{name}.tmp"));
        let write = || -> io::Result<()> {
            fs::write(&temporary, text)?;
            fs::rename(&temporary, &path)
        };
        write().with_context(|| format!("writing {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_claim_at_a_time_and_one_start_ever() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        let Claim::Fresh(first) = RunDir::claim(&path).unwrap() else { panic!("started?") };
        let error = format!("{:#}", RunDir::claim(&path).err().unwrap());
        assert!(error.contains("--run-dir") && error.contains("another agent"), "{error}");
        assert_eq!(fs::read_to_string(path.join("lock")).unwrap(), std::process::id().to_string());
        let mark = first.mark_started(7, "r").unwrap();
        assert!(first.mark_started(7, "r").is_err());
        drop((first, mark));
        assert!(matches!(RunDir::claim(&path).unwrap(), Claim::Started(_)));
    }

    #[test]
    fn a_start_mark_that_cannot_be_written_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let Claim::Fresh(run) = RunDir::claim(dir.path()).unwrap() else { panic!("started?") };
        let error = run.make_mark(|_| Err(ErrorKind::StorageFull.into())).unwrap_err();
        assert!(format!("{error:#}").contains("start mark"), "{error:#}");
        drop(run);
        let Claim::Fresh(run) = RunDir::claim(dir.path()).unwrap() else { panic!("started?") };
        // One that was there stays.
        fs::write(dir.path().join("started"), "{}").unwrap();
        assert!(run.mark_started(7, "r").is_err() && dir.path().join("started").exists());
    }

    #[test]
    fn a_start_mark_in_any_state_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let Claim::Fresh(run) = RunDir::claim(dir.path()).unwrap() else { panic!("started?") };
        let mark = run.mark_started(7, "r").unwrap();
        let (at, lost) = run.started();
        assert_eq!((at, lost.unwrap().job_pid), (7, 0));
        std::os::unix::fs::FileExt::write_all_at(&mark.file, b"      4711", mark.pid_at).unwrap();
        let (at, lost) = run.started();
        assert_eq!((at, lost.unwrap().job_pid), (7, 4711));
        let text = fs::read(dir.path().join("started")).unwrap();
        let mark: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(mark["pid"], std::process::id());
        fs::write(dir.path().join("started"), "").unwrap();
        assert_eq!(run.started(), (0, None));
        fs::write(dir.path().join("started"), r#"{"pid":1,"started_at_ms":8}"#).unwrap();
        assert_eq!(run.started(), (8, None));
    }

    #[test]
    fn the_end_is_noted_whole() {
        let dir = tempfile::tempdir().unwrap();
        let Claim::Fresh(run) = RunDir::claim(dir.path()).unwrap() else { panic!("started?") };
        assert_eq!(run.ended().unwrap(), None);
        let exit = Exit { exit_code: Some(137), signal: Some(9), class: Class::AgentLost, ..Exit::default() };
        run.write_exit(&exit).unwrap();
        assert_eq!(run.ended().unwrap(), Some(Ended::from(&exit)));
        let text = fs::read_to_string(dir.path().join("exit.json")).unwrap();
        assert!(text.contains(r#""class":"agent_lost""#), "{text}");
        assert!(!run.is_drained());
        run.write_drained("3 lines").unwrap();
        assert!(run.is_drained());
        // As the scaler writes it.
        let text =
            r#"{"exit_code":null,"signal":null,"class":"config","message":"m","started_at_ms":null,"ended_at_ms":5}"#;
        fs::write(dir.path().join("exit.json"), text).unwrap();
        assert_eq!(run.ended().unwrap().unwrap().ended_at_ms, 5);
        fs::write(dir.path().join("exit.json"), "{").unwrap();
        assert!(run.ended().unwrap().unwrap().message.contains("damaged"));
    }
}
