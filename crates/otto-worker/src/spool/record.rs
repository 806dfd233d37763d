//! How a record lies in a segment file.
//!
//! ```text
//! 0   magic "OSR1"            4 bytes
//! 4   kind: 1 block, 2 gap, 3 finish
//! 5   zero                    3 bytes
//! 8   length of the head      u32, little endian
//! 12  length of the payload   u32
//! 16  CRC-32C of bytes 0-15 and the head
//! 20  head: the protobuf message, a block's without its payload
//! ..  payload of a block; its own checksum is in the head
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use otto_proto::v1::{FinishRun, LogBlock, LogGap};
use prost::Message;

const MAGIC: &[u8; 4] = b"OSR1";
pub(super) const HEADER: usize = 20;
/// Longest head that is believed: metadata of lines is in the payload, so a head is small.
const MAX_HEAD: u32 = 1 << 20;

/// Longest text for people in a record, bytes.
const MAX_MESSAGE: usize = 4 << 10;

/// Cuts a text for people at 4 KiB, between characters: it may hold what a user gave, of any length.
pub(crate) fn shorten(text: &mut String) {
    const CUT: &str = "…";
    if text.len() > MAX_MESSAGE {
        text.truncate(text.floor_char_boundary(MAX_MESSAGE - CUT.len()));
        text.push_str(CUT);
    }
}

/// One thing to tell the log server, in the order of sequences.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Record {
    /// Lines.
    Block(LogBlock),
    /// Lines that will never come.
    Gap(LogGap),
    /// The end of the run.
    Finish(FinishRun),
}

impl Record {
    /// With texts for people [shortened](shorten).
    pub(super) fn shortened(mut self) -> Self {
        match &mut self {
            Record::Gap(gap) => shorten(&mut gap.message),
            Record::Finish(finish) => shorten(&mut finish.error_message),
            Record::Block(_) => {}
        }
        self
    }

    /// Sequence after this record; `None`: it moves nothing (a gap of unknown end, the end of the run).
    pub(crate) fn end(&self) -> Option<u64> {
        match self {
            Record::Block(block) => Some(block.end_sequence()),
            Record::Gap(gap) if gap.last_sequence >= gap.first_sequence => Some(gap.last_sequence.saturating_add(1)),
            Record::Gap(_) | Record::Finish(_) => None,
        }
    }

    /// First sequence, of a block or a gap.
    pub(crate) fn first(&self) -> Option<u64> {
        match self {
            Record::Block(block) => Some(block.first_sequence),
            Record::Gap(gap) => Some(gap.first_sequence),
            Record::Finish(_) => None,
        }
    }
}

/// Header and head as they lie in the file; the payload follows.
pub(super) fn encode(record: &Record) -> (Vec<u8>, Bytes) {
    let (kind, head, payload) = match record {
        Record::Block(block) => {
            let head = LogBlock { payload: Bytes::new(), ..block.clone() };
            (1, head.encode_to_vec(), block.payload.clone())
        }
        Record::Gap(gap) => (2, gap.encode_to_vec(), Bytes::new()),
        Record::Finish(finish) => (3, finish.encode_to_vec(), Bytes::new()),
    };
    let mut out = Vec::with_capacity(HEADER + head.len());
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&[kind, 0, 0, 0]);
    out.extend_from_slice(&(head.len() as u32).to_le_bytes());
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&out), &head);
    out.extend_from_slice(&checksum.to_le_bytes());
    out.extend_from_slice(&head);
    (out, payload)
}

/// A record's place in a file, its payload not read yet.
pub(super) struct Located {
    record: Record,
    payload_at: u64,
    payload_bytes: u32,
    /// Where the next record begins.
    pub(super) next: u64,
}

impl Located {
    /// Without a block's payload.
    pub(super) fn head(&self) -> &Record {
        &self.record
    }

    /// Reads a block's payload and checks it.
    pub(super) fn read(self, file: &File) -> io::Result<Record> {
        let Record::Block(mut block) = self.record else { return Ok(self.record) };
        let mut payload = vec![0; self.payload_bytes as usize];
        file.read_exact_at(&mut payload, self.payload_at)?;
        block.payload = payload.into();
        block.check().map_err(|error| damaged(&error.to_string()))?;
        Ok(Record::Block(block))
    }
}

/// Finds the record at `offset`. An error of kind `InvalidData` or `UnexpectedEof`: there is none that is whole.
pub(super) fn locate(file: &File, offset: u64) -> io::Result<Located> {
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, offset)?;
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (kind, head_bytes, payload_bytes, checksum) = (header[4], word(8), word(12), word(16));
    if header[..4] != MAGIC[..] || head_bytes > MAX_HEAD || payload_bytes > otto_proto::block::MAX_PAYLOAD_BYTES {
        return Err(damaged("not a record"));
    }
    let mut head = vec![0; head_bytes as usize];
    file.read_exact_at(&mut head, offset + HEADER as u64)?;
    if crc32c::crc32c_append(crc32c::crc32c(&header[..16]), &head) != checksum {
        return Err(damaged("the checksum of a record's head is wrong"));
    }
    let decode_error = |error: prost::DecodeError| damaged(&error.to_string());
    let record = match kind {
        1 => Record::Block(LogBlock::decode(&head[..]).map_err(decode_error)?),
        2 => Record::Gap(LogGap::decode(&head[..]).map_err(decode_error)?),
        3 => Record::Finish(FinishRun::decode(&head[..]).map_err(decode_error)?),
        _ => return Err(damaged("a record of unknown kind")),
    };
    let payload_at = offset + HEADER as u64 + u64::from(head_bytes);
    Ok(Located { record, payload_at, payload_bytes, next: payload_at + u64::from(payload_bytes) })
}

/// What is there is not what was written, or cannot be read (a bad sector): the rest may be whole.
pub(super) fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
        || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
