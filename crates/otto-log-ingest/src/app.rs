use std::sync::Arc;

use otto_log_store::Store;
use tokio_util::sync::CancellationToken;

use crate::query::Query;
use crate::registry::Registry;

/// What every service of the program shares. Cheap to clone.
#[derive(Clone)]
pub struct AppState {
    /// The store, for what [`Query`] does not offer (raw bytes).
    pub store: Store,
    /// Lists, reads and follows logs.
    pub query: Query,
    /// Registered workers and open sessions.
    pub registry: Arc<Registry>,
    /// Cancelled when the program drains: every long answer must end then.
    pub drain: CancellationToken,
}
