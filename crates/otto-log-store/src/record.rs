//! What a segment file is made of. All numbers are little endian; records begin at multiples of 8.
//!
//! A file begins with a [`FileHeader`] (64 bytes). A record is a [`Header`] (104 bytes), its body, and zeros up to the
//! next multiple of 8. The header has a CRC-32C of its own, seeded with the store's salt, the segment, the file's
//! generation and the record's offset: bytes of a record that were copied into a log line, or left from an earlier
//! write, are never taken for a record. The body's CRC-32C is in the header (a block's is the one its sender computed).
//! So a flip in a body leaves it known what was lost. After a flip in a header the next one is searched, and that one
//! says which run's block came before it.

use bytes::Bytes;
use crc32c::{crc32c, crc32c_append};
use otto_proto::v1::LogBlock;

/// Bytes of a record's header.
pub(crate) const HEADER: usize = 104;
/// Bytes of a file's header.
pub(crate) const FILE_HEADER: usize = 64;
/// Records begin at multiples of this.
pub(crate) const ALIGN: u64 = 8;
/// Largest body of a record, bytes: a block's largest payload (16 MiB), and room for compression that made it larger.
pub const MAX_BODY: usize = (16 << 20) + (1 << 20);

const MAGIC: u32 = u32::from_le_bytes(*b"Orec");
const FILE_MAGIC: [u8; 8] = *b"OTTOSEG1";

/// Version of everything in the data directory.
pub(crate) const FORMAT: u32 = 1;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Lines of a run; the body is the payload of a `LogBlock`.
    Block = 1,
    /// Lines that will never come; the body is a `LogGap`.
    Gap = 2,
    /// The end of a run; the body is a `FinishRun`.
    Finish = 3,
    /// A run's whole state, where it is met first in a segment or was changed otherwise than by the records above.
    Run = 4,
    /// A task's whole state, likewise.
    Task = 5,
    /// A `WorkerEvent`.
    Event = 6,
    /// The task (body: its id) and all its runs and events so far are gone.
    TaskRemoved = 7,
    /// The run is gone.
    RunRemoved = 8,
    /// The last record of a sealed segment.
    End = 9,
    /// The store was closed here; proves that everything before it was on disk.
    Closed = 10,
}

impl Kind {
    fn from_u8(value: u8) -> Option<Self> {
        use Kind::*;
        [Block, Gap, Finish, Run, Task, Event, TaskRemoved, RunRemoved, End, Closed]
            .into_iter()
            .find(|kind| *kind as u8 == value)
    }
}

/// The file a record is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) salt: u64,
    pub(crate) segment: u64,
    pub(crate) generation: u32,
}

impl Place {
    fn seed(self, offset: u64) -> u32 {
        let mut bytes = [0; 28];
        bytes[..8].copy_from_slice(&self.salt.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.segment.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.generation.to_le_bytes());
        bytes[20..].copy_from_slice(&offset.to_le_bytes());
        crc32c(&bytes)
    }
}

/// A record without its body. Fields that a kind has no use for are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) compression: u8,
    pub(crate) format: u16,
    pub(crate) body_len: u32,
    /// Offset of the first record of its group commit. A record of a later commit proves that this one was synced.
    pub(crate) commit_start: u64,
    pub(crate) run: u64,
    pub(crate) first: u64,
    pub(crate) lines: u32,
    pub(crate) payload_bytes: u32,
    pub(crate) min_time: i64,
    pub(crate) max_time: i64,
    pub(crate) level_mask: u32,
    pub(crate) source_mask: u32,
    pub(crate) body_crc: u32,
    /// By the store's clock.
    pub(crate) stored_at: i64,
    /// If the record before is a block: its run, and the sequence after its last line. Otherwise 0.
    pub(crate) previous: (u64, u64),
}

impl Header {
    /// For a body that is not a block's.
    pub(crate) fn new(kind: Kind, run: u64, first: u64, body: &[u8], stored_at: i64) -> Self {
        Self {
            kind,
            compression: 0,
            format: 0,
            body_len: body.len() as u32,
            commit_start: 0,
            run,
            first,
            lines: 0,
            payload_bytes: 0,
            min_time: 0,
            max_time: 0,
            level_mask: 0,
            source_mask: 0,
            body_crc: crc32c(body),
            stored_at,
            previous: (0, 0),
        }
    }

    /// For a block that has been checked: its own checksum is taken over.
    pub(crate) fn block(run: u64, block: &LogBlock, stored_at: i64) -> Self {
        Self {
            kind: Kind::Block,
            compression: block.compression as u8,
            format: block.format as u16,
            body_len: block.payload.len() as u32,
            commit_start: 0,
            run,
            first: block.first_sequence,
            lines: block.line_count,
            payload_bytes: block.payload_bytes,
            min_time: block.min_time_unix_nanos,
            max_time: block.max_time_unix_nanos,
            level_mask: block.level_mask,
            source_mask: block.source_mask,
            body_crc: block.payload_crc32c,
            stored_at,
            previous: (0, 0),
        }
    }

    /// The block as it came.
    pub(crate) fn to_block(self, payload: Bytes) -> LogBlock {
        LogBlock {
            format: self.format.into(),
            first_sequence: self.first,
            line_count: self.lines,
            min_time_unix_nanos: self.min_time,
            max_time_unix_nanos: self.max_time,
            level_mask: self.level_mask,
            source_mask: self.source_mask,
            compression: self.compression.into(),
            payload_bytes: self.payload_bytes,
            payload_crc32c: self.body_crc,
            payload,
        }
    }

    /// What this record tells of the one before it where that cannot be read. Lines that this one holds itself are
    /// not lost, whatever it says.
    pub(crate) fn lost_before(&self) -> (u64, u64) {
        let (run, end) = self.previous;
        let goes_on = matches!(self.kind, Kind::Block | Kind::Gap | Kind::Finish) && self.run == run;
        (run, if goes_on { end.min(self.first) } else { end })
    }

    /// Bytes of the whole record, padding included.
    pub(crate) fn size(&self) -> u64 {
        size(self.body_len as usize)
    }

    pub(crate) fn encode(&self, place: Place, offset: u64) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[8] = self.kind as u8;
        out[9] = self.compression;
        out[10..12].copy_from_slice(&self.format.to_le_bytes());
        out[12..16].copy_from_slice(&self.body_len.to_le_bytes());
        out[16..24].copy_from_slice(&self.commit_start.to_le_bytes());
        out[24..32].copy_from_slice(&self.run.to_le_bytes());
        out[32..40].copy_from_slice(&self.first.to_le_bytes());
        out[40..44].copy_from_slice(&self.lines.to_le_bytes());
        out[44..48].copy_from_slice(&self.payload_bytes.to_le_bytes());
        out[48..56].copy_from_slice(&self.min_time.to_le_bytes());
        out[56..64].copy_from_slice(&self.max_time.to_le_bytes());
        out[64..68].copy_from_slice(&self.level_mask.to_le_bytes());
        out[68..72].copy_from_slice(&self.source_mask.to_le_bytes());
        out[72..76].copy_from_slice(&self.body_crc.to_le_bytes());
        out[80..88].copy_from_slice(&self.stored_at.to_le_bytes());
        out[88..96].copy_from_slice(&self.previous.0.to_le_bytes());
        out[96..104].copy_from_slice(&self.previous.1.to_le_bytes());
        let crc = crc32c_append(place.seed(offset), &out[8..]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// `None` if these are not the bytes of a header written at this place.
    pub(crate) fn decode(bytes: &[u8], place: Place, offset: u64) -> Option<Self> {
        let bytes: &[u8; HEADER] = bytes.get(..HEADER)?.try_into().ok()?;
        if u32_at(bytes, 0) != MAGIC || u32_at(bytes, 4) != crc32c_append(place.seed(offset), &bytes[8..]) {
            return None;
        }
        let header = Self {
            kind: Kind::from_u8(bytes[8])?,
            compression: bytes[9],
            format: u16::from_le_bytes([bytes[10], bytes[11]]),
            body_len: u32_at(bytes, 12),
            commit_start: u64_at(bytes, 16),
            run: u64_at(bytes, 24),
            first: u64_at(bytes, 32),
            lines: u32_at(bytes, 40),
            payload_bytes: u32_at(bytes, 44),
            min_time: u64_at(bytes, 48) as i64,
            max_time: u64_at(bytes, 56) as i64,
            level_mask: u32_at(bytes, 64),
            source_mask: u32_at(bytes, 68),
            body_crc: u32_at(bytes, 72),
            stored_at: u64_at(bytes, 80) as i64,
            previous: (u64_at(bytes, 88), u64_at(bytes, 96)),
        };
        (header.body_len as usize <= MAX_BODY && header.commit_start <= offset).then_some(header)
    }

    /// Whether this is the body that was written with the header.
    pub(crate) fn matches(&self, body: &[u8]) -> bool {
        body.len() == self.body_len as usize && crc32c(body) == self.body_crc
    }
}

/// Bytes of a record with a body of so many, padding included.
pub(crate) fn size(body: usize) -> u64 {
    ((HEADER + body) as u64).next_multiple_of(ALIGN)
}

/// Whether a header could begin with these bytes; cheap.
pub(crate) fn may_begin(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC.to_le_bytes())
}

/// The beginning of a segment file. Only informative: its loss costs nothing, since the name says what the file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileHeader {
    pub(crate) place: Place,
    pub(crate) created_at: i64,
    /// Smallest number for a run / a task that had not been given away when the file was made.
    pub(crate) next_run: u64,
    pub(crate) next_task: u64,
}

impl FileHeader {
    pub(crate) fn encode(&self) -> [u8; FILE_HEADER] {
        let mut out = [0; FILE_HEADER];
        out[..8].copy_from_slice(&FILE_MAGIC);
        out[12..16].copy_from_slice(&FORMAT.to_le_bytes());
        out[16..24].copy_from_slice(&self.place.salt.to_le_bytes());
        out[24..32].copy_from_slice(&self.place.segment.to_le_bytes());
        out[32..36].copy_from_slice(&self.place.generation.to_le_bytes());
        out[40..48].copy_from_slice(&self.created_at.to_le_bytes());
        out[48..56].copy_from_slice(&self.next_run.to_le_bytes());
        out[56..64].copy_from_slice(&self.next_task.to_le_bytes());
        let crc = crc32c(&out[12..]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; FILE_HEADER] = bytes.get(..FILE_HEADER)?.try_into().ok()?;
        (bytes[..8] == FILE_MAGIC && u32_at(bytes, 8) == crc32c(&bytes[12..]) && u32_at(bytes, 12) == FORMAT).then(
            || Self {
                place: Place { salt: u64_at(bytes, 16), segment: u64_at(bytes, 24), generation: u32_at(bytes, 32) },
                created_at: u64_at(bytes, 40) as i64,
                next_run: u64_at(bytes, 48),
                next_task: u64_at(bytes, 56),
            },
        )
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut out = [0; 4];
    out.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(out)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut out = [0; 8];
    out.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLACE: Place = Place { salt: 7, segment: 3, generation: 1 };

    fn header() -> impl Strategy<Value = Header> {
        (
            (1..=10u8, any::<u8>(), any::<u16>(), 0..=MAX_BODY as u32, any::<u64>(), any::<u64>()),
            (any::<u32>(), any::<u32>(), any::<i64>(), any::<i64>(), any::<u32>(), any::<u32>(), any::<u32>()),
            any::<i64>(),
        )
            .prop_map(|((kind, compression, format, body_len, run, first), rest, stored_at)| Header {
                kind: Kind::from_u8(kind).unwrap(),
                compression,
                format,
                body_len,
                commit_start: 64,
                run,
                first,
                lines: rest.0,
                payload_bytes: rest.1,
                min_time: rest.2,
                max_time: rest.3,
                level_mask: rest.4,
                source_mask: rest.5,
                body_crc: rest.6,
                stored_at,
                previous: (first, run),
            })
    }

    proptest! {
        #[test]
        fn a_header_comes_back_and_a_flip_or_another_place_is_found(
            header in header(), offset in 64..1u64 << 40, bit in 0..HEADER * 8,
        ) {
            let bytes = header.encode(PLACE, offset);
            prop_assert_eq!(Header::decode(&bytes, PLACE, offset), Some(header));
            prop_assert_eq!(Header::decode(&bytes, PLACE, offset + 8), None);
            for other in [Place { salt: 8, ..PLACE }, Place { segment: 4, ..PLACE }, Place { generation: 2, ..PLACE }] {
                prop_assert_eq!(Header::decode(&bytes, other, offset), None);
            }
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Header::decode(&flipped, PLACE, offset), None);
        }
    }

    #[test]
    fn what_a_record_holds_was_not_lost_before_it() {
        let header = |kind, run| Header { previous: (7, 30), ..Header::new(kind, run, 21, &[], 0) };
        assert_eq!(header(Kind::Block, 7).lost_before(), (7, 21));
        assert_eq!(header(Kind::Finish, 7).lost_before(), (7, 21));
        assert_eq!(header(Kind::Block, 8).lost_before(), (7, 30));
        assert_eq!(header(Kind::Event, 7).lost_before(), (7, 30));
    }

    #[test]
    fn a_file_header_comes_back() {
        let header = FileHeader { place: PLACE, created_at: -5, next_run: 9, next_task: 4 };
        let mut bytes = header.encode();
        assert_eq!(FileHeader::decode(&bytes), Some(header));
        bytes[40] ^= 1;
        assert_eq!(FileHeader::decode(&bytes), None);
    }
}
