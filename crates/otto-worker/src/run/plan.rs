//! Settings made fit for each other, and how an end is named.

use std::fs::{self, DirBuilder};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use otto_service::settings::ByteSize;
use rustix::process::geteuid;

use crate::capture::{Compressor, Options, Policy, Secrets, Tee};
use crate::child::{Inherited, JobEnd, LaunchError, Shortage, Why};
use crate::exit::{Class, Exit};
use crate::settings::Run;

/// Largest pipe an ordinary user may have.
const PIPE_BYTES: u64 = 1 << 20;
/// Exit code of a job ended by SIGKILL.
const KILLED: u8 = 128 + 9;
/// Largest read.
const READ_BYTES: u64 = 256 << 10;

/// What is derived from the settings before anything is started.
pub(super) struct Plan {
    pub(super) task_id: String,
    pub(super) worker_id: String,
    pub(super) spool_dir: PathBuf,
    pub(super) spool_bytes: u64,
    /// Of these, what is kept for the rest in the pipes when the job has ended.
    pub(super) reserve: u64,
    pub(super) pipe_bytes: usize,
    pub(super) max_line: usize,
    /// The spool directory was chosen by us.
    temporary: bool,
}

impl Plan {
    /// The plan, and how output is captured.
    ///
    /// # Errors
    /// When a file or directory that a setting names cannot be used.
    pub(super) fn new(settings: &Run, inherited: &Inherited) -> anyhow::Result<(Self, Options)> {
        let (task_id, worker_id) = (settings.task_id(), settings.worker_id());
        let spool_bytes = settings.spool_bytes.as_u64();
        // A small spool takes small bites: six sixteenths of it are the most that pipes and memory can still hold when
        // the job has ended.
        let share = spool_bytes / 16;
        let pipe = share.clamp(64 << 10, PIPE_BYTES);
        let (read, batch) = (share.min(READ_BYTES), settings.batch_bytes.as_u64().clamp(1, share));
        let line = settings.max_line_bytes.as_u64().min(share);
        let reserve = (2 * pipe + 2 * (read + batch + line)).min(spool_bytes / 2);
        let capture = Options {
            policy: Policy { bytes: usize::try_from(batch)?, lines: settings.batch_lines, delay: settings.batch_delay },
            compressor: Compressor::new(settings.compression.level()),
            on_full: settings.on_full,
            stdout_level: settings.stdout_level.into(),
            stderr_level: settings.stderr_level.into(),
            partial_delay: settings.partial_delay,
            read_bytes: usize::try_from(read)?,
            secrets: secrets(settings, inherited)?,
            tee: if settings.tee { Some(Tee::start().context("starting a thread (--tee)")?) } else { None },
        };
        let given = settings.spool_dir();
        let temporary = given.is_none();
        let plan = Plan {
            spool_dir: match given {
                Some(dir) => dir,
                None => temporary_spool(&task_id, &worker_id)?,
            },
            task_id,
            worker_id,
            spool_bytes,
            reserve,
            pipe_bytes: usize::try_from(pipe)?,
            max_line: usize::try_from(line)?,
            temporary,
        };
        Ok((plan, capture))
    }

    /// Removes a spool directory of ours that is empty.
    pub(super) fn clean_up(&self) {
        if self.temporary {
            // It is not empty when something is left to send.
            let _ = fs::remove_dir(&self.spool_dir);
        }
    }
}

/// Values to mask.
fn secrets(settings: &Run, inherited: &Inherited) -> anyhow::Result<Option<Secrets>> {
    let mut values = Vec::new();
    for name in &settings.mask_env {
        match inherited.var(name) {
            Some(value) => values.push(value.as_bytes().to_vec()),
            None => tracing::warn!("there is no environment variable {name} to mask (--mask-env)"),
        }
    }
    for path in &settings.mask_file {
        let text = fs::read(path).with_context(|| format!("reading {} (--mask-file)", path.display()))?;
        values.extend(text.split(|byte| *byte == b'\n').map(<[u8]>::to_vec));
    }
    if values.iter().any(|value| (1..4).contains(&value.trim_ascii().len())) {
        tracing::warn!("a secret of less than 4 bytes is masked wherever it occurs (--mask-env, --mask-file)");
    }
    Secrets::new(values).map_err(|error| anyhow::anyhow!("the secrets (--mask-env, --mask-file): {error}"))
}

/// A directory for this task and worker that nobody else can write.
fn temporary_spool(task_id: &str, worker_id: &str) -> anyhow::Result<PathBuf> {
    let user = geteuid().as_raw();
    let base = std::env::temp_dir().join(format!("otto-worker-{user}"));
    let check = |base: &Path| -> anyhow::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(base)?;
        let metadata = fs::symlink_metadata(base)?;
        if !metadata.is_dir() || metadata.uid() != user || metadata.mode() & 0o077 != 0 {
            bail!("it belongs to somebody else, or others may use it");
        }
        Ok(())
    };
    check(&base).with_context(|| format!("the directory {} cannot be used; give --spool-dir DIR", base.display()))?;
    // Ids may hold anything; the name says enough to recognise them.
    let mut digest = otto_proto::digest::Digest::new();
    digest.update(task_id.as_bytes());
    digest.update(&[0]);
    digest.update(worker_id.as_bytes());
    let hash: String = digest.finish()[..6].iter().map(|byte| format!("{byte:02x}")).collect();
    let readable: String = worker_id.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(40).collect();
    Ok(base.join(format!("{readable}-{hash}")))
}

/// How a job that ran ended.
pub(super) fn exit_of(
    end: JobEnd,
    why: Option<Why>,
    shortage: Option<Shortage>,
    settings: &Run,
    started_at_ms: u64,
    ended_at_ms: u64,
) -> Exit {
    let how = match end.signal {
        Some(signal) => format!("ended by signal {signal}"),
        None => format!("ended with exit code {}", end.exit_code),
    };
    let (class, message) = match why {
        Some(Why::Deadline) => {
            let timeout = settings.timeout().unwrap_or_default();
            (Class::Deadline, format!("the job ran longer than {timeout:?} and was stopped; {how}"))
        }
        Some(Why::Told) => (Class::Stopped, format!("the job was told to stop; {how}")),
        None if end.exit_code == 0 => (Class::Success, String::new()),
        // Of a program that a shell has started, the shell tells by its exit code.
        None if shortage.is_some() && end.exit_code == KILLED => {
            (Class::OutOfMemory, format!("the job ran out of memory{}: the kernel killed it", limit(shortage)))
        }
        None => {
            let message = match shortage {
                None => format!("the job {how}"),
                Some(Shortage { kills, .. }) => format!(
                    "the job {how}; before that, {kills} of its processes ran out of memory{} and were killed by the \
                     kernel",
                    limit(shortage)
                ),
            };
            (Class::Exited, message)
        }
    };
    Exit { exit_code: Some(end.exit_code.into()), signal: end.signal, class, message, started_at_ms, ended_at_ms }
}

fn limit(shortage: Option<Shortage>) -> String {
    let limit = shortage.and_then(|shortage| shortage.limit);
    limit.map_or_else(String::new, |limit| format!(" (its container may use {})", ByteSize::new(limit)))
}

/// How a job that could not be started ended.
pub(super) fn exit_of_launch(error: &LaunchError, started_at_ms: u64, ended_at_ms: u64) -> Exit {
    let (exit_code, class) = match error {
        LaunchError::NotFound(_) => (127, Class::Image),
        LaunchError::NotExecutable(_) => (126, Class::Image),
        LaunchError::System(_) => (crate::AGENT_FAILED, Class::Infrastructure),
    };
    let mut message = error.to_string();
    // It holds the command's name.
    crate::spool::shorten(&mut message);
    Exit { exit_code: Some(exit_code.into()), signal: None, class, message, started_at_ms, ended_at_ms }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_of_any_length_has_a_short_message() {
        let exit = exit_of_launch(&LaunchError::NotFound("n".repeat(100_000)), 1, 2);
        assert!((4000..=4096).contains(&exit.message.len()), "{}", exit.message.len());
    }
}
