//! The agent in the worker: starts the job, captures what it prints, and brings it to the log server.
//!
//! ```text
//! child ──pipes──▶ capture ──blocks──▶ spool ──▶ upload ──gRPC──▶ log server
//!                  (a thread)          (files)   (the runtime, on the main thread)
//! ```
//!
//! Invariant: nothing on the right ever stops what is on its left, except a full spool (by policy) the job.

mod capture;
mod child;
mod delivery;
mod drain;
mod run;
mod rundir;
mod settings;
mod spool;
mod upload;

use std::process::ExitCode;

use otto_service::{settings as load, telemetry};

use settings::{Cli, Command};

/// The agent itself failed: as of `docker run`.
const AGENT_FAILED: u8 = 125;

fn main() -> ExitCode {
    let cli: Cli = match load::load() {
        Ok(cli) => cli,
        Err(exit) => {
            exit.print();
            return exit.code();
        }
    };
    // One thread: the job is killed when the thread that started it ends, and idle agents are to be small.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(2).build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(command(cli));
            // A look-up of a name may hang in a thread.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(error.into()),
    };
    result.unwrap_or_else(|error| {
        eprintln!("otto-worker: {error:#}");
        ExitCode::from(AGENT_FAILED)
    })
}

async fn command(cli: Cli) -> anyhow::Result<ExitCode> {
    let telemetry = telemetry::init("otto-worker", &cli.common)?;
    let result = match cli.command {
        Command::Run(settings) => run::run(*settings).await,
        Command::Drain(settings) => drain::drain(&settings).await,
    };
    telemetry.shutdown().await;
    result
}
