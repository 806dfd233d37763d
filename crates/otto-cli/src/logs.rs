//! `otto logs`: reading, following, and telling whether it was all.

mod print;
mod summary;

use std::time::{Duration, Instant};

use otto_proto::v1::{
    GetTaskRequest, LogLevel, LogSource, LogWorker, ReadLogsRequest, ReadLogsResponse, Task, TaskState,
};
use otto_service::client::Backoff;
use tonic::{Code, Status};

use crate::args::{Cli, Logs};
use crate::exit::{Exit, Failure};
use crate::tasks::state_name;
use print::Printer;

const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(3));
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
    if options.follow {
        let ended = tokio::select! {
            ended = follow(cli, options, &mut printer) => ended,
            () = interrupted() => return Ok(Exit::Interrupted),
        };
        printer.end()?;
        return Ok(verdict(&ended?, true));
    }
    let status =
        if options.raw { read_raw(cli, options, &mut printer).await } else { read(cli, options, &mut printer).await };
    printer.end()?;
    Ok(verdict(&status?, false))
}

/// Follows the log of a task and ends with the task's result.
pub(crate) async fn follow_to_result(cli: &Cli, options: &Logs) -> Result<Exit, Failure> {
    let mut printer = Printer::new(cli.output, options);
    let patient = Logs { wait: Duration::MAX, ..options.clone() };
    let task = {
        let log = follow(cli, &patient, &mut printer);
        let ended = task_ended(cli, &options.task);
        tokio::pin!(log, ended);
        tokio::select! {
            () = interrupted() => {
                eprintln!("otto: the task goes on; `otto logs {0} -f` follows it, `otto cancel {0}` stops it", options.task);
                return Ok(Exit::Interrupted);
            }
            log = &mut log => (Some(log?), ended.await?),
            task = &mut ended => {
                // What is still on its way.
                let rest = tokio::time::timeout(LOG_AFTER_TASK, &mut log).await;
                (rest.ok().transpose()?, task?)
            }
        }
    };
    printer.end()?;
    let (status, task) = task;
    let log = status.map(|workers| verdict(&workers, true));
    if log.is_none() {
        eprintln!("otto: the log of {} was not finished within {LOG_AFTER_TASK:?} of its end", options.task);
    }
    if task.state() == TaskState::Succeeded {
        return Ok(log.unwrap_or(Exit::Incomplete));
    }
    let why = if task.error_message.is_empty() { String::new() } else { format!(": {}", task.error_message) };
    eprintln!("otto: task {} {}{why}", options.task, state_name(task.state()));
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

/// What is stored now. Begins again where it stopped if the connection breaks.
async fn read(cli: &Cli, options: &Logs, printer: &mut Printer) -> Result<Vec<LogWorker>, Failure> {
    if options.worker.is_none() {
        printer.expect_workers(list_workers(cli, &options.task).await?.len());
    }
    let mut client = cli.logs_client()?;
    let mut request = request(options);
    let mut status = Vec::new();
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    loop {
        let mut begun = false;
        let result: Result<(), Status> = async {
            let mut stream = client.read_logs(request.clone()).await?.into_inner();
            while let Some(part) = stream.message().await? {
                begun = true;
                take(part, &mut request, &mut status, printer)?;
            }
            Ok(())
        }
        .await;
        match result {
            Ok(()) => return Ok(status),
            Err(error) if begun && is_passing(&error) => {
                backoff.reset();
                tokio::time::sleep(backoff.next()).await;
            }
            Err(error) => return Err(failure(cli, error)),
        }
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
        status.extend(read(cli, &one, printer).await?);
    }
    match (&options.worker, status.is_empty()) {
        (Some(worker), true) => Err(Failure::NotFound(format!("task {} has no worker {worker}", options.task))),
        _ => Ok(status),
    }
}

/// Until the task is complete; whatever breaks in between.
async fn follow(cli: &Cli, options: &Logs, printer: &mut Printer) -> Result<Vec<LogWorker>, Failure> {
    let mut client = cli.logs_client()?;
    let mut request = request(options);
    let mut status = Vec::new();
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    let begun = Instant::now();
    let (mut seen, mut told) = (false, false);
    loop {
        let result: Result<(), Status> = async {
            let mut stream = client.tail_logs(request.clone()).await?.into_inner();
            if told {
                eprintln!("otto: connected again");
                told = false;
            }
            while let Some(part) = stream.message().await? {
                (seen, _) = (true, backoff.reset());
                take(part, &mut request, &mut status, printer)?;
            }
            Ok(())
        }
        .await;
        let error = match result {
            Ok(()) => return Ok(status),
            Err(error) => error,
        };
        match error.code() {
            // Its first worker has not registered yet.
            Code::NotFound if !seen && begun.elapsed() < options.wait => {}
            _ if is_passing(&error) && (seen || options.wait == Duration::MAX || begun.elapsed() < options.wait) => {
                if !told {
                    eprintln!("otto: {}; trying again", cli.log_server_said(error));
                    told = true;
                }
            }
            _ => return Err(failure(cli, error)),
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

fn take(
    part: ReadLogsResponse,
    request: &mut ReadLogsRequest,
    status: &mut Vec<LogWorker>,
    printer: &mut Printer,
) -> Result<(), Status> {
    // The message goes with the error: our caller finds it there again (see `failure`).
    printer.print(&part).map_err(|error| Status::from_error(Box::new(error)))?;
    if !part.resume_token.is_empty() {
        request.resume_token = part.resume_token;
    }
    if !part.status.is_empty() {
        *status = part.status;
    }
    Ok(())
}

fn failure(cli: &Cli, status: Status) -> Failure {
    let io = std::error::Error::source(&status).and_then(|source| source.downcast_ref::<std::io::Error>());
    match io {
        Some(error) if status.code() == Code::Unknown => Failure::Io(error.kind().into()),
        _ => cli.log_server_said(status),
    }
}

fn is_passing(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Aborted | Code::Cancelled | Code::ResourceExhausted)
        || (status.code() == Code::Unknown && std::error::Error::source(status).is_none())
        || (status.code() == Code::Internal && status.message().contains("h2"))
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
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
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
            Err(status) if !is_passing(&status) => return Err(cli.scaler_said(status)),
            _ => tokio::time::sleep(backoff.next()).await,
        }
    }
}

async fn interrupted() {
    if tokio::signal::ctrl_c().await.is_err() {
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
        if line.fault || std::io::IsTerminal::is_terminal(&std::io::stderr()) {
            eprintln!("otto: {}", line.text);
        }
    }
    exit
}
