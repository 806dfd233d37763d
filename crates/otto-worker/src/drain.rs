//! The `drain` command: sends what agents left in a spool directory.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use otto_proto::v1::FinishRun;

use crate::capture::Feedback;
use crate::child::Signals;
use crate::delivery::Deliveries;
use crate::rundir::{Claim, Ended, RunDir};
use crate::settings::{Run, Upload};
use crate::spool;
use crate::upload::{Server, Uploader, rfc3339, timestamp};

/// Sends all that is left, and says what could not be sent.
///
/// # Errors
/// When a setting is missing, or the directory cannot be read.
pub(crate) async fn drain(settings: &Run) -> anyhow::Result<ExitCode> {
    let upload = &settings.upload;
    let spool_dir = settings.spool_dir().context("drain needs --spool-dir DIR: where the output is")?;
    let spool_dir = spool_dir.as_path();
    let Some(url) = upload.log_server.as_deref() else {
        bail!("drain needs --log-server URL: where the output shall go");
    };
    // An agent that is at work there is not disturbed.
    let run_dir = match settings.run_dir.as_deref().map(RunDir::claim).transpose()? {
        Some(Claim::Started(dir) | Claim::Fresh(dir)) => Some(dir),
        None if !spool_dir.is_dir() => {
            bail!("the spool directory {} (--spool-dir) does not exist", spool_dir.display())
        }
        None => None,
    };
    let ended = run_dir.as_ref().map(RunDir::ended).transpose()?.flatten();
    let server = Server::new(url, upload)?;
    let mut signals = Signals::listen().context("listening for signals")?;
    let mut deliveries = Deliveries::default();
    let ending = ended.as_ref().map(ending_of).unwrap_or_default();
    let busy = add_leftovers(&mut deliveries, &server, upload, spool_dir, &ending, |_| true)?;
    deliveries.wait(upload.drain_timeout, &mut signals).await;
    if busy > 0 {
        tracing::warn!("{busy} runs are left: agents have them open, or they cannot be read");
    }
    let all = deliveries.conclude(spool_dir, Some(url), run_dir.as_ref().filter(|_| busy == 0));
    Ok(if all && busy == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
