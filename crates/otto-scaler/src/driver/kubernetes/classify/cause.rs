//! What the cluster did to a Pod.

use super::Look;
use super::text::{steady, with};
use crate::driver::kubernetes::names::{JOB_CONTAINER, SHARED_VOLUME};
use crate::task::{Class, Millis};

/// Why a Pod ended that did not end by itself.
pub(super) struct Cause {
    pub(super) class: Class,
    pub(super) message: String,
    pub(super) at: Option<Millis>,
}

/// `None`: nothing was done to it, as far as its status tells. A mere deletion is not among it.
pub(super) fn cause(look: &Look<'_>) -> Option<Cause> {
    let status = &look.pod.status;
    let message = status.message.as_deref().unwrap_or_default();
    let disruption = look.condition("DisruptionTarget").filter(|(status, ..)| *status == "True");
    let at = disruption.and_then(|(_, _, _, at)| at);
    if let Some((class, message)) = by_reason(look, status.reason.as_deref().unwrap_or_default(), message) {
        return Some(Cause { class, message, at });
    }
    let (_, reason, message, _) = disruption?;
    let (class, message) = by_disruption(look, reason, message);
    Some(Cause { class, message, at })
}

/// `status.reason`, written by the kubelet or the node controller.
fn by_reason(look: &Look<'_>, reason: &str, message: &str) -> Option<(Class, String)> {
    let node = node(look);
    Some(match reason {
        // What a limit of memory does, a limit of disk does by an eviction.
        "Evicted" if of_its_own_disk(message) => {
            (Class::Exited, with("stopped for using more disk than its limit", message))
        }
        "Evicted" => (Class::Evicted, with(&format!("evicted from {node}"), message)),
        "DeadlineExceeded" => (
            Class::Deadline,
            "the Pod was active longer than it may be (activeDeadlineSeconds), and was stopped".to_owned(),
        ),
        // Room for a Pod that the node itself needs.
        "Preempting" => (Class::Preempted, with(&format!("preempted on {node}"), message)),
        "NodeLost" => (Class::NodeLost, with(&format!("{node} was lost"), message)),
        "NodeShutdown" | "Shutdown" | "Terminated" => {
            (Class::NodeLost, with(&format!("{node} was shut down"), message))
        }
        // The kubelet did not admit what the scheduler had given it: another node, or the same a moment later, may.
        "NodeAffinity"
        | "NodeName"
        | "NodePorts"
        | "NodeUnschedulable"
        | "TaintToleration"
        | "InvalidNodeInfo"
        | "TopologyAffinityError"
        | "NUMATopology"
        | "NodeDeclaredFeatures" => (Class::Unschedulable, rejected(&node, reason, message)),
        _ if reason.starts_with("OutOf") => (Class::Unschedulable, rejected(&node, reason, message)),
        // Mostly a device plugin's trouble.
        "UnexpectedAdmissionError" | "UnexpectedPredicateFailureType" | "AdmissionFailed" => {
            (Class::Infrastructure, rejected(&node, reason, message))
        }
        // Asked for what this cluster does not allow or have: it would be rejected again.
        "SysctlForbidden"
        | "AppArmor"
        | "PodFeatureUnsupported"
        | "InitContainerRestartPolicyForbidden"
        | "PodOSSelectorNodeLabelDoesNotMatch"
        | "PodOSNotSupported"
        | "UnsupportedPodOSSelector"
        | "PodLevelResourcesNotAdmittedReason"
        | "PodLevelResourcesNotSupported" => (Class::Admission, rejected(&node, reason, message)),
        _ => return None,
    })
}

/// Whether a Pod was evicted because its job wrote more than the Pod's or the container's limit of ephemeral storage, or a
/// volume's, lets it: the messages of `pkg/kubelet/eviction` of Kubernetes. Not for what others in the Pod, or on the node, did.
fn of_its_own_disk(message: &str) -> bool {
    message.starts_with("Pod ephemeral local storage usage exceeds the total limit")
        || message.starts_with(&format!("Container {JOB_CONTAINER} exceeded its local ephemeral storage limit"))
        || (message.starts_with("Usage of EmptyDir volume ")
            && !message.starts_with(&format!("Usage of EmptyDir volume {SHARED_VOLUME:?} ")))
}

/// Reasons of the condition `DisruptionTarget`.
fn by_disruption(look: &Look<'_>, reason: &str, message: &str) -> (Class, String) {
    let node = node(look);
    match reason {
        "PreemptionByScheduler" => (Class::Preempted, "preempted to make room for a Pod of higher priority".to_owned()),
        "DeletionByTaintManager" => (
            Class::NodeLost,
            format!("{node} became unreachable or not ready, or was tainted so that the Pod had to leave"),
        ),
        "DeletionByPodGC" => (Class::NodeLost, with(&format!("{node} was lost"), message)),
        "EvictionByEvictionAPI" => {
            (Class::Evicted, format!("evicted from {node} by request (the node was drained, or the like)"))
        }
        "TerminationByKubelet" => (Class::Evicted, with(&format!("{node} ended the Pod"), message)),
        // A reason of a later Kubernetes, or of somebody else's controller.
        _ => (Class::Evicted, with(&format!("evicted from {node} ({})", steady(reason)), message)),
    }
}

pub(super) fn rejected(node: &str, reason: &str, message: &str) -> String {
    let message = message.strip_prefix("Pod was rejected: ").unwrap_or(message);
    with(&format!("rejected by {node} ({})", steady(reason)), message)
}

/// `node NAME`, or `its node`.
pub(super) fn node(look: &Look<'_>) -> String {
    look.node().map_or_else(|| "its node".to_owned(), |node| format!("node {node}"))
}
