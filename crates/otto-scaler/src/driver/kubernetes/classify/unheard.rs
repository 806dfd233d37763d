//! Pods that may never tell how their job ends: of nodes that cannot be reached.

use super::Look;
use super::cause::node;
use super::outcome;
use crate::driver::Trouble;
use crate::task::{Class, Millis};

/// A kubelet that lives has ended a Pod so long after its grace period: milliseconds.
const KUBELET_WITHIN: Millis = 30_000;

/// What is wrong with a Pod whose job has not ended, as far as is known. `None`: nothing, or nothing that is certain.
pub(super) fn trouble(look: &Look<'_>) -> Option<Trouble> {
    let node = node(look);
    let unheard = is_unheard(look);
    if !look.is_deleted() {
        let message =
            format!("{node} is not ready or cannot be reached; the job may run on there, and counts as running");
        return unheard.then(|| Trouble { outcome: outcome(Class::NodeLost, message), lasts: 0 });
    }
    // A kubelet that pulls an image goes on with that, whatever becomes of the Pod
    // (<https://github.com/kubernetes/kubernetes/issues/125050>).
    let began = look.containers.iter().any(|container| {
        let states = [&container.state, &container.last_state];
        states.into_iter().flatten().any(|state| state.running.is_some() || state.terminated.is_some())
    });
    let why = match (unheard, began) {
        (true, _) => {
            format!("{node} is not ready or cannot be reached, and so its Pod, which is to go, is still there")
        }
        (false, true) => format!(
            "its Pod is to go, its grace period is over, and it is still there: {node} cannot be reached, perhaps"
        ),
        (false, false) => format!(
            "its Pod is to go, its grace period is over, and it is still there: {node} pulls an image (the Pod goes when that is \
             done) or cannot be reached"
        ),
    };
    let message = format!(
        "{why}; the worker counts as running until the Pod is gone: bring the node back or, if it is off for good, delete the Node \
         or taint it with node.kubernetes.io/out-of-service"
    );
    let lasts = if unheard { 0 } else { look.grace() + KUBELET_WITHIN };
    Some(Trouble { outcome: outcome(Class::NodeLost, message), lasts })
}

/// Of the Pods of a node that it does not hear of, the node controller changes the condition `Ready` and nothing else, and
/// gives no reason (`MarkPodsNotReady`, `pkg/controller/util/node` of Kubernetes). The kubelet always gives one, and takes
/// that back when it is there again.
fn is_unheard(look: &Look<'_>) -> bool {
    matches!(look.condition("Ready"), Some(("False", "", ..)))
        && matches!(look.condition("ContainersReady"), Some(("True", ..)))
}
