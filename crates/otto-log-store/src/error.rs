use std::path::PathBuf;

/// Why a store cannot be opened. The text is meant for the person who chose the directory.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Written by another version.
    #[error("data directory {dir}: its format is {found}, this program reads and writes format {supported}")]
    Version {
        /// The data directory.
        dir: PathBuf,
        /// What its format file says.
        found: String,
        /// What this program accepts.
        supported: u32,
    },
    /// The directory holds something else.
    #[error("data directory {dir}: it is not empty and holds no log store (found {found})")]
    NotAStore {
        /// The data directory.
        dir: PathBuf,
        /// A name in it.
        found: String,
    },
    /// Another process has it open.
    #[error("data directory {dir}: in use by {holder}")]
    Locked {
        /// The data directory.
        dir: PathBuf,
        /// "process 123", or that it is not known.
        holder: String,
    },
    /// The operating system refused; permission errors come here.
    #[error("{path}: cannot {action}: {source}")]
    Io {
        /// File or directory.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// As the operating system said.
        source: std::io::Error,
    },
    /// A setting cannot be.
    #[error("{0}")]
    Option(String),
    /// The index cannot be opened nor built anew.
    #[error("index {path}: {message}")]
    Index {
        /// The index file.
        path: PathBuf,
        /// As the engine said.
        message: String,
    },
}

/// Why something was not stored. Nothing of it will be seen by a reader.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum StoreError {
    /// The record does not begin where the run goes on. Send from `expected`.
    #[error("the run goes on at sequence {expected}")]
    Sequence {
        /// Sequence the next record must begin at.
        expected: u64,
    },
    /// The run has its Finish.
    #[error("the run is finished")]
    Finished,
    /// No such run, or it was deleted. Open it again.
    #[error("the run is not known")]
    UnknownRun,
    /// The record can never be stored; the text names the field.
    #[error("{0}")]
    Invalid(String),
    /// The queue is full. Wait for [`Store::ready`](crate::Store::ready), then send again.
    #[error("too much is waiting to be written")]
    Busy,
    /// No space on the disk. Goes away by itself when there is; send again later.
    #[error("the disk is full")]
    DiskFull,
    /// Writing or fsync failed, so that what is on disk is not known, or one of the store's threads failed. The process
    /// must open the store again.
    #[error("the store cannot write any more: {0}")]
    Failed(String),
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

/// Why something could not be read.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReadError {
    /// No such run, or it was deleted.
    #[error("the run is not known")]
    UnknownRun,
    /// The index or a segment could not be read (damage of stored bytes is not an error but a gap).
    #[error("cannot read: {0}")]
    Io(String),
}

/// Whether the store can do its work.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// It reads and writes.
    #[default]
    Ok,
    /// Reads; writes again when there is space.
    DiskFull,
    /// Reads; the process must open it again to write.
    Failed(String),
}
