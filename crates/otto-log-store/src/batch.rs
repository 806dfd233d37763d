//! One group commit's bytes: headers and small bodies in one buffer, large bodies where they are.

use std::io::IoSlice;

use bytes::Bytes;

use crate::record::{ALIGN, Header, Kind, Place};

/// Bodies up to this are copied: cheaper than a slice of their own.
const COPY: usize = 16 << 10;

/// A record's body.
pub(crate) enum Body<'a> {
    Copied(&'a [u8]),
    Shared(Bytes),
}

enum Piece {
    /// From here to there in `scratch`.
    Scratch(usize, usize),
    Body(Bytes),
}

/// Records to be written together, from `start` of a file on.
pub(crate) struct Batch {
    place: Place,
    start: u64,
    len: u64,
    scratch: Vec<u8>,
    pieces: Vec<Piece>,
    records: u64,
    /// For [`Header::previous`] of the next record.
    previous: (u64, u64),
    /// The same for the first record of this batch: of what is on disk.
    before: (u64, u64),
}

impl Batch {
    pub(crate) fn new(place: Place, start: u64) -> Self {
        let (scratch, pieces) = (Vec::new(), Vec::new());
        Self { place, start, len: 0, scratch, pieces, records: 0, previous: (0, 0), before: (0, 0) }
    }

    /// Empties it for the next commit; the buffer stays, unless it has become large.
    pub(crate) fn restart(&mut self, place: Place, start: u64) {
        if self.place != place {
            self.previous = (0, 0);
        }
        self.before = self.previous;
        (self.place, self.start, self.len, self.records) = (place, start, 0, 0);
        self.pieces.clear();
        self.scratch.clear();
        self.scratch.shrink_to(256 << 10);
    }

    /// Nothing of it is in the file: the next batch follows what was there before.
    pub(crate) fn abandon(&mut self) {
        self.previous = self.before;
    }

    pub(crate) fn place(&self) -> Place {
        self.place
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn records(&self) -> u64 {
        self.records
    }

    /// Adds a record; returns its offset in the file.
    pub(crate) fn push(&mut self, mut header: Header, body: Body<'_>) -> u64 {
        let offset = self.start + self.len;
        header.commit_start = self.start;
        header.previous = self.previous;
        self.previous = match header.kind {
            Kind::Block => (header.run, header.first + u64::from(header.lines)),
            _ => (0, 0),
        };
        self.copy(&header.encode(self.place, offset));
        let len = match body {
            Body::Shared(body) if body.len() > COPY => {
                let len = body.len();
                self.pieces.push(Piece::Body(body));
                len
            }
            Body::Shared(body) => {
                self.copy(&body);
                body.len()
            }
            Body::Copied(body) => {
                self.copy(body);
                body.len()
            }
        };
        debug_assert_eq!(len, header.body_len as usize);
        let size = header.size();
        let padding = size as usize - crate::record::HEADER - len;
        self.copy(&[0; ALIGN as usize][..padding]);
        self.len += size;
        self.records += 1;
        offset
    }

    fn copy(&mut self, bytes: &[u8]) {
        let from = self.scratch.len();
        self.scratch.extend_from_slice(bytes);
        let to = self.scratch.len();
        match self.pieces.last_mut() {
            Some(Piece::Scratch(_, end)) if *end == from => *end = to,
            _ if to > from => self.pieces.push(Piece::Scratch(from, to)),
            _ => {}
        }
    }

    /// What is to be written, in order.
    pub(crate) fn slices(&self) -> Vec<IoSlice<'_>> {
        self.pieces
            .iter()
            .map(|piece| match piece {
                Piece::Scratch(from, to) => IoSlice::new(&self.scratch[*from..*to]),
                Piece::Body(body) => IoSlice::new(body),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::HEADER;

    const PLACE: Place = Place { salt: 1, segment: 2, generation: 0 };

    /// Adds a block of ten lines and some; what its header says came before.
    fn previous(batch: &mut Batch, run: u64, first: u64) -> (u64, u64) {
        let mut header = Header::new(Kind::Block, run, first, &[], 0);
        header.lines = 10;
        let offset = batch.push(header, Body::Copied(&[]));
        let bytes = &batch.scratch[(offset - batch.start) as usize..][..HEADER];
        Header::decode(bytes, PLACE, offset).unwrap().previous
    }

    #[test]
    fn a_record_never_names_one_before_it_that_was_not_written() {
        let mut batch = Batch::new(PLACE, 64);
        batch.restart(PLACE, 64);
        assert_eq!(previous(&mut batch, 7, 1), (0, 0));
        for _ in 0..2 {
            batch.restart(PLACE, 168);
            assert_eq!(previous(&mut batch, 7, 11), (7, 11));
            assert_eq!(previous(&mut batch, 8, 1), (7, 21));
            batch.abandon();
        }
        batch.restart(PLACE, 168);
        assert_eq!(previous(&mut batch, 9, 1), (7, 11));
        batch.restart(Place { segment: 3, ..PLACE }, 64);
        batch.abandon();
        batch.restart(PLACE, 64);
        assert_eq!(previous(&mut batch, 9, 11), (0, 0));
    }
}
