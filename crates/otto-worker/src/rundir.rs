//! The run directory: what makes sure that a job is started at most once, whatever is killed when
//! (ARCHITECTURE.md, "Run directory").

use std::fmt::Write as _;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::getpid;
use serde::Deserialize;

use crate::access::{self, Access};
use crate::child::{Lost, Mark, PID_DIGITS, boot_id, pid_namespace, session, ticks};
use crate::exit::{Ended, Exit};
use crate::lock::Locked;

/// Whoever looks whether an agent lives holds the lock for a moment, which may become a long one on a busy machine. An
/// agent waits so long for it.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
const LOCK_TICK: Duration = Duration::from_millis(5);

/// A run directory whose lock is ours.
pub(crate) struct RunDir {
    path: PathBuf,
    access: Access,
    /// Held to our end, and never given to the job.
    _lock: Locked,
}

/// What a run directory allows.
pub(crate) enum Claim {
    /// The job was never started; it may be started here.
    Fresh(RunDir),
    /// It was started by an agent that is gone.
    Started(RunDir),
}

/// The start mark, as far as it can be read: an agent killed in its middle leaves less.
#[derive(Debug, Default, Deserialize)]
struct Started {
    #[serde(default)]
    started_at_ms: u64,
    #[serde(flatten)]
    lost: Option<Lost>,
}

/// Who is in a run directory.
pub(crate) enum Occupant {
    /// Nobody has been here yet.
    None,
    /// An agent; it holds the lock of this file.
    Agent(File),
    /// An agent was here.
    Gone,
}

impl RunDir {
    /// Takes the lock; waits for it as long as somebody may look at it.
    ///
    /// # Errors
    /// When another agent holds it, or the directory cannot be used.
    pub(crate) fn claim(path: &Path) -> anyhow::Result<Claim> {
        let open = || -> anyhow::Result<Claim> {
            access::make_dirs(path)?;
            let access = Access::of(path)?;
            let lock = access.options().create(true).truncate(false).read(true).write(true).open(path.join("lock"))?;
            let until = Instant::now() + LOCK_PATIENCE;
            loop {
                match lock.try_lock() {
                    Ok(()) => break,
                    Err(TryLockError::WouldBlock) if Instant::now() < until => std::thread::sleep(LOCK_TICK),
                    Err(TryLockError::WouldBlock) => bail!("another agent runs here: it holds the lock"),
                    Err(TryLockError::Error(error)) => return Err(error).context("locking"),
                }
            }
            Self::locked(path, lock)
        };
        open().with_context(|| unusable(path))
    }

    /// With the lock that was taken: our pid is noted in it.
    fn locked(path: &Path, mut lock: File) -> anyhow::Result<Claim> {
        let noted = lock.set_len(0).and_then(|()| lock.write_all(getpid().as_raw_nonzero().to_string().as_bytes()));
        let lock = Locked::new(lock);
        let dir = RunDir { path: path.to_owned(), access: Access::of(path)?, _lock: lock };
        if dir.path.join("started").try_exists()? {
            // Nothing more is started here: a full disk is no reason not to send what there is.
            return Ok(Claim::Started(dir));
        }
        noted.context("noting our pid")?;
        Ok(Claim::Fresh(dir))
    }

    /// Looks who is there, without hindering an agent that is just coming: it waits for the lock. Nothing is made.
    ///
    /// # Errors
    /// When the directory cannot be looked at.
    pub(crate) fn look(path: &Path) -> anyhow::Result<Occupant> {
        let look = || -> anyhow::Result<Occupant> {
            let lock = match File::options().read(true).write(true).open(path.join("lock")) {
                Ok(lock) => lock,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Occupant::None),
                Err(error) => return Err(error.into()),
            };
            match lock.try_lock_shared() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(Occupant::Agent(lock)),
                Err(TryLockError::Error(error)) => return Err(error).context("locking"),
            }
            // An agent notes its pid once it has the lock; without it, one may stand before the lock just now.
            let was_here = lock.metadata()?.len() > 0 || path.join("started").try_exists()?;
            lock.unlock()?;
            Ok(if was_here { Occupant::Gone } else { Occupant::None })
        };
        look().with_context(|| unusable(path))
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
            r#"{{"pid":{pid},"started_at_ms":{started_at_ms},"session":{session},"since_ticks":{},"boot_id":"{}","pid_namespace":{},"run_id":"{run_id}","job_pid":"#,
            ticks(),
            boot_id(),
            pid_namespace()
        );
        let pid_at = text.len() as u64;
        let _ = write!(text, "{:>PID_DIGITS$}}}", 0);
        let file = self.make_mark(|file| file.write_all(text.as_bytes()))?;
        Ok(Mark { file, pid_at })
    }

    fn make_mark(&self, fill: impl FnOnce(&mut File) -> io::Result<()>) -> anyhow::Result<File> {
        let path = self.path.join("started");
        let context = || format!("making the start mark {}", path.display());
        let mut file = self.access.options().write(true).create_new(true).open(&path).with_context(context)?;
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

    /// Whether there is a start mark.
    pub(crate) fn is_started(&self) -> bool {
        self.path.join("started").exists()
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
            self.access.write(&temporary, text)?;
            fs::rename(&temporary, &path)
        };
        write().with_context(|| format!("writing {}", path.display()))
    }
}

fn unusable(path: &Path) -> String {
    format!("the run directory {} (--run-dir)", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Class;

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
    fn who_looks_hinders_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        assert!(matches!(RunDir::look(&path).unwrap(), Occupant::None) && !path.exists());
        fs::create_dir(&path).unwrap();
        // An agent that has not got its lock yet.
        let lock = File::create(path.join("lock")).unwrap();
        assert!(matches!(RunDir::look(&path).unwrap(), Occupant::None));
        lock.lock_shared().unwrap();
        let looking = std::thread::spawn(move || {
            std::thread::sleep(LOCK_TICK * 4);
            lock.unlock().unwrap();
        });
        let run = loop {
            let (looked, began) = (looking.is_finished(), Instant::now());
            match RunDir::claim(&path) {
                Ok(Claim::Fresh(run)) => break run,
                Ok(Claim::Started(_)) => panic!("started?"),
                // The other thread may be late, but it was waited for.
                Err(error) => assert!(!looked && began.elapsed() >= LOCK_PATIENCE, "{error:#}"),
            }
        };
        looking.join().unwrap();
        assert!(matches!(RunDir::look(&path).unwrap(), Occupant::Agent(_)));
        drop(run);
        assert!(matches!(RunDir::look(&path).unwrap(), Occupant::Gone));
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
