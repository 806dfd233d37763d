//! `otto logs`: reading, following, and telling whether it was all.

mod print;
mod seen;
mod stream;
mod summary;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use otto_proto::v1::{GetTaskRequest, LogLevel, LogSource, LogWorker, ReadLogsRequest, Task, TaskState};
use signal_hook::consts::SIGINT;
use tonic::Code;

use crate::args::{Cli, Logs};
use crate::console::tell;
use crate::exit::{Exit, Failure};
use crate::tasks::state_name;
use print::Printer;
use stream::Reader;

/// How long the log may take to be finished after its task has ended.
const LOG_AFTER_TASK: Duration = Duration::from_secs(30);

pub(crate) fn parse_level(text: &str) -> Result<i32, String> {
    let known = LogLevel::from_str_name(&format!("LOG_LEVEL_{}", text.to_uppercase()));
    known.map(Into::into).ok_or_else(|| "accepted are trace, debug, info, warn, error, fatal".to_owned())
}

pub(crate) fn parse_source(text: &str) -> Result<i32, String> {
    match text {
        "stdout" => Ok(LogSource::Stdout.into()),
        "stderr" => Ok(LogSource::Stderr.into()),
        _ => Err("accepted are stdout, stderr".to_owned()),
    }
}

pub(crate) async fn run(cli: &Cli, options: &Logs) -> Result<Exit, Failure> {
    let mut printer = Printer::new(cli.output, options);
    let reading = async {
        if options.follow {
            await_task(cli, options, &mut printer).await?;
            return Reader::new(cli, request(options)).follow(options.wait, &mut printer).await;
        }
        if options.raw {
            return read_raw(cli, options, &mut printer).await;
        }
        if options.worker.is_none() {
            printer.expect_workers(list_workers(cli, &options.task).await?.len());
        }
        Reader::new(cli, request(options)).read(&mut printer).await
    };
    let status = tokio::select! {
        status = reading => status,
        () = interrupted() => return Ok(Exit::Interrupted),
    };
    printer.end()?;
    Ok(verdict(&status?, options.follow))
}

/// Follows the log of a task with so many workers, and ends with the task's result.
pub(crate) async fn follow_to_result(cli: &Cli, options: &Logs, workers: usize) -> Result<Exit, Failure> {
    let mut printer = Printer::new(cli.output, options);
    printer.expect_workers(workers);
    printer.progress(format!("waiting for the first line of task {}", options.task));
    let both = async {
        let log = Reader::new(cli, request(options)).follow(Duration::MAX, &mut printer);
        let ended = task_ended(cli, &options.task);
        tokio::pin!(log, ended);
        let (log, task) = tokio::select! {
            log = &mut log => match log {
                // Nobody reads our output any more.
                Err(failure @ Failure::Io(_)) => return Err(failure),
                log => (Some(log), ended.await?),
            },
            task = &mut ended => {
                let task = task?;
                // What is still on its way.
                (tokio::time::timeout(LOG_AFTER_TASK, &mut log).await.ok(), task)
            }
        };
        Ok::<_, Failure>((log, task))
    };
    let outcome = tokio::select! {
        outcome = both => Some(outcome),
        () = interrupted() => None,
    };
    printer.clear();
    let Some(outcome) = outcome else {
        let task = &options.task;
        tell(format!("the task goes on; `otto logs -f {task}` follows it, `otto cancel {task}` stops it"));
        return Ok(Exit::Interrupted);
    };
    let (log, task) = outcome?;
    printer.end()?;
    let log = match log {
        Some(Ok(workers)) => verdict(&workers, true),
        Some(Err(failure @ Failure::Io(_))) => return Err(failure),
        Some(Err(failure)) => {
            tell(failure);
            Exit::Incomplete
        }
        None => {
            tell(format!("the log was not finished within {LOG_AFTER_TASK:?} of the task's end"));
            Exit::Incomplete
        }
    };
    if task.state() == TaskState::Succeeded {
        return Ok(log);
    }
    let why = if task.error_message.is_empty() { String::new() } else { format!(": {}", task.error_message) };
    tell(format!("task {} {}{why}", options.task, state_name(task.state())));
    Ok(Exit::TaskFailed)
}

fn request(options: &Logs) -> ReadLogsRequest {
    ReadLogsRequest {
        task_id: options.task.clone(),
        worker_id: options.worker.clone().unwrap_or_default(),
        tail_lines: options.tail.unwrap_or(0),
        since: options.since.map(|since| crate::times::to_proto(since.0)),
        levels: options.level.clone(),
        sources: options.source.into_iter().collect(),
        regex: options.grep.clone().unwrap_or_default(),
        ..ReadLogsRequest::default()
    }
}

/// Worker after worker, the bytes as they were printed.
async fn read_raw(cli: &Cli, options: &Logs, printer: &mut Printer) -> Result<Vec<LogWorker>, Failure> {
    let mut status = Vec::new();
    for worker in list_workers(cli, &options.task).await? {
        if options.worker.as_ref().is_some_and(|wanted| *wanted != worker.worker_id) {
            continue;
        }
        let one = Logs { worker: Some(worker.worker_id), ..options.clone() };
        status.extend(Reader::new(cli, request(&one)).read(printer).await?);
    }
    match (&options.worker, status.is_empty()) {
        (Some(worker), true) => Err(Failure::NotFound(format!("task {} has no worker {worker}", options.task))),
        _ => Ok(status),
    }
}

/// Waits until the log server knows the task: a task that was just submitted, or a mistyped name.
async fn await_task(cli: &Cli, options: &Logs, printer: &mut Printer) -> Result<(), Failure> {
    let start = Instant::now();
    let mut backoff = stream::backoff();
    loop {
        match list_workers(cli, &options.task).await {
            Ok(workers) => {
                printer.expect_workers(workers.len());
                return Ok(());
            }
            Err(Failure::Server { status, .. })
                if status.code() == Code::NotFound && start.elapsed() < options.wait =>
            {
                printer.progress(format!("waiting for task {}: the log server does not know it yet", options.task));
            }
            // The log server is away: that is told, and waited for, while following.
            Err(Failure::Server { status, .. }) if stream::is_passing(&status) => return Ok(()),
            Err(failure) => return Err(failure),
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

async fn list_workers(cli: &Cli, task: &str) -> Result<Vec<LogWorker>, Failure> {
    let request = otto_proto::v1::ListLogWorkersRequest { task_id: task.to_owned() };
    let answer = cli.logs_client()?.list_log_workers(request).await.map_err(|status| cli.log_server_said(status))?;
    Ok(answer.into_inner().workers)
}

/// Waits until the scaler says that the task has ended.
async fn task_ended(cli: &Cli, task_id: &str) -> Result<Task, Failure> {
    use otto_proto::v1::watch_workers_response::Kind;
    let mut client = cli.tasks_client()?;
    let mut backoff = stream::backoff();
    loop {
        let request = otto_proto::v1::WatchWorkersRequest { task_id: task_id.to_owned() };
        if let Ok(answer) = client.watch_workers(request).await {
            let mut events = answer.into_inner();
            while let Ok(Some(event)) = events.message().await {
                if let Some(Kind::TaskEnded(task)) = event.kind {
                    return Ok(task);
                }
                backoff.reset();
            }
        }
        // The stream broke: the scaler restarts, or has forgotten the task.
        match client.get_task(GetTaskRequest { task_id: task_id.to_owned() }).await.map(tonic::Response::into_inner) {
            Ok(task) if !matches!(task.state(), TaskState::Pending | TaskState::Running) => return Ok(task),
            Err(status) if !stream::is_passing(&status) => return Err(cli.scaler_said(status)),
            _ => tokio::time::sleep(backoff.next()).await,
        }
    }
}

/// Until Ctrl-C. A second one ends the program at once, even if nobody takes its output.
async fn interrupted() {
    let first = Arc::new(AtomicBool::new(false));
    let second = signal_hook::flag::register_conditional_default(SIGINT, Arc::clone(&first))
        .and_then(|_| signal_hook::flag::register(SIGINT, first));
    if second.is_err() || tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Tells on stderr whether that was all. An unfinished log is a fault only at its end.
fn verdict(workers: &[LogWorker], ended: bool) -> Exit {
    let mut exit = Exit::Ok;
    for line in summary::lines(workers, ended) {
        if line.fault {
            exit = Exit::Incomplete;
        }
        tell(line.text);
    }
    exit
}
