//! Adds records.

use std::fs::File;
use std::io::{self, IoSlice, Write};

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

    /// Adds a record, which must begin at the sequence after the last one. `at_end`: into the reserve too.
    ///
    /// # Errors
    /// [`AppendError`]; nothing was added.
    pub(crate) fn append(&mut self, record: Record, at_end: bool) -> Result<(), AppendError> {
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
        if let Err(error) = write_both(&mut self.file, &head, &payload) {
            // What was written of it is cut off, so that the next record follows the last whole one.
            self.file.set_len(self.offset)?;
            io::Seek::seek(&mut self.file, io::SeekFrom::Start(self.offset))?;
            return Err(full_or_io(error));
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
    let file = File::options().write(true).create_new(true).open(segment_path(spool.dir(), number))?;
    let freed = spool.state().begin_segment(number);
    spool.remove_segments(&freed);
    Ok(file)
}

fn write_both(file: &mut File, head: &[u8], payload: &[u8]) -> io::Result<()> {
    let mut slices = [IoSlice::new(head), IoSlice::new(payload)];
    let mut rest = &mut slices[..];
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        match file.write_vectored(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => IoSlice::advance_slices(&mut rest, count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn full_or_io(error: io::Error) -> AppendError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => AppendError::Full,
        _ => AppendError::Io(error),
    }
}
