//! How the command ends.

use std::io;
use std::process::ExitCode;

use tonic::{Code, Status};

/// Exit codes, as `--help` tells them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Ok = 0,
    TaskFailed = 1,
    Usage = 2,
    NotFound = 3,
    Unavailable = 4,
    Incomplete = 5,
    Refused = 6,
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// What went wrong, as a sentence.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// A server said no, or could not be asked.
    #[error("{server}: {}", said(.status))]
    Server {
        /// Which one: name and address.
        server: String,
        status: Box<Status>,
    },
    /// Nothing of this name.
    #[error("{0}")]
    NotFound(String),
    /// Something given cannot be used.
    #[error("{0}")]
    Usage(String),
    /// Not possible as things are.
    #[error("{0}")]
    Refused(String),
    /// stdout, files.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Anything else of this machine.
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

impl Failure {
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Failure::Server { status, .. } => match status.code() {
                Code::InvalidArgument | Code::OutOfRange => Exit::Usage,
                Code::NotFound => Exit::NotFound,
                Code::Unavailable | Code::DeadlineExceeded | Code::Unauthenticated | Code::PermissionDenied => {
                    Exit::Unavailable
                }
                _ => Exit::Refused,
            },
            Failure::NotFound(_) => Exit::NotFound,
            Failure::Usage(_) => Exit::Usage,
            // The reader of our pipe has seen enough.
            Failure::Io(_) if self.is_broken_pipe() => Exit::Ok,
            Failure::Refused(_) | Failure::Io(_) | Failure::Other(_) => Exit::Refused,
        }
    }

    pub(crate) fn is_broken_pipe(&self) -> bool {
        matches!(self, Failure::Io(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

fn said(status: &Status) -> String {
    let message = status.message();
    match status.code() {
        Code::Unavailable if is_connect_error(status) => format!("cannot be reached ({})", innermost(status)),
        Code::Unavailable => format!("not available: {message}"),
        Code::Unauthenticated => format!("refuses the credentials: {message} (--auth-token-file)"),
        Code::Unimplemented => format!("does not have this: {message}"),
        _ if message.is_empty() => status.code().description().to_owned(),
        _ => message.to_owned(),
    }
}

fn is_connect_error(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

fn innermost(status: &Status) -> String {
    let mut last: &dyn std::error::Error = status;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}
