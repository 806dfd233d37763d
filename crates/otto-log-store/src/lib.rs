//! The embedded durable log store: append-only segment files in which the blocks of all runs are interleaved, one
//! writer with group commit, an index that can be rebuilt from the segments, recovery, retention, live cursors.
//!
//! **Invariants.** What an [`Append`] acknowledged is on disk, byte-equal, in order, once. Readers see only what is on
//! disk. A hole is always an explicit gap. Memory, disk and descriptors are bounded whatever producers and readers do.
//!
//! # How it works
//!
//! | module | what |
//! |---|---|
//! | `record` | the bytes of a record; its header is bound to store, file and offset by its checksum |
//! | `batch`, `segment` | one group commit: one write, one fdatasync; reading a record from the page cache or the disk |
//! | `queue`, `writer` | the one thread that writes; the next commit is what arrived during the last one |
//! | `stage` | what a record changes, the same whether it is being written or found again (`stage::replay`) |
//! | `layer`, `catalogue` | what is known of segments that are not in the index yet; the newest of it wins |
//! | `index` | sealed segments: runs, tasks, events, where blocks are; written once per segment, in one transaction |
//! | `sealer`, `merge` | in the background: merging small blocks, indexing, retention |
//! | `age` | how old something is when the clock cannot be believed |
//! | `directory`, `scan`, `recover` | opening, and what a crash or a bad disk left |
//! | `cursor`, `watch` | reading and following |
//!
//! **Every segment can be understood alone.** Where a run or a task is met first in a segment, its whole state precedes
//! it. So the oldest segment can go without a word about the others, and the index can be built anew from any rest.
//!
//! **What recovery cuts off.** A group commit is written only after the one before it was synced, and each record says
//! where its commit begins. So everything before the last commit in the newest file was on disk once: damage there is
//! damage to acknowledged data and is shown as a gap with reason DAMAGED. Damage inside the last commit means that it
//! was never acknowledged (or that the very last commit before a crash was damaged afterwards, which cannot be told
//! apart; its sender then finds that it has to send again, or that the server lost it): there the file is cut off.
//! A store that was closed in order ends with a record that proves even the last commit.
//!
//! **What a failed fdatasync leaves.** The store refuses everything until it is opened again. Opening does not believe
//! the page cache, which may hold what never reached the disk: it writes the last commit once more and syncs it before
//! its records count as stored, and fails if the disk does.
//!
//! **When a thread fails.** If the writer or the sealer panics, the store is failed as after a failed fdatasync: it
//! reads, refuses everything else, and can be closed and opened again.
//!
//! **A clock that jumps.** Order is by sequence. A jump forward makes nothing older for retention while the store is
//! open, a jump back nothing younger than it says (`age`).
//!
//! **Deliberately absent:** replication; removal of single runs' bytes before their segment goes; any timer on the way
//! of a line.

mod age;
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
mod unreadable;
mod watch;
mod writer;

pub use cursor::{Block, Cursor, Filter, From, Item};
pub use error::{Health, OpenError, ReadError, StoreError};
pub use options::{Clock, Options, SystemClock};
#[doc(hidden)]
pub use options::{Faults, NoFaults};
pub use record::MAX_BODY;
pub use store::{Append, Store, TaskWatch};
pub use types::{Record, RunId, RunInfo, RunKey, RunState, SYNC_BOUNDS_SECONDS, Stats, TaskInfo, TaskPage};
