//! Whether the cluster takes our Pods: asked when the scaler starts, by a dry run of one Pod per resource class
//! (<https://kubernetes.io/docs/reference/using-api/api-concepts/#dry-run>).
//!
//! A template that the cluster refuses ends the program when it starts. Where the server was away then, and in whatever is
//! not the template's fault, it is tried again, and nothing is created meanwhile.

use std::time::Duration;

use http::Request;
use http::header::{ACCEPT, CONTENT_TYPE};
use otto_service::client::Backoff;

use super::Shared;
use super::calls::METADATA_ONLY;
use super::errors::{Asked, Failure, Meaning, explain, of_creation};
use super::pod::Trial;

/// What is known of the Pod template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Checked {
    /// And why not.
    NotYet(String),
    /// The cluster takes its Pods.
    Good,
    /// It does not.
    Refused(String),
}

/// Tries until the cluster takes the template's Pods. What was refused once is tried again, too: a priority class may come, a
/// policy may go.
pub(super) async fn run(shared: &Shared) {
    let mut away = Backoff::new(Duration::from_millis(250), Duration::from_secs(10));
    let mut repair = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
    let mut told = String::new();
    loop {
        let checked = once(shared).await;
        shared.checked.send_replace(checked.clone());
        let (why, what, pause) = match checked {
            Checked::Good if told.is_empty() => return,
            Checked::Good => return tracing::info!("the cluster takes the Pods of the template; workers are created"),
            Checked::NotYet(why) => {
                (why, "the Pod template cannot be checked; no worker is created until it is", away.next())
            }
            Checked::Refused(why) => (why, "no worker can be created until this is repaired", repair.next()),
        };
        if why != told {
            tracing::error!(error = why, "{what}");
            told = why;
        }
        tokio::time::sleep(pause).await;
    }
}

/// Tries one Pod of each class.
pub(super) async fn once(shared: &Shared) -> Checked {
    let trials = match shared.maker.trials() {
        Ok(trials) => trials,
        Err(error) => return Checked::Refused(format!("{error:#}")),
    };
    for trial in trials {
        match one(shared, &trial).await {
            Checked::Good => {}
            other => return other,
        }
    }
    Checked::Good
}

async fn one(shared: &Shared, trial: &Trial) -> Checked {
    let cluster = &shared.cluster;
    let request = Request::post(cluster.path("pods?dryRun=All&fieldValidation=Strict"))
        .header(ACCEPT, METADATA_ONLY)
        .header(CONTENT_TYPE, "application/json");
    let Err(failure) = cluster.dry_run(request, trial.pod.clone()).await else { return Checked::Good };
    if let Failure::Answer { status, .. } = &failure {
        let message = status.message.as_str();
        // Not about the Pod: there is no room for it now, or somebody's webhook takes part in no dry runs.
        if message.contains("exceeded quota") || status.code == 409 {
            return Checked::Good;
        }
        if message.contains("does not support dry run") {
            tracing::warn!(error = message, "the Pod template cannot be checked in full");
            return Checked::Good;
        }
        let refused = matches!(of_creation(&failure, cluster.namespace(), cluster.url()), Meaning::Refused(_));
        if refused && let Some(error) = shared.maker.refusal(trial, status) {
            return Checked::Refused(format!("{error:#}"));
        }
    }
    let asked = Asked { verb: "create", resource: "pods", namespace: cluster.namespace(), url: cluster.url() };
    Checked::NotYet(explain(&failure, asked))
}
