//! Creating, stopping and removing Pods.
//!
//! While it is not certain what came of a creation, the same Pod is asked for again: its name makes it the same one. That
//! gives way to other creations after a while ([`Shared::create`]), and goes on with the next call.

use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use http::Request;
use http::header::{ACCEPT, CONTENT_TYPE};
use otto_service::client::Backoff;

use super::Shared;
use super::errors::{Asked, Failure, Meaning, explain, of_creation};
use super::pod::{altered, key_of};
use super::preflight::Checked;
use super::seen::SeenPod;
use super::workers::Making;
use crate::driver::{DriverError, Launch, Removal, WorkerKey, name};
use crate::task::{Class, Outcome};

/// Answers without what nobody reads. The full form for servers that do not know it.
pub(super) const METADATA_ONLY: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";
/// What is certainly not created, for a reason that passes in a moment, is tried for so long before others go first.
const PATIENCE: Duration = Duration::from_secs(3);
/// It comes again after this.
const BUSY: Duration = Duration::from_secs(1);
/// A deleted Pod is waited for so long, since most go at once. One with other containers that still run takes its grace
/// period: whoever wants it gone asks again.
const REMOVED_WITHIN: Duration = Duration::from_secs(if cfg!(test) { 60 } else { 1 });
/// What nobody knows the outcome of is asked for again for so long, before others go first.
const UNCLEAR_FOR: Duration = if cfg!(test) { Duration::from_secs(1) } else { Duration::from_secs(15) };

/// A request without an answer does not come through any more after this: an API server gives up after 60 s
/// (`--request-timeout`).
const OVER_AFTER: Duration = Duration::from_secs(70);
/// And what fails each time, and takes one of the places for creations meanwhile, so often.
const OFTEN_ENOUGH: Duration = Duration::from_secs(30);

/// Whose a Pod is.
enum Whose {
    Ours {
        uid: Box<str>,
    },
    /// What is known of it.
    Foreign(String),
    Nobodys,
}

/// A creation under way.
struct Creation<'a> {
    launch: &'a Launch,
    name: String,
    making: Making<'a>,
    began: Instant,
    /// One of the requests, of an earlier call perhaps, may have created it.
    unclear: bool,
    /// To the last request that left it unclear, there was an answer.
    answered: bool,
    /// When the last request was sent that may still be under way, though nobody waits for its answer.
    lost: Option<Instant>,
    /// It was created, and is not what was sent: it is to be deleted.
    spoilt: Option<Spoilt>,
    backoff: Backoff,
}

/// A Pod that the cluster changed, so that nobody would know whose it is.
#[derive(Debug)]
pub(super) struct Spoilt {
    name: String,
    uid: String,
    outcome: Outcome,
}

impl Creation<'_> {
    /// It is not there now. It may come about later, as long as a request is under way.
    fn gives_way(&self, mut error: DriverError) -> DriverError {
        if let Some(lost) = self.lost {
            self.making.stays_doubtful(lost);
            if let DriverError::Busy { unclear_for, .. } = &mut error {
                *unclear_for = milliseconds(OVER_AFTER.saturating_sub(lost.elapsed()));
            }
        }
        error
    }
}

/// How a try ended that did not end the creation.
enum Step {
    Done(Result<(), DriverError>),
    /// After a pause; and why.
    Again(String),
    NotLeader,
}

impl Shared {
    /// See [`crate::driver::Driver::create`]. Never ends when this process is not the leader any more: then nobody may
    /// conclude anything from what it says.
    pub(super) async fn create(&self, launch: &Launch) -> Result<(), DriverError> {
        let Some(making) = self.workers.make(&launch.key) else { return Ok(()) };
        match &*self.checked.borrow() {
            Checked::Good => {}
            Checked::NotYet(why) => return Err(for_all(busy(Class::Infrastructure, BUSY, why.clone()))),
            Checked::Refused(why) => return Err(for_all(busy(Class::Config, BUSY * 10, why.clone()))),
        }
        let mut creation = Creation {
            launch,
            name: name::worker_name(&launch.key),
            unclear: making.doubt().is_some(),
            answered: false,
            lost: making.doubt(),
            spoilt: making.take_spoilt(),
            making,
            began: Instant::now(),
            backoff: Backoff::new(Duration::from_millis(50), Duration::from_secs(3)),
        };
        loop {
            let why = match self.try_to_create(&mut creation).await {
                Step::Done(result) => {
                    if result.is_ok() {
                        creation.making.exists();
                    }
                    return result;
                }
                Step::Again(why) => why,
                Step::NotLeader => {
                    if self.leadership.left().is_none() {
                        tracing::warn!(
                            worker = creation.name,
                            "a creation is given up: this scaler is not the leader any more"
                        );
                        return std::future::pending().await;
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
            };
            if creation.began.elapsed() > UNCLEAR_FOR {
                if let Some(spoilt) = creation.spoilt.take() {
                    creation.making.keep_spoilt(spoilt);
                    return Err(busy(Class::Admission, OFTEN_ENOUGH, why));
                }
                match self.whose(&launch.key, &creation.name).await {
                    Ok(Whose::Ours { .. }) => {
                        creation.making.exists();
                        return Ok(());
                    }
                    Ok(Whose::Foreign(_) | Whose::Nobodys) => {}
                    Err(_) => creation.lost = Some(Instant::now()),
                }
                // The next call asks for the same name: no more than one Pod can come of it. Whoever waits is told, and
                // one whose creation fails each time does not keep others waiting.
                let message = format!("nobody knows yet whether the Pod was created; it is asked for again: {why}");
                // A server that answers so each time does so for this Pod; one that does not answer may be back any time.
                let wait = if creation.answered { OFTEN_ENOUGH } else { BUSY };
                return Err(creation.gives_way(busy(Class::Infrastructure, wait, message)));
            }
            tokio::time::sleep(creation.backoff.next()).await;
        }
    }

    async fn try_to_create(&self, creation: &mut Creation<'_>) -> Step {
        if let Some(spoilt) = &creation.spoilt {
            return self.take_back(spoilt).await;
        }
        let anchor = match self.anchor.uid(&self.cluster, &self.leadership).await {
            Ok(anchor) => anchor,
            Err((_, Failure::NotLeader)) => return Step::NotLeader,
            Err((message, _)) if creation.unclear => return Step::Again(message),
            Err((message, _)) => return Step::Done(Err(busy(Class::Infrastructure, BUSY, message))),
        };
        let body = match self.maker.make(creation.launch, &anchor) {
            Ok(body) => body,
            Err(outcome) => return Step::Done(Err(DriverError::Refused(outcome))),
        };
        let request = Request::post(self.cluster.path("pods"))
            .header(ACCEPT, METADATA_ONLY)
            .header(CONTENT_TYPE, "application/json");
        self.cluster.rested().await;
        if creation.making.is_seen() {
            // Shown since the last request, whose answer was lost. It may be gone again by now: never twice.
            return Step::Done(Ok(()));
        }
        let failure = match self.cluster.write(request, body, &self.leadership).await {
            Ok(answer) => return self.created(creation, &answer.body).await,
            Err(failure) => failure,
        };
        if creation.making.is_seen() {
            // The answer was lost, the Pod was not.
            return Step::Done(Ok(()));
        }
        let meaning = of_creation(&failure, self.cluster.namespace(), self.cluster.url());
        match meaning {
            Meaning::Exists => self.exists(creation).await,
            Meaning::NotLeader => Step::NotLeader,
            Meaning::Unclear(why) => {
                creation.unclear = true;
                creation.answered = failure.code().is_some();
                // Who failed has done what it did. Who gave up waiting has not, perhaps.
                if failure.code() != Some(500) {
                    creation.lost = Some(Instant::now());
                }
                Step::Again(why)
            }
            Meaning::Again(why) if creation.unclear || creation.began.elapsed() < PATIENCE => Step::Again(why),
            Meaning::Again(why) => Step::Done(Err(busy(Class::Infrastructure, BUSY, why))),
            Meaning::Later { class, wait, message, common } => {
                let verdict = busy(class, wait, message);
                self.settled(creation, if common { for_all(verdict) } else { verdict }).await
            }
            Meaning::Refused(outcome) => self.settled(creation, DriverError::Refused(outcome)).await,
        }
    }

    /// A Pod was created. Whether it is the worker's, the answer shows: later nobody would find it.
    async fn created(&self, creation: &mut Creation<'_>, answer: &[u8]) -> Step {
        let Ok(SeenPod { metadata, .. }) = serde_json::from_slice(answer) else { return Step::Done(Ok(())) };
        let message = altered(&creation.launch.key, &metadata);
        let (Some(message), Some(name), Some(uid)) = (message, metadata.name, metadata.uid) else {
            return Step::Done(Ok(()));
        };
        let outcome = Outcome { class: Class::Admission, exit_code: None, signal: None, message };
        self.take_back(creation.spoilt.insert(Spoilt { name, uid, outcome })).await
    }

    async fn take_back(&self, spoilt: &Spoilt) -> Step {
        match self.delete(&spoilt.name, &spoilt.uid).await {
            Ok(()) => Step::Done(Err(DriverError::Refused(spoilt.outcome.clone()))),
            Err(_) if self.leadership.left().is_none() => Step::NotLeader,
            Err(error) => Step::Again(format!("{}; its Pod is to be deleted: {error:#}", spoilt.outcome.message)),
        }
    }

    /// The server would not create it now. It may have done so before.
    async fn settled(&self, creation: &Creation<'_>, verdict: DriverError) -> Step {
        if !creation.unclear {
            return Step::Done(Err(verdict));
        }
        match self.whose(&creation.launch.key, &creation.name).await {
            Ok(Whose::Ours { .. }) => Step::Done(Ok(())),
            Ok(Whose::Foreign(_) | Whose::Nobodys) => Step::Done(Err(creation.gives_way(verdict))),
            Err(failure) => Step::Again(failure.to_string()),
        }
    }

    /// There is a Pod of that name.
    async fn exists(&self, creation: &Creation<'_>) -> Step {
        let namespace = self.cluster.namespace();
        let name = &creation.name;
        let refused = |class, message| {
            Step::Done(Err(DriverError::Refused(Outcome { class, exit_code: None, signal: None, message })))
        };
        match self.whose(&creation.launch.key, name).await {
            Ok(Whose::Ours { .. }) => Step::Done(Ok(())),
            Ok(Whose::Foreign(what)) => refused(
                Class::Config,
                format!(
                    "the name {name} is taken in the namespace {namespace} by a Pod that is not this worker's ({what}): delete that \
                     Pod, or choose another task id"
                ),
            ),
            // It may have been this worker's, and its job may have begun.
            Ok(Whose::Nobodys) => refused(
                Class::NodeLost,
                format!(
                    "a Pod named {name} was there and was deleted while the scaler looked; nobody knows what it did"
                ),
            ),
            Err(failure) => Step::Again(failure.to_string()),
        }
    }

    async fn whose(&self, key: &WorkerKey, name: &str) -> Result<Whose, Failure> {
        let request = Request::get(self.cluster.path(&format!("pods/{name}"))).header(ACCEPT, METADATA_ONLY);
        let _turn = self.calls.acquire().await;
        let answer = match self.cluster.read(request).await {
            Ok(answer) => answer,
            Err(failure) if failure.is_not_found() => return Ok(Whose::Nobodys),
            Err(failure) => return Err(failure),
        };
        let pod = serde_json::from_slice::<SeenPod>(&answer.body)
            .map_err(|error| Failure::Lost(format!("the Pod {name} cannot be read: {error}")))?;
        let found = key_of(&pod.metadata);
        Ok(match (pod.metadata.uid, found) {
            (Some(uid), Some(found)) if found == *key => Whose::Ours { uid: uid.into() },
            (_, Some(found)) => {
                Whose::Foreign(format!("task `{}`, index {}, attempt {}", found.task_id, found.index, found.attempt))
            }
            (_, None) => Whose::Foreign("it does not have our labels".to_owned()),
        })
    }

    /// See [`crate::driver::Driver::stop`]: the kubelet sends SIGTERM, and SIGKILL after the Pod's grace period.
    pub(super) async fn stop(&self, key: &WorkerKey) -> anyhow::Result<()> {
        let name = name::worker_name(key);
        let uid = match self.workers.find(key) {
            Some(found) => found.uid,
            None => match self.whose(key, &name).await {
                Ok(Whose::Ours { uid }) => uid,
                Ok(Whose::Foreign(_) | Whose::Nobodys) => return Ok(()),
                Err(failure) => bail!(self.sentence(&failure, "get")),
            },
        };
        self.delete(&name, &uid).await
    }

    /// See [`crate::driver::Driver::remove`].
    pub(super) async fn remove(&self, key: &WorkerKey) -> anyhow::Result<Removal> {
        let name = name::worker_name(key);
        let Some(found) = self.workers.find(key) else {
            // Once all are known, it is gone.
            anyhow::ensure!(self.is_synced(), "the workers are not known yet");
            return Ok(Removal::Gone);
        };
        let Some(ended_since) = found.ended_since else { bail!("{name} has not ended") };
        if !found.drained && ended_since.elapsed() < self.drain_limit {
            bail!("the output of {name} is not delivered yet");
        }
        self.delete(&name, &found.uid).await?;
        // Its name is free only then: who forgets a task may be asked for another one with the same id.
        let gone = tokio::time::timeout(REMOVED_WITHIN, self.workers.gone(key)).await;
        Ok(gone.map_or(Removal::Leaving, |()| Removal::Gone))
    }

    async fn delete(&self, name: &str, uid: &str) -> anyhow::Result<()> {
        let options = serde_json::json!({
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": { "uid": uid },
        });
        let request = Request::delete(self.cluster.path(&format!("pods/{name}")))
            .header(ACCEPT, METADATA_ONLY)
            .header(CONTENT_TYPE, "application/json");
        let _turn = self.calls.acquire().await;
        match self.cluster.write(request, options.to_string().into_bytes(), &self.leadership).await {
            Ok(_) => Ok(()),
            // Gone; or another one has the name now.
            Err(failure) if matches!(failure.code(), Some(404 | 409)) => Ok(()),
            Err(failure) => Err(anyhow!(self.sentence(&failure, "delete"))),
        }
    }

    fn sentence(&self, failure: &Failure, verb: &'static str) -> String {
        let (namespace, url) = (self.cluster.namespace(), self.cluster.url());
        explain(failure, Asked { verb, resource: "pods", namespace, url })
    }
}

fn busy(class: Class, wait: Duration, message: String) -> DriverError {
    DriverError::Busy { class, retry_after: milliseconds(wait), message, common: false, unclear_for: 0 }
}

fn milliseconds(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

/// The answer that every Pod of its resource class would get.
fn for_all(mut error: DriverError) -> DriverError {
    if let DriverError::Busy { common, .. } = &mut error {
        *common = true;
    }
    error
}
