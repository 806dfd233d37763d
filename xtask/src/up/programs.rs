//! kind and kubectl: found, or built with Go, in fixed versions.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};

use crate::tools::{self, GoTool};
use crate::workspace;

const KIND: GoTool = GoTool { program: "kind", module: "sigs.k8s.io/kind@v0.33.0" };

/// kind in the version whose node images are known to it.
pub(super) fn kind() -> anyhow::Result<PathBuf> {
    tools::ensure_go_tool(&KIND)
}

/// The one of the machine, or one built from the module xtask/tools/kubernetes: `go install` of kubectl alone is refused,
/// because Kubernetes's own module replaces parts of itself.
pub(super) fn kubectl() -> anyhow::Result<PathBuf> {
    let built = workspace::target().join("tools/kubectl");
    if built.is_file() {
        return Ok(built);
    }
    if let Some(found) = tools::find("kubectl") {
        return Ok(found);
    }
    if tools::find("go").is_none() {
        bail!(
            "kubectl is not installed, and there is no Go toolchain to build it with. Install either: \
             https://kubernetes.io/docs/tasks/tools/"
        );
    }
    let module = workspace::root().join("xtask/tools/kubernetes");
    eprintln!("xtask: building kubectl into target/tools from {}", module.display());
    let mut build = Command::new("go");
    build.args(["build", "-trimpath", "-o"]).arg(std::path::absolute(&built)?);
    build.arg("k8s.io/kubernetes/cmd/kubectl").current_dir(module).env("CGO_ENABLED", "0");
    tools::run(&mut build).context("building kubectl")?;
    Ok(built)
}
