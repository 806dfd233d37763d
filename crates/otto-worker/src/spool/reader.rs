//! Reads records in order, from memory while they are recent, else from the files.

use std::fs::File;
use std::io;

use super::record::{self, Record};
use super::segment_path;
use super::state::Spool;

/// A place between two records.
pub(crate) struct Reader {
    spool: Spool,
    segment: u64,
    offset: u64,
    file: Option<(u64, File)>,
}

impl Reader {
    /// At the record that holds `sequence`, or at the end if there is none yet.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub(crate) fn at(spool: Spool, sequence: u64) -> io::Result<Self> {
        let start = {
            let state = spool.state();
            let holds = state.segments.iter().rev().find(|segment| segment.first <= sequence);
            holds.or(state.segments.front()).map_or(0, |segment| segment.number)
        };
        let mut reader = Reader { spool, segment: start, offset: 0, file: None };
        loop {
            match reader.locate() {
                Ok(Some(located)) if located.head().end().is_some_and(|end| end <= sequence) => {
                    reader.offset = located.next;
                }
                Ok(_) => return Ok(reader),
                Err(error) => reader.over(error)?,
            }
        }
    }

    /// The next record; `None`: there is none yet. What is damaged is passed over: the next one's sequence shows the hole.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub(crate) fn next(&mut self) -> io::Result<Option<Record>> {
        loop {
            if let Some(record) = self.recent() {
                return Ok(Some(record));
            }
            let located = match self.locate() {
                Ok(Some(located)) => located,
                Ok(None) => return Ok(None),
                Err(error) => {
                    self.over(error)?;
                    continue;
                }
            };
            let Some((_, file)) = &self.file else { return Ok(None) };
            // Its head is whole, and says where the next one begins.
            self.offset = located.next;
            match located.read(file) {
                Ok(record) => return Ok(Some(record)),
                // Acknowledged and removed meanwhile.
                Err(_) if !self.is_there() => {}
                Err(error) if record::is_damage(&error) => {
                    tracing::warn!("the spool is damaged, a record is lost: {error}");
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Over what has no head: nobody knows where the next record begins, except in the next segment.
    fn over(&mut self, error: io::Error) -> io::Result<()> {
        let here = self.segment;
        let state = self.spool.state();
        let Some(segment) = state.segments.iter().find(|segment| segment.number == here) else {
            // Acknowledged and removed meanwhile.
            return Ok(());
        };
        if !record::is_damage(&error) {
            return Err(error);
        }
        tracing::warn!("the spool is damaged, the rest of a segment is lost: {error}");
        self.offset = segment.bytes;
        Ok(())
    }

    /// From memory, if it is there. What lies before is of no use to anybody and is forgotten.
    fn recent(&mut self) -> Option<Record> {
        self.settle()?;
        let mut state = self.spool.state();
        while let Some(recent) = state.recent.front() {
            let place = (recent.segment, recent.offset);
            if place > (self.segment, self.offset) {
                return None;
            }
            let recent = state.recent.pop_front()?;
            state.recent_bytes -= recent.bytes;
            if place == (self.segment, self.offset) {
                self.offset = recent.next;
                return Some(recent.record);
            }
        }
        None
    }

    /// The record at this place; goes on to the next segment at the end of one.
    fn locate(&mut self) -> io::Result<Option<record::Located>> {
        loop {
            let Some(bytes) = self.settle() else { return Ok(None) };
            if self.offset >= bytes {
                return Ok(None);
            }
            if self.file.as_ref().is_none_or(|(number, _)| *number != self.segment) {
                match File::open(segment_path(self.spool.dir(), self.segment)) {
                    Ok(file) => self.file = Some((self.segment, file)),
                    // Acknowledged and removed since we looked.
                    Err(error) if error.kind() == io::ErrorKind::NotFound && !self.is_there() => continue,
                    Err(error) => return Err(error),
                }
            }
            let Some((_, file)) = &self.file else { return Ok(None) };
            return record::locate(file, self.offset).map(Some);
        }
    }

    /// Moves over the ends of segments, and over those that were freed. Bytes of the segment it then stands in; `None`:
    /// there is no segment.
    fn settle(&mut self) -> Option<u64> {
        let state = self.spool.state();
        let from = self.segment;
        let mut segments = state.segments.iter().skip_while(|segment| segment.number < from);
        let mut here = segments.next()?;
        if here.number > self.segment {
            // Ours was freed: everything in it is acknowledged.
            (self.segment, self.offset) = (here.number, 0);
        }
        while self.offset >= here.bytes
            && let Some(next) = segments.next()
        {
            here = next;
            (self.segment, self.offset) = (here.number, 0);
        }
        Some(here.bytes)
    }

    fn is_there(&self) -> bool {
        self.spool.state().segments.iter().any(|segment| segment.number == self.segment)
    }
}
