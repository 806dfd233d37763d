//! The log server. Settings → bind → open the store → run → drain.

use std::process::ExitCode;

use anyhow::Context as _;
use otto_log_ingest::server::{self, Bound};
use otto_log_ingest::settings::Settings;
use otto_log_store::Store;
use otto_service::{drain, grpc, probe, settings, telemetry};

fn main() -> ExitCode {
    if let Some(code) = probe::run_if_asked() {
        return code;
    }
    let settings: Settings = match settings::load() {
        Ok(settings) => settings,
        Err(exit) => {
            exit.print();
            return exit.code();
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(settings.runtime_threads.into())
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(settings)),
        Err(error) => Err(anyhow::Error::new(error).context("cannot start the runtime")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("otto-log-ingest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(settings: Settings) -> anyhow::Result<()> {
    let telemetry = telemetry::init("otto-log-ingest", &settings.common)?;
    let (drain, abort) = drain::signals().context("cannot listen for signals")?;
    if let Err(error) = grpc::raise_descriptor_limit() {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    let bound = Bound::new(&settings)?;
    let options = settings.store.options();
    // Recovery reads the disk, for a while if much of it must be looked at.
    let store = tokio::task::spawn_blocking(move || Store::open(options)).await??;
    let result = tokio::select! {
        result = server::run(settings, bound, store, drain) => result,
        () = abort.requested() => Err(anyhow::anyhow!("ended by a second signal before everything was drained")),
    };
    telemetry.shutdown().await;
    result
}
