//! What an answer of the API server means. Pure.

use std::error::Error as StdError;
use std::time::Duration;

use http::StatusCode;
use kube::core::Status;

/// Text of an answer that is no Status is cut here, in bytes.
const LONGEST_TEXT: usize = 300;

/// Why a request has no good answer.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The server (or something before it) answered, and not with success.
    #[error("{}", said(.status))]
    Answer {
        status: Box<Status>,
        /// It asked to be left alone so long.
        retry_after: Option<Duration>,
    },
    /// It was never sent: there is no connection, no credential.
    #[error("{0}")]
    Unsent(String),
    /// It may have been done or not: the connection was cut, or no answer came in time.
    #[error("{0}")]
    Lost(String),
    /// This process may not write now. Nothing was sent.
    #[error("this scaler is not the leader (any more)")]
    NotLeader,
}

fn said(status: &Status) -> String {
    match (status.message.is_empty(), status.reason.is_empty()) {
        (false, _) => format!("{} ({})", status.message, status.code),
        (true, false) => format!("{} ({})", status.reason, status.code),
        (true, true) => format!("the API server answered {}", status.code),
    }
}

impl Failure {
    /// From the answer's parts.
    pub(super) fn answer(code: StatusCode, retry_after: Option<Duration>, body: &[u8]) -> Self {
        let mut status = serde_json::from_slice::<Status>(body).unwrap_or_else(|_| {
            let text = String::from_utf8_lossy(&body[..body.len().min(LONGEST_TEXT)]);
            let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
            Status { message: text, ..Status::default() }
        });
        // Some proxies answer with other JSON.
        status.code = code.as_u16();
        Self::Answer { status: Box::new(status), retry_after }
    }

    /// From what the client says.
    pub(super) fn of(error: &kube::Error) -> Self {
        let text = chain(error);
        let unsent = match error {
            kube::Error::Service(error) => error
                .downcast_ref::<hyper_util::client::legacy::Error>()
                .is_some_and(hyper_util::client::legacy::Error::is_connect),
            kube::Error::HyperError(_) => false,
            // Made before anything is sent.
            kube::Error::Auth(_) | kube::Error::BuildRequest(_) | kube::Error::HttpError(_) => true,
            _ => false,
        };
        if unsent { Self::Unsent(text) } else { Self::Lost(text) }
    }

    pub(super) fn unsent(error: &(dyn StdError + 'static)) -> Self {
        Self::Unsent(chain(error))
    }

    /// The answer ended early.
    pub(super) fn cut(error: &(dyn StdError + 'static)) -> Self {
        Self::Lost(format!("the answer was cut off: {}", chain(error)))
    }

    pub(super) fn late(deadline: Duration) -> Self {
        Self::Lost(format!("no answer within {:.1} s", deadline.as_secs_f64()))
    }

    /// The HTTP status, if there was an answer.
    pub(super) fn code(&self) -> Option<u16> {
        match self {
            Self::Answer { status, .. } => Some(status.code),
            _ => None,
        }
    }
}

/// An error with its causes. What an outer one repeats of its cause is said once.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
