//! Images of others: as they are published, or, where no registry can be reached, made of this machine's programs.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use sha2::{Digest, Sha256};

use super::make_dir;
use crate::images::hex;
use crate::interrupt::Interrupt;
use crate::tools::Packaged;
use crate::{docker, tools, workspace};

/// A registry that does not answer is not waited for longer.
const PULL_WITHIN: Duration = Duration::from_secs(180);

const BUSYBOX: Packaged = Packaged { program: "busybox", package: "busybox-static", purpose: "jobs of the tests" };

/// A reference of an image with redis-server and redis-cli.
pub(super) fn redis(wanted: &str, interrupt: &Interrupt) -> anyhow::Result<String> {
    ensure(wanted, interrupt, || {
        tools::ensure_packages(&[tools::REDIS, tools::REDIS_CLI])?;
        let folder = Folder::new("redis")?;
        folder.pack(&["redis-server", "redis-cli"], "USER 65532:65532\n")
    })
}

/// A reference of an image with busybox and its many names.
pub(crate) fn busybox(wanted: &str, interrupt: &Interrupt) -> anyhow::Result<String> {
    ensure(wanted, interrupt, || {
        tools::ensure_packages(&[BUSYBOX])?;
        let folder = Folder::new("busybox")?;
        let bin = folder.dir.join("bin");
        make_dir(&bin)?;
        make_dir(&folder.dir.join("tmp"))?;
        for name in tools::output(Command::new("busybox").arg("--list"))?.lines() {
            symlink("/usr/bin/busybox", bin.join(name)).with_context(|| format!("a link {name}"))?;
        }
        // Jobs are to hear of their end whatever signal their image names for it.
        folder.pack(&["busybox"], "USER 65532:65532\nSTOPSIGNAL SIGQUIT\n")
    })
}

fn ensure(
    wanted: &str,
    interrupt: &Interrupt,
    pack: impl FnOnce() -> anyhow::Result<String>,
) -> anyhow::Result<String> {
    if docker::has_image(wanted)? {
        return Ok(wanted.to_owned());
    }
    eprintln!("xtask: pulling {wanted}");
    match pull(wanted, interrupt)? {
        None => Ok(wanted.to_owned()),
        Some(why) => {
            eprintln!("xtask: {wanted} cannot be pulled ({why}); making an image of this machine's programs instead");
            pack()
        }
    }
}

/// `None`: it is there; otherwise why not.
fn pull(wanted: &str, interrupt: &Interrupt) -> anyhow::Result<Option<String>> {
    let mut pull = Command::new("docker");
    pull.args(["pull", "--quiet", wanted]).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = pull.spawn().context("starting docker")?;
    let start = Instant::now();
    // Its few words fit into the pipe.
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if interrupt.is_requested() || start.elapsed() > PULL_WITHIN {
            child.kill()?;
            child.wait()?;
            interrupt.check()?;
            return Ok(Some(format!("no answer within {PULL_WITHIN:?}")));
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    interrupt.check()?;
    if status.success() {
        return Ok(None);
    }
    let mut why = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        std::io::Read::read_to_string(&mut stderr, &mut why)?;
    }
    Ok(Some(why.trim().lines().last().unwrap_or("no reason given").to_owned()))
}

/// A folder that becomes the root of an image.
struct Folder {
    name: &'static str,
    dir: PathBuf,
}

impl Folder {
    fn new(name: &'static str) -> anyhow::Result<Self> {
        let dir = workspace::target().join("images").join(name);
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        make_dir(&dir)?;
        Ok(Self { name, dir })
    }

    /// The programs with the shared libraries they need, under the same paths.
    fn pack(self, programs: &[&str], settings: &str) -> anyhow::Result<String> {
        let mut files = BTreeSet::new();
        let mut hash = Sha256::new();
        for program in programs {
            let path = tools::find(program).with_context(|| format!("{program} is not in the PATH"))?;
            let real = fs::canonicalize(&path)?;
            files.extend(libraries(&real)?);
            copy(&real, &self.dir.join("usr/bin").join(program), &mut hash)?;
        }
        for file in files {
            // A path of the root folder, whatever links it goes through: the loader looks there.
            let inside = self.dir.join(file.strip_prefix("/").unwrap_or(&file));
            copy(&fs::canonicalize(&file)?, &inside, &mut hash)?;
        }
        let text = format!("FROM scratch\nCOPY . /\nENV PATH=/usr/bin:/bin\n{settings}");
        hash.update(&text);
        fs::write(self.dir.join("Dockerfile"), text)?;
        let reference = format!("ottoscaler/{}-of-this-machine:{}", self.name, hex(&hash.finalize()[..6]));
        if !docker::has_image(&reference)? {
            docker::build(&self.dir, &reference)?;
            docker::remove_older(&reference)?;
        }
        Ok(reference)
    }
}

fn copy(from: &Path, to: &Path, hash: &mut Sha256) -> anyhow::Result<()> {
    if let Some(parent) = to.parent() {
        make_dir(parent)?;
    }
    fs::copy(from, to).with_context(|| format!("copying {}", from.display()))?;
    hash.update(to.as_os_str().as_encoded_bytes());
    hash.update(fs::read(to)?);
    Ok(())
}

/// What ldd names: `libc.so.6 => /lib/x/libc.so.6 (0x…)`, and the loader by its path alone.
fn libraries(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    // It fails for a program that needs none.
    let said = Command::new("ldd").arg(program).output().context("starting ldd")?;
    Ok(paths(&String::from_utf8_lossy(&said.stdout)))
}

fn paths(ldd: &str) -> Vec<PathBuf> {
    ldd.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_libraries_and_loader() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f1)\n";
        assert_eq!(paths(text), ["/lib/x86_64-linux-gnu/libm.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from));
    }
}
