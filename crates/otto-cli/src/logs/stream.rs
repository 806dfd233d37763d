//! Reads a log to its end, over broken connections, without losing or repeating a line.

use std::io;
use std::time::{Duration, Instant};

use otto_proto::v1::{LogWorker, ReadLogsRequest, ReadLogsResponse};
use otto_service::client::Backoff;
use tonic::{Code, Status, Streaming};

use super::print::Printer;
use super::seen::Seen;
use crate::args::Cli;
use crate::console::tell;
use crate::exit::Failure;

const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(3));

/// Waits between tries.
pub(super) fn backoff() -> Backoff {
    Backoff::new(RETRY.0, RETRY.1)
}

/// A connection that broke, or an output that cannot be written.
enum Broken {
    Server(Status),
    Output(io::Error),
}

impl From<Status> for Broken {
    fn from(status: Status) -> Self {
        Broken::Server(status)
    }
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Broken::Output(error)
    }
}

/// One reading of a log.
pub(super) struct Reader<'a> {
    cli: &'a Cli,
    request: ReadLogsRequest,
    seen: Seen,
    status: Vec<LogWorker>,
    /// The last message came: it carries the status.
    ended: bool,
    /// Anything came at all.
    begun: bool,
}

impl<'a> Reader<'a> {
    pub(super) fn new(cli: &'a Cli, request: ReadLogsRequest) -> Self {
        Self { cli, request, seen: Seen::default(), status: Vec::new(), ended: false, begun: false }
    }

    /// What is stored now. A connection that breaks in the middle is made again; one that cannot be made is an error.
    pub(super) async fn read(mut self, printer: &mut Printer) -> Result<Vec<LogWorker>, Failure> {
        let mut client = self.cli.logs_client()?;
        let mut backoff = backoff();
        let mut last_part = Instant::now();
        loop {
            self.begun = false;
            let result = match client.read_logs(self.request.clone()).await {
                Ok(answer) => self.take_all(answer.into_inner(), printer).await,
                Err(status) => Err(status.into()),
            };
            if self.begun {
                last_part = Instant::now();
                backoff.reset();
            }
            match result {
                Ok(()) => return Ok(self.status),
                Err(Broken::Output(error)) => return Err(error.into()),
                Err(Broken::Server(status)) => {
                    // After the first part, the server was there: it may be starting again.
                    let lately = last_part.elapsed() < Duration::from_secs(30);
                    let resumed = self.begun || !self.request.resume_token.is_empty();
                    if !(is_passing(&status) && resumed && lately) {
                        return Err(self.cli.log_server_said(status));
                    }
                }
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    /// Until the task is complete, whatever breaks in between. A log server that cannot be reached from the start is
    /// waited for until `patience` is over.
    pub(super) async fn follow(mut self, patience: Duration, printer: &mut Printer) -> Result<Vec<LogWorker>, Failure> {
        let mut client = self.cli.logs_client()?;
        let mut backoff = backoff();
        let start = Instant::now();
        let mut ever = false;
        let mut told = false;
        loop {
            self.begun = false;
            let result = match client.tail_logs(self.request.clone()).await {
                Ok(answer) => {
                    if std::mem::take(&mut told) {
                        printer.clear();
                        tell("connected again");
                    }
                    self.take_all(answer.into_inner(), printer).await
                }
                Err(status) => Err(status.into()),
            };
            if self.begun {
                ever = true;
                backoff.reset();
            }
            let status = match result {
                Ok(()) if self.ended => return Ok(self.status),
                // Ended without its last message: something between us and the server gave up.
                Ok(()) => Status::unavailable("the stream ended too early"),
                Err(Broken::Output(error)) => return Err(error.into()),
                Err(Broken::Server(status)) => status,
            };
            let patient = ever || start.elapsed() < patience;
            // An unknown task: its first worker has not registered yet.
            let unknown = status.code() == Code::NotFound && !ever;
            if !(patient && (unknown || is_passing(&status))) {
                return Err(self.cli.log_server_said(status));
            }
            if !unknown && !std::mem::replace(&mut told, true) {
                printer.clear();
                tell(format!("{}; trying again", self.cli.log_server_said(status)));
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    async fn take_all(&mut self, mut stream: Streaming<ReadLogsResponse>, printer: &mut Printer) -> Result<(), Broken> {
        while let Some(mut part) = stream.message().await? {
            self.begun = true;
            self.seen.filter(&mut part);
            printer.print(&part)?;
            if !part.resume_token.is_empty() {
                self.request.resume_token = part.resume_token;
            }
            if part.last || !part.status.is_empty() {
                self.ended = true;
                self.status = part.status;
            }
        }
        Ok(())
    }
}

/// Whether the same call may succeed a moment later.
pub(super) fn is_passing(status: &Status) -> bool {
    otto_service::status::is_transient(status)
}
