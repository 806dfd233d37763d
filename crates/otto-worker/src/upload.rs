//! Brings a run's spool to the log server.
//!
//! One session after another: register, open a stream, send what is not acknowledged, until the end of the run is
//! acknowledged. After any break the next session resumes; nothing here gives up, that is the caller's to decide.

mod batches;
mod entries;
mod pace;
mod progress;
mod reblock;
mod text;
mod window;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use otto_proto::v1::log_streaming_service_client::LogStreamingServiceClient;
use otto_proto::v1::{LoggingConfig, RegistrationResponse, WorkerMetadata, WorkerRegistration, registration_response};
use otto_service::auth::ClientAuth;
use otto_service::client::{Backoff, Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::capture::{Demand, Feedback};
use crate::spool::{RunInfo, Spool};
use progress::Reporter;
pub(crate) use progress::Watcher;
pub(crate) use text::{rfc3339, timestamp};
use window::NeverSent;

/// Pauses between sessions. The longest is how late an agent may notice that the log server is back.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// For a call that is answered at once by a server that works.
const CALL_DEADLINE: Duration = Duration::from_secs(15);
/// With something on its way, a server that says nothing for so long is not there: half-open connections are noticed by
/// the transport's keepalive (30 s), a server that hangs by this.
const SILENCE: Duration = Duration::from_secs(35);

/// A log server.
#[derive(Clone)]
pub(crate) struct Server {
    channel: Channel,
    url: String,
}

impl Server {
    /// Nothing is connected yet.
    ///
    /// # Errors
    /// When the URL or the token file cannot be used.
    pub(crate) fn new(url: &str, auth: &ClientAuth) -> anyhow::Result<Self> {
        let endpoint = Endpoint::new(url, auth).context("--log-server")?;
        Ok(Server { channel: endpoint.connect_lazy(), url: url.to_owned() })
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
    window_bytes: u64,
    /// Largest block of lines that is sent in one message; halved when the transport refuses one.
    most_block_bytes: u64,
    /// What the server has was sent entry by entry, so its numbers are not ours: no way back to batches.
    by_entries: bool,
    /// Refused lines, or lines the server lost: the digest of all lines says nothing then.
    incomplete: bool,
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
        window_bytes: u64,
    ) -> (Self, Watcher) {
        let (reporter, watcher) = progress::channel(spool.first_available() - 1);
        let client = LogStreamingServiceClient::new(server.channel.clone());
        let uploader = Uploader {
            server,
            client,
            run,
            metadata,
            spool,
            feedback,
            reporter,
            window_bytes,
            most_block_bytes: u64::MAX,
            by_entries: false,
            incomplete: false,
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
                    if self.reporter.acked() > before {
                        backoff.reset();
                    }
                    self.learn(&ended);
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
        let response = tokio::time::timeout(CALL_DEADLINE, call).await.map_err(|_| Break::Silence)??.into_inner();
        let is_new = response.status() == registration_response::Status::Success;
        let config = accepted(response)?;
        let acked = self.reporter.acked();
        if is_new && acked > 0 && !self.by_entries {
            tracing::warn!("the log server does not know this run any more: its lines up to {acked} are lost there");
            self.incomplete = true;
        }
        Ok(config)
    }

    /// A message the transport does not carry is cut smaller next time.
    fn learn(&mut self, ended: &Break) {
        /// Smaller ones would not be refused for their size.
        const LEAST: u64 = 4 << 10;
        if let Break::Status(status) = ended
            && matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted)
            && status.message().contains("message")
        {
            self.most_block_bytes = (self.most_block_bytes.min(1 << 20) / 2).max(LEAST);
            tracing::debug!(bytes = self.most_block_bytes, "blocks are cut smaller");
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
