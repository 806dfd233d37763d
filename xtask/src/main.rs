//! Development tasks. `cargo xtask --help` lists them.

mod bench;
mod codegen;
mod deny;
mod dev;
mod docker;
mod images;
mod interrupt;
mod test;
mod tidy;
mod tools;
mod up;
mod workspace;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Ottoscaler's development tasks", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Runs the whole system on this machine with a demo event, until Ctrl-C.
    Dev(dev::Options),
    /// Runs all tests.
    Test {
        #[command(flatten)]
        kind: test::KindOptions,
        /// For `cargo test`: a filter, `-p CRATE`, `-- --nocapture`, …
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Generates the Rust code of the contracts in proto/ (no protoc needed).
    Codegen {
        /// Changes nothing; fails if the committed code is not what would be generated.
        #[arg(long)]
        check: bool,
        /// Also declares frozen what is not marked as "Not yet frozen.": its names and numbers may never change again.
        #[arg(long, conflicts_with = "check")]
        freeze: bool,
    },
    /// Checks licences, bans, sources and advisories of the dependencies with cargo-deny.
    Deny,
    /// Builds the container images from static binaries built here; needs a container engine, but no network.
    Images(images::Options),
    /// Runs the whole system in a kind cluster on this machine; again: brings what has changed.
    Up(up::Options),
    /// Deletes the cluster that `up` made, with all it stored.
    Down(up::Down),
    /// Runs a benchmark on the optimised build; prints a table, writes target/bench/NAME.json.
    Bench {
        /// start, path, entries, tail, idle or all.
        #[arg(default_value = "all")]
        name: String,
        /// For the benchmark: `--lines`, `--rate`, `--seconds`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Checks the habits of this repository that no compiler checks.
    Tidy,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::Dev(options) => dev::run(&options),
        Task::Test { kind, arguments } => test::run(&kind, &arguments),
        Task::Codegen { check, freeze } => codegen::run(check, freeze),
        Task::Bench { name, arguments } => bench::run(&name, &arguments),
        Task::Deny => deny::run(),
        Task::Images(options) => images::run(&options),
        Task::Up(options) => up::run(&options),
        Task::Down(options) => up::down(&options),
        Task::Tidy => tidy::run(),
    }
}
