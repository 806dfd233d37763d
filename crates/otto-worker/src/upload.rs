//! Brings a run's spool to the log server.
//!
//! One session after another: register, open a stream, send what is not acknowledged, until the end of the run is
//! acknowledged. After any break the next session resumes; nothing here gives up, that is the caller's to decide.

mod batches;
mod entries;
mod pace;
mod progress;
mod reblock;
mod size;
mod text;
mod window;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use otto_proto::v1::log_streaming_service_client::LogStreamingServiceClient;
use otto_proto::v1::{LoggingConfig, RegistrationResponse, WorkerMetadata, WorkerRegistration, registration_response};
use otto_service::client::{Backoff, Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::capture::{Demand, Feedback};
use crate::settings::Upload;
use crate::spool::{RunInfo, Spool};
use progress::Reporter;
pub(crate) use progress::Watcher;
use size::Size;
pub(crate) use text::{rfc3339, timestamp};
use window::NeverSent;

/// Pauses between sessions. The longest is how late an agent may notice that the log server is back.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// For a call that is answered at once by a server that works.
const CALL_DEADLINE: Duration = Duration::from_secs(15);

/// A log server.
#[derive(Clone)]
pub(crate) struct Server {
    endpoint: Endpoint,
    url: String,
    window_bytes: u64,
    /// With something on its way, a server that says nothing for so long is not there.
    silence: Duration,
}

impl Server {
    /// Nothing is connected yet.
    ///
    /// # Errors
    /// When the URL or the token file cannot be used.
    pub(crate) fn new(url: &str, settings: &Upload) -> anyhow::Result<Self> {
        Ok(Server {
            endpoint: Endpoint::new(url, &settings.auth).context("--log-server")?,
            url: url.to_owned(),
            window_bytes: settings.window_bytes.as_u64(),
            silence: settings.answer_timeout,
        })
    }

    fn connect(&self) -> LogStreamingServiceClient<Channel> {
        LogStreamingServiceClient::new(self.endpoint.connect_lazy())
    }

    /// How long a call may take that a server answers at once.
    fn deadline(&self) -> Duration {
        CALL_DEADLINE.min(self.silence)
    }
}

/// Sends one run.
pub(crate) struct Uploader {
    server: Server,
    client: LogStreamingServiceClient<Channel>,
    run: RunInfo,
    metadata: WorkerMetadata,
    spool: Spool,
    feedback: Arc<Feedback>,
    reporter: Reporter,
    size: Size,
    /// What the server has was sent entry by entry, so its numbers are not ours: no way back to batches.
    by_entries: bool,
    /// Refused lines, or lines the server lost: the digest of all lines says nothing then.
    incomplete: bool,
    /// Lines in gaps and refused lines, of those sent entry by entry in all sessions.
    missing_entries: u64,
}

/// Everything is with the log server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Delivered {
    /// Lines in gaps, as far as the server tells.
    pub(crate) missing: u64,
}

/// Why a session ended before the run did.
#[derive(Debug, thiserror::Error)]
enum Break {
    #[error("{}", describe(.0))]
    Status(Status),
    #[error("the log server does not take this worker: {0}")]
    Refused(String),
    #[error("the log server says nothing any more")]
    Silence,
    #[error("the log server ended the stream")]
    Ended,
    #[error(transparent)]
    NeverSent(#[from] NeverSent),
    #[error("the log server broke the protocol: {0}")]
    Protocol(&'static str),
    #[error("reading the spool: {0}")]
    Spool(#[from] io::Error),
    /// Only a new stream can settle what is missing.
    #[error("the log server has lost lines it had acknowledged")]
    Lost,
}

impl From<Status> for Break {
    fn from(status: Status) -> Self {
        Break::Status(status)
    }
}

impl Uploader {
    pub(crate) fn new(
        server: Server,
        run: RunInfo,
        metadata: WorkerMetadata,
        spool: Spool,
        feedback: Arc<Feedback>,
    ) -> (Self, Watcher) {
        let (reporter, watcher) = progress::channel(spool.next_to_send() - 1);
        let incomplete = spool.is_incomplete();
        let uploader = Uploader {
            client: server.connect(),
            server,
            run,
            metadata,
            spool,
            feedback,
            reporter,
            size: Size::default(),
            by_entries: false,
            incomplete,
            missing_entries: 0,
        };
        (uploader, watcher)
    }

    /// Sends until everything up to the end of the run is acknowledged. Never ends while the server is away; dropped, it
    /// leaves the spool as it is.
    pub(crate) async fn run(mut self) -> Delivered {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        loop {
            let before = self.reporter.acked();
            let ended = self.session().await;
            self.feedback.set_demand(Demand::Away);
            match ended {
                Ok(delivered) => return delivered,
                Err(ended) => {
                    self.learn(&ended);
                    if self.reporter.acked() > before {
                        backoff.reset();
                    }
                    self.reporter.broken(&ended, &self.server.url, self.spool.dir());
                }
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    async fn session(&mut self) -> Result<Delivered, Break> {
        let config = self.register().await?;
        self.feedback.limit_lines(config.max_message_size);
        if !self.by_entries {
            match self.send_batches(&config).await {
                Err(Break::Status(status)) if status.code() == Code::Unimplemented => {
                    tracing::info!("the log server has no batch method: lines are sent one by one");
                    // A session of the earlier system ends with its stream.
                    let config = self.register().await?;
                    return self.send_entries(&config).await;
                }
                other => return other,
            }
        }
        self.send_entries(&config).await
    }

    async fn register(&mut self) -> Result<LoggingConfig, Break> {
        let request = WorkerRegistration {
            worker_id: self.run.worker_id.clone(),
            task_id: self.run.task_id.clone(),
            metadata: Some(self.metadata.clone()),
            server_endpoint: self.server.url.clone(),
            run_id: self.run.run_id.clone(),
        };
        let call = self.client.register_worker(Request::new(request));
        let response =
            tokio::time::timeout(self.server.deadline(), call).await.map_err(|_| Break::Silence)??.into_inner();
        let is_new = response.status() == registration_response::Status::Success;
        let config = accepted(response)?;
        let acked = self.reporter.acked();
        if is_new && acked > 0 && !self.by_entries {
            tracing::warn!(
                "the log server does not know this run any more: its lines up to {acked} are lost there; those that are \
                 still here are sent again"
            );
        }
        Ok(config)
    }

    /// What the end of a session teaches.
    fn learn(&mut self, ended: &Break) {
        match ended {
            // The connection may be half open; a new one also asks for the name's address again.
            Break::Silence => self.client = self.server.connect(),
            Break::Status(status) if is_too_large(status) => {
                self.size.refused(status.code() == Code::OutOfRange);
            }
            _ => {}
        }
    }

    /// The server has not all lines that were in the spool.
    fn lost_lines(&mut self) {
        if !std::mem::replace(&mut self.incomplete, true) {
            self.spool.note_incomplete();
        }
    }

    /// Everything up to `sequence` is with the server.
    fn acknowledged(&mut self, sequence: u64) {
        self.spool.acknowledge(sequence);
        self.reporter.acknowledged(sequence);
    }
}

fn accepted(response: RegistrationResponse) -> Result<LoggingConfig, Break> {
    use registration_response::Status as S;
    match response.status() {
        S::Success | S::AlreadyRegistered => Ok(response.config.unwrap_or_default()),
        S::ServerFull => Err(Break::Refused(format!("it has too many workers; {}", response.message))),
        S::InvalidRequest => Err(Break::Refused(response.message)),
    }
}

/// A message that the transport does not carry. Tonic says OUT_OF_RANGE; gRPC's other implementations say
/// RESOURCE_EXHAUSTED, which is also the answer of servers that are short of something else: only the text tells.
fn is_too_large(status: &Status) -> bool {
    let text = status.message().to_ascii_lowercase();
    // Tonic and our own servers; Go, C++ and Python; Java.
    let large = ["too large", "larger than", "exceeds maximum size"].iter().any(|what| text.contains(what));
    matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted) && text.contains("message") && large
}

/// The code, the message, and what is behind it (a connection refused, a broken pipe).
fn describe(status: &Status) -> String {
    let mut text = format!("{}: {}", status.code(), status.message());
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_speaks_of_a_messages_size_is_about_it() {
        let large = [
            Status::out_of_range("Error, decoded message length too large: found 9 bytes, the limit is: 4 bytes"),
            Status::resource_exhausted("the message is too large: found 9 bytes, the limit is: 4 bytes"),
            Status::resource_exhausted("grpc: received message larger than max (9 vs. 4)"),
            Status::resource_exhausted("Received message larger than max (9 vs. 4)"),
            Status::resource_exhausted("gRPC message exceeds maximum size 4: 9"),
        ];
        assert!(large.iter().all(is_too_large));
        let other = [
            Status::resource_exhausted("too many messages are waiting"),
            Status::resource_exhausted("the message could not be stored: the disk is full"),
            Status::out_of_range("message 7 is out of range"),
            Status::unknown("message larger than max"),
        ];
        assert!(!other.iter().any(is_too_large));
    }
}
