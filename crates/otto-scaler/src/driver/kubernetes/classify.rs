//! What really happened to a Pod, from its status. Pure.
//!
//! The container `job` decides: it has ended when it has terminated, though the Pod lives on with the agent's container,
//! which drains the log. What the job's agent reported (the container's termination message) wins, unless the cluster
//! said something stronger: an agent that was told to stop does not know that its node was being drained. What the
//! cluster did is in the Pod's `status.reason` and in its condition `DisruptionTarget`
//! (<https://kubernetes.io/docs/concepts/workloads/pods/disruptions/#pod-disruption-conditions>); why a container does not
//! run is in the reason of its state, which the kubelet writes.
//!
//! Statuses may be partial, old or nonsense: whatever is missing is taken as not known.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::names::{AGENT_CONTAINER, JOB_CONTAINER};
use super::seen::{SeenContainer, SeenPod, SeenTerminated};
use crate::driver::{State, Trouble};
use crate::task::{Class, Millis, Outcome};

mod cause;
mod end;
mod text;
mod unheard;
mod wait;

pub(super) use wait::told_by_event;

/// Clocks of nodes and of the control plane may differ by so much, in milliseconds.
const CLOCKS_DIFFER: Millis = 30_000;

/// Where a Pod is in its life.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Life {
    pub(super) state: State,
    /// When the job's container began, if it did.
    pub(super) started_at: Option<Millis>,
    /// The agent's container has ended: nothing more will be sent.
    pub(super) drained: bool,
    /// The job has ended, and its Pod has not: it keeps what was set aside for it.
    pub(super) lingers: bool,
    /// Nobody may ever tell how it ends.
    pub(super) trouble: Option<Trouble>,
}

/// Reads a Pod's status. `deleted`: the API server says that the Pod is gone, and this was its last state.
pub(super) fn classify(pod: &SeenPod, deleted: bool) -> Life {
    let look = Look::at(pod);
    let over = deleted || look.is_terminal();
    let state = match look.job_end() {
        Some(end) if !over && look.reason_follows(end) => State::Running,
        Some(end) => look.ended(Some(end)),
        None if over => look.ended(None),
        None if look.job_runs() => State::Running,
        None => State::Created { waiting: wait::waiting(&look) },
    };
    // Where the job's container could not be started, the agent waits in vain for somebody to leave it a log.
    let agent_waits = look.agent().is_some_and(runs) && !look.job_end().is_some_and(end::never_started);
    let drained = over || (matches!(state, State::Ended { .. }) && !agent_waits);
    let ended = matches!(state, State::Ended { .. });
    let lingers = ended && !over;
    let lives = matches!(state, State::Created { .. } | State::Running);
    let trouble = lives.then(|| unheard::trouble(&look)).flatten();
    Life { state, started_at: look.job_began(), drained, lingers, trouble }
}

impl Life {
    /// As it goes on after `before`, an earlier look at the same Pod: a wait that is told without its reason is still for the
    /// one told before. (Until 1.32 the kubelet says why an image cannot be pulled only until it waits with the next try.)
    pub(super) fn after(mut self, before: &Life) -> Life {
        if let State::Created { waiting: Some(told) } = &before.state
            && let State::Created { waiting: Some(again) } = &self.state
            && told.outcome.message.strip_prefix(&*again.outcome.message).is_some_and(|why| why.starts_with(": "))
        {
            self.state = before.state.clone();
        }
        self
    }
}

/// A Pod and its containers.
struct Look<'a> {
    pod: &'a SeenPod,
    containers: &'a [SeenContainer],
    init_containers: &'a [SeenContainer],
}

impl<'a> Look<'a> {
    fn at(pod: &'a SeenPod) -> Self {
        Look {
            pod,
            containers: pod.status.container_statuses.as_deref().unwrap_or_default(),
            init_containers: pod.status.init_container_statuses.as_deref().unwrap_or_default(),
        }
    }

    fn container(&self, name: &str) -> Option<&'a SeenContainer> {
        self.containers.iter().find(|container| container.name == name)
    }

    fn job(&self) -> Option<&'a SeenContainer> {
        self.container(JOB_CONTAINER)
    }

    fn agent(&self) -> Option<&'a SeenContainer> {
        self.container(AGENT_CONTAINER)
    }

    fn phase(&self) -> &'a str {
        self.pod.status.phase.as_deref().unwrap_or_default()
    }

    fn is_terminal(&self) -> bool {
        matches!(self.phase(), "Succeeded" | "Failed")
    }

    fn node(&self) -> Option<&'a str> {
        self.pod.spec.node_name.as_deref().filter(|node| !node.is_empty())
    }

    /// The status of a condition, if the Pod has it, with its reason and message.
    fn condition(&self, kind: &str) -> Option<(&'a str, &'a str, &'a str, Option<Millis>)> {
        let conditions = self.pod.status.conditions.as_deref().unwrap_or_default();
        conditions.iter().find(|condition| condition.type_ == kind).map(|condition| {
            (
                condition.status.as_str(),
                condition.reason.as_deref().unwrap_or_default(),
                condition.message.as_deref().unwrap_or_default(),
                millis(condition.last_transition_time.as_ref()),
            )
        })
    }

    /// How the job's container ended, if it has.
    ///
    /// A job that began is never begun again: where a container was started a second time (the kubelet lost sight of it,
    /// or a restart policy says so), its agent only drains, and it is the first end that counts.
    fn job_end(&self) -> Option<&'a SeenTerminated> {
        let job = self.job()?;
        let now = job.state.as_ref().and_then(|state| state.terminated.as_ref());
        let before = job.last_state.as_ref().and_then(|state| state.terminated.as_ref());
        match (before, now) {
            (Some(before), Some(now)) if end::report(before).is_none() && end::report(now).is_some() => Some(now),
            (before, now) => before.or(now),
        }
    }

    /// The job was ended from outside, and so may the Pod have been. Why, the kubelet says with the Pod's end, and that is
    /// told after the end of its last container, in an update of its own (`mergePodStatus`, `pkg/kubelet/status`).
    fn reason_follows(&self, end: &SeenTerminated) -> bool {
        // One that waits, a sidecar whose image is not there, may wait for ever: nothing follows from that.
        let over = |container: &SeenContainer| container.state.as_ref().is_some_and(|state| state.terminated.is_some());
        let whole = self.containers.iter().all(over) && !self.init_containers.iter().any(runs);
        whole && !self.is_deleted() && end::by_others(end) && cause::cause(self).is_none()
    }

    fn job_runs(&self) -> bool {
        // A Pod that says nothing of its containers is as its phase says.
        self.job().map_or_else(|| self.containers.is_empty() && self.phase() == "Running", runs)
    }

    fn job_began(&self) -> Option<Millis> {
        let job = self.job()?;
        [&job.last_state, &job.state].into_iter().flatten().find_map(|state| {
            let running = state.running.as_ref().and_then(|running| millis(running.started_at.as_ref()));
            running.or_else(|| state.terminated.as_ref().and_then(|end| millis(end.started_at.as_ref())))
        })
    }

    fn ended(&self, end: Option<&SeenTerminated>) -> State {
        let report = end.and_then(end::report);
        let finished = end.and_then(|end| millis(end.finished_at.as_ref()));
        let cause = cause::cause(self).filter(|cause| {
            // What was done to the Pod after the job had ended did not end it.
            cause.at.zip(finished).is_none_or(|(done, finished)| done <= finished + CLOCKS_DIFFER)
        });
        let at = [
            report.as_ref().and_then(|report| report.ended_at),
            finished,
            cause.as_ref().and_then(|cause| cause.at),
            self.told_to_end_at(),
            self.last_change(),
        ];
        let at = at.into_iter().flatten().next().unwrap_or_default();
        let outcome = match end {
            Some(end) => end::of_container(self, end, report, cause),
            None => end::of_pod(self, cause),
        };
        State::Ended { at, outcome }
    }

    /// Somebody deletes it, or has.
    fn is_deleted(&self) -> bool {
        self.pod.metadata.deletion_timestamp.is_some()
    }

    /// When its deletion was asked for.
    fn told_to_end_at(&self) -> Option<Millis> {
        // The time in the metadata is when the grace period is over.
        millis(self.pod.metadata.deletion_timestamp.as_ref()).map(|at| at - self.grace())
    }

    /// What a Pod that is deleted has for it, in milliseconds.
    fn grace(&self) -> Millis {
        self.pod.metadata.deletion_grace_period_seconds.unwrap_or_default().clamp(0, 1 << 32) * 1000
    }

    /// The last time that the status tells.
    fn last_change(&self) -> Option<Millis> {
        let conditions = self.pod.status.conditions.as_deref().unwrap_or_default();
        let changes = conditions.iter().filter_map(|condition| millis(condition.last_transition_time.as_ref()));
        let ends = self.containers.iter().filter_map(|container| {
            let end = container.state.as_ref().and_then(|state| state.terminated.as_ref())?;
            millis(end.finished_at.as_ref())
        });
        let metadata = &self.pod.metadata;
        changes.chain(ends).max().or_else(|| millis(metadata.creation_timestamp.as_ref()))
    }
}

fn runs(container: &SeenContainer) -> bool {
    container.state.as_ref().is_some_and(|state| state.running.is_some())
}

/// `None` for the zero time too, which the kubelet writes of what never happened.
fn millis(time: Option<&Time>) -> Option<Millis> {
    time.map(|time| time.0.as_millisecond()).filter(|at| *at > 0)
}

fn outcome(class: Class, message: String) -> Outcome {
    Outcome { class, exit_code: None, signal: None, message }
}

#[cfg(test)]
mod tests;
