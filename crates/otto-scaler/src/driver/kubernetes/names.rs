//! Names that Pods, labels and other objects carry. Fixed: manifests, permissions and habits go by them.

use std::borrow::Cow;
use std::fmt::Write as _;

use sha2::{Digest, Sha256};

/// The agent's container: installs the agent for the job's container, then drains its spool. First in the Pod.
pub(super) const AGENT_CONTAINER: &str = "otto";
/// The container of the job, with the image of the event.
pub(super) const JOB_CONTAINER: &str = "job";
/// The volume that both share, and where it is mounted.
pub(super) const SHARED_VOLUME: &str = "otto";
pub(super) const SHARED_PATH: &str = "/otto";

/// The token for the log server: its volume, where both have it, and the file.
pub(super) const TOKEN_VOLUME: &str = "otto-token";
pub(super) const TOKEN_PATH: &str = "/otto-token";
pub(super) const TOKEN_FILE: &str = "token";

/// Owner of every worker Pod: a ConfigMap, and nothing that a rollout replaces.
pub(super) const ANCHOR: &str = "ottoscaler-anchor";
/// The Lease that says which scaler is the leader.
pub(crate) const LEASE: &str = "otto-scaler";

/// Which Pods are ours; also the selector of the watch.
pub(super) const NAME_LABEL: (&str, &str) = ("app.kubernetes.io/name", "otto-worker");
pub(super) const MANAGED_BY_LABEL: (&str, &str) = ("app.kubernetes.io/managed-by", "ottoscaler");
/// The task's id, where it is a valid label value; otherwise its beginning and a hash of it.
pub(super) const TASK_LABEL: &str = "ottoscaler.io/task";
pub(super) const INDEX_LABEL: &str = "ottoscaler.io/index";
pub(super) const ATTEMPT_LABEL: &str = "ottoscaler.io/attempt";
/// The task's id in full, always.
pub(super) const TASK_ANNOTATION: &str = "ottoscaler.io/task-id";
/// W3C trace context of the scaler's span.
pub(super) const TRACE_ANNOTATION: &str = "ottoscaler.io/traceparent";
/// Labels and annotations that begin with this are ours.
pub(super) const OUR_PREFIX: &str = "ottoscaler.io/";

/// Longest value of a label, in bytes.
/// <https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set>
const LONGEST_LABEL: usize = 63;
/// Characters of a task's id in a label that cannot hold it whole.
const READABLE: usize = 40;

/// The value of [`TASK_LABEL`]: the id, or, where that is no label value, what one can show of it and 16 hex digits of its
/// SHA-256.
pub(super) fn task_label(task_id: &str) -> Cow<'_, str> {
    if is_label_value(task_id) {
        return Cow::Borrowed(task_id);
    }
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let shown: String = task_id.chars().map(|c| if inner(c) { c } else { '-' }).take(READABLE).collect();
    let shown = shown.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    let digest = Sha256::digest(task_id.as_bytes());
    let mut label = String::with_capacity(shown.len() + 17);
    label.push_str(shown);
    label.push_str(if shown.is_empty() { "" } else { "-" });
    for byte in &digest[..8] {
        let _ = write!(label, "{byte:02x}");
    }
    Cow::Owned(label)
}

/// `([A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?)?` of at most 63 bytes; the empty one is no name of a task.
fn is_label_value(text: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    let inner = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    bytes.len() <= LONGEST_LABEL && edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(inner)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_are_kept_where_they_can_be() {
        for id in ["a", "build-12", "A.b_c-9", &"x".repeat(63)] {
            assert_eq!(task_label(id), id);
        }
        assert_eq!(task_label("acme/shop#12"), format!("acme-shop-12-{}", hash("acme/shop#12")));
        assert_eq!(task_label("日本"), hash("日本"));
        assert_eq!(task_label("-a-"), format!("a-{}", hash("-a-")));
        assert!(task_label(&"x".repeat(64)).starts_with(&"x".repeat(40)));
    }

    fn hash(id: &str) -> String {
        Sha256::digest(id.as_bytes())[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    proptest! {
        #[test]
        fn every_id_has_a_label_of_its_own(a in "(?s).{1,90}", b in "(?s).{1,90}") {
            prop_assert!(is_label_value(&task_label(&a)), "{:?}", task_label(&a));
            prop_assert_eq!(a == b, task_label(&a) == task_label(&b));
        }
    }
}
