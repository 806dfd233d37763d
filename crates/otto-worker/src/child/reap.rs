//! Collects processes that have ended: the job, and orphans that became ours.

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus};

/// How the job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct JobEnd {
    /// Its exit code, 128+n if signal n ended it.
    pub(crate) exit_code: u8,
    /// The signal that ended it.
    pub(crate) signal: Option<i32>,
}

impl JobEnd {
    fn from_status(status: WaitStatus) -> Self {
        match status.terminating_signal() {
            Some(signal) => JobEnd { exit_code: (128 + signal).clamp(0, 255) as u8, signal: Some(signal) },
            None => JobEnd { exit_code: status.exit_status().unwrap_or(255).clamp(0, 255) as u8, signal: None },
        }
    }
}

/// What [`reap`] found.
pub(crate) struct Reaped {
    /// The job was among them.
    pub(crate) job: Option<JobEnd>,
    /// There are others that live.
    pub(crate) living: bool,
}

/// Collects all that have ended, without waiting.
pub(crate) fn reap(job: Pid) -> Reaped {
    let mut reaped = Reaped { job: None, living: true };
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if pid == job => reaped.job = Some(JobEnd::from_status(status)),
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) => return reaped,
            Err(_) => {
                reaped.living = false;
                return reaped;
            }
        }
    }
}

/// Collects all that have ended, by one that has no job: as the first process of a container it gets the orphans of
/// whatever is started there.
pub(crate) fn reap_all() {
    while matches!(rustix::process::wait(WaitOptions::NOHANG), Ok(Some(_)) | Err(Errno::INTR)) {}
}
