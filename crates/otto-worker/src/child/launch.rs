//! Starts the job.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context;
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, getpid, getppid};

/// The job's process, leader of a group of its own, and the read ends of its output.
pub(crate) struct Job {
    pub(crate) pid: Pid,
    pub(crate) outputs: [OwnedFd; 2],
}

/// Why there is no job.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    /// Exit code 127, as of a shell.
    #[error("{0}")]
    NotFound(String),
    /// Exit code 126, as of a shell.
    #[error("{0}")]
    NotExecutable(String),
    /// Not the program's fault.
    #[error("{0}")]
    System(String),
}

/// The start mark, in which the job's process writes its own pid before its first instruction, so that it is known
/// however soon we are killed.
pub(crate) struct Mark {
    pub(crate) file: File,
    /// Where [`PID_DIGITS`] bytes are kept for the pid.
    pub(crate) pid_at: u64,
}

/// Room for any pid.
pub(crate) const PID_DIGITS: usize = 10;

/// What has to be true of this process before it has children: it takes over their orphans, and, unless `may_gain`, neither
/// it nor they gain privileges by a setuid program.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn prepare(may_gain: bool) -> anyhow::Result<()> {
    rustix::process::set_child_subreaper(Some(getpid())).context("becoming a subreaper")?;
    if may_gain {
        return Ok(());
    }
    // Of this thread, which starts the job.
    rustix::thread::set_no_new_privs(true).context("setting no-new-privileges")
}

/// Starts `command` (found by the `PATH` of its environment) with this umask, and pipes of `pipe_bytes`. Must be called by the main
/// thread: the job is killed when the thread that started it ends.
///
/// # Errors
/// [`LaunchError`], worded for people.
#[allow(unsafe_code)]
pub(crate) fn launch(
    command: &[OsString],
    environment: Vec<(OsString, OsString)>,
    umask: Mode,
    mark: Option<Mark>,
    pipe_bytes: usize,
) -> Result<Job, LaunchError> {
    let (program, arguments) =
        command.split_first().ok_or_else(|| LaunchError::NotFound("there is no COMMAND to run".to_owned()))?;
    // A job in the background of a terminal would be stopped by its first read.
    let stdin = if io::stdin().is_terminal() { Stdio::null() } else { Stdio::inherit() };
    let path = environment.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.clone());
    let mut process = Command::new(program);
    process
        .args(arguments)
        .env_clear()
        .envs(environment)
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let agent = getpid();
    let before_first_instruction = move || {
        // An agent killed by -9 takes the job with it; whoever drains the spool ends the rest of its group.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        if getppid() != Some(agent) {
            return Err(Errno::SRCH.into());
        }
        rustix::process::umask(umask);
        if let Some(mark) = &mark {
            write_mark(mark)?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only system calls that are async-signal-safe are made (prctl, getppid, getpid,
    // umask, write), on memory made before the fork; nothing is allocated and no lock is taken.
    unsafe { process.pre_exec(before_first_instruction) };
    let mut child = process.spawn().map_err(|error| explain(program, path.as_deref(), &error))?;
    let missing = || LaunchError::System("the job has no pid or no pipes".to_owned());
    let pid = Pid::from_raw(child.id().cast_signed()).ok_or_else(missing)?;
    let stdout = OwnedFd::from(child.stdout.take().ok_or_else(missing)?);
    let stderr = OwnedFd::from(child.stderr.take().ok_or_else(missing)?);
    for fd in [&stdout, &stderr] {
        // Fewer, larger reads; where the user's share of pipes is used up, it stays as it is.
        let _ = rustix::pipe::fcntl_setpipe_size(fd, pipe_bytes);
    }
    Ok(Job { pid, outputs: [stdout, stderr] })
}

/// Without allocating: this runs between fork and exec.
fn write_mark(mark: &Mark) -> io::Result<()> {
    let mut digits = [b' '; PID_DIGITS];
    let mut rest = getpid().as_raw_nonzero().get().unsigned_abs();
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if rustix::io::pwrite(&mark.file, &digits, mark.pid_at)? != digits.len() {
        return Err(Errno::NOSPC.into());
    }
    Ok(())
}

/// Where the system looks without a PATH.
const DEFAULT_PATH: &str = "/usr/local/bin:/bin:/usr/bin";

fn is_in(path: Option<&OsStr>, program: &OsStr) -> bool {
    std::env::split_paths(path.unwrap_or(OsStr::new(DEFAULT_PATH))).any(|dir| dir.join(program).exists())
}

fn explain(program: &OsStr, path: Option<&OsStr>, error: &io::Error) -> LaunchError {
    let name = program.to_string_lossy();
    let is_path = program.as_bytes().contains(&b'/');
    match error.kind() {
        ErrorKind::NotFound if is_path && !Path::new(program).exists() => {
            LaunchError::NotFound(format!("the program {name:?} does not exist"))
        }
        // A directory in PATH that we may not look into is no reason to call a program forbidden.
        ErrorKind::NotFound | ErrorKind::PermissionDenied if !is_path && !is_in(path, program) => {
            let path = path.map_or_else(|| "which is not set".into(), |path| path.to_string_lossy());
            LaunchError::NotFound(format!("the program {name:?} is not in PATH ({path})"))
        }
        // It is there: what it needs is not.
        ErrorKind::NotFound => LaunchError::NotExecutable(format!(
            "the program {name:?} cannot be run: the interpreter its first line (or its header) names does not exist"
        )),
        ErrorKind::PermissionDenied
        | ErrorKind::IsADirectory
        | ErrorKind::NotADirectory
        | ErrorKind::ExecutableFileBusy
        | ErrorKind::ArgumentListTooLong
        | ErrorKind::InvalidInput
        | ErrorKind::InvalidFilename => {
            LaunchError::NotExecutable(format!("the program {name:?} cannot be run: {error}"))
        }
        _ if error.raw_os_error() == Some(Errno::NOEXEC.raw_os_error()) => LaunchError::NotExecutable(format!(
            "the program {name:?} cannot be run: it is neither a program for this machine nor a script with `#!`"
        )),
        _ => LaunchError::System(format!("the program {name:?} could not be started: {error}")),
    }
}
