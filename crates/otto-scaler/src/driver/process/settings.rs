//! Settings of the process driver alone.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use otto_service::settings::parse_duration;
use rustix::fs::{Access, access};

/// Flatten it into the scaler's settings.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Workers")]
pub(crate) struct Settings {
    /// A further flag for every otto-worker, such as --worker-arg=--spool-bytes=64MiB; may be repeated. The variable holds
    /// one a line.
    #[arg(long, env = "OTTO_WORKER_ARG", value_name = "FLAG", allow_hyphen_values = true, value_delimiter = '\n', value_parser = one_word)]
    pub(crate) worker_arg: Vec<String>,
    /// Driver process: file with the bearer token that workers present to the log server, which their jobs can read, too: one
    /// of the log server's --worker-token-file. Default: that of --auth-token-file, which is good for everything.
    #[arg(long, env = "OTTO_WORKER_TOKEN_FILE", value_name = "FILE")]
    pub(crate) worker_token_file: Option<PathBuf>,
    /// Output of an ended worker that the log server does not take is kept so long.
    #[arg(long, env = "OTTO_DRAIN_LIMIT", value_name = "TIME", default_value = "1d", value_parser = parse_duration)]
    pub(crate) drain_limit: Duration,
}

impl Settings {
    /// The further flags, without the empty line at the end of a text.
    pub(crate) fn worker_args(&self) -> Vec<String> {
        self.worker_arg.iter().filter(|word| !word.trim().is_empty()).cloned().collect()
    }
}

/// A word of a command line. Two flags in one word would be a value of the first, and the second one without effect.
fn one_word(text: &str) -> Result<String, String> {
    if text.split_whitespace().skip(1).any(|word| word.starts_with("--")) {
        return Err(
            "this is more than one flag (accepted: one each time; in the variable, one a line; in the file of \
                    --config, a list)"
                .to_owned(),
        );
    }
    Ok(text.to_owned())
}

/// The absolute path of a program that can be executed. A name without `/` is looked for in PATH.
pub(super) fn program(path: &Path) -> anyhow::Result<PathBuf> {
    if !path.as_os_str().as_encoded_bytes().contains(&b'/') {
        let all = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&all).map(|dir| dir.join(path)).find(|path| check(path).is_ok());
        return match found {
            Some(found) => Ok(std::path::absolute(found)?),
            None => bail!("{} is neither beside otto-scaler nor in PATH: name it with --worker-binary", path.display()),
        };
    }
    let path = std::path::absolute(path)?;
    match check(&path) {
        Ok(()) => Ok(path),
        Err(why) => bail!("--worker-binary {} {why}: it must be the program otto-worker", path.display()),
    }
}

fn check(path: &Path) -> Result<(), String> {
    match path.metadata() {
        Err(error) => Err(format!("cannot be used: {error}")),
        Ok(metadata) if !metadata.is_file() => Err("is not a file".to_owned()),
        Ok(_) => access(path, Access::EXEC_OK).map_err(|error| format!("cannot be executed: {error}")),
    }
}
