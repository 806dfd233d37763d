//! `cargo xtask deny`: licences, bans, sources and advisories of the dependencies.

use std::path::PathBuf;

use anyhow::Context;

use crate::{tools, workspace};

const VERSION: &str = "^0.20";

/// Runs cargo-deny, building it first where it is missing. Without the advisory database (it is a git repository of its
/// own, which a machine may not reach) the advisories are left out, and that is told.
pub(crate) fn run() -> anyhow::Result<()> {
    let deny = ensure()?;
    let command = || {
        let mut command = workspace::cargo();
        let dir = deny.parent().map(PathBuf::from).unwrap_or_default();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(std::iter::once(dir).chain(std::env::split_paths(&path))).unwrap_or(path);
        command.env("PATH", path).args(["deny", "--locked"]);
        command
    };
    tools::run(command().args(["check", "bans", "licenses", "sources"]))?;
    if tools::run(command().args(["fetch", "db"])).is_err() {
        eprintln!("xtask: the advisory database cannot be fetched here; advisories are not checked");
        return Ok(());
    }
    tools::run(command().args(["check", "advisories"]))
}

fn ensure() -> anyhow::Result<PathBuf> {
    let root = workspace::target().join("tools/cargo-deny");
    let built = root.join("bin/cargo-deny");
    if built.is_file() {
        return Ok(built);
    }
    if let Some(found) = tools::find("cargo-deny") {
        return Ok(found);
    }
    eprintln!("xtask: building cargo-deny {VERSION} into target/tools (some minutes, once)");
    let mut install = workspace::cargo();
    install.args(["install", "cargo-deny", "--locked", "--quiet", "--version", VERSION, "--root"]).arg(&root);
    tools::run(&mut install).context("installing cargo-deny")?;
    Ok(built)
}
