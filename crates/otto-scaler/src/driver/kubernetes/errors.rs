//! What an answer of the API server means. Pure.

use std::error::Error as StdError;
use std::time::Duration;

use http::StatusCode;
use kube::core::Status;

use crate::task::{Class, Outcome};

/// Text of an answer that is no Status is cut here, in bytes.
const LONGEST_TEXT: usize = 300;
/// And of a status's message, which is a webhook's as it likes: it is kept in records and told in events.
const LONGEST_MESSAGE: usize = 8_000;
/// What an operator has to repair is asked for again after this.
const REPAIR: Duration = Duration::from_secs(10);
/// What passes by itself is asked for again after this, unless the server says.
const PASSING: Duration = Duration::from_secs(3);

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
        if status.message.len() > LONGEST_MESSAGE {
            status.message.truncate(status.message.floor_char_boundary(LONGEST_MESSAGE));
            status.message.push('…');
        }
        Self::Answer { status: Box::new(status), retry_after }
    }

    /// From what the client says.
    pub(super) fn of(error: &kube::Error) -> Self {
        let text = chain(error);
        let unsent = match error {
            kube::Error::Service(error) => error
                .downcast_ref::<hyper_util::client::legacy::Error>()
                .is_some_and(hyper_util::client::legacy::Error::is_connect),
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

    /// There is no such object: not that the namespace is missing.
    pub(super) fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }

    /// The resource version is too old to go on from (410).
    pub(super) fn is_expired(&self) -> bool {
        match self {
            Self::Answer { status, .. } => status.code == 410 || matches!(&*status.reason, "Expired" | "Gone"),
            _ => false,
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

/// Where and what was asked: for sentences.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    /// `create`, `delete`, `get`, `list`, `watch`.
    pub(super) verb: &'static str,
    /// `pods`, `configmaps`, `events`.
    pub(super) resource: &'static str,
    pub(super) namespace: &'a str,
    /// Of the API server.
    pub(super) url: &'a str,
}

/// What went wrong, as a sentence that says what can be done about it.
pub(super) fn explain(failure: &Failure, asked: Asked<'_>) -> String {
    let Asked { verb, resource, namespace, url } = asked;
    match failure {
        Failure::Answer { status, .. } => {
            let message = said(status);
            match status.code {
                401 => format!(
                    "the API server {url} does not accept the scaler's credentials: {message}; check the kubeconfig or the service account"
                ),
                403 if is_permission(status) => {
                    let verb = refused_verb(status).unwrap_or(verb);
                    format!(
                        "the scaler may not {verb} {resource} in the namespace {namespace}: grant it the verb {verb} on \
                         {resource} (k8s/base has the Role): {message}"
                    )
                }
                404 if is_namespace(status, namespace) => {
                    format!("there is no namespace {namespace} (--namespace): {message}")
                }
                _ => message,
            }
        }
        Failure::Unsent(message) => format!("the API server {url} cannot be reached: {message}"),
        Failure::Lost(message) => format!("the API server {url} did not answer: {message}"),
        Failure::NotLeader => failure.to_string(),
    }
}

/// RBAC (or another authorizer) said no, and not an admission plugin.
/// `pods is forbidden: User "x" cannot create resource "pods" in API group "" in the namespace "y"`
fn is_permission(status: &Status) -> bool {
    status.message.contains("\" cannot ") && status.message.contains("resource \"")
}

/// The verb that the server looked for: a streaming list is a watch.
fn refused_verb(status: &Status) -> Option<&str> {
    let (verb, _) = status.message.split_once("\" cannot ")?.1.split_once(' ')?;
    Some(verb)
}

fn is_namespace(status: &Status, namespace: &str) -> bool {
    let named = status.details.as_ref().is_some_and(|details| details.kind == "namespaces");
    named || status.message.starts_with(&format!("namespaces \"{namespace}\" not found"))
}

/// The service account of a Pod that is refused because there is no such account
/// (`plugin/pkg/admission/serviceaccount` of kube-apiserver).
pub(super) fn missing_account(status: &Status) -> Option<&str> {
    let (_, rest) = status.message.split_once("error looking up service account ")?;
    let (account, why) = rest.split_once(": ")?;
    let (_, name) = account.split_once('/')?;
    why.contains("not found").then_some(name)
}

/// What a failed creation of a Pod means.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Meaning {
    /// Something of that name is there.
    Exists,
    /// Never, as it is.
    Refused(Outcome),
    /// Certainly not created; the next try is not at once.
    /// `common`: so it would be with every Pod of the same resource class.
    Later { class: Class, wait: Duration, message: String, common: bool },
    /// Certainly not created; what kept it is gone in a moment.
    Again(String),
    /// Nobody knows.
    Unclear(String),
    /// This process may not create.
    NotLeader,
}

/// Reads the answer to a POST of a Pod.
///
/// Reasons and texts are those of kube-apiserver: `staging/src/k8s.io/apiserver/pkg/admission` (quota, webhooks, Pod
/// Security), `pkg/registry/core/pod`, and `staging/src/k8s.io/apimachinery/pkg/api/errors`.
pub(super) fn of_creation(failure: &Failure, namespace: &str, url: &str) -> Meaning {
    let asked = Asked { verb: "create", resource: "pods", namespace, url };
    let sentence = || explain(failure, asked);
    let (status, retry_after) = match failure {
        Failure::Answer { status, retry_after } => (status, *retry_after),
        Failure::Unsent(_) => return Meaning::Again(sentence()),
        Failure::Lost(_) => return Meaning::Unclear(sentence()),
        Failure::NotLeader => return Meaning::NotLeader,
    };
    let text = status.message.as_str();
    let refused = |class| {
        Meaning::Refused(Outcome {
            class,
            exit_code: None,
            signal: None,
            message: format!("the Pod was refused: {}", said(status)),
        })
    };
    let put_off = |class, wait, common| {
        let wait = retry_after.unwrap_or(wait);
        Meaning::Later { class, wait, message: sentence(), common }
    };
    let later = |class, wait| put_off(class, wait, true);

    // A webhook chooses the code of its answer.
    if text.contains("denied the request") || text.contains("denied request:") {
        return refused(Class::Admission);
    }
    if text.contains("failed calling webhook") || text.contains("failed to call webhook") {
        // It may be there for some Pods and not for others.
        return put_off(Class::Admission, REPAIR, false);
    }
    match status.code {
        409 if status.reason == "AlreadyExists" => Meaning::Exists,
        // Quotas are counted with optimistic locking.
        409 => Meaning::Again(sentence()),
        400 | 413 | 422 => refused(Class::Config),
        _ if text.contains("request is too large") => refused(Class::Config),
        401 => later(Class::Infrastructure, REPAIR),
        403 if text.contains("exceeded quota") => later(Class::Quota, PASSING),
        403 if text.contains("failed quota") => refused(Class::Quota),
        403 if is_permission(status) => later(Class::Infrastructure, REPAIR),
        // A namespace's default service account is made a moment after the namespace.
        403 if text.contains("error looking up service account") => later(Class::Config, REPAIR),
        403 if text.contains("is being terminated") || text.contains("not yet ready to handle request") => {
            later(Class::Infrastructure, REPAIR)
        }
        403 if text.contains("PriorityClass") => refused(Class::Config),
        403 => refused(Class::Admission),
        404 => later(Class::Infrastructure, REPAIR),
        429 => Meaning::Again(sentence()),
        // 500, 503, 504 and whatever proxies say: it may have been done before something failed.
        408 | 500.. => Meaning::Unclear(sentence()),
        // Nothing that an API server says: something else is in its place.
        _ => later(Class::Infrastructure, REPAIR),
    }
}

#[cfg(test)]
mod tests;
