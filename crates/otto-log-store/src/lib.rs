//! The embedded durable log store: append-only segment files in which the blocks of all runs are interleaved, one
//! writer with group commit, an index that can be rebuilt from the segments, recovery, retention, live cursors.
//!
//! **Invariants.** What an [`Append`] acknowledged is on disk, byte-equal, in order, once. Readers see only what is on
//! disk. A hole is always an explicit gap. Memory, disk and descriptors are bounded whatever producers and readers do.

mod batch;
mod catalogue;
mod cursor;
mod directory;
mod error;
mod index;
mod layer;
mod merge;
mod options;
mod queue;
mod record;
mod recover;
mod rows;
mod scan;
mod sealer;
mod segment;
mod shared;
mod stage;
mod store;
mod types;
mod watch;
mod writer;

pub use cursor::{Block, Cursor, Filter, From, Item};
pub use error::{Health, OpenError, ReadError, StoreError};
pub use options::{Clock, Options, SystemClock};
#[doc(hidden)]
pub use options::{Faults, NoFaults};
pub use store::{Append, Store, TaskWatch};
pub use types::{Record, RunId, RunInfo, RunKey, RunState, SYNC_BOUNDS_SECONDS, Stats, TaskInfo, TaskPage};
