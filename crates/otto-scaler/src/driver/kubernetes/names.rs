//! Names that Pods, labels and other objects carry. Fixed: manifests, permissions and habits go by them.

/// The agent's container: installs the agent for the job's container, then drains its spool. First in the Pod.
pub(super) const AGENT_CONTAINER: &str = "otto";
/// The container of the job, with the image of the event.
pub(super) const JOB_CONTAINER: &str = "job";
/// The volume that both share, and where it is mounted.
pub(super) const SHARED_VOLUME: &str = "otto";
pub(super) const SHARED_PATH: &str = "/otto";

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
