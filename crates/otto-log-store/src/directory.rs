//! The data directory: `FORMAT` (version and salt), `lock` (held by the process, content: its pid), `segments/`,
//! `index.redb` (can be deleted while no process has it open: it is built anew), `reserve` (space kept for bookkeeping).

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FallocateFlags, FlockOperation};

use crate::error::OpenError;
use crate::record::FORMAT;
use crate::segment::{is_no_space, sync_directory};

const FORMAT_FILE: &str = "FORMAT";
const FORMAT_NAME: &str = "otto-log-store";
const LOCK_FILE: &str = "lock";
const RESERVE_FILE: &str = "reserve";

/// Space given back when the disk is full, so that what frees space can be written; bytes.
const RESERVE: u64 = 2 << 20;

/// An open data directory. No other process has it while this lives and is not unlocked.
#[derive(Debug)]
pub(crate) struct Directory {
    root: PathBuf,
    /// Tells this store's records from those of others.
    pub(crate) salt: u64,
    /// `None` once it is given up.
    lock: Mutex<Option<Lock>>,
}

/// The file whose lock is ours until this is dropped.
#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Not left to the closing: a fork elsewhere may hold a copy of the descriptor for a moment.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

impl Directory {
    pub(crate) fn open(root: &Path) -> Result<Self, OpenError> {
        match DirBuilder::new().mode(0o750).create(root) {
            Ok(()) => {
                // Where the parent cannot be read, its own owner sees to it.
                let _ = root.parent().filter(|parent| !parent.as_os_str().is_empty()).map(sync_directory);
            }
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed(root, "make the data directory", error));
            }
            _ => {}
        }
        refuse_foreign(root)?;
        let lock = lock(root)?;
        let salt = match read_format(root)? {
            Some(salt) => salt,
            None => write_format(root)?,
        };
        let directory = Self { root: root.to_owned(), salt, lock: Mutex::new(Some(lock)) };
        let segments = directory.segments();
        match DirBuilder::new().mode(0o750).create(&segments) {
            Ok(()) => sync_directory(root).map_err(|error| failed(root, "sync", error))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(&segments, "make", error)),
        }
        directory.take_reserve();
        Ok(directory)
    }

    pub(crate) fn segments(&self) -> PathBuf {
        self.root.join("segments")
    }

    pub(crate) fn index(&self) -> PathBuf {
        self.root.join("index.redb")
    }

    /// Takes the reserve if it was given back, or as much of it as there is space for; says whether it is whole.
    pub(crate) fn take_reserve(&self) -> bool {
        let path = self.root.join(RESERVE_FILE);
        let take = |bytes: u64| -> io::Result<()> {
            let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o640).open(&path)?;
            if file.metadata()?.len() < bytes {
                match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes) {
                    // Where space cannot be reserved there is no reserve.
                    Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
                    result => result?,
                }
            }
            Ok(())
        };
        for part in [1, 2, 4, 8] {
            match take(RESERVE / part) {
                Err(error) if is_no_space(&error) => {}
                _ => return part == 1,
            }
        }
        false
    }

    /// Lets the next process have the directory.
    pub(crate) fn unlock(&self) {
        let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(lock) = lock {
            let _ = lock.0.set_len(0);
        }
    }

    /// Gives the reserve's space to whoever writes next.
    pub(crate) fn give_reserve(&self) {
        let _ = std::fs::remove_file(self.root.join(RESERVE_FILE));
    }
}

pub(crate) fn failed(path: &Path, action: &'static str, source: io::Error) -> OpenError {
    OpenError::Io { path: path.to_owned(), action, source }
}

/// Something else's directory is left untouched.
fn refuse_foreign(root: &Path) -> Result<(), OpenError> {
    let entries = std::fs::read_dir(root).map_err(|error| failed(root, "read the data directory", error))?;
    let mut found = None;
    for entry in entries {
        let name = entry.map_err(|error| failed(root, "read the data directory", error))?.file_name();
        let name = name.to_string_lossy().into_owned();
        if name == FORMAT_FILE {
            return Ok(());
        }
        if ![LOCK_FILE, "FORMAT.tmp", "lost+found"].contains(&&*name) {
            found = Some(name);
        }
    }
    match found {
        Some(found) => Err(OpenError::NotAStore { dir: root.to_owned(), found }),
        None => Ok(()),
    }
}

fn lock(root: &Path) -> Result<Lock, OpenError> {
    let path = root.join(LOCK_FILE);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o640)
        .open(&path)
        .map_err(|error| failed(&path, "open", error))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            let holder = match pid.trim().parse::<u32>() {
                Ok(pid) => format!("process {pid}"),
                Err(_) => "another process".to_owned(),
            };
            return Err(OpenError::Locked { dir: root.to_owned(), holder });
        }
        Err(error) => return Err(failed(&path, "lock", error.into())),
    }
    // Without space for it the lock holds all the same.
    let _ = file.set_len(0).and_then(|()| write!(file, "{}", std::process::id()));
    Ok(Lock(file))
}

/// The salt; `None` if there is no format file.
fn read_format(root: &Path) -> Result<Option<u64>, OpenError> {
    let path = root.join(FORMAT_FILE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(&path, "read", error)),
    };
    let version = |found: &str| OpenError::Version {
        dir: root.to_owned(),
        found: found.chars().take(40).collect(),
        supported: FORMAT,
    };
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default();
    let found = first.strip_prefix(FORMAT_NAME).map(str::trim).ok_or_else(|| version(first))?;
    if found.parse() != Ok(FORMAT) {
        return Err(version(found));
    }
    let salt = lines.next().and_then(|line| line.strip_prefix("salt ")).map(|hex| u64::from_str_radix(hex, 16));
    match salt {
        Some(Ok(salt)) => Ok(Some(salt)),
        _ => Err(version("1, without its salt")),
    }
}

fn write_format(root: &Path) -> Result<u64, OpenError> {
    let salt = uuid::Uuid::new_v4().as_u64_pair().0;
    let (temporary, path) = (root.join("FORMAT.tmp"), root.join(FORMAT_FILE));
    let written = (|| {
        let mut file = File::create(&temporary)?;
        write!(file, "{FORMAT_NAME} {FORMAT}\nsalt {salt:016x}\n")?;
        file.sync_all()?;
        std::fs::rename(&temporary, &path)?;
        sync_directory(root)
    })();
    written.map_err(|error| failed(&path, "write", error))?;
    Ok(salt)
}
