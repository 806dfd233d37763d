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

/// Removes older images of the same name from this machine: those whose tag was made of their content. Clusters have copies
/// of their own.
pub(crate) fn remove_older(reference: &str) -> anyhow::Result<()> {
    let Some((name, tag)) = reference.rsplit_once(':') else { return Ok(()) };
    let tags = tools::output(Command::new("docker").args(["image", "ls", "--format", "{{.Tag}}", name]))?;
    for older in tags.lines().filter(|older| *older != tag && is_of_content(older)) {
        // One that a container still uses stays.
        let mut remove = Command::new("docker");
        let _ = remove.args(["image", "rm", &format!("{name}:{older}")]).output();
    }
    Ok(())
}

/// Twelve hexadecimal digits.
fn is_of_content(tag: &str) -> bool {
    tag.len() == 12 && tag.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_of_people_are_not_taken_for_ours() {
        assert!(is_of_content("0a16eab4c612"));
        assert!(["dev", "0.1.0", "latest", "0A16EAB4C612", "0a16eab4c6123"].iter().all(|tag| !is_of_content(tag)));
    }
}
