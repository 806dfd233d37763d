//! `cargo xtask test`: every test, with all they need.

mod kind;

pub(crate) use kind::Options as KindOptions;

use crate::{tools, workspace};

/// Finds or installs what the tests need, builds the programs, runs all tests. `arguments` go to `cargo test`.
pub(crate) fn run(options: &KindOptions, arguments: &[String]) -> anyhow::Result<()> {
    if options.kind {
        return kind::run(options, arguments);
    }
    tools::ensure_packages(&[tools::REDIS, tools::CHROMIUM, tools::CHROMEDRIVER])?;
    tools::ensure_go_tool(&tools::GRPCURL)?;
    tools::ensure_kubernetes()?;
    // The tests of one crate drive the programs of others, which `cargo test` of a single crate would not build.
    tools::run(workspace::cargo().args(["build", "--workspace", "--bins", "--locked"]))?;
    tools::run(workspace::cargo().args(["test", "--workspace", "--locked", "--no-fail-fast"]).args(arguments))
}
