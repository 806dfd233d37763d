//! A Pod as far as the driver looks at it. Everything else of an answer is skipped while it is read: ten thousand Pods
//! are a few megabytes of JSON, most of which nobody needs.
//!
//! Fields are named and typed as in `k8s_openapi`.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Deserialize;

/// Metadata, node and status of a Pod.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct SeenPod {
    #[serde(default)]
    pub(super) metadata: SeenMetadata,
    #[serde(default)]
    pub(super) spec: SeenSpec,
    #[serde(default)]
    pub(super) status: SeenStatus,
}

/// What is looked at of an object's metadata.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SeenMetadata {
    pub(super) name: Option<String>,
    pub(super) uid: Option<String>,
    pub(super) resource_version: Option<String>,
    pub(super) creation_timestamp: Option<Time>,
    pub(super) deletion_timestamp: Option<Time>,
    pub(super) deletion_grace_period_seconds: Option<i64>,
    pub(super) labels: Option<BTreeMap<String, String>>,
    pub(super) annotations: Option<BTreeMap<String, String>>,
}

/// What is looked at of a Pod's spec.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SeenSpec {
    pub(super) node_name: Option<String>,
}

/// What is looked at of a Pod's status.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SeenStatus {
    pub(super) phase: Option<String>,
    pub(super) reason: Option<String>,
    pub(super) message: Option<String>,
    pub(super) conditions: Option<Vec<SeenCondition>>,
    pub(super) init_container_statuses: Option<Vec<SeenContainer>>,
    pub(super) container_statuses: Option<Vec<SeenContainer>>,
}

/// A condition of a Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SeenCondition {
    #[serde(rename = "type", default)]
    pub(super) type_: String,
    #[serde(default)]
    pub(super) status: String,
    pub(super) reason: Option<String>,
    pub(super) message: Option<String>,
    pub(super) last_transition_time: Option<Time>,
}

/// The status of one of its containers.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SeenContainer {
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) image: String,
    pub(super) state: Option<SeenState>,
    pub(super) last_state: Option<SeenState>,
    /// As the node gave them to it (Kubernetes 1.33 and later tell).
    pub(super) resources: Option<SeenResources>,
}

/// What a container got.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct SeenResources {
    #[serde(default)]
    pub(super) limits: BTreeMap<String, String>,
}

/// At most one of them is there; none: it waits.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct SeenState {
    pub(super) waiting: Option<SeenWaiting>,
    pub(super) running: Option<SeenRunning>,
    pub(super) terminated: Option<SeenTerminated>,
}

/// It does not run yet.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct SeenWaiting {
    pub(super) reason: Option<String>,
    pub(super) message: Option<String>,
}

/// It runs.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SeenRunning {
    pub(super) started_at: Option<Time>,
}

/// It has ended.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SeenTerminated {
    #[serde(default)]
    pub(super) exit_code: i32,
    pub(super) signal: Option<i32>,
    pub(super) reason: Option<String>,
    /// The termination message.
    pub(super) message: Option<String>,
    pub(super) started_at: Option<Time>,
    pub(super) finished_at: Option<Time>,
}
