//! The `otto` command.

mod args;
mod classes;
mod console;
mod dead_letters;
mod demo;
mod exit;
mod logs;
mod output;
mod pipeline;
mod scale;
mod servers;
mod submit;
mod tasks;
mod times;

use std::io::Write;
use std::process::ExitCode;

use args::{Cli, Command};
use clap::CommandFactory;
use exit::{Exit, Failure};
use otto_service::settings;

fn main() -> ExitCode {
    let cli = match settings::load::<Cli>() {
        Ok(cli) => cli,
        Err(exit) => {
            exit.print();
            return exit.code();
        }
    };
    let result = match &cli.command {
        Command::Demo(options) => demo::run(options),
        Command::Completions { shell } => completions(*shell),
        _ => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Failure::from)
            .and_then(|runtime| runtime.block_on(run(&cli))),
    };
    let exit = result.unwrap_or_else(|failure| {
        if !failure.is_broken_pipe() {
            console::tell(&failure);
        }
        failure.exit()
    });
    exit.into()
}

fn completions(shell: clap_complete::Shell) -> Result<Exit, Failure> {
    // Not written directly: the generator panics when its reader has seen enough.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "otto", &mut script);
    let mut out = std::io::stdout().lock();
    out.write_all(&script)?;
    out.flush()?;
    Ok(Exit::Ok)
}

async fn run(cli: &Cli) -> Result<Exit, Failure> {
    match &cli.command {
        Command::Submit(options) => submit::run(cli, options).await,
        Command::Logs(options) => logs::run(cli, options).await,
        Command::Tasks(options) => tasks::list(cli, options).await,
        Command::Workers { task } => tasks::workers(cli, task).await,
        Command::Scale { task, workers } => scale::scale(cli, task, *workers).await,
        Command::Cancel { task } => scale::cancel(cli, task).await,
        Command::Delete { task } => tasks::delete(cli, task).await,
        Command::DeadLetters { action } => dead_letters::run(cli, action).await,
        Command::Pipeline { action } => pipeline::run(cli, action).await,
        Command::Demo(_) | Command::Completions { .. } => Ok(Exit::Ok),
    }
}
