//! The `install` command: puts the agent where the containers of other images can run it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, bail};
use rustix::fs::{Mode, StatVfsMountFlags};

/// The program's name in the directory.
const NAME: &str = "otto-worker";
/// With this everything is made so that everybody can run it and nobody else write it.
const UMASK: Mode = Mode::from_raw_mode(0o022);

/// Copies this program to `DIR/otto-worker`, whole or not at all; one that is there is replaced, and goes on where it runs.
///
/// # Errors
/// When the directory cannot be made or written, or programs cannot be run from it.
pub(crate) fn install(dir: &Path) -> anyhow::Result<()> {
    rustix::process::umask(UMASK);
    let install = || -> anyhow::Result<()> {
        let mut program = File::open("/proc/self/exe").context("reading this program (/proc/self/exe)")?;
        DirBuilder::new().recursive(true).mode(0o755).create(dir).context("making the directory")?;
        if rustix::fs::statvfs(dir)?.f_flag.contains(StatVfsMountFlags::NOEXEC) {
            bail!("programs cannot be run from there: it is mounted with `noexec`");
        }
        // A name of its own, should two come at once.
        let temporary = dir.join(format!(".{NAME}-{}", uuid::Uuid::new_v4().simple()));
        let put = copy(&mut program, &temporary).and_then(|()| fs::rename(&temporary, dir.join(NAME)));
        if put.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        Ok(put?)
    };
    install().with_context(|| format!("installing the agent into {}", dir.display()))
}

fn copy(program: &mut File, path: &Path) -> io::Result<()> {
    let mut target = File::options().write(true).create_new(true).mode(0o755).open(path)?;
    // Within the kernel, where the file systems allow it.
    io::copy(program, &mut target).map(drop)
}
