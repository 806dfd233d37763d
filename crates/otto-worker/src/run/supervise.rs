//! Follows the job to its end, and its output to its end.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::sync::oneshot;

use crate::capture::{Capture, Captured};
use crate::child::{Act, JobEnd, Signals, Stop, Why, end_rest, reap};

/// What came of a job.
pub(super) struct Over {
    pub(super) end: JobEnd,
    /// Why it was stopped, if it was.
    pub(super) why: Option<Why>,
    /// When whoever told us to stop will kill us.
    pub(super) end_by: Option<Instant>,
    pub(super) captured: Captured,
    /// When the copy of the output is with whoever reads it.
    pub(super) copied: oneshot::Receiver<()>,
}

/// Returns when the job has ended, nothing of it is left, and all it printed is in the spool.
///
/// # Errors
/// When the capture has died; the job was killed then.
pub(super) async fn supervise(
    job: Pid,
    mut capture: Capture,
    signals: &mut Signals,
    timeout: Option<Duration>,
    grace: Duration,
    linger: Duration,
) -> anyhow::Result<Over> {
    let mut stop = Stop::new(Instant::now(), timeout, grace);
    let mut captured = None;
    let end = loop {
        // Also a job that ended before we listened for it.
        if let Some(end) = reap(job).job {
            break end;
        }
        match stop.act(Instant::now()) {
            Act::Nothing => {}
            Act::Terminate => {
                tracing::warn!("the job ran longer than {:?} (--timeout): stopping it", timeout.unwrap_or_default());
                pass_on(job, Signal::TERM);
            }
            Act::Kill => {
                tracing::warn!("the job has not ended in time: killing it");
                pass_on(job, Signal::KILL);
            }
        }
        let wake = stop.wake_at().map(tokio::time::Instant::from_std);
        tokio::select! {
            signal = signals.next() => {
                let Some(signal) = signal else { continue };
                pass_on(job, signal);
                if matches!(signal, Signal::TERM | Signal::INT)
                    && stop.told(Instant::now(), signal == Signal::INT) == Act::Kill
                {
                    pass_on(job, Signal::KILL);
                }
            }
            ended = capture.ended(), if captured.is_none() => match ended {
                // It has closed its output and goes on.
                Ok(all) => captured = Some(all),
                Err(error) => {
                    end_rest(job).await;
                    return Err(error);
                }
            },
            () = tokio::time::sleep_until(wake.unwrap_or_else(tokio::time::Instant::now)), if wake.is_some() => {}
        }
    };
    let end_by = stop.end_by();
    // Whoever told us to stop does not wait as long as we would: half of the rest is for sending.
    let linger = end_by.map_or(linger, |at| linger.min(at.saturating_duration_since(Instant::now()) / 2));
    if captured.is_none() {
        // What it left behind may still print; if nobody is left, this is the end of the pipes.
        match tokio::time::timeout(linger, capture.ended()).await {
            Ok(Ok(all)) => captured = Some(all),
            Ok(Err(error)) => {
                end_rest(job).await;
                return Err(error);
            }
            Err(_) => {}
        }
    }
    end_rest(job).await;
    let captured = match captured {
        Some(captured) => captured,
        None => {
            capture.stop();
            capture.ended().await?
        }
    };
    Ok(Over { end, why: stop.why(), end_by, captured, copied: capture.into_copied() })
}

/// To the job's process group. It may be gone already.
fn pass_on(job: Pid, signal: Signal) {
    let _ = kill_process_group(job, signal);
}
