//! Ways by which events come in besides gRPC, and where those end that could not be applied.
//!
//! An inbox reads entries, parses them ([`crate::event::parse::from_fields`]) and gives them to
//! [`crate::controller::Handle::submit`] in the order of their ids; it may have many under way.
//! - `Ok(Applied::…)` other than `Dead`: the entry is applied and acknowledged.
//! - `Ok(Applied::Dead(reason))`: nothing was stored; the inbox writes the dead letter and acknowledges the entry.
//! - `Err(ApplyError::Unavailable)`: nothing is known; the inbox submits it, and all after it, again with backoff.
//! - `Err(ApplyError::Stopping)`: the program ends; the entry stays pending.

use std::collections::BTreeMap;

use futures::future::BoxFuture;

use crate::store::StoreError;
use crate::task::{EntryId, Millis};

pub(crate) mod redis;

/// An event that could not be applied.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DeadLetter {
    /// Its id in the dead-letter stream.
    pub(crate) id: String,
    /// Its id in the event stream.
    pub(crate) entry: EntryId,
    pub(crate) reason: String,
    /// Values that are not UTF-8 are shown with U+FFFD.
    pub(crate) fields: BTreeMap<String, String>,
    pub(crate) dead_at: Millis,
}

/// The dead letters, for people and their tools.
pub(crate) trait DeadLetters: Send + Sync + 'static {
    /// Newest first, at most `limit`, after the one with the id `after` (that is: older than it).
    fn list<'a>(&'a self, limit: usize, after: Option<&'a str>) -> BoxFuture<'a, Result<Vec<DeadLetter>, StoreError>>;

    /// Adds its fields to the event stream again, with its task id (the first entry's own id if it had none), and removes
    /// it from the dead letters. `None`: there is no such dead letter.
    fn replay<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<EntryId>, StoreError>>;
}
