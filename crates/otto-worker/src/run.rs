//! The `run` command: one job from its start to the end of its log.

mod plan;
mod supervise;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use otto_proto::v1::FinishRun;
use otto_service::telemetry;
use tracing::Instrument;

use crate::capture::{Capture, Captured, Feedback, now_ms, now_unix_nanos};
use crate::child::{self, Inherited, Job, LaunchError, Mark, Memory, Signals};
use crate::delivery::{Deliveries, Patience};
use crate::drain::{add_leftovers, ending_of, lost};
use crate::exit::{Class, Exit};
use crate::rundir::{Claim, RunDir};
use crate::settings::{Run, Start};
use crate::spool::{self, Record, RunInfo, Writer};
use crate::upload::{Server, Uploader, rfc3339, timestamp};
use plan::Plan;

/// An end that could not be written down is written again after this, so many times.
const NOTE_AGAIN: Duration = Duration::from_millis(500);
const NOTE_TRIES: u32 = 60;
/// Told to stop, the agent ends so long before its grace period does, or by a twentieth of it if that is less.
const LEAVE_EARLY: Duration = Duration::from_millis(500);

/// Runs the job and ends with its exit code.
///
/// # Errors
/// When the job could not even be tried: a setting, a directory, the system.
pub(crate) async fn run(start: Start, mut inherited: Inherited) -> anyhow::Result<ExitCode> {
    // First of all: the first process of a container loses signals that it does not listen to.
    let mut signals = Signals::listen(start.any_signal_stops).context("listening for signals")?;
    inherited.set(&start.set_env);
    let settings = &start.run;
    let span = tracing::info_span!(
        "worker.run",
        otto.task_id = %settings.task_id(),
        otto.worker_id = %settings.worker_id(),
        otto.exit_code = tracing::field::Empty,
    );
    if let Some(parent) = settings.traceparent() {
        telemetry::parent_from(&span, &parent);
    }
    let traceparent = telemetry::traceparent(&span).or_else(|| settings.traceparent());
    let result = run_in_span(&start, &inherited, traceparent, &mut signals).instrument(span).await;
    if let Err(error) = &result {
        let now = now_ms();
        let exit = Exit {
            exit_code: Some(crate::AGENT_FAILED.into()),
            class: Class::Infrastructure,
            message: format!("the agent failed: {error:#}"),
            started_at_ms: now,
            ended_at_ms: now,
            ..Exit::default()
        };
        exit.tell(start.exit_file.as_deref());
    }
    result
}

async fn run_in_span(
    start: &Start,
    inherited: &Inherited,
    traceparent: Option<String>,
    signals: &mut Signals,
) -> anyhow::Result<ExitCode> {
    let settings = &start.run;
    // Before anything else can fail: by it others see that an agent was here.
    let claim = settings.run_dir.as_deref().map(RunDir::claim).transpose()?;
    let (plan, options) = Plan::new(settings, inherited)?;
    let server = match &settings.upload.log_server {
        Some(url) => Some(Server::new(url, &settings.upload)?),
        None => None,
    };
    let run_dir = match claim {
        Some(Claim::Started(dir)) => return resume(&dir, start, &plan, server.as_ref(), signals).await,
        Some(Claim::Fresh(dir)) => Some(dir),
        None => None,
    };

    let info = RunInfo::new(&plan.task_id, &plan.worker_id, now_ms());
    let (writer, spool) = spool::create(&plan.spool_dir, &info, plan.spool_bytes, plan.reserve)?;
    child::prepare(start.allow_privilege_escalation)?;
    let memory = Memory::now();

    let started_at_ms = now_ms();
    let mark = run_dir.as_ref().map(|dir| dir.mark_started(started_at_ms, &info.run_id)).transpose()?;
    let launched = launch(&start.command, &plan, &info.run_id, traceparent.as_deref(), inherited, mark);

    let feedback = Arc::new(Feedback::new(plan.max_line));
    let mut deliveries = Deliveries::default();
    let metadata = settings.upload.metadata(rfc3339(now_unix_nanos()));
    match &server {
        Some(server) => {
            let own = info.run_id.clone();
            let uploader = Uploader::new(server.clone(), info, metadata, spool.clone(), feedback.clone());
            deliveries.add(spool.clone(), uploader);
            // Of this worker's earlier runs, should it have been started again with its spool.
            let same = |run: &spool::RunInfo| {
                run.task_id == plan.task_id && run.worker_id == plan.worker_id && run.run_id != own
            };
            if let Err(error) =
                add_leftovers(&mut deliveries, server, &settings.upload, &plan.spool_dir, &FinishRun::default(), same)
            {
                tracing::warn!("{error:#}");
            }
        }
        None => deliveries.keep(spool.clone()),
    }

    let (exit, captured, end_by, copied) = match launched {
        Ok(job) => {
            let pid = job.pid;
            let capture = Capture::start(job.outputs, options, writer, spool.clone(), feedback);
            // Without a capture the job cannot go on; its pipes are closed.
            let capture = match capture {
                Ok(capture) => capture,
                Err(error) => {
                    child::end_rest(pid).await;
                    note_failure(run_dir.as_ref(), &error, started_at_ms);
                    return Err(error);
                }
            };
            let over = supervise::supervise(pid, capture, signals, settings.timeout(), settings.grace, settings.linger)
                .await
                .inspect_err(|error| note_failure(run_dir.as_ref(), error, started_at_ms))?;
            let shortage = memory.and_then(|memory| memory.shortage());
            let exit = plan::exit_of(over.end, over.why, shortage, settings, started_at_ms, now_ms());
            (exit, over.captured, over.end_by, Some(over.copied))
        }
        Err(error) => {
            tracing::error!("{error}");
            (plan::exit_of_launch(&error, started_at_ms, now_ms()), nothing(writer), None, None)
        }
    };
    tracing::Span::current().record("otto.exit_code", exit.exit_code);
    // Whoever waits for the end cannot be told otherwise; the log still can be sent.
    let unwritten = run_dir.as_ref().filter(|dir| !noted(dir, &exit));
    exit.tell(start.exit_file.as_deref());
    finish_log(&exit, captured);
    let patience =
        Patience::of_sender(settings.sending_timeout(start.hand_over), end_by.map(|at| before(at, settings.grace)));
    let rest = drain(&mut deliveries, settings, &plan, run_dir.as_ref(), patience, signals);
    match unwritten {
        Some(dir) => {
            let _ = tokio::join!(rest, note_again(dir, &exit));
        }
        None => rest.await,
    }
    if let Some(copied) = copied {
        // Bounded by itself.
        let _ = copied.await;
    }
    Ok(code(exit.exit_code))
}

/// Whether the end is written down now.
fn noted(dir: &RunDir, exit: &Exit) -> bool {
    dir.write_exit(exit).inspect_err(|error| tracing::error!("{error:#}")).is_ok()
}

/// Without it the job counts as lost: a full disk may have room in a moment.
async fn note_again(dir: &RunDir, exit: &Exit) {
    for _ in 0..NOTE_TRIES {
        tokio::time::sleep(NOTE_AGAIN).await;
        if noted(dir, exit) {
            return;
        }
    }
}

/// The agent failed and ended the job for it: that is no fault of the job's.
fn note_failure(dir: Option<&RunDir>, error: &anyhow::Error, started_at_ms: u64) {
    let Some(dir) = dir else { return };
    let exit = Exit {
        class: Class::Infrastructure,
        message: format!("the agent failed and killed the job: {error:#}"),
        started_at_ms,
        ended_at_ms: now_ms(),
        ..Exit::default()
    };
    noted(dir, &exit);
}

/// So much earlier that whoever kills us at `end` finds us gone, and what is left can be taken over.
fn before(end: Instant, grace: Duration) -> tokio::time::Instant {
    let early = (grace / 20).min(LEAVE_EARLY);
    tokio::time::Instant::from_std(end.checked_sub(early).unwrap_or(end))
}

fn launch(
    command: &[OsString],
    plan: &Plan,
    run_id: &str,
    traceparent: Option<&str>,
    inherited: &Inherited,
    mark: Option<Mark>,
) -> Result<Job, LaunchError> {
    let mut set = vec![
        ("OTTO_JOB_TASK_ID", &*plan.task_id),
        ("OTTO_JOB_WORKER_ID", &*plan.worker_id),
        ("OTTO_JOB_RUN_ID", run_id),
    ];
    set.extend(traceparent.map(|traceparent| ("TRACEPARENT", traceparent)));
    child::launch(command, inherited.for_job(&set), inherited.umask, mark, plan.pipe_bytes)
}

/// What there is of a job that never ran.
fn nothing(writer: Writer) -> Captured {
    Captured { writer, last_sequence: 0, digest: otto_proto::digest::Digest::new().finish().to_vec(), dropped: 0 }
}

/// Puts the end of the run into the spool.
fn finish_log(exit: &Exit, mut captured: Captured) {
    if captured.dropped > 0 {
        tracing::warn!("{} lines were dropped: the spool was full (--on-full drop)", captured.dropped);
    }
    // What the job printed tells the rest.
    let told = !matches!(exit.class, Class::Image | Class::Infrastructure | Class::AgentLost | Class::OutOfMemory);
    let finish = FinishRun {
        last_sequence: captured.last_sequence,
        digest: captured.digest.into(),
        exit_code: exit.exit_code,
        signal: exit.signal,
        ended_at: Some(timestamp(exit.ended_at_ms.cast_signed().saturating_mul(1_000_000))),
        error_message: if told { String::new() } else { exit.message.clone() },
    };
    if let Err(error) = captured.writer.append(Record::Finish(finish), true) {
        tracing::error!("the end of the log could not be noted: {error}");
    }
    captured.writer.complete();
}

/// Waits for the log server, then says what is missing, and notes it when nothing more will be sent.
async fn drain(
    deliveries: &mut Deliveries,
    settings: &Run,
    plan: &Plan,
    run_dir: Option<&RunDir>,
    patience: Patience,
    signals: &mut Signals,
) {
    deliveries.wait(patience, signals).await;
    deliveries.conclude(&plan.spool_dir, settings.upload.log_server.as_deref(), run_dir);
    plan.clean_up();
}

/// The job was started by an agent that is gone: it is never started again. What is left of it is ended, and of its
/// output sent.
async fn resume(
    dir: &RunDir,
    start: &Start,
    plan: &Plan,
    server: Option<&Server>,
    signals: &mut Signals,
) -> anyhow::Result<ExitCode> {
    let settings = &start.run;
    let ended = match dir.ended()? {
        Some(ended) => ended,
        None => lost(dir, "the agent was killed, and with it the job").await,
    };
    // Of a container that is started again, the last end is what one sees.
    ended.tell(start.exit_file.as_deref());
    if !dir.is_drained() {
        let mut deliveries = Deliveries::default();
        let ending = ending_of(&ended);
        match server {
            Some(server) => {
                add_leftovers(&mut deliveries, server, &settings.upload, &plan.spool_dir, &ending, |_| true)?;
            }
            None => keep_leftovers(&mut deliveries, &plan.spool_dir, &ending)?,
        }
        let patience = Patience::of_sender(settings.sending_timeout(start.hand_over), None);
        drain(&mut deliveries, settings, plan, Some(dir), patience, signals).await;
    }
    Ok(code(ended.exit_code))
}

fn keep_leftovers(deliveries: &mut Deliveries, spool_dir: &Path, ending: &FinishRun) -> anyhow::Result<()> {
    for (dir, _) in spool::leftovers(spool_dir)? {
        if let Some(spool) = spool::recover(&dir, ending.clone())? {
            deliveries.keep(spool);
        }
    }
    Ok(())
}

fn code(exit_code: Option<i32>) -> ExitCode {
    let code = exit_code.and_then(|code| u8::try_from(code).ok());
    ExitCode::from(code.unwrap_or(crate::AGENT_FAILED))
}
