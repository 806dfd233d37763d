//! Development tasks. `cargo xtask --help` lists them.

mod codegen;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Ottoscaler's development tasks")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Generates the Rust code of the contracts in proto/ (no protoc needed).
    Codegen {
        /// Changes nothing; fails if the committed code is not what would be generated.
        #[arg(long)]
        check: bool,
        /// Also declares frozen what is not marked as "Not yet frozen.": its names and numbers may never change again.
        #[arg(long, conflicts_with = "check")]
        freeze: bool,
    },
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::Codegen { check, freeze } => codegen::run(check, freeze),
    }
}
