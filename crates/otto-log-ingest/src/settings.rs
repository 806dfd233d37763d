//! Flags, environment and file of the log server.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use otto_service::settings::{ByteSize, Common, parse_duration, parse_listen_addr};
use otto_service::{auth, grpc};

/// Takes the output of workers over gRPC, keeps it on disk, and serves it to readers over gRPC and HTTP.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "otto-log-ingest", version, about, max_term_width = 110, after_help = otto_service::probe::HELP)]
pub struct Settings {
    /// What every program has.
    #[command(flatten)]
    pub common: Common,

    /// Address of the gRPC services.
    #[arg(long, env = "OTTO_GRPC_ADDR", value_name = "ADDR", default_value = "127.0.0.1:50051", value_parser = parse_listen_addr)]
    pub grpc_addr: SocketAddr,

    /// Address of the page, the HTTP API, metrics and probes.
    #[arg(long, env = "OTTO_HTTP_ADDR", value_name = "ADDR", default_value = "127.0.0.1:8080", value_parser = parse_listen_addr)]
    pub http_addr: SocketAddr,

    /// When serving, write the addresses (ports chosen by the system included) as JSON to this file.
    #[arg(long, env = "OTTO_READY_FILE", value_name = "FILE")]
    pub ready_file: Option<PathBuf>,

    /// Threads that serve. The store has its own.
    #[arg(long, env = "OTTO_RUNTIME_THREADS", value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub runtime_threads: u16,

    /// Who may.
    #[command(flatten)]
    pub auth: auth::ServerAuth,

    /// File with a bearer token for workers, which is good for ottoscaler.v1.LogStreamingService alone: whoever has it can
    /// send logs, and can neither read them nor report events. Several lines: each is accepted. Read again when it
    /// changes. Workers present it by their own --auth-token-file.
    #[arg(long, env = "OTTO_WORKER_TOKEN_FILE", value_name = "FILE", requires = "auth_token_file")]
    pub worker_token_file: Option<PathBuf>,

    /// The store.
    #[command(flatten)]
    pub store: StoreSettings,

    /// Bounds of workers and readers.
    #[command(flatten)]
    pub limits: Limits,

    /// Bounds of the gRPC server.
    #[command(flatten)]
    pub grpc: grpc::Limits,

    /// Open HTTP connections at most; more are refused.
    #[arg(long, env = "OTTO_HTTP_MAX_CONNECTIONS", value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..), help_heading = "HTTP limits")]
    pub http_max_connections: u32,
}

/// Where and how long logs are kept.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Store")]
pub struct StoreSettings {
    /// Directory of the logs. Made if its parent exists.
    #[arg(long, env = "OTTO_DATA_DIR", value_name = "DIR")]
    pub data_dir: PathBuf,

    /// Lines are removed when they have been kept for so long; 0: never by age.
    #[arg(long, env = "OTTO_RETENTION_AGE", value_name = "TIME", default_value = "7d", value_parser = parse_duration)]
    pub retention_age: Duration,

    /// The oldest lines are removed when all together are larger than this; 0: never by size.
    #[arg(long, env = "OTTO_RETENTION_BYTES", value_name = "SIZE", default_value = "10GiB")]
    pub retention_bytes: ByteSize,

    /// A worker that was silent for so long and did not finish cannot go on with its run.
    #[arg(long, env = "OTTO_IDLE_RUN_AGE", value_name = "TIME", default_value = "30d", value_parser = parse_duration)]
    pub idle_run_age: Duration,

    /// Size at which a file of the store is sealed and another begun, 64KiB to 1GiB.
    #[arg(long, env = "OTTO_SEGMENT_BYTES", value_name = "SIZE", default_value = "64MiB")]
    pub segment_bytes: ByteSize,

    /// Memory for pages of the store's index.
    #[arg(long, env = "OTTO_INDEX_CACHE_BYTES", value_name = "SIZE", default_value = "4MiB")]
    pub index_cache_bytes: ByteSize,

    /// Bytes of all streams together that may wait to be written.
    #[arg(long, env = "OTTO_MAX_IN_FLIGHT_BYTES", value_name = "SIZE", default_value = "32MiB")]
    pub max_in_flight_bytes: ByteSize,
}

impl StoreSettings {
    /// For [`otto_log_store::Store::open`].
    #[must_use]
    pub fn options(&self) -> otto_log_store::Options {
        let mut options = otto_log_store::Options::new(&self.data_dir);
        options.segment_bytes = self.segment_bytes.as_u64();
        options.retention_age = (!self.retention_age.is_zero()).then_some(self.retention_age);
        options.retention_bytes = Some(self.retention_bytes.as_u64()).filter(|bytes| *bytes > 0);
        options.idle_run_age = self.idle_run_age;
        options.queue_bytes = self.max_in_flight_bytes.as_usize();
        options.index_cache_bytes = self.index_cache_bytes.as_usize();
        options
    }
}

/// Bounds of workers and readers.
#[derive(Clone, Debug, clap::Args)]
// The derived name is that of the type, which the gRPC limits have too.
#[group(id = "log-limits")]
#[command(next_help_heading = "Log limits")]
pub struct Limits {
    /// Largest line, its metadata included; a longer one is dropped, and a gap says so. At most 4MiB, and smaller than
    /// --grpc-max-message-size.
    #[arg(long, env = "OTTO_MAX_LINE_BYTES", value_name = "SIZE", default_value = "1MiB", value_parser = line_bytes)]
    pub max_line_bytes: ByteSize,

    /// Workers registered at once; more are told SERVER_FULL.
    #[arg(long, env = "OTTO_MAX_WORKERS", value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_workers: u32,

    /// A registered worker without an open stream makes room for others after so long (it can register again).
    #[arg(long, env = "OTTO_WORKER_TTL", value_name = "TIME", default_value = "1h", value_parser = parse_duration)]
    pub worker_ttl: Duration,

    /// Open streams of workers at once; more end with RESOURCE_EXHAUSTED.
    #[arg(long, env = "OTTO_MAX_SESSIONS", value_name = "N", default_value_t = 12_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_sessions: u32,

    /// Open readings at once; more end with RESOURCE_EXHAUSTED.
    #[arg(long, env = "OTTO_MAX_READERS", value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_readers: u32,

    /// Memory for the blocks of one reading that merges many workers; with more, lines are merged less finely.
    #[arg(long, env = "OTTO_READER_BYTES", value_name = "SIZE", default_value = "32MiB")]
    pub reader_bytes: ByteSize,

    /// Bytes of one stream that may wait to be written; then it is not read.
    #[arg(long, env = "OTTO_STREAM_IN_FLIGHT_BYTES", value_name = "SIZE", default_value = "8MiB")]
    pub stream_in_flight_bytes: ByteSize,

    /// Bytes of all streams together that were received and cannot be queued yet; what does not fit is given back with RETRY
    /// at once.
    #[arg(long, env = "OTTO_MAX_HELD_BYTES", value_name = "SIZE", default_value = "64MiB")]
    pub max_held_bytes: ByteSize,

    /// Lines a worker is told to have unacknowledged at most; 0: no limit.
    #[arg(long, env = "OTTO_CLIENT_BUFFER_LINES", value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=i32::MAX as i64))]
    pub client_buffer_lines: u32,

    /// A stream of batches must begin with its `open` within this time.
    #[arg(long, env = "OTTO_OPEN_TIMEOUT", value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    pub open_timeout: Duration,

    /// Lines that cannot be queued for so long are given back with RETRY …
    #[arg(long, env = "OTTO_BUSY_WAIT", value_name = "TIME", default_value = "2s", value_parser = parse_duration)]
    pub busy_wait: Duration,

    /// … and this delay.
    #[arg(long, env = "OTTO_BUSY_DELAY", value_name = "TIME", default_value = "500ms", value_parser = parse_duration)]
    pub busy_delay: Duration,

    /// Delay of RETRY while the disk is full.
    #[arg(long, env = "OTTO_DISK_FULL_DELAY", value_name = "TIME", default_value = "2s", value_parser = parse_duration)]
    pub disk_full_delay: Duration,

    /// Followers of a task that has ended wait so long for a worker which has not finished its log and is not connected:
    /// longer than a worker takes to notice that its connection is dead, and to come back.
    #[arg(long, env = "OTTO_TAIL_LINGER", value_name = "TIME", default_value = "45s", value_parser = parse_duration)]
    pub tail_linger: Duration,
}

/// A block must hold a line of this size.
fn line_bytes(text: &str) -> Result<ByteSize, String> {
    let size: ByteSize = text.parse()?;
    if (1..=4 << 20).contains(&size.as_u64()) { Ok(size) } else { Err("a line is from 1B to 4MiB".to_owned()) }
}

#[cfg(test)]
mod tests {
    use otto_service::settings::load_from;

    use super::*;

    fn load(args: &[&str]) -> Result<Settings, String> {
        let args = ["otto-log-ingest", "--data-dir", "d"].iter().chain(args);
        load_from(args, |_| None).map_err(|exit| exit.to_string())
    }

    #[test]
    fn defaults_are_those_of_the_design() {
        let settings = load(&[]).unwrap();
        assert_eq!(settings.grpc_addr.to_string(), "127.0.0.1:50051");
        assert_eq!(settings.http_addr.to_string(), "127.0.0.1:8080");
        assert_eq!(settings.limits.max_line_bytes.as_u64(), 1 << 20);
        let options = settings.store.options();
        assert_eq!(options.retention_age, Some(Duration::from_secs(7 * 24 * 3600)));
        assert_eq!(options.retention_bytes, Some(10 << 30));
    }

    #[test]
    fn zero_means_for_ever() {
        let options = load(&["--retention-age", "0", "--retention-bytes", "0"]).unwrap().store.options();
        assert_eq!((options.retention_age, options.retention_bytes), (None, None));
    }

    #[test]
    fn bad_values_are_named() {
        for (flag, value) in [
            ("--max-line-bytes", "5MiB"),
            ("--max-workers", "0"),
            ("--grpc-addr", "nowhere"),
            ("--retention-age", "soon"),
        ] {
            let error = load(&[flag, value]).unwrap_err();
            assert!(error.contains(flag) && error.contains(value), "{error}");
        }
        let error = load(&["--worker-token-file", "w"]).unwrap_err();
        assert!(error.contains("--auth-token-file"), "{error}");
        let error = load_from::<Settings>(["otto-log-ingest"], |_| None).unwrap_err().to_string();
        assert!(error.contains("--data-dir"), "{error}");
    }
}
