//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use otto_service::auth::ClientAuth;
use otto_service::client::parse_url;
use otto_service::settings;

const EXIT_CODES: &str = "Exit codes:
  0    done; with -f: the task succeeded and its log is complete
  1    the task failed or was cancelled
  2    wrong usage, or the server refused a value
  3    no such task, worker or dead letter
  4    a server cannot be reached, or refuses the credentials
  5    the log is not complete
  6    the server could not do it
  130  interrupted";

/// Submits tasks, follows their logs, and looks after them.
#[derive(Parser, Debug)]
#[command(name = "otto", version, about, after_help = EXIT_CODES, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// The scaler's gRPC address.
    #[arg(long, env = "OTTO_SCALER", value_name = "URL", default_value = "http://127.0.0.1:9090", value_parser = parse_url, global = true)]
    pub(crate) scaler: String,
    /// The log server's gRPC address.
    #[arg(long, env = "OTTO_LOG_SERVER", value_name = "URL", default_value = "http://127.0.0.1:50051", value_parser = parse_url, global = true)]
    pub(crate) log_server: String,
    /// `table` for people, `json` for programs (one object a line).
    #[arg(long, env = "OTTO_OUTPUT", value_name = "FORM", default_value = "table", global = true)]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) auth: ClientAuth,
    #[command(flatten)]
    pub(crate) common: settings::Common,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Table,
    Json,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Runs a command in workers of its own.
    Submit(Submit),
    /// Prints the log of a task.
    Logs(Logs),
    /// Lists tasks, newest first.
    Tasks(Tasks),
    /// Lists the workers of a task.
    Workers { task: String },
    /// Changes how many workers a task has.
    Scale { task: String, workers: u32 },
    /// Stops a task and all its workers.
    Cancel { task: String },
    /// Forgets a task that has ended. The same event would run it again.
    Delete { task: String },
    /// Prints a stream of recognisable lines: something to look at.
    Demo(Demo),
    /// Events that could not be applied.
    DeadLetters {
        #[command(subcommand)]
        action: DeadLetters,
    },
    /// Runs stages in the order of their dependencies.
    Pipeline {
        #[command(subcommand)]
        action: Pipeline,
    },
    /// Prints a completion script for a shell.
    Completions { shell: clap_complete::Shell },
}

#[derive(Args, Debug)]
pub(crate) struct Submit {
    /// Workers that run the command, each with its `OTTO_JOB_INDEX`.
    #[arg(long, short = 'n', value_name = "N", default_value_t = 1)]
    pub(crate) count: u32,
    /// Container image, for drivers that use one.
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: Option<String>,
    /// Name of the task. Submitting it again changes nothing. Default: a new one, which is printed.
    #[arg(long, value_name = "TASK")]
    pub(crate) task_id: Option<String>,
    /// Environment variable of the command; may be repeated.
    #[arg(long = "env", short = 'e', value_name = "NAME=VALUE", value_parser = name_and_value)]
    pub(crate) environment: Vec<(String, String)>,
    /// Longest time an attempt may run, such as 90s or 2h.
    #[arg(long, value_name = "DURATION", value_parser = settings::parse_duration)]
    pub(crate) timeout: Option<Duration>,
    /// Attempts before the task has failed.
    #[arg(long, value_name = "N")]
    pub(crate) max_attempts: Option<u32>,
    /// Higher goes first.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) priority: Option<i32>,
    /// For the log page: where the code comes from.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) repository: String,
    /// For the log page: which code.
    #[arg(long, value_name = "SHA", default_value = "")]
    pub(crate) commit_sha: String,
    /// For the log page: why.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) reason: String,
    /// Follows the log, and ends with the task's result.
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// The program and its arguments.
    #[arg(value_name = "COMMAND", trailing_var_arg = true, required = true)]
    pub(crate) command: Vec<String>,
}

#[derive(Args, Debug, Clone, Default)]
pub(crate) struct Logs {
    pub(crate) task: String,
    /// Only this worker.
    pub(crate) worker: Option<String>,
    /// Goes on with what comes, until the task has ended.
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Only the last so many lines.
    #[arg(long, value_name = "N")]
    pub(crate) tail: Option<u64>,
    /// Only lines since then: a duration back (10m) or a time (2026-01-31T12:00:00Z).
    #[arg(long, value_name = "TIME", value_parser = crate::times::parse_since)]
    pub(crate) since: Option<crate::times::Since>,
    /// Only lines that match this regular expression.
    #[arg(long, value_name = "RE")]
    pub(crate) grep: Option<String>,
    /// Only lines of this level (trace, debug, info, warn, error, fatal); may be repeated.
    #[arg(long, value_name = "LEVEL", value_parser = crate::logs::parse_level)]
    pub(crate) level: Vec<i32>,
    /// Only lines of stdout or stderr.
    #[arg(long, value_name = "SOURCE", value_parser = crate::logs::parse_source)]
    pub(crate) source: Option<i32>,
    /// The bytes as they were printed, worker after worker, and nothing else.
    #[arg(long, conflicts_with = "follow")]
    pub(crate) raw: bool,
    /// With -f: how long a task may be unknown to the log server.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = settings::parse_duration)]
    pub(crate) wait: Duration,
}

#[derive(Args, Debug)]
pub(crate) struct Tasks {
    /// Only tasks in this state (pending, running, succeeded, failed, cancelled); may be repeated.
    #[arg(long, value_name = "STATE", value_parser = crate::tasks::parse_state)]
    pub(crate) state: Vec<i32>,
    /// At most so many.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) limit: usize,
}

#[derive(Args, Debug)]
pub(crate) struct Demo {
    /// How many lines.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) lines: u64,
    /// Lines a second; 0: as fast as they are taken.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) rate: u64,
}

#[derive(Subcommand, Debug)]
pub(crate) enum DeadLetters {
    /// Lists them with their reasons, newest first.
    List {
        /// At most so many.
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: usize,
    },
    /// Puts one on the event stream again, with its task id.
    Replay { id: String },
}

#[derive(Subcommand, Debug)]
pub(crate) enum Pipeline {
    /// Runs the pipeline that a TOML or JSON file describes, with the names of PipelineRequest.
    Run { file: PathBuf },
}

fn name_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("accepted is NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
