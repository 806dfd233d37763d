//! The `drain` command: sends what agents left in a spool directory.

mod agent;
pub(crate) mod beside;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use otto_proto::v1::FinishRun;

use crate::capture::{Feedback, now_ms};
use crate::child::{self, Signals};
use crate::delivery::{Deliveries, Patience, Waited};
use crate::exit::{Ended, Exit};
use crate::rundir::{Claim, RunDir};
use crate::settings::{Drain, Upload};
use crate::spool;
use crate::upload::{Server, Uploader, rfc3339, timestamp};

/// How long to wait before what could not be opened or sent is tried again, by one that was told to wait.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// Sends all that is left, and says what could not be sent.
///
/// # Errors
/// When a setting is missing, or the directory cannot be read.
pub(crate) async fn drain(settings: &Drain) -> anyhow::Result<ExitCode> {
    // First of all: the first process of a container loses signals that it does not listen to.
    let mut signals = Signals::listen(false).context("listening for signals")?;
    let upload = &settings.run.upload;
    let spool_dir = settings.run.spool_dir().context("drain needs --spool-dir DIR: where the output is")?;
    let spool_dir = spool_dir.as_path();
    let Some(url) = upload.log_server.as_deref() else {
        bail!("drain needs --log-server URL: where the output shall go");
    };
    let server = Server::new(url, upload)?;
    if settings.wait {
        return after_agent(settings, spool_dir, url, &server, &mut signals).await;
    }
    // An agent that is at work there is not disturbed.
    let run_dir = match settings.run.run_dir.as_deref().map(RunDir::claim).transpose()? {
        Some(Claim::Started(dir) | Claim::Fresh(dir)) => Some(dir),
        None if !spool_dir.is_dir() => {
            bail!("the spool directory {} (--spool-dir) does not exist", spool_dir.display())
        }
        None => None,
    };
    let ended = run_dir.as_ref().map(RunDir::ended).transpose()?.flatten();
    let ending = ended.as_ref().map(ending_of).unwrap_or_default();
    let mut deliveries = Deliveries::default();
    let busy = add_leftovers(&mut deliveries, &server, upload, spool_dir, &ending, |_| true)?;
    deliveries.wait(Patience::of_sender(settings.run.drain_timeout(), None), &mut signals).await;
    if busy > 0 {
        tracing::warn!("{busy} runs are left: agents have them open, or they cannot be read");
    }
    let all = deliveries.conclude(spool_dir, Some(url), run_dir.as_ref().filter(|_| busy == 0));
    Ok(if all && busy == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `--wait`: beside the job's agent, in a container of its own.
async fn after_agent(
    settings: &Drain,
    spool_dir: &Path,
    url: &str,
    server: &Server,
    signals: &mut Signals,
) -> anyhow::Result<ExitCode> {
    let path = settings.run.run_dir.as_deref();
    let path = path.context("drain --wait needs --run-dir DIR: where the job's agent will be")?;
    let _here = beside::announce(path)
        .inspect_err(|error| {
            tracing::warn!(
                "the job's agent cannot be told that one waits beside it ({error}): it will send all itself"
            );
        })
        .ok();
    let told = match agent::gone(path, signals).await? {
        agent::Waited::Never => {
            tracing::info!("told to end before the job's agent came: there is nothing to send");
            return Ok(ExitCode::SUCCESS);
        }
        agent::Waited::Enough => {
            tracing::warn!("told to end twice: what the job's agent leaves in {} is lost", spool_dir.display());
            return Ok(ExitCode::FAILURE);
        }
        agent::Waited::Gone { told } => told,
    };
    let (Claim::Started(dir) | Claim::Fresh(dir)) = RunDir::claim(path)?;
    if dir.is_drained() {
        return Ok(ExitCode::SUCCESS);
    }
    let ended = match dir.ended()? {
        Some(ended) => ended,
        None => {
            lost(&dir, "its container was killed, the agent and the job with it, as when there is no memory left").await
        }
    };
    let mut patience = Patience::of_drainer(settings.run.upload.drain_timeout, told);
    loop {
        let mut deliveries = Deliveries::default();
        let busy =
            add_leftovers(&mut deliveries, server, &settings.run.upload, spool_dir, &ending_of(&ended), |_| true)?;
        let waited = deliveries.wait(patience, signals).await;
        if deliveries.conclude(spool_dir, Some(url), Some(&dir).filter(|_| busy == 0)) && busy == 0 {
            return Ok(ExitCode::SUCCESS);
        }
        // A run may be one that cannot be ended as long as the disk is full.
        match waited {
            Waited::GaveUp => return Ok(ExitCode::FAILURE),
            Waited::Done { told } => patience = Patience::of_drainer(settings.run.upload.drain_timeout, told),
        }
        tokio::select! {
            () = tokio::time::sleep(TRY_AGAIN) => {}
            () = signals.told_to_end() => {
                if patience.told() {
                    return Ok(ExitCode::FAILURE);
                }
                patience = Patience::of_drainer(settings.run.upload.drain_timeout, true);
            }
        }
    }
}

/// Ends what is left of a job whose agent is gone and could not say how it ended, and notes that. `what` happened, for
/// people.
pub(crate) async fn lost(dir: &RunDir, what: &str) -> Ended {
    if !dir.is_started() {
        // Whoever waits for it may still start it.
        let message = "the agent ended before it started the job".to_owned();
        return Ended { message, ..Ended::default() };
    }
    let (started_at_ms, lost) = dir.started();
    match &lost {
        Some(lost) => child::end_lost(lost).await,
        None => tracing::warn!("the start mark does not tell which processes are the job's"),
    }
    let exit = Exit {
        message: format!("{what}; nobody knows how the job ended"),
        started_at_ms,
        ended_at_ms: now_ms(),
        ..Exit::default()
    };
    tracing::warn!("{}", exit.message);
    if let Err(error) = dir.write_exit(&exit) {
        // What it printed can be sent all the same.
        tracing::error!("{error:#}");
    }
    Ended::from(&exit)
}

/// What the log server is told of a job whose agent could not tell.
pub(crate) fn ending_of(ended: &Ended) -> FinishRun {
    FinishRun {
        exit_code: ended.exit_code,
        signal: ended.signal,
        ended_at: (ended.ended_at_ms > 0).then(|| timestamp(ended.ended_at_ms.cast_signed().saturating_mul(1_000_000))),
        error_message: ended.message.clone(),
        ..FinishRun::default()
    }
}

/// Begins to send the runs in `spool_dir` that are `wanted`; returns how many are still in the hands of an agent. A run
/// without its end gets `ending`, with a message if it has none.
///
/// # Errors
/// When the directory cannot be read.
pub(crate) fn add_leftovers(
    deliveries: &mut Deliveries,
    server: &Server,
    upload: &Upload,
    spool_dir: &Path,
    ending: &FinishRun,
    wanted: impl Fn(&spool::RunInfo) -> bool,
) -> anyhow::Result<usize> {
    let mut busy = 0;
    for (dir, run) in spool::leftovers(spool_dir)? {
        if !wanted(&run) {
            continue;
        }
        let mut ending = ending.clone();
        if ending.error_message.is_empty() {
            ending.error_message = "the agent was killed; what it had not put into its spool is lost".to_owned();
        }
        let spool = match spool::recover(&dir, ending) {
            Ok(Some(spool)) => spool,
            Ok(None) => {
                busy += 1;
                continue;
            }
            Err(error) => {
                // The other runs are not to wait for this one.
                tracing::error!("{} cannot be sent: {error:#}", dir.display());
                busy += 1;
                continue;
            }
        };
        let metadata = upload.metadata(rfc3339(run.created_at_ms.cast_signed().saturating_mul(1_000_000)));
        let feedback = Arc::new(Feedback::new(usize::MAX));
        let uploader = Uploader::new(server.clone(), run, metadata, spool.clone(), feedback);
        deliveries.add(spool, uploader);
    }
    Ok(busy)
}
