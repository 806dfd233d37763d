//! otto-scaler: starts the workers that events ask for, follows them to their end, and tells what happened.

mod apply;
mod config;
mod controller;
mod driver;
mod event;
mod grpc;
mod inbox;
mod leadership;
mod metrics;
mod plan;
mod runtime;
mod serve;
mod standby;
mod store;
mod task;
mod worker_events;

use std::process::ExitCode;

use otto_service::{drain, probe, settings, telemetry};

/// A burst is thousands of small records, requests and answers, made and dropped.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    if let Some(code) = probe::run_if_asked() {
        return code;
    }
    let config: config::Config = match settings::load() {
        Ok(config) => config,
        Err(exit) => {
            exit.print();
            return exit.code();
        }
    };
    let runtime = match runtime::build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the runtime cannot be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(config: config::Config) -> anyhow::Result<()> {
    let telemetry = telemetry::init("otto-scaler", &config.common)?;
    let (drain, abort) = drain::signals()?;
    let result = tokio::select! {
        result = serve::run(config, drain) => result,
        () = abort.requested() => Err(anyhow::anyhow!("ended by a second signal before everything was drained")),
    };
    telemetry.shutdown().await;
    result
}
