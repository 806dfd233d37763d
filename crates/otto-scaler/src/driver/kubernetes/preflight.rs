//! Whether the cluster takes our Pods: asked when the scaler starts, by a dry run of one Pod per resource class
//! (<https://kubernetes.io/docs/reference/using-api/api-concepts/#dry-run>).
//!
//! A template that the cluster refuses ends the program when it starts. Where the server was away then, and in whatever is
//! not the template's fault, it is tried again, and nothing is created meanwhile.

use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use http::Request;
use http::header::{ACCEPT, CONTENT_TYPE};
use otto_service::client::Backoff;

use super::Shared;
use super::calls::METADATA_ONLY;
use super::errors::{Asked, Failure, Meaning, explain, missing_account, of_creation};
use super::pod::Trial;
use super::seen::SeenPod;

/// Trials under way at once.
const AT_ONCE: usize = 8;
/// A service account that the template names is applied together with the scaler, perhaps after it. Shorter than the time
/// that the start waits for.
const ACCOUNT_PATIENCE: Duration = Duration::from_secs(3);
/// Between two looks for it.
const ACCOUNT_AGAIN: Duration = Duration::from_millis(500);

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

/// Tries one Pod of each class, and tells of all that are refused.
pub(super) async fn once(shared: &Shared) -> Checked {
    let trials = match shared.maker.trials() {
        Ok(trials) => trials,
        Err(error) => return Checked::Refused(format!("{error:#}")),
    };
    let mut not_yet = None;
    let mut refused = Vec::new();
    let mut tries = stream::iter(trials).map(|trial| async move { one(shared, &trial).await }).buffered(AT_ONCE);
    while let Some(checked) = tries.next().await {
        match checked {
            Checked::Good => {}
            Checked::NotYet(why) => not_yet = not_yet.or(Some(why)),
            Checked::Refused(why) => refused.push(why),
        }
    }
    match not_yet {
        _ if !refused.is_empty() => Checked::Refused(refused.join("\n")),
        Some(why) => Checked::NotYet(why),
        None => Checked::Good,
    }
}

async fn one(shared: &Shared, trial: &Trial) -> Checked {
    let cluster = &shared.cluster;
    let began = Instant::now();
    loop {
        let request = Request::post(cluster.path("pods?dryRun=All&fieldValidation=Strict"))
            .header(ACCEPT, METADATA_ONLY)
            .header(CONTENT_TYPE, "application/json");
        let failure = match cluster.dry_run(request, trial.pod.clone()).await {
            Ok(answer) => return taken(shared, trial, &answer.body),
            Err(failure) => failure,
        };
        let asked = Asked { verb: "create", resource: "pods", namespace: cluster.namespace(), url: cluster.url() };
        let sentence = explain(&failure, asked);
        let Failure::Answer { status, .. } = &failure else { return Checked::NotYet(sentence) };
        let message = status.message.as_str();
        // Not about the Pod: there is no room for it now, or somebody's webhook takes part in no dry runs.
        if message.contains("exceeded quota") || status.code == 409 {
            return Checked::Good;
        }
        if message.contains("does not support dry run") {
            tracing::warn!(error = message, "the Pod template cannot be checked in full");
            return Checked::Good;
        }
        // Kubernetes itself makes the one that a Pod has which names none.
        let no_account = missing_account(status).is_some_and(|name| name != "default");
        if no_account && began.elapsed() < ACCOUNT_PATIENCE {
            tokio::time::sleep(ACCOUNT_AGAIN).await;
            continue;
        }
        let meaning = of_creation(&failure, cluster.namespace(), cluster.url());
        let refused = no_account || matches!(meaning, Meaning::Refused(_));
        return match shared.maker.refusal(trial, status).filter(|_| refused) {
            Some(error) => Checked::Refused(format!("{error:#}")),
            None => Checked::NotYet(trial.named(sentence)),
        };
    }
}

/// The answer to a trial that was taken shows the Pod as it would be stored.
fn taken(shared: &Shared, trial: &Trial, answer: &[u8]) -> Checked {
    let made = serde_json::from_slice::<SeenPod>(answer);
    match made.ok().and_then(|made| shared.maker.objection(trial, &made.metadata)) {
        Some(error) => Checked::Refused(format!("{error:#}")),
        None => Checked::Good,
    }
}
