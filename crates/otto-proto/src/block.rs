//! The batch block, format 1: consecutive lines of one run as one piece of bytes with packed columns beside it.
//!
//! [`Builder`] makes [`LogBlock`]s, [`DecodedBlock`] reads them. Encoding touches a line once (its length);
//! what arrives at the server is stored as it came, and is decoded only for readers.

mod build;
mod read;
mod varint;

pub use build::Builder;
pub use read::{DecodedBlock, LineRef, Lines};

use crate::v1::{LogLevel, LogSource};

/// `LogBlock.format` of what this module writes and reads.
pub const FORMAT: u32 = 1;

/// Largest serialised payload before compression that is accepted, bytes (16 MiB).
pub const MAX_PAYLOAD_BYTES: u32 = 16 << 20;

/// Most lines in one block.
pub const MAX_LINES: u32 = 1 << 20;

/// What all lines of a run of lines share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Nanoseconds since the Unix epoch.
    pub time_unix_nanos: i64,
    /// Severity, as far as it is known.
    pub level: LogLevel,
    /// Where the lines were printed.
    pub source: LogSource,
}

/// Why a block cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BlockError {
    /// Written by something newer.
    #[error("format {0} is not known (accepted: 1)")]
    Format(u32),
    /// Damaged on the way or on disk.
    #[error("payload_crc32c is {found:#010x}, the payload's is {computed:#010x}")]
    Checksum {
        /// As the block says.
        found: u32,
        /// Of the payload as it came.
        computed: u32,
    },
    /// A header field has a value that cannot be.
    #[error("{field} is {value}, accepted is {accepted}")]
    Field {
        /// Name of the field of `LogBlock`.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What would have been right.
        accepted: &'static str,
    },
    /// The payload does not hold what the header says.
    #[error("payload: {0}")]
    Payload(&'static str),
}
