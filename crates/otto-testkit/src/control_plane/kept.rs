//! Processes that end with this one, however it ends.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::{env, thread};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::program;

/// A process that is killed when it is dropped, and by the kernel when this process is gone.
pub(crate) struct Kept {
    child: Child,
    pid: Pid,
    name: String,
    log: PathBuf,
}

impl Kept {
    /// Starts `program` with its output in `DIR/NAME.log`, NAME being that of the program.
    pub(crate) fn start(program: &Path, args: &[String], dir: &Path) -> anyhow::Result<Self> {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let log = dir.join(format!("{name}.log"));
        let out = File::options().create(true).append(true).open(&log)?;
        let mut command = Command::new(crate::program("setpriv")?);
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(args);
        // Nothing of the developer's own settings for other clusters.
        command.env("HOME", dir).env_remove("KUBECONFIG").current_dir(dir);
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let child = spawn(command).with_context(|| format!("starting {}", program.display()))?;
        let pid = Pid::from_raw(child.id().cast_signed()).context("no pid")?;
        Ok(Self { child, pid, name, log })
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill_process(self.pid, signal)?)
    }

    /// Fails when it has ended, with the end of its log.
    pub(crate) fn check_running(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended with {status}; its log:\n{}", self.name, self.log_tail()),
        }
    }

    /// The last 4 KiB it wrote.
    pub(crate) fn log_tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(4096)..]).into_owned()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Removes a folder when this process is gone, however it ends: what lives in a `static` is never dropped. Or when it is
/// dropped.
pub(crate) struct Janitor(Child);

impl Janitor {
    pub(crate) fn of(dir: &Path) -> anyhow::Result<Self> {
        // Its stdin ends with this process. By then the kernel has killed those who write there, or is about to.
        let script = r#"trap "" INT TERM HUP; read -r _; sleep 1; rm -rf -- "$1""#;
        let mut command = Command::new("sh");
        command.args(["-c", script, "janitor"]).arg(dir).current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(spawn(command).context("starting sh")?))
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// A folder of a control plane below the system's temporary one, locked while this process lives.
pub(crate) struct Folder {
    pub(crate) dir: TempDir,
    _lock: File,
}

impl Folder {
    const PREFIX: &'static str = "otto-control-plane-";

    /// Makes one, and removes those whose processes were killed together with their [`Janitor`].
    pub(crate) fn new() -> anyhow::Result<Self> {
        for entry in fs::read_dir(env::temp_dir())?.flatten() {
            let ours = entry.file_name().to_string_lossy().starts_with(Self::PREFIX);
            let abandoned = || File::open(entry.path().join("lock")).is_ok_and(|file| lock(&file).is_ok());
            if ours && abandoned() {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let dir = tempfile::Builder::new().prefix(Self::PREFIX).tempdir()?;
        // Locked before it has the name that others look for.
        let file = File::create_new(dir.path().join("lock.new"))?;
        lock(&file)?;
        fs::rename(dir.path().join("lock.new"), dir.path().join("lock"))?;
        Ok(Self { dir, _lock: file })
    }
}

fn lock(file: &File) -> rustix::io::Result<()> {
    flock(file, FlockOperation::NonBlockingLockExclusive)
}

type Job = (Command, SyncSender<std::io::Result<Child>>);

/// The parent-death signal comes when the *thread* that spawned a process ends, and each test is a thread of its own. So
/// one thread that lives as long as this process spawns them all.
fn spawn(command: Command) -> anyhow::Result<Child> {
    static SPAWNER: OnceLock<SyncSender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, waiting) = sync_channel::<Job>(0);
        thread::spawn(move || {
            for (mut command, answer) in waiting {
                let _ = answer.send(command.spawn());
            }
        });
        jobs
    });
    let (answer, answered) = sync_channel(1);
    spawner.send((command, answer)).context("the thread that spawns is gone")?;
    Ok(answered.recv()??)
}

/// A program of the control plane: from the folder `KUBEBUILDER_ASSETS` names, if it is there, else as [`program`] finds
/// it.
pub(crate) fn asset(name: &str) -> anyhow::Result<PathBuf> {
    let given = std::env::var_os("KUBEBUILDER_ASSETS").map(|dir| Path::new(&dir).join(name));
    match given {
        Some(path) if path.is_file() => Ok(path),
        _ => program(name),
    }
}
