//! The agent in the worker: starts the job, captures what it prints, and brings it to the log server.
//!
//! ```text
//! child ──pipes──▶ capture ──blocks──▶ spool ──▶ upload ──gRPC──▶ log server
//!                  (a thread)          (files)   (the runtime, on the main thread)
//! ```
//!
//! Invariant: nothing on the right ever stops what is on its left, except a full spool (by policy) the job.

mod access;
mod capture;
mod child;
mod delivery;
mod drain;
mod exit;
mod install;
mod lock;
mod run;
mod rundir;
mod settings;
mod spool;
mod upload;

use std::process::ExitCode;

use otto_service::settings::{self as load, Common};
use otto_service::telemetry;

use child::Inherited;
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
    let result = match cli.command {
        Command::Install(settings) => install::install(&settings.dir).map(|()| ExitCode::SUCCESS),
        Command::Run(settings) => {
            let inherited = Inherited::take();
            on_runtime(&cli.common, async move || run::run(*settings, inherited).await)
        }
        Command::Drain(settings) => {
            rustix::process::umask(access::UMASK);
            on_runtime(&cli.common, async move || drain::drain(&settings).await)
        }
    };
    result.unwrap_or_else(|error| {
        eprintln!("otto-worker: {error:#}");
        ExitCode::from(AGENT_FAILED)
    })
}

fn on_runtime(common: &Common, command: impl AsyncFnOnce() -> anyhow::Result<ExitCode>) -> anyhow::Result<ExitCode> {
    // One thread: the job is killed when the thread that started it ends, and idle agents are to be small.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(2).build()?;
    let result = runtime.block_on(async {
        let telemetry = telemetry::init("otto-worker", common)?;
        let result = command().await;
        telemetry.shutdown().await;
        result
    });
    // A look-up of a name may hang in a thread.
    runtime.shutdown_background();
    result
}
