//! The data directory belongs to one process; and the file that says that it serves.

use std::io::{Read, Seek, Write};
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;

/// Another process may hold the data directory so long.
const LOCK_WITHIN: Duration = Duration::from_secs(3);

/// So many names of earlier owners are kept: one that ended before it led anything is not the one to be known.
const NAMES: usize = 16;
/// More than so many names take, in bytes.
const NAMES_BYTES: u64 = 16 << 10;

/// A data directory that is this process's own for as long as this lives.
#[derive(Debug)]
pub(super) struct Owned {
    /// Locked. Its text: the names of its owners, each on a line, the latest last.
    file: std::fs::File,
}

impl Owned {
    /// Notes down this process's name, and returns those of earlier owners: they have ended, as the lock was free.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub(super) fn sign(&mut self, name: &str) -> anyhow::Result<Vec<String>> {
        let mut text = Vec::new();
        let mut renew = || {
            self.file.rewind()?;
            (&self.file).take(NAMES_BYTES).read_to_end(&mut text)?;
            let known = String::from_utf8_lossy(&text);
            let names: Vec<String> = known.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
            let last = names[names.len().saturating_sub(NAMES)..].to_vec();
            let lines =
                last.iter().map(String::as_str).chain([name]).fold(String::new(), |all, name| all + name + "\n");
            self.file.rewind()?;
            self.file.set_len(0)?;
            self.file.write_all(lines.as_bytes())?;
            Ok::<_, std::io::Error>(last)
        };
        renew().context("cannot write scaler.lock in the data directory (--data-dir)")
    }
}

/// Makes the data directory this process's own.
pub(super) fn lock(data_dir: &Path) -> anyhow::Result<Owned> {
    let shown = data_dir.display();
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data_dir)
        .with_context(|| format!("cannot create the data directory {shown} (--data-dir)"))?;
    let file = std::fs::File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(data_dir.join("scaler.lock"))
        .with_context(|| format!("cannot write to the data directory {shown} (--data-dir)"))?;
    // A scaler that was killed while it started a worker lets go when that process is the worker's program.
    let deadline = Instant::now() + LOCK_WITHIN;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Owned { file }),
            Err(std::fs::TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(std::fs::TryLockError::WouldBlock) => {
                anyhow::bail!("the data directory {shown} (--data-dir) is in use by another process")
            }
            Err(std::fs::TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock the data directory {shown} (--data-dir)"));
            }
        }
    }
}

/// Says where the servers are.
pub(super) fn write_ready_file(path: &Path, grpc_addr: SocketAddr, admin_addr: SocketAddr) -> anyhow::Result<()> {
    let text = serde_json::json!({ "grpc_addr": grpc_addr, "admin_addr": admin_addr }).to_string();
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    std::fs::write(&temporary, text)
        .and_then(|()| std::fs::rename(&temporary, path))
        .with_context(|| format!("cannot write {} (--ready-file)", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_owner_knows_those_before() {
        let dir = tempfile::tempdir().unwrap();
        let mut all = Vec::new();
        for n in 0..NAMES + 3 {
            let name = format!("scaler_{n}");
            assert_eq!(lock(dir.path()).unwrap().sign(&name).unwrap(), all[all.len().saturating_sub(NAMES)..]);
            all.push(name);
        }
        // Anything may be in a file.
        std::fs::write(dir.path().join("scaler.lock"), b"\n\xff\xfe\nlast").unwrap();
        let names = lock(dir.path()).unwrap().sign("next").unwrap();
        assert_eq!((names.len(), names[1].as_str()), (2, "last"));
    }
}
