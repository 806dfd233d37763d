//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::ArgAction;
use otto_proto::v1::{LogLevel, WorkerMetadata};
use otto_service::auth::ClientAuth;
use otto_service::client::parse_url;
use otto_service::settings::{ByteSize, Common, parse_duration};

use crate::capture::OnFull;

/// Smallest spool that leaves room for the pipes and a few blocks.
const LEAST_SPOOL: u64 = 1 << 20;
/// Unless --drain-timeout says another.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest id, as the log server takes it.
const LONGEST_ID: usize = 253;

/// Ottoscaler's agent in the worker: runs a command and brings its output to the log server.
#[derive(Debug, clap::Parser)]
#[command(name = "otto-worker", version, about, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Run COMMAND and end with its exit code (128+n after signal n; 127: not found, 126: cannot be run, 125: the agent
    /// itself failed).
    Run(Box<Start>),
    /// Send what agents that were killed, or had no log server, left in a spool directory. Ends with 0 if the log server
    /// has all of it. Takes all flags of `run`, so that it can be given the same; those about the job mean nothing.
    Drain(Box<Drain>),
    /// Copy this program to DIR/otto-worker, for containers of other images. One that is there is replaced.
    Install(Install),
}

/// Where output goes.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Upload {
    /// The log server, `http://HOST:PORT`. Without it the output stays in the spool directory.
    #[arg(long, env = "OTTO_LOG_SERVER", value_name = "URL", value_parser = parse_url)]
    pub(crate) log_server: Option<String>,

    #[command(flatten)]
    pub(crate) auth: ClientAuth,

    /// Directory for output that the log server has not acknowledged yet [default: `spool` in --run-dir; else, of `run`, a
    /// directory of the task and worker below the system's directory for temporary files]
    #[arg(long, env = "OTTO_SPOOL_DIR", value_name = "DIR")]
    pub(crate) spool_dir: Option<PathBuf>,

    /// How long to go on trying, when the job has ended and nothing is acknowledged any more. What is left then stays in
    /// the spool directory. [default: 30s; of `drain --wait`: for ever]
    #[arg(long, env = "OTTO_DRAIN_TIMEOUT", value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) drain_timeout: Option<Duration>,

    /// With something on its way, a log server that says nothing for so long counts as gone: the agent connects again.
    #[arg(long, env = "OTTO_ANSWER_TIMEOUT", value_name = "DURATION", default_value = "35s", value_parser = parse_duration)]
    pub(crate) answer_timeout: Duration,

    /// Most bytes on their way to the log server at a time.
    #[arg(long, env = "OTTO_WINDOW_BYTES", value_name = "SIZE", default_value = "4MiB")]
    pub(crate) window_bytes: ByteSize,

    /// Where the worker runs: the Pod's name. Told to the log server, as the next ones.
    #[arg(long, env = "OTTO_POD_NAME", value_name = "NAME", default_value = "")]
    pub(crate) pod_name: String,

    /// The Pod's namespace.
    #[arg(long, env = "OTTO_NAMESPACE", value_name = "NAME", default_value = "")]
    pub(crate) namespace: String,

    /// The machine's name [default: the host's name]
    #[arg(long, env = "OTTO_NODE_NAME", value_name = "NAME")]
    pub(crate) node_name: Option<String>,

    /// A label of the worker; may be repeated.
    #[arg(long, env = "OTTO_LABEL", value_name = "KEY=VALUE", value_parser = parse_label)]
    pub(crate) label: Vec<(String, String)>,
}

impl Upload {
    /// What the log server is told about the worker.
    pub(crate) fn metadata(&self, created_at: String) -> WorkerMetadata {
        WorkerMetadata {
            pod_name: self.pod_name.clone(),
            namespace: self.namespace.clone(),
            node_name: self.node_name.clone().unwrap_or_else(host_name),
            created_at,
            labels: self.label.iter().cloned().collect(),
        }
    }
}

/// The `run` command.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Start {
    #[command(flatten)]
    pub(crate) run: Run,

    /// File that is told how the job ended, as `exit.json` of a run directory, in at most 1024 bytes: a container's
    /// termination message.
    #[arg(long, env = "OTTO_EXIT_FILE", value_name = "FILE")]
    pub(crate) exit_file: Option<PathBuf>,

    /// When the job has ended and the log server acknowledges nothing for so long, the rest is left to the `drain --wait`
    /// that waits on the same --run-dir in another container. Where none waits, --drain-timeout holds.
    #[arg(long, env = "OTTO_HAND_OVER", value_name = "DURATION", value_parser = parse_duration, requires = "run_dir")]
    pub(crate) hand_over: Option<Duration>,

    /// Let programs of the job gain privileges (sudo and other setuid programs), where the agent could.
    #[arg(long, env = "OTTO_ALLOW_PRIVILEGE_ESCALATION", value_name = "BOOL", default_value_t = false, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub(crate) allow_privilege_escalation: bool,

    /// Take every signal for one to stop, and pass SIGTERM on to the job: as a container's first process, which gets the
    /// stop signal of the image (STOPSIGNAL), whatever that is.
    #[arg(long, env = "OTTO_ANY_SIGNAL_STOPS", value_name = "BOOL", default_value_t = false, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub(crate) any_signal_stops: bool,

    /// A variable of the job's environment, over one of that name which the agent has; may be repeated.
    #[arg(long, env = "OTTO_SET_ENV", value_name = "NAME=VALUE", value_parser = parse_variable)]
    pub(crate) set_env: Vec<(String, String)>,

    /// What to run.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// The `drain` command.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Drain {
    #[command(flatten)]
    pub(crate) run: Run,

    /// Beside an agent in another container: wait until it has come to --run-dir, which need not be there yet, and has
    /// ended, then send what it left. Told to end before it came, end at once; else when all is sent, or told twice.
    #[arg(long, env = "OTTO_WAIT", value_name = "BOOL", default_value_t = false, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub(crate) wait: bool,
}

/// The `install` command.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Install {
    /// Directory for the program; made if it is not there.
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
}

/// The flags of both commands.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) upload: Upload,

    /// The task this worker belongs to [default: $OTTO_JOB_TASK_ID, else the worker's id]
    #[arg(long, env = "OTTO_TASK_ID", value_name = "ID", value_parser = parse_id)]
    task_id: Option<String>,

    /// The worker's id: name of the Pod or run directory [default: $OTTO_JOB_WORKER_ID, else the host's name]
    #[arg(long, env = "OTTO_WORKER_ID", value_name = "ID", value_parser = parse_id)]
    worker_id: Option<String>,

    /// Run directory: makes sure that the job is started at most once, and receives how it ended.
    #[arg(long, env = "OTTO_RUN_DIR", value_name = "DIR")]
    pub(crate) run_dir: Option<PathBuf>,

    /// How long the job may run; then it gets SIGTERM, and SIGKILL before --grace is over.
    #[arg(long, env = "OTTO_TIMEOUT", value_name = "DURATION", value_parser = parse_duration)]
    timeout: Option<Duration>,

    /// Within so long after SIGTERM the job has ended: a fifth of it (at most 3s) before, it gets SIGKILL.
    #[arg(long, env = "OTTO_GRACE", value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    pub(crate) grace: Duration,

    /// How long to wait, when the job has ended, for processes it left behind that keep its output open. Then they are
    /// killed.
    #[arg(long, env = "OTTO_LINGER", value_name = "DURATION", default_value = "2s", value_parser = parse_duration)]
    pub(crate) linger: Duration,

    /// Most bytes of the spool; at least 1MiB.
    #[arg(long, env = "OTTO_SPOOL_BYTES", value_name = "SIZE", default_value = "1GiB", value_parser = parse_spool_bytes)]
    pub(crate) spool_bytes: ByteSize,

    /// When the spool is full: `block` makes the job wait, `drop` drops lines (those below level error first) and
    /// records the gap.
    #[arg(long, env = "OTTO_ON_FULL", value_name = "POLICY", default_value = "block")]
    pub(crate) on_full: OnFull,

    /// Lines are sent together up to so many bytes,
    #[arg(long, env = "OTTO_BATCH_BYTES", value_name = "SIZE", default_value = "256KiB")]
    pub(crate) batch_bytes: ByteSize,

    /// or so many lines,
    #[arg(long, env = "OTTO_BATCH_LINES", value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub(crate) batch_lines: u32,

    /// or when the first of them has waited so long. With nothing on its way to the log server lines do not wait.
    #[arg(long, env = "OTTO_BATCH_DELAY", value_name = "DURATION", default_value = "1ms", value_parser = parse_duration)]
    pub(crate) batch_delay: Duration,

    /// Compression of batches. Batches that do not get smaller by a tenth are sent as they are.
    #[arg(long, env = "OTTO_COMPRESSION", value_name = "KIND", default_value = "zstd")]
    pub(crate) compression: Compression,

    /// A line of more bytes is split; the log server may allow less.
    #[arg(long, env = "OTTO_MAX_LINE_BYTES", value_name = "SIZE", default_value = "64KiB", value_parser = parse_line_bytes)]
    pub(crate) max_line_bytes: ByteSize,

    /// The beginning of a line is shown after so long though its end has not come: a prompt, a progress bar. Not too
    /// short: a job that writes its output by full buffers ends them in the middle of a line.
    #[arg(long, env = "OTTO_PARTIAL_DELAY", value_name = "DURATION", default_value = "1s", value_parser = parse_duration)]
    pub(crate) partial_delay: Duration,

    /// Name of an environment variable of the job whose value is a secret: it is replaced by *** in the output. May be
    /// repeated.
    #[arg(long, env = "OTTO_MASK_ENV", value_name = "NAME", value_delimiter = ',')]
    pub(crate) mask_env: Vec<String>,

    /// File with secrets to be replaced by ***, one per line. May be repeated.
    #[arg(long, env = "OTTO_MASK_FILE", value_name = "FILE")]
    pub(crate) mask_file: Vec<PathBuf>,

    /// Level of lines of the job's stdout.
    #[arg(long, env = "OTTO_STDOUT_LEVEL", value_name = "LEVEL", default_value = "info")]
    pub(crate) stdout_level: Level,

    /// Level of lines of the job's stderr.
    #[arg(long, env = "OTTO_STDERR_LEVEL", value_name = "LEVEL", default_value = "error")]
    pub(crate) stderr_level: Level,

    /// Also print the output to the agent's own stdout and stderr.
    #[arg(long, env = "OTTO_TEE", value_name = "BOOL", default_value_t = true, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub(crate) tee: bool,

    /// W3C trace context that the run belongs to [default: $TRACEPARENT]
    #[arg(long, env = "OTTO_TRACEPARENT", value_name = "TRACEPARENT")]
    traceparent: Option<String>,
}

impl Run {
    /// The worker's id, by flag, by the job's environment, or the host's name.
    pub(crate) fn worker_id(&self) -> String {
        let by_job = || std::env::var("OTTO_JOB_WORKER_ID").ok().filter(|id| parse_id(id).is_ok());
        self.worker_id.clone().or_else(by_job).unwrap_or_else(host_name)
    }

    /// The task's id, by flag, by the job's environment, or the worker's id.
    pub(crate) fn task_id(&self) -> String {
        let by_job = || std::env::var("OTTO_JOB_TASK_ID").ok().filter(|id| parse_id(id).is_ok());
        self.task_id.clone().or_else(by_job).unwrap_or_else(|| self.worker_id())
    }

    /// Directory of the spool, if a flag says it.
    pub(crate) fn spool_dir(&self) -> Option<PathBuf> {
        let in_run_dir = || self.run_dir.as_ref().map(|dir| dir.join("spool"));
        self.upload.spool_dir.clone().or_else(in_run_dir)
    }

    /// How long to wait for a log server that acknowledges nothing.
    pub(crate) fn drain_timeout(&self) -> Duration {
        self.upload.drain_timeout.unwrap_or(DRAIN_TIMEOUT)
    }

    /// The same when the job has ended. `hand_over`: if a drainer waits beside this agent.
    pub(crate) fn sending_timeout(&self, hand_over: Option<Duration>) -> Duration {
        let timeout = self.drain_timeout();
        let (Some(hand_over), Some(dir)) = (hand_over, self.run_dir.as_deref()) else { return timeout };
        if crate::drain::beside::is_there(dir) {
            return hand_over.min(timeout);
        }
        tracing::warn!(
            "no drainer waits beside this agent: it stays until all is sent, for up to {timeout:?} of silence"
        );
        timeout
    }

    /// How long the job may run; zero is for ever.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.timeout.filter(|timeout| !timeout.is_zero())
    }

    /// The trace context it was given.
    pub(crate) fn traceparent(&self) -> Option<String> {
        self.traceparent.clone().or_else(|| std::env::var("TRACEPARENT").ok()).filter(|text| !text.is_empty())
    }
}

/// Compression of batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Compression {
    None,
    Zstd,
}

impl Compression {
    /// zstd's level, if any. The lowest: measured here on one core, 100-byte lines of random hexadecimal digits pass the
    /// agent at 2.5 million a second with it and at 5 million without, and take half the room on the server's disk.
    pub(crate) fn level(self) -> Option<i32> {
        (self == Compression::Zstd).then_some(1)
    }
}

/// Level of a whole output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Level {
    None,
    Trace,
    Debug,
    Info,
    Warn,
    Error,
    Fatal,
}

impl From<Level> for LogLevel {
    fn from(level: Level) -> Self {
        match level {
            Level::None => LogLevel::Unspecified,
            Level::Trace => LogLevel::Trace,
            Level::Debug => LogLevel::Debug,
            Level::Info => LogLevel::Info,
            Level::Warn => LogLevel::Warn,
            Level::Error => LogLevel::Error,
            Level::Fatal => LogLevel::Fatal,
        }
    }
}

fn parse_id(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > LONGEST_ID {
        return Err(format!("{} bytes; an id has 1 to {LONGEST_ID}", text.len()));
    }
    Ok(text.to_owned())
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("no `=`; a label is KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn parse_variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("no `=`; a variable is NAME=VALUE")?;
    if name.is_empty() {
        return Err("no name; a variable is NAME=VALUE".to_owned());
    }
    Ok((name.to_owned(), value.to_owned()))
}

fn parse_spool_bytes(text: &str) -> Result<ByteSize, String> {
    let size: ByteSize = text.parse()?;
    if size.as_u64() < LEAST_SPOOL {
        return Err(format!("{size} is too little; a spool has at least {}", ByteSize::new(LEAST_SPOOL)));
    }
    Ok(size)
}

fn parse_line_bytes(text: &str) -> Result<ByteSize, String> {
    let size: ByteSize = text.parse()?;
    if !(16..=1 << 20).contains(&size.as_u64()) {
        return Err(format!("{size}; a line may have from 16 bytes to 1MiB"));
    }
    Ok(size)
}

fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { "localhost".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_setting_is_also_a_variable() {
        let mut command = Cli::command();
        command.build();
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            for arg in sub
                .get_arguments()
                .filter(|arg| !matches!(arg.get_id().as_str(), "help" | "version" | "command" | "dir"))
            {
                let flag = arg.get_long().unwrap();
                let variable = format!("OTTO_{}", flag.to_uppercase().replace('-', "_"));
                assert_eq!(arg.get_env().and_then(|name| name.to_str()), Some(variable.as_str()), "--{flag}");
            }
        }
    }
}
