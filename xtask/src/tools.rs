//! Programs the tasks need: found, or installed where that may be done, and told either way.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, bail};

use crate::workspace;

mod kubernetes;

pub(crate) use kubernetes::ensure_kubernetes;

/// A program from a Debian package.
pub(crate) struct Packaged {
    /// Name of the program.
    pub(crate) program: &'static str,
    /// The package it is in.
    pub(crate) package: &'static str,
    /// What it is needed for, for people.
    pub(crate) purpose: &'static str,
}

pub(crate) const REDIS: Packaged =
    Packaged { program: "redis-server", package: "redis-server", purpose: "the event stream" };
pub(crate) const REDIS_CLI: Packaged =
    Packaged { program: "redis-cli", package: "redis-tools", purpose: "putting events on the stream" };
pub(crate) const CHROMIUM: Packaged =
    Packaged { program: "chromium", package: "chromium", purpose: "the tests of the web page" };
pub(crate) const CHROMEDRIVER: Packaged =
    Packaged { program: "chromedriver", package: "chromium-driver", purpose: "the tests of the web page" };

/// A program built from a Go module into `target/tools`.
pub(crate) struct GoTool {
    /// Name of the program.
    pub(crate) program: &'static str,
    /// Package and version, as `go install` takes them.
    pub(crate) module: &'static str,
}

pub(crate) const GRPCURL: GoTool =
    GoTool { program: "grpcurl", module: "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3" };

/// Where a program is, if it is in the PATH.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// Finds the programs or installs their packages with apt-get, as root.
pub(crate) fn ensure_packages(wanted: &[Packaged]) -> anyhow::Result<()> {
    let missing: Vec<_> = wanted.iter().filter(|tool| find(tool.program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<_> = missing.iter().map(|tool| tool.package).collect();
    let list = packages.join(" ");
    let needs: Vec<_> = missing.iter().map(|tool| format!("{} ({})", tool.program, tool.purpose)).collect();
    let needs = needs.join(", ");
    if find("apt-get").is_none() || !is_root()? {
        bail!(
            "not installed: {needs}. Install the packages ({list} on Debian and Ubuntu: sudo apt-get install {list})"
        );
    }
    eprintln!("xtask: installing {needs}: apt-get install {list}");
    let policy = ServicePolicy::keep_services_off()?;
    apt(&["update", "-qq"])?;
    let mut arguments = vec!["install", "-y", "-qq", "--no-install-recommends"];
    arguments.extend(&packages);
    let installed = apt(&arguments);
    drop(policy);
    installed.with_context(|| format!("installing {list}"))?;
    match missing.iter().find(|tool| find(tool.program).is_none()) {
        Some(tool) => bail!("package {} is installed, but {} is not in the PATH", tool.package, tool.program),
        None => Ok(()),
    }
}

fn apt(arguments: &[&str]) -> anyhow::Result<()> {
    run(Command::new("apt-get").args(arguments).env("DEBIAN_FRONTEND", "noninteractive"))
}

/// Finds the program, or builds it with the Go toolchain.
pub(crate) fn ensure_go_tool(tool: &GoTool) -> anyhow::Result<PathBuf> {
    let tools = workspace::target().join("tools");
    let built = tools.join(tool.program);
    if built.is_file() {
        return Ok(built);
    }
    if let Some(found) = find(tool.program) {
        return Ok(found);
    }
    if find("go").is_none() {
        bail!(
            "{} is not installed, and there is no Go toolchain to build it with. Install either (go install {})",
            tool.program,
            tool.module
        );
    }
    eprintln!("xtask: building {} into target/tools: go install {}", tool.program, tool.module);
    fs::create_dir_all(&tools)?;
    run(Command::new("go").args(["install", tool.module]).env("GOBIN", &tools).env("CGO_ENABLED", "0"))?;
    Ok(built)
}

/// Runs a command to its end; its failure is an error that names it.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("starting {}", shown(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", shown(command));
    }
    Ok(())
}

/// Runs a command to its end and returns what it printed.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stderr(std::process::Stdio::inherit()).output().with_context(|| shown(command))?;
    if !output.status.success() {
        bail!("{} ended with {}", shown(command), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn is_root() -> anyhow::Result<bool> {
    Ok(output(Command::new("id").arg("-u"))?.trim() == "0")
}

/// Debian starts the services of packages it installs, unless this file forbids it. Removed again when dropped.
struct ServicePolicy(Option<&'static Path>);

impl ServicePolicy {
    fn keep_services_off() -> anyhow::Result<Self> {
        let path = Path::new("/usr/sbin/policy-rc.d");
        if path.exists() {
            return Ok(Self(None));
        }
        fs::write(path, "#!/bin/sh\nexit 101\n")?;
        run(Command::new("chmod").arg("755").arg(path))?;
        Ok(Self(Some(path)))
    }
}

impl Drop for ServicePolicy {
    fn drop(&mut self) {
        if let Some(path) = self.0 {
            let _ = fs::remove_file(path);
        }
    }
}
