//! The embedded durable log store: append-only segment files in which the blocks of all runs are interleaved, one
//! writer with group commit, an index that can be rebuilt from the segments, recovery, retention, live cursors.
//!
//! **Invariants.** What an [`Append`] acknowledged is on disk, byte-equal, in order, once. Readers see only what is on
//! disk. A hole is always an explicit gap. Memory, disk and descriptors are bounded whatever producers and readers do.

mod cursor;
mod error;
mod options;
mod store;
mod types;

pub use cursor::{Block, Cursor, Filter, From, Item};
pub use error::{Health, OpenError, ReadError, StoreError};
pub use options::{Clock, Options, SystemClock};
pub use store::{Append, Store, TaskWatch};
pub use types::{Record, RunId, RunInfo, RunKey, RunState, Stats, TaskInfo, TaskPage};
