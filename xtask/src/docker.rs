//! The container engine.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::tools;

/// Makes sure that the engine answers.
///
/// # Errors
/// Says what is missing and what to do.
pub(crate) fn ensure() -> anyhow::Result<()> {
    if tools::find("docker").is_none() {
        bail!(
            "docker is not installed (Debian and Ubuntu: apt-get install docker.io; elsewhere: https://docs.docker.com/engine/install/)"
        );
    }
    let version = Command::new("docker").args(["version", "--format", "{{.Server.Version}}"]).output()?;
    if !version.status.success() {
        let why = String::from_utf8_lossy(&version.stderr);
        let why = why.trim();
        let hint = if why.contains("permission denied") {
            "you may not use it: run this as root, or as a member of the group docker"
        } else {
            "it does not run: systemctl start docker (or, where no init runs: dockerd)"
        };
        bail!("the docker engine does not answer; {hint}\n  docker says: {why}");
    }
    Ok(())
}

/// Whether the engine has an image.
pub(crate) fn has_image(reference: &str) -> anyhow::Result<bool> {
    let mut inspect = Command::new("docker");
    inspect.args(["image", "inspect", reference]).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(inspect.status().context("starting docker")?.success())
}

/// Bytes of all layers.
pub(crate) fn image_bytes(reference: &str) -> anyhow::Result<u64> {
    let size = tools::output(Command::new("docker").args(["image", "inspect", "--format", "{{.Size}}", reference]))?;
    size.trim().parse().with_context(|| format!("size of {reference}"))
}

/// Builds an image from a folder with a Dockerfile. What the engine says is shown if it fails.
pub(crate) fn build(dir: &Path, reference: &str) -> anyhow::Result<()> {
    let mut build = Command::new("docker");
    let output = build.args(["build", "--tag", reference]).arg(dir).output().context("starting docker")?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        bail!("docker build of {reference} ended with {}:\n{}", output.status, String::from_utf8_lossy(&said).trim());
    }
    Ok(())
}
