//! Settings: each is a flag, an environment variable (`OTTO_…`) and a key of the `--config` file.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use otto_service::settings::{self, Secret, parse_duration, parse_listen_addr};
use otto_service::{auth, grpc};

use crate::apply::{Defaults, Pods};
use crate::controller::Options;
use crate::driver::{kubernetes, process};
use crate::inbox::redis;
use crate::inbox::redis::keys::EventStart;
use crate::inbox::redis::link::Url;
use crate::plan::Policy;
use crate::plan::admission::Limits;
use crate::plan::patience::Patience;
use crate::task::Millis;

/// Starts the workers that events ask for.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "otto-scaler", version, about, max_term_width = 110, after_help = otto_service::probe::HELP)]
pub(crate) struct Config {
    #[command(flatten)]
    pub(crate) common: settings::Common,
    #[command(flatten)]
    pub(crate) auth: auth::ServerAuth,

    /// Where workers run.
    #[arg(long, env = "OTTO_DRIVER", value_name = "DRIVER", default_value = "process")]
    pub(crate) driver: DriverKind,

    #[command(flatten)]
    pub(crate) redis: RedisArgs,

    /// The log server: workers send their output there, the scaler what happens to them.
    #[arg(long, env = "OTTO_LOG_SERVER", value_name = "URL", default_value = "http://127.0.0.1:50051", value_parser = otto_service::client::parse_url)]
    pub(crate) log_server: String,
    /// Address of the gRPC server.
    #[arg(long, env = "OTTO_GRPC_ADDR", value_name = "ADDR", default_value = "127.0.0.1:9090", value_parser = parse_listen_addr)]
    pub(crate) grpc_addr: SocketAddr,
    /// Address of `/metrics`, `/livez`, `/readyz`.
    #[arg(long, env = "OTTO_ADMIN_ADDR", value_name = "ADDR", default_value = "127.0.0.1:9091", value_parser = parse_listen_addr)]
    pub(crate) admin_addr: SocketAddr,
    /// Run directories of local workers, and the task records where there is no Redis.
    #[arg(long, env = "OTTO_DATA_DIR", value_name = "DIR", default_value = "otto-data/scaler")]
    pub(crate) data_dir: PathBuf,
    /// File that is written once the addresses are served: `{"grpc_addr": …, "admin_addr": …}`.
    #[arg(long, env = "OTTO_READY_FILE", value_name = "FILE")]
    pub(crate) ready_file: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) limits: LimitArgs,
    #[command(flatten)]
    pub(crate) work: WorkArgs,
    #[command(flatten)]
    pub(crate) process: process::Settings,
    #[command(flatten)]
    pub(crate) kubernetes: kubernetes::Settings,
    #[command(flatten)]
    pub(crate) lease: kubernetes::lease::Settings,
    #[command(flatten)]
    pub(crate) grpc: grpc::Limits,
}

/// The event stream.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Redis")]
pub(crate) struct RedisArgs {
    /// Redis with the stream of events and the task records, such as redis://127.0.0.1:6379. Without it, events come by
    /// gRPC only, and the records are in a file of the data directory.
    #[arg(long, env = "OTTO_REDIS_URL", value_name = "URL")]
    pub(crate) redis_url: Option<Secret>,
    /// PEM certificates of the authorities to trust for rediss:// instead of the public ones.
    #[arg(long, env = "OTTO_REDIS_CA_FILE", value_name = "FILE")]
    pub(crate) redis_ca_file: Option<PathBuf>,
    /// The Redis stream that events are read from.
    #[arg(long, env = "OTTO_EVENT_STREAM", value_name = "KEY", default_value = "otto:scale:events")]
    pub(crate) event_stream: String,
    /// The consumer group that reads it.
    #[arg(long, env = "OTTO_CONSUMER_GROUP", value_name = "NAME", default_value = "ottoscaler")]
    pub(crate) consumer_group: String,
    /// Where a group that is created for the first time begins: `0` (everything in the stream), `$` (what comes from now
    /// on), or an entry id (what comes after it). `auto`: `$` if the stream has entries older than the record retention,
    /// otherwise `0`.
    #[arg(long, env = "OTTO_EVENT_START", value_name = "auto|0|$|ID", default_value = "auto")]
    pub(crate) event_start: EventStart,
    /// Entries that were applied are trimmed from the stream after this time; 0s: never.
    #[arg(long, env = "OTTO_KEEP_EVENTS", value_name = "TIME", default_value = "1h", value_parser = parse_duration)]
    pub(crate) keep_events: Duration,
    /// Most entries of the dead-letter stream, about.
    #[arg(long, env = "OTTO_MAX_DEAD_LETTERS", value_name = "N", default_value = "10000")]
    pub(crate) max_dead_letters: u64,
    /// The Redis stream that worker events are added to.
    #[arg(long, env = "OTTO_WORKER_EVENT_STREAM", value_name = "KEY", default_value = "otto:worker:events")]
    pub(crate) worker_event_stream: String,
    /// Most entries of the stream of worker events, about.
    #[arg(long, env = "OTTO_MAX_WORKER_EVENTS", value_name = "N", default_value = "100000")]
    pub(crate) max_worker_events: u64,
}

impl RedisArgs {
    /// What the Redis inbox and task store go by; `None`: there is no Redis.
    ///
    /// # Errors
    /// If the URL is none, or the certificates cannot be read.
    pub(crate) fn options(&self, retention: Duration) -> anyhow::Result<Option<redis::Options>> {
        let Some(url) = &self.redis_url else { return Ok(None) };
        let url: Url = url.expose().parse().map_err(|error| anyhow::anyhow!("--redis-url: {error}"))?;
        let read = |path: &PathBuf| {
            std::fs::read(path).with_context(|| format!("cannot read {} (--redis-ca-file)", path.display()))
        };
        Ok(Some(redis::Options {
            url,
            ca: self.redis_ca_file.as_ref().map(read).transpose()?,
            stream: self.event_stream.clone(),
            group: self.consumer_group.clone(),
            start: self.event_start,
            retention,
            keep_events: Some(self.keep_events).filter(|time| !time.is_zero()),
            max_dead_letters: self.max_dead_letters,
            worker_events: self.worker_event_stream.clone(),
            max_worker_events: self.max_worker_events,
        }))
    }
}

/// Pods that have ended stay at least so long.
const KEEP_PODS: Duration = Duration::from_secs(600);

/// How much at once.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct LimitArgs {
    /// Workers live at once. More wait, by priority, then by age.
    #[arg(long, env = "OTTO_MAX_WORKERS", value_name = "N", default_value = "100", value_parser = at_least_one)]
    pub(crate) max_workers: u32,
    /// Workers live at once of one repository; 0: no limit. Tasks without a repository are not limited.
    #[arg(long, env = "OTTO_MAX_WORKERS_PER_REPOSITORY", value_name = "N", default_value = "0")]
    pub(crate) max_workers_per_repository: u32,
    /// Workers live at once of one task; 0: no limit.
    #[arg(long, env = "OTTO_MAX_WORKERS_PER_TASK", value_name = "N", default_value = "0")]
    pub(crate) max_workers_per_task: u32,
    /// Largest number of workers that an event may ask for.
    #[arg(long, env = "OTTO_MAX_COUNT", value_name = "N", default_value = "1000", value_parser = at_least_one)]
    pub(crate) max_count: u32,
    /// Workers being created at once. Default: 16 (driver process), 32 (driver kubernetes).
    #[arg(long, env = "OTTO_MAX_CREATIONS", value_name = "N", value_parser = at_least_one)]
    pub(crate) max_creations: Option<u32>,
    /// Task records being written at once; more wait.
    #[arg(long, env = "OTTO_MAX_WRITES", value_name = "N", default_value = "256", value_parser = at_least_one)]
    pub(crate) max_writes: u32,
    /// How long records of ended tasks are kept. An event older than this is never applied.
    #[arg(long, env = "OTTO_RECORD_RETENTION", value_name = "TIME", default_value = "7d", value_parser = retention)]
    pub(crate) record_retention: Duration,
    /// How long what is left of an ended worker is kept after its result is stored: its run directory, or its Pod. With
    /// the driver kubernetes at least 10m; a Pod whose job could not be started goes at once.
    #[arg(long, env = "OTTO_KEEP_ENDED", value_name = "TIME", default_value = "10m", value_parser = parse_duration)]
    pub(crate) keep_ended: Duration,
    /// Ended workers of which something is left: of more, the oldest are removed, however young they are. In a burst this
    /// takes a minute or two, so that it does not slow down the start of others; twice as many never stay.
    #[arg(long, env = "OTTO_MAX_ENDED", value_name = "N", default_value = "2000")]
    pub(crate) max_ended: u32,
}

/// What events leave open.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Workers")]
pub(crate) struct WorkArgs {
    /// What a worker runs if its event does not say, as a JSON array of strings. Default: `otto demo`
    /// (driver process); none (driver kubernetes: the event says, or is refused).
    #[arg(long, env = "OTTO_DEFAULT_COMMAND", value_name = "JSON", value_parser = command)]
    pub(crate) default_command: Option<Command>,
    /// Container image if the event does not say (driver kubernetes).
    #[arg(long, env = "OTTO_WORKER_IMAGE", value_name = "IMAGE", default_value = "")]
    pub(crate) worker_image: String,
    /// Longest time one attempt may run if the event does not say; 0: no limit.
    #[arg(long, env = "OTTO_DEFAULT_TIMEOUT", value_name = "TIME", default_value = "0s", value_parser = parse_duration)]
    pub(crate) default_timeout: Duration,
    /// Attempts of a job that fails by itself, if the event does not say.
    #[arg(long, env = "OTTO_DEFAULT_MAX_ATTEMPTS", value_name = "N", default_value = "1", value_parser = at_least_one)]
    pub(crate) default_max_attempts: u32,
    /// Further attempts after failures that are not the job's (node lost, evicted, no process could be started). A start that
    /// fails at once is tried again within --start-patience, however often.
    #[arg(long, env = "OTTO_INFRASTRUCTURE_RETRIES", value_name = "N", default_value = "3")]
    pub(crate) infrastructure_retries: u32,
    /// Wait before a second attempt; doubles with each further one.
    #[arg(long, env = "OTTO_RETRY_BACKOFF_MIN", value_name = "TIME", default_value = "1s", value_parser = parse_duration)]
    pub(crate) retry_backoff_min: Duration,
    /// Longest wait before a further attempt.
    #[arg(long, env = "OTTO_RETRY_BACKOFF_MAX", value_name = "TIME", default_value = "5m", value_parser = parse_duration)]
    pub(crate) retry_backoff_max: Duration,
    /// Longest wait of a worker for what its job needs before it can begin (image, configuration, volumes); then the attempt
    /// has failed because of that. 0s: for ever. What can never come is not waited for.
    #[arg(long, env = "OTTO_START_PATIENCE", value_name = "TIME", default_value = "5m", value_parser = parse_duration)]
    pub(crate) start_patience: Duration,
    /// Longest wait of a worker for a place (a node that fits, room in a quota); then the attempt has failed because of
    /// that. 0s: for ever.
    #[arg(long, env = "OTTO_SCHEDULE_PATIENCE", value_name = "TIME", default_value = "15m", value_parser = parse_duration)]
    pub(crate) schedule_patience: Duration,
    /// Time between SIGTERM and SIGKILL for a worker that is stopped.
    #[arg(long, env = "OTTO_GRACE", value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub(crate) grace: Duration,
    /// The agent (driver process). Default: `otto-worker` beside this program, otherwise found by PATH.
    #[arg(long, env = "OTTO_WORKER_BINARY", value_name = "FILE")]
    pub(crate) worker_binary: Option<PathBuf>,
}

/// Where workers run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum DriverKind {
    /// Child processes of this machine.
    Process,
    /// Pods of a Kubernetes cluster.
    Kubernetes,
}

/// A program and its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Command(pub(crate) Vec<String>);

fn command(text: &str) -> Result<Command, String> {
    match serde_json::from_str::<Vec<String>>(text) {
        Ok(words) if words.first().is_some_and(|program| !program.is_empty()) => Ok(Command(words)),
        _ => Err(r#"accepted: a JSON array of strings, the program first, such as ["make","test"]"#.to_owned()),
    }
}

fn at_least_one(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("accepted: a number from 1 to {}", u32::MAX)),
    }
}

fn retention(text: &str) -> Result<Duration, String> {
    let time = parse_duration(text)?;
    if time < Duration::from_secs(60) {
        return Err(
            "accepted: 1m or longer; a repeated event is recognised only as long as records are kept".to_owned()
        );
    }
    Ok(time)
}

pub(crate) fn millis(time: Duration) -> Millis {
    // A century is as good as never, and leaves room to add.
    Millis::try_from(time.as_millis()).unwrap_or(Millis::MAX).min(100 * 366 * 24 * 3_600_000)
}

/// 0 is no end.
fn forever(time: Duration) -> Option<Millis> {
    (!time.is_zero()).then(|| millis(time))
}

fn optional(limit: u32) -> Option<usize> {
    (limit > 0).then(|| usize::try_from(limit).unwrap_or(usize::MAX))
}

impl Config {
    /// What the controller goes by.
    ///
    /// # Errors
    /// If two settings do not fit each other.
    pub(crate) fn options(&self) -> anyhow::Result<Options> {
        let work = &self.work;
        anyhow::ensure!(
            work.retry_backoff_min <= work.retry_backoff_max,
            "--retry-backoff-min ({:?}) is longer than --retry-backoff-max ({:?})",
            work.retry_backoff_min,
            work.retry_backoff_max
        );
        let kubernetes = self.driver == DriverKind::Kubernetes;
        anyhow::ensure!(
            !kubernetes || self.limits.keep_ended >= KEEP_PODS,
            "--keep-ended ({:?}) is too short for --driver kubernetes; accepted: 10m or longer (Pods that have ended are the \
             witnesses of what ran, should records be lost; --max-ended limits how many there are)",
            self.limits.keep_ended
        );
        anyhow::ensure!(
            self.limits.record_retention > self.limits.keep_ended,
            "--record-retention ({:?}) is not longer than --keep-ended ({:?}): what is left of a worker would be taken for that of \
             a later task of the same name",
            self.limits.record_retention,
            self.limits.keep_ended
        );
        let timeout = work.default_timeout;
        let timeout_seconds = u32::try_from(timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0))
            .context("--default-timeout is too long; accepted: at most 4294967295s")?;
        Ok(Options {
            defaults: Defaults {
                image: work.worker_image.clone(),
                command: self.default_command(),
                timeout_seconds,
                max_attempts: work.default_max_attempts,
                max_count: self.limits.max_count,
                retention: millis(self.limits.record_retention),
                pods: match self.driver {
                    DriverKind::Process => None,
                    DriverKind::Kubernetes => Some(Pods { classes: kubernetes::resource_classes(&self.kubernetes)? }),
                },
            },
            policy: Policy {
                infrastructure_retries: work.infrastructure_retries,
                backoff_min: millis(work.retry_backoff_min),
                backoff_max: millis(work.retry_backoff_max),
                keep_ended: millis(self.limits.keep_ended),
                overdue: millis(work.grace) + 30_000,
                stop_again: millis(work.grace) + 30_000,
                patience: Patience { start: forever(work.start_patience), schedule: forever(work.schedule_patience) },
            },
            limits: Limits {
                total: optional(self.limits.max_workers),
                per_repository: optional(self.limits.max_workers_per_repository),
                per_task: optional(self.limits.max_workers_per_task),
            },
            creations: optional(self.limits.max_creations.unwrap_or(if kubernetes { 32 } else { 16 })).unwrap_or(1),
            writes: optional(self.limits.max_writes).unwrap_or(1),
            remains: usize::try_from(self.limits.max_ended).unwrap_or(usize::MAX),
        })
    }

    /// What runs if an event does not say. A Pod's image is anybody's: there is nothing to be found in it.
    fn default_command(&self) -> Vec<String> {
        match (&self.work.default_command, self.driver) {
            (Some(command), _) => command.0.clone(),
            (None, DriverKind::Process) => demo(),
            (None, DriverKind::Kubernetes) => Vec::new(),
        }
    }

    /// What the process driver goes by.
    pub(crate) fn process(&self) -> process::Options {
        let beside = || sibling("otto-worker").unwrap_or_else(|| "otto-worker".into());
        process::Options {
            data_dir: self.data_dir.clone(),
            worker_binary: self.work.worker_binary.clone().unwrap_or_else(beside),
            worker_args: self.process.worker_args(),
            log_server: self.log_server.clone(),
            auth_token_file: self.process.worker_token_file.clone().or_else(|| self.auth.auth_token_file.clone()),
            stop_grace: self.work.grace,
            drain_limit: self.process.drain_limit,
        }
    }

    /// What the Kubernetes driver goes by.
    pub(crate) fn kubernetes(&self) -> kubernetes::Options {
        kubernetes::Options {
            log_server: self.kubernetes.worker_log_server.clone().unwrap_or_else(|| self.log_server.clone()),
            settings: self.kubernetes.clone(),
            worker_image: self.work.worker_image.clone(),
            worker_args: self.process.worker_args(),
            start_patience: self.work.start_patience,
            stop_grace: self.work.grace,
            drain_limit: self.process.drain_limit,
        }
    }
}

/// A program beside this one.
fn sibling(name: &str) -> Option<PathBuf> {
    let path = std::env::current_exe().ok()?.parent()?.join(name);
    path.is_file().then_some(path)
}

/// `otto demo`, or a line from the shell where this program stands alone.
fn demo() -> Vec<String> {
    let shell = "/bin/sh";
    match sibling("otto") {
        Some(otto) => vec![otto.to_string_lossy().into_owned(), "demo".to_owned()],
        None if std::path::Path::new(shell).exists() => {
            let script = r#"echo "worker $OTTO_JOB_INDEX of task $OTTO_JOB_TASK_ID: hello""#;
            [shell, "-c", script].map(str::to_owned).to_vec()
        }
        None => vec!["otto".to_owned(), "demo".to_owned()],
    }
}

#[cfg(test)]
mod tests;
