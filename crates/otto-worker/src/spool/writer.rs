//! Adds records.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::record::{self, Record};
use super::segment_path;
use super::state::{Recent, Spool};

/// The one who adds records to a run.
pub(crate) struct Writer {
    spool: Spool,
    file: File,
    number: u64,
    offset: u64,
    segment_bytes: u64,
}

/// Why a record was not added.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AppendError {
    /// The limit is reached, or the disk is full. It may fit once something was acknowledged.
    #[error("the spool is full")]
    Full,
    /// The file cannot be written.
    #[error("writing the spool: {0}")]
    Io(#[from] io::Error),
}

impl Writer {
    /// Begins a segment behind those there are.
    pub(super) fn begin(spool: Spool, segment_bytes: u64) -> io::Result<Self> {
        let number = spool.state().segments.back().map_or(1, |segment| segment.number + 1);
        let file = new_segment(&spool, number)?;
        Ok(Writer { spool, file, number, offset: 0, segment_bytes })
    }

    /// Adds a record, which must begin at the sequence after the last one. Long texts for people are cut. `at_end`: into the reserve too.
    ///
    /// # Errors
    /// [`AppendError`]; nothing was added.
    pub(crate) fn append(&mut self, record: Record, at_end: bool) -> Result<(), AppendError> {
        let record = record.shortened();
        let (head, payload) = record::encode(&record);
        let bytes = (head.len() + payload.len()) as u64;
        let (fits, rotate) = {
            let state = self.spool.state();
            debug_assert!(record.first().is_none_or(|first| first == state.next_sequence));
            let fits = self.spool.fits(&state, bytes, at_end);
            // A segment that is wholly acknowledged is worth nothing but its room.
            (fits, self.offset >= self.segment_bytes || (!fits && state.last_is_acknowledged()))
        };
        if rotate {
            let next = Writer::begin(self.spool.clone(), self.segment_bytes).map_err(full_or_io)?;
            *self = next;
        }
        if !fits && !self.spool.fits(&self.spool.state(), bytes, at_end) {
            return Err(AppendError::Full);
        }
        if let Err(error) = self.write(&head, &payload) {
            // A disk that is full of what was acknowledged has room again with a new segment.
            if !matches!(error, AppendError::Full) || !self.spool.state().last_is_acknowledged() {
                return Err(error);
            }
            *self = Writer::begin(self.spool.clone(), self.segment_bytes).map_err(full_or_io)?;
            self.write(&head, &payload)?;
        }
        let (offset, next) = (self.offset, self.offset + bytes);
        self.offset = next;
        let end = record.end();
        let gap_lines = match &record {
            Record::Gap(gap) => end.map_or(0, |end| end - gap.first_sequence),
            _ => 0,
        };
        self.spool.added(Recent { segment: self.number, offset, next, record, bytes }, end, gap_lines);
        Ok(())
    }

    fn write(&self, head: &[u8], payload: &[u8]) -> Result<(), AppendError> {
        write_both(&self.file, self.offset, head, payload).map_err(|error| {
            // What was written of it only takes room; the next record is written over it.
            if let Err(error) = self.file.set_len(self.offset) {
                tracing::debug!("cutting off what was written of a record: {error}");
            }
            full_or_io(error)
        })
    }

    /// Sequence the next record begins at.
    pub(crate) fn next_sequence(&self) -> u64 {
        self.spool.state().next_sequence
    }

    /// No record will be added any more.
    pub(crate) fn complete(self) {
        self.spool.completed();
    }
}

fn new_segment(spool: &Spool, number: u64) -> io::Result<File> {
    let file = spool.access().options().write(true).create_new(true).open(segment_path(spool.dir(), number))?;
    let freed = spool.state().begin_segment(number);
    spool.remove_segments(&freed);
    Ok(file)
}

/// At `offset`, wherever an earlier write that failed may have ended.
fn write_both(file: &File, offset: u64, head: &[u8], payload: &[u8]) -> io::Result<()> {
    file.write_all_at(head, offset)?;
    file.write_all_at(payload, offset + head.len() as u64)
}

fn full_or_io(error: io::Error) -> AppendError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => AppendError::Full,
        _ => AppendError::Io(error),
    }
}

#[cfg(test)]
mod tests {
    use otto_proto::v1::FinishRun;
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

    use super::super::{RunInfo, create};
    use super::*;

    fn finish(text: &str) -> Record {
        Record::Finish(FinishRun { error_message: text.to_owned(), ..FinishRun::default() })
    }

    #[test]
    fn after_a_write_that_failed_halfway_records_follow_the_last_whole_one() {
        let temporary = tempfile::tempdir().unwrap();
        let (mut writer, _spool) = create(temporary.path(), &RunInfo::new("t", "w", 1), 1 << 20, 0).unwrap();
        // A file that takes two pages and cannot be cut off either.
        let file = memfd_create("segment", MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&file, 8192).unwrap();
        fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK).unwrap();
        writer.file = file.into();
        writer.append(finish("first"), true).unwrap();
        for _ in 0..2 {
            writer.append(finish(&"x".repeat(4000)), true).unwrap();
        }
        let at = writer.offset;
        assert!(writer.append(finish(&"y".repeat(4000)), true).is_err());
        assert_eq!(writer.offset, at);
        writer.append(finish("last"), true).unwrap();
        let located = record::locate(&writer.file, at).unwrap();
        assert_eq!(located.read(&writer.file).unwrap(), finish("last"));
    }

    #[test]
    fn texts_of_any_length_are_shortened() {
        let temporary = tempfile::tempdir().unwrap();
        let (mut writer, _spool) = create(temporary.path(), &RunInfo::new("t", "w", 1), 1 << 20, 0).unwrap();
        writer.append(finish(&"ü".repeat(100_000)), true).unwrap();
        assert!((4000..5000).contains(&writer.offset), "{}", writer.offset);
    }
}
