//! What the API server says that was done.

use std::path::Path;

use anyhow::Context;
use serde::Deserialize;

/// One request of a service account or of the user `scaler`, as in the API server's audit log at the level Metadata
/// (<https://kubernetes.io/docs/reference/config-api/apiserver-audit.v1/>). Written when the answer is complete, whether
/// or not the client got it; a watch is there twice, with `stage` ResponseStarted and ResponseComplete.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditEvent {
    /// `ResponseStarted`, `ResponseComplete` or `Panic`.
    pub stage: String,
    /// `create`, `delete`, `watch`, …
    pub verb: String,
    /// Path and query.
    #[serde(rename = "requestURI")]
    pub request_uri: String,
    /// Who asked.
    pub user: AuditUser,
    /// What about.
    #[serde(default)]
    pub object_ref: AuditObject,
    /// The answer.
    #[serde(default)]
    pub response_status: AuditStatus,
    /// When it came, RFC 3339 with microseconds.
    pub request_received_timestamp: String,
}

/// Who asked.
#[derive(Clone, Debug, Deserialize)]
pub struct AuditUser {
    /// `system:serviceaccount:NAMESPACE:NAME`, or the user's name.
    pub username: String,
}

/// What a request is about. Empty where there is nothing to say.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct AuditObject {
    /// `pods`, `leases`, …
    pub resource: String,
    /// `status`, `eviction`, …
    pub subresource: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name; also that of an object which is to be created.
    pub name: String,
}

/// An answer.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct AuditStatus {
    /// HTTP status; 0: none yet.
    pub code: u16,
}

impl AuditEvent {
    /// True for a Pod that was really made: by a create answered 201, which was no dry run.
    #[must_use]
    pub fn is_created_pod(&self) -> bool {
        self.verb == "create"
            && self.object_ref.resource == "pods"
            && self.object_ref.subresource.is_empty()
            && self.response_status.code == 201
            && !self.request_uri.contains("dryRun=")
    }
}

/// Reads what is there. The line that is being written is left out.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<AuditEvent>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}
