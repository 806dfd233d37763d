//! Settings: flags over environment over the TOML file given by `--config`.
//!
//! A program describes its settings once, as clap arguments with a long flag and an environment variable.
//! [`load`] reads the command line, and puts what is missing there but present in the environment or the file in its
//! place as if it had been typed, so that clap checks every value alike. See [`merge`] for how.
//!
//! Keys of the file are the flags' names (`retention-age`, or `retention_age`), at the top level:
//!
//! ```toml
//! grpc-addr = "[::]:50051"
//! retention-age = "7d"
//! insecure-no-auth = true
//! label = ["a=1", "b=2"]     # a flag that may be repeated
//! ```

mod file;
mod merge;
mod secret;
mod values;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

pub use secret::Secret;
pub use values::{ByteSize, parse_duration, parse_listen_addr};

/// Settings that every program has. Flatten it: `#[command(flatten)] common: settings::Common`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Common {
    /// TOML file with settings: `flag-name = value`. Flags and environment variables win over it.
    #[arg(long, env = "OTTO_CONFIG", value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,

    /// Form of the program's own log messages on stderr. `auto`: human-readable on a terminal, JSON otherwise.
    #[arg(long, env = "OTTO_LOG_FORMAT", value_name = "FORMAT", default_value = "auto", global = true)]
    pub log_format: LogFormat,
}

/// Form of log messages on stderr. `RUST_LOG` says which of them are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Human-readable on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// One line of text per message.
    Human,
    /// One JSON object per message.
    Json,
}

/// Why a program ends before it began: `--help`, `--version`, or a setting that cannot be used.
#[derive(Debug)]
pub struct Exit(clap::Error);

impl Exit {
    fn usage(message: impl std::fmt::Display) -> Self {
        Exit(clap::Error::raw(clap::error::ErrorKind::InvalidValue, format!("{message}\n")))
    }

    /// Prints help and version to stdout, errors to stderr.
    pub fn print(&self) {
        // A closed stdout or stderr leaves nobody to tell.
        let _ = self.0.print();
    }

    /// 0 after `--help` and `--version`, otherwise 2.
    pub fn code(&self) -> ExitCode {
        ExitCode::from(self.status())
    }

    /// The number behind [`Exit::code`].
    pub fn status(&self) -> u8 {
        if self.0.use_stderr() { 2 } else { 0 }
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0.render())
    }
}

impl std::error::Error for Exit {}

/// Reads the program's settings from its command line, its environment and its `--config` file.
///
/// # Errors
/// [`Exit`] for `--help` and `--version` too: `exit.print(); return exit.code();`
pub fn load<T: clap::Parser>() -> Result<T, Exit> {
    load_from(std::env::args_os(), |name| std::env::var_os(name))
}

/// [`load`] with an explicit command line (the first item is the program's name) and environment.
///
/// # Errors
/// As [`load`].
pub fn load_from<T: clap::Parser>(
    args: impl IntoIterator<Item = impl Into<OsString>>,
    env: impl Fn(&str) -> Option<OsString>,
) -> Result<T, Exit> {
    let args = args.into_iter().map(Into::into).collect();
    let matches = merge::Merge::new(T::command(), args, &env).run()?;
    T::from_arg_matches(&matches).map_err(Exit)
}
