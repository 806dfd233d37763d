//! What the cluster's Events say of a Pod whose status says nothing: a volume that cannot be mounted, a network that
//! cannot be set up. The kubelet tells these nowhere else.

use std::time::{Duration, Instant};

use serde::Deserialize;

use super::Shared;
use super::classify::told_by_event;
use super::cluster::get;
use super::errors::{Asked, Failure, explain};
use crate::driver::{Waiting, WorkerKey};
use crate::task::{Class, Outcome};

/// Between two looks for Pods that say nothing: when a hundred nodes pull an image, there are many.
const EVERY: Duration = Duration::from_millis(200);
/// Events read of one Pod.
const MOST: usize = 100;

/// What was found out about a Pod whose status says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Learnt {
    #[default]
    Nothing,
    /// Trouble, which is told nowhere else.
    Trouble(Waiting),
    /// It goes on: an image is being pulled, however long that takes. Until the last container is started, the kubelet writes
    /// nothing of it into the status.
    OnItsWay,
}

#[derive(Debug, Default, Deserialize)]
struct Events {
    #[serde(default)]
    items: Vec<KubernetesEvent>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct KubernetesEvent {
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
    #[serde(default, rename = "type")]
    kind: String,
    last_timestamp: Option<String>,
    event_time: Option<String>,
    #[serde(default)]
    involved_object: Involved,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Involved {
    /// `spec.containers{job}`.
    #[serde(default)]
    field_path: String,
}

impl KubernetesEvent {
    /// RFC 3339 in UTC: compared as text.
    fn at(&self) -> &str {
        self.last_timestamp.as_deref().or(self.event_time.as_deref()).unwrap_or_default()
    }

    /// Reasons: `pkg/kubelet/events/event.go` and the attach/detach controller of Kubernetes.
    fn class(&self) -> Option<Class> {
        match &*self.reason {
            "FailedMount" | "FailedAttachVolume" | "FailedMapVolume" | "VolumeResizeFailed" => Some(Class::Volume),
            "FailedCreatePodSandBox"
            | "FailedPodSandBoxStatus"
            | "NetworkNotReady"
            | "FailedCreatePodContainer"
            | "FailedPrepareDynamicResources" => Some(Class::Infrastructure),
            _ => None,
        }
    }
}

/// What the kubelet does with a container only when volumes and network are there.
const BEYOND: [&str; 4] = ["Pulling", "Pulled", "Created", "Started"];

/// The newest trouble, unless it is over.
fn read(events: &Events) -> Learnt {
    let troubles = events.items.iter().filter(|event| event.kind != "Normal");
    let trouble =
        troubles.filter_map(|event| Some((event, event.class()?))).max_by(|(a, _), (b, _)| a.at().cmp(b.at()));
    // A volume may have come late, and a large image be pulled since. (In the same second: trouble that lasts is told again.)
    let beyond = events.items.iter().filter(|event| BEYOND.contains(&&*event.reason));
    let beyond = beyond.map(KubernetesEvent::at).max();
    match trouble {
        Some((event, class)) if beyond.is_none_or(|at| at < event.at()) => {
            let message = told_by_event(&event.reason, &event.message);
            let outcome = Outcome { class, exit_code: None, signal: None, message };
            Learnt::Trouble(Waiting { outcome, hopeless: false, usual: false })
        }
        _ if is_pulling(events) => Learnt::OnItsWay,
        _ => Learnt::Nothing,
    }
}

/// A pull has begun, and not ended.
fn is_pulling(events: &Events) -> bool {
    let of = |reason: &'static str| events.items.iter().filter(move |event| event.reason == reason);
    of("Pulling").any(|pulling| {
        !of("Pulled").any(|pulled| pulled.involved_object == pulling.involved_object && pulled.at() >= pulling.at())
    })
}

/// Looks into one silent Pod after the other.
pub(super) async fn run(shared: &Shared) {
    let mut refused = false;
    loop {
        tokio::time::sleep(EVERY).await;
        // A standby has nobody to tell.
        if shared.leadership.left().is_none() {
            continue;
        }
        let Some((key, uid)) = shared.workers.quiet(Instant::now()) else { continue };
        match look(shared, &key, &uid).await {
            Ok(()) => refused = false,
            Err(failure) => {
                let cluster = &shared.cluster;
                let asked =
                    Asked { verb: "list", resource: "events", namespace: cluster.namespace(), url: cluster.url() };
                let error = explain(&failure, asked);
                if !std::mem::replace(&mut refused, true) {
                    tracing::warn!(error, "why a Pod does not start cannot be looked up");
                }
            }
        }
    }
}

async fn look(shared: &Shared, key: &WorkerKey, uid: &str) -> Result<(), Failure> {
    let path = shared.cluster.path(&format!("events?fieldSelector=involvedObject.uid%3D{uid}&limit={MOST}"));
    let _turn = shared.calls.acquire().await;
    let answer = shared.cluster.read(get(&path)).await?;
    let events = serde_json::from_slice::<Events>(&answer.body)
        .map_err(|error| Failure::Lost(format!("a list of events cannot be read: {error}")))?;
    shared.workers.explain(key, uid, read(&events));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Learnt {
        read(&serde_json::from_str(text).unwrap())
    }

    fn trouble(text: &str) -> Waiting {
        match found(text) {
            Learnt::Trouble(waiting) => waiting,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_newest_trouble_is_told() {
        let found = trouble(
            r#"{"kind":"EventList","metadata":{},"items":[
              {"type":"Normal","reason":"Scheduled","message":"assigned","lastTimestamp":"2026-11-21T10:00:09Z"},
              {"type":"Warning","reason":"FailedMount","message":" secret \"x\" not found\n","lastTimestamp":"2026-11-21T10:00:07Z"},
              {"type":"Warning","reason":"FailedCreatePodSandBox","message":"no IP","lastTimestamp":"2026-11-21T10:00:01Z"},
              {"type":"Warning","reason":"Unheard","message":"of","lastTimestamp":"2026-11-21T10:00:08Z","eventTime":null}]}"#,
        );
        assert_eq!(found.outcome.class, Class::Volume);
        assert_eq!(found.outcome.message, "a volume cannot be mounted: secret \"x\" not found");
        assert!(!found.hopeless);
    }

    #[test]
    fn a_network_that_is_not_there_is_the_clusters_fault() {
        let found = trouble(
            r#"{"items":[{"type":"Warning","reason":"FailedCreatePodSandBox","message":"no IP","eventTime":"2026-11-21T10:00:01.5Z"}]}"#,
        );
        assert_eq!(found.outcome.class, Class::Infrastructure);
    }

    #[test]
    fn trouble_that_is_over_is_none() {
        let event = |kind: &str, reason: &str, container: &str, at: &str| {
            format!(
                r#"{{"type":"{kind}","reason":"{reason}","message":"m","lastTimestamp":"2026-11-21T10:00:{at}Z",
                     "involvedObject":{{"fieldPath":"{container}"}}}}"#
            )
        };
        let normal = |reason, container, at| event("Normal", reason, container, at);
        let list = |events: &[String]| format!(r#"{{"items":[{}]}}"#, events.join(","));
        let (mount, pulling) = (event("Warning", "FailedMount", "", "07"), normal("Pulling", "otto", "20"));
        assert_eq!(found(&list(&[mount.clone(), pulling.clone()])), Learnt::OnItsWay);
        assert_eq!(trouble(&list(&[mount, normal("Scheduled", "", "08")])).outcome.class, Class::Volume);
        let sandbox = event("Warning", "FailedCreatePodSandBox", "", "30");
        assert_eq!(trouble(&list(&[pulling.clone(), sandbox])).outcome.class, Class::Infrastructure);
        // One container's image after the other.
        let mut way = vec![pulling, normal("Pulled", "otto", "20"), normal("Started", "otto", "21")];
        assert_eq!(found(&list(&way)), Learnt::Nothing);
        way.push(normal("Pulling", "job", "21"));
        assert_eq!(found(&list(&way)), Learnt::OnItsWay);
        way.push(normal("Pulled", "job", "59"));
        assert_eq!(found(&list(&way)), Learnt::Nothing);
    }

    #[test]
    fn nothing_is_made_up() {
        assert_eq!(found(r#"{"items":[]}"#), Learnt::Nothing);
        assert_eq!(found(r#"{}"#), Learnt::Nothing);
        let claims = r#"{"items":[{"reason":"FailedPrepareDynamicResources","type":"Warning","message":"no driver"}]}"#;
        assert_eq!(trouble(claims).outcome.message, "its resource claims cannot be prepared: no driver");
    }
}
