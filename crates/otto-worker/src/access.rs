//! Who may use what the agent writes.
//!
//! In a Pod the job's agent and the one that drains its spool may run as different users. What they share is the group of
//! the volume (the Pod's `fsGroup`): the kubelet gives the volume's directory that group and the set-group-id bit, by which
//! everything in it belongs to the group too. So that bit says that others of the group are to use what is written there.
//! Everywhere else it is for the agent's own user alone.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::Mode;

/// Of the bits below the umask takes none away: everything is made with its final mode, and nobody sees it with another.
pub(crate) const UMASK: Mode = Mode::from_raw_mode(0o007);

/// Who may use what is written in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Our user only.
    Owner,
    /// The directory's group too.
    Group,
}

impl Access {
    /// By the set-group-id bit of the directory.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub(crate) fn of(dir: &Path) -> io::Result<Self> {
        // A name alone stands in the working directory.
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        let shared = fs::metadata(dir)?.mode() & Mode::SGID.as_raw_mode() != 0;
        Ok(if shared { Access::Group } else { Access::Owner })
    }

    /// Options that make files so.
    pub(crate) fn options(self) -> OpenOptions {
        let mut options = File::options();
        options.mode(match self {
            Access::Owner => 0o600,
            Access::Group => 0o660,
        });
        options
    }

    /// Writes a file that is not there, or replaces its text.
    ///
    /// # Errors
    /// As of the system.
    pub(crate) fn write(self, path: &Path, text: &[u8]) -> io::Result<()> {
        let mut file = self.options().write(true).create(true).truncate(true).open(path)?;
        io::Write::write_all(&mut file, text)
    }
}

/// Makes a directory and those above it that are missing, each for whom the one above it says.
///
/// # Errors
/// As of the system; none if it is there.
pub(crate) fn make_dirs(path: &Path) -> io::Result<()> {
    let parent = path.parent().unwrap_or(path);
    let make = || {
        let mode = match Access::of(parent)? {
            Access::Owner => 0o700,
            Access::Group => 0o770,
        };
        DirBuilder::new().mode(mode).create(path)
    };
    let made = match make() {
        Err(error) if error.kind() == ErrorKind::NotFound && parent != path => make_dirs(parent).and_then(|()| make()),
        made => made,
    };
    match made {
        // Whoever cannot look at what is above it (a mount of its own) may still use it.
        Err(_) if path.is_dir() => Ok(()),
        made => made,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn the_set_group_id_bit_makes_it_the_groups() {
        let dir = tempfile::tempdir().unwrap();
        let (own, shared) = (dir.path().join("own/a/b"), dir.path().join("shared"));
        make_dirs(&own).unwrap();
        make_dirs(&own).unwrap();
        assert_eq!((mode(&own), mode(own.parent().unwrap())), (0o700, 0o700));
        assert_eq!(Access::of(&own).unwrap(), Access::Owner);
        Access::Owner.write(&own.join("file"), b"x").unwrap();
        assert_eq!(mode(&own.join("file")), 0o600);

        fs::create_dir(&shared).unwrap();
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o2777)).unwrap();
        let deep = shared.join("a/b");
        make_dirs(&deep).unwrap();
        // The tests' own umask may take bits away that the program keeps.
        assert_eq!(mode(&deep) & 0o2707, 0o2700);
        assert_eq!(Access::of(&deep).unwrap(), Access::Group);
        assert!(make_dirs(&own.join("file")).is_err(), "a file is no directory");
    }
}
