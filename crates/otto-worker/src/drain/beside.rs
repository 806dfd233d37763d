//! How the job's agent knows that a drainer waits beside it, in another container: that one keeps a file beside the run
//! directory locked, and the kernel takes the lock away with its process, whatever ends that.

use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::access::Access;
use crate::lock::Locked;

/// An agent that looks has the lock for a moment, which may become a long one on a busy machine. It is waited for so long.
const LOOKED_AT: Duration = Duration::from_secs(3);

/// `RUN_DIR.drainer`: not inside, as the run directory is the agent's to make.
fn path_of(run_dir: &Path) -> PathBuf {
    let mut path = OsString::from(run_dir.as_os_str());
    path.push(".drainer");
    path.into()
}

/// Says that a drainer waits for the agent in `run_dir`, for as long as the returned lock is held. Another one may wait,
/// too.
///
/// # Errors
/// When the file cannot be made: an agent takes that for no drainer, and sends all itself.
pub(super) fn announce(run_dir: &Path) -> io::Result<Locked> {
    let path = path_of(run_dir);
    let access = Access::of(path.parent().unwrap_or(Path::new(".")))?;
    let file = access.options().create(true).truncate(false).read(true).write(true).open(path)?;
    let until = Instant::now() + LOOKED_AT;
    loop {
        match file.try_lock_shared() {
            Ok(()) => return Ok(Locked::new(file)),
            Err(TryLockError::WouldBlock) if Instant::now() < until => std::thread::sleep(Duration::from_millis(1)),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether one waits. True where that cannot be told.
pub(crate) fn is_there(run_dir: &Path) -> bool {
    match File::options().read(true).write(true).open(path_of(run_dir)) {
        // Let go at once.
        Ok(file) => file.try_lock().map(|()| Locked::new(file)).is_err(),
        Err(error) => error.kind() != ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_there_for_as_long_as_it_lives() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        assert!(!is_there(&run));
        let (one, other) = (announce(&run).unwrap(), announce(&run).unwrap());
        assert!(is_there(&run));
        drop(one);
        assert!(is_there(&run));
        drop(other);
        assert!(!is_there(&run) && !run.exists());
        assert!(announce(&dir.path().join("no/run")).is_err());
    }
}
