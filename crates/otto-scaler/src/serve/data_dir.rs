//! The data directory belongs to one process; and the file that says that it serves.

use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;

/// Another process may hold the data directory so long.
const LOCK_WITHIN: Duration = Duration::from_secs(3);

/// Makes the data directory this process's own, for as long as the lock is held.
pub(super) fn lock(data_dir: &Path) -> anyhow::Result<std::fs::File> {
    let shown = data_dir.display();
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data_dir)
        .with_context(|| format!("cannot create the data directory {shown} (--data-dir)"))?;
    let file = std::fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(data_dir.join("scaler.lock"))
        .with_context(|| format!("cannot write to the data directory {shown} (--data-dir)"))?;
    // A scaler that was killed while it started a worker lets go when that process is the worker's program.
    let deadline = Instant::now() + LOCK_WITHIN;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
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
