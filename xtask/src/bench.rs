//! `cargo xtask bench`: builds everything optimised and runs a benchmark.

use crate::{tools, workspace};

/// `name` is `start`, `path`, `entries`, `tail`, `idle`, `kubernetes` or `all` (which is all but `kubernetes`); `arguments` go to the benchmark.
pub(crate) fn run(name: &str, arguments: &[String]) -> anyhow::Result<()> {
    tools::ensure_packages(&[tools::REDIS])?;
    if name == "kubernetes" {
        tools::ensure_kubernetes()?;
    }
    tools::run(workspace::cargo().args(["build", "--release", "--locked", "--workspace", "--bins"]))?;
    let bench = workspace::target().join("release/otto-bench");
    let out = workspace::target().join("bench");
    tools::run(std::process::Command::new(bench).arg(name).args(arguments).arg("--out").arg(out))
}
