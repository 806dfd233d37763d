//! Reading a segment file from its beginning, over whatever is damaged in it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::record::{ALIGN, FILE_HEADER, HEADER, Header, Kind, Place, may_begin};
use crate::segment::is_unreadable;

/// What was found, in order.
pub(crate) enum Found<'a> {
    Record(u64, Header, &'a [u8]),
    /// The header is whole, the body is not.
    DamagedBody(u64, Header),
    /// Nothing whole from here up to there.
    Damaged(u64, u64),
}

/// What a file looks like as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Where the last whole record ends.
    pub(crate) end: u64,
    /// Where the last group commit that anything whole is known of begins. Every commit before it was on disk before
    /// it was written.
    pub(crate) last_commit: u64,
    /// First damage at or after `last_commit`.
    pub(crate) torn_at: Option<u64>,
    /// There is damage before `last_commit`.
    pub(crate) damaged: bool,
    /// It ends as a sealed segment does.
    pub(crate) sealed: bool,
    /// It holds records.
    pub(crate) any: bool,
}

impl Shape {
    /// Where what may count as written ends. Damage in the last commit means that it was never acknowledged: it was
    /// being written when the process or machine stopped, so it and what follows is cut off.
    pub(crate) fn cut(&self) -> u64 {
        self.torn_at.unwrap_or(self.end)
    }
}

/// Finds out the shape of a file.
pub(crate) fn shape(file: &File, place: Place) -> io::Result<Shape> {
    let mut shape = Shape { end: FILE_HEADER as u64, last_commit: FILE_HEADER as u64, ..Shape::default() };
    let mut damage: Vec<(u64, u64)> = Vec::new();
    let unreadable = walk(file, place, u64::MAX, true, |found| {
        let (offset, header) = match found {
            Found::Record(offset, header, _) => {
                shape.any = true;
                shape.sealed = header.kind == Kind::End;
                shape.end = offset + header.size();
                (offset, header)
            }
            Found::DamagedBody(offset, header) => {
                damage.push((offset, offset + header.size()));
                (offset, header)
            }
            Found::Damaged(from, to) => {
                damage.push((from, to));
                return;
            }
        };
        debug_assert!(header.commit_start <= offset);
        shape.last_commit = shape.last_commit.max(header.commit_start);
    })?;
    // In the last commit it may have been acknowledged, and nothing of it may be cut off.
    if let Some((_, error)) = unreadable.into_iter().find(|(to, _)| *to > shape.last_commit) {
        return Err(error);
    }
    for (from, to) in damage {
        if to > shape.last_commit {
            shape.torn_at.get_or_insert(from.max(shape.last_commit));
        }
        shape.damaged |= from < shape.last_commit;
    }
    // What is left behind a torn place was not the end of anything.
    if let Some(torn) = shape.torn_at {
        shape.sealed &= torn >= shape.end;
        shape.end = shape.end.min(torn);
    }
    Ok(shape)
}

/// Reads a file up to `until`. Bodies of blocks are checked only if `verify`. The free space at the end of a file is not
/// reported, unless it is not zeros. What the disk does not give (a bad sector) is taken for zeros, and so for damage;
/// returns where such places end, and what the disk said.
pub(crate) fn walk(
    file: &File,
    place: Place,
    until: u64,
    verify: bool,
    mut found: impl FnMut(Found<'_>),
) -> io::Result<Vec<(u64, io::Error)>> {
    let mut window = Window::new(file, until)?;
    let mut offset = FILE_HEADER as u64;
    while offset < window.len {
        let Some(header) = window.header(place, offset)? else {
            let next = window.find(place, offset + ALIGN)?;
            match next {
                Some(next) => found(Found::Damaged(offset, next)),
                None => {
                    if let Some(last) = window.last_not_zero(offset)? {
                        found(Found::Damaged(offset, last + 1));
                    }
                    return Ok(window.unreadable);
                }
            }
            offset = next.unwrap_or(window.len);
            continue;
        };
        let size = header.size();
        if header.kind == Kind::Block && !verify {
            found(if offset + size <= window.len {
                Found::Record(offset, header, &[])
            } else {
                Found::DamagedBody(offset, header)
            });
        } else {
            match window.bytes(offset + HEADER as u64, header.body_len as usize)? {
                Some(body) if header.matches(body) => found(Found::Record(offset, header, body)),
                _ => found(Found::DamagedBody(offset, header)),
            }
        }
        offset += size;
    }
    Ok(window.unreadable)
}

/// A stretch of the file in memory.
struct Window<'a> {
    file: &'a File,
    len: u64,
    start: u64,
    buffer: Vec<u8>,
    /// Ends of places that cannot be read, and why.
    unreadable: Vec<(u64, io::Error)>,
}

/// Read alone when a larger read fails: what disks lose at once.
const SECTOR: u64 = 4 << 10;
const STRETCH: usize = 128 << 10;

fn read(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    #[cfg(test)]
    if tests::BAD.with_borrow(|bad| bad.iter().any(|at| (offset..offset + buffer.len() as u64).contains(at))) {
        return Err(rustix::io::Errno::IO.into());
    }
    file.read_exact_at(buffer, offset)
}

impl<'a> Window<'a> {
    fn new(file: &'a File, until: u64) -> io::Result<Self> {
        Ok(Self { file, len: file.metadata()?.len().min(until), start: 0, buffer: Vec::new(), unreadable: Vec::new() })
    }

    /// `None`: the file ends before.
    fn bytes(&mut self, offset: u64, len: usize) -> io::Result<Option<&[u8]>> {
        if offset + len as u64 > self.len {
            return Ok(None);
        }
        if offset < self.start || offset + len as u64 > self.start + self.buffer.len() as u64 {
            let wanted = (len.max(STRETCH) as u64).min(self.len - offset) as usize;
            self.buffer.resize(wanted, 0);
            self.start = offset;
            match read(self.file, &mut self.buffer, offset) {
                Err(error) if is_unreadable(&error) => self.read_by_sectors(offset)?,
                other => other?,
            }
        }
        let from = (offset - self.start) as usize;
        Ok(Some(&self.buffer[from..from + len]))
    }

    /// Fills the buffer with what there is, and zeros.
    fn read_by_sectors(&mut self, offset: u64) -> io::Result<()> {
        let end = offset + self.buffer.len() as u64;
        let mut at = offset;
        while at < end {
            let next = ((at / SECTOR + 1) * SECTOR).min(end);
            let sector = &mut self.buffer[(at - offset) as usize..(next - offset) as usize];
            match read(self.file, sector, at) {
                Err(error) if is_unreadable(&error) => {
                    sector.fill(0);
                    self.unreadable.push((next, error));
                }
                other => other?,
            }
            at = next;
        }
        Ok(())
    }

    fn header(&mut self, place: Place, offset: u64) -> io::Result<Option<Header>> {
        Ok(self.bytes(offset, HEADER)?.and_then(|bytes| Header::decode(bytes, place, offset)))
    }

    /// The next whole header from here on.
    fn find(&mut self, place: Place, mut offset: u64) -> io::Result<Option<u64>> {
        while offset + HEADER as u64 <= self.len {
            let stretch = (STRETCH as u64).min(self.len - offset) as usize;
            let Some(bytes) = self.bytes(offset, stretch)? else { return Ok(None) };
            let candidates: Vec<u64> = bytes
                .chunks_exact(ALIGN as usize)
                .enumerate()
                .filter(|(_, chunk)| may_begin(chunk))
                .map(|(index, _)| offset + index as u64 * ALIGN)
                .collect();
            for candidate in candidates {
                if self.header(place, candidate)?.is_some() {
                    return Ok(Some(candidate));
                }
            }
            offset += (stretch as u64 / ALIGN).max(1) * ALIGN;
        }
        Ok(None)
    }

    fn last_not_zero(&mut self, mut offset: u64) -> io::Result<Option<u64>> {
        let mut last = None;
        while offset < self.len {
            let stretch = (STRETCH as u64).min(self.len - offset) as usize;
            let Some(bytes) = self.bytes(offset, stretch)? else { break };
            if let Some(at) = bytes.iter().rposition(|byte| *byte != 0) {
                last = Some(offset + at as u64);
            }
            offset += stretch as u64;
        }
        Ok(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{Batch, Body};
    use crate::record::Header;

    thread_local! {
        /// Bytes that the disk does not give.
        pub(super) static BAD: std::cell::RefCell<Vec<u64>> = const { std::cell::RefCell::new(Vec::new()) };
    }

    /// Larger than a sector.
    #[test]
    fn what_the_disk_does_not_give_is_damage_but_not_in_the_last_commit() {
        let mut bytes = vec![0; FILE_HEADER];
        let (mut offsets, mut commits) = (Vec::new(), Vec::new());
        for commit in 0..4u64 {
            let mut batch = Batch::new(PLACE, bytes.len() as u64);
            commits.push(bytes.len() as u64);
            let body = vec![7; 20_000];
            offsets.push(batch.push(Header::new(Kind::Event, 1, commit, &body, 0), Body::Copied(&body)));
            for slice in batch.slices() {
                bytes.extend_from_slice(&slice);
            }
        }
        let file = file(&bytes);
        BAD.set(vec![offsets[1] + 9_000]);
        let looked = shape(&file, PLACE).unwrap();
        assert_eq!((looked.damaged, looked.torn_at, looked.cut()), (true, None, bytes.len() as u64));
        assert_eq!(whole(&file, u64::MAX).len(), 3);
        BAD.set(vec![offsets[3] + 9_000]);
        assert!(shape(&file, PLACE).is_err_and(|error| is_unreadable(&error)));
        BAD.take();
    }

    const PLACE: Place = Place { salt: 11, segment: 5, generation: 0 };

    /// Where a record begins, and its body.
    type At = (u64, Vec<u8>);

    /// Three commits of three records: the bytes of the file, the records, where commits begin.
    fn sample() -> (Vec<u8>, Vec<At>, Vec<u64>) {
        let mut bytes = vec![0; FILE_HEADER];
        let (mut records, mut commits) = (Vec::new(), Vec::new());
        for commit in 0..3u64 {
            let mut batch = Batch::new(PLACE, bytes.len() as u64);
            commits.push(bytes.len() as u64);
            for record in 0..3u64 {
                let body: Vec<u8> = (0..record * 7 + commit + 1).map(|at| (at * 31 + record) as u8).collect();
                let header = Header::new(Kind::Event, 1, commit * 3 + record, &body, 0);
                records.push((batch.push(header, Body::Copied(&body)), body));
            }
            for slice in batch.slices() {
                bytes.extend_from_slice(&slice);
            }
        }
        (bytes, records, commits)
    }

    fn file(bytes: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    fn whole(file: &File, until: u64) -> Vec<At> {
        let mut found = Vec::new();
        walk(file, PLACE, until, true, |item| {
            if let Found::Record(offset, _, body) = item {
                found.push((offset, body.to_vec()));
            }
        })
        .unwrap();
        found
    }

    #[test]
    fn a_flip_of_any_byte_loses_one_record_at_most_and_only_the_last_commit_is_cut() {
        let (bytes, records, commits) = sample();
        let last = *commits.last().unwrap();
        for at in FILE_HEADER..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x20;
            let file = file(&flipped);
            let shape = shape(&file, PLACE).unwrap();
            let found = whole(&file, u64::MAX);
            assert!(found.iter().all(|record| records.contains(record)), "wrong bytes after a flip at {at}");
            let hit = records.iter().rposition(|(offset, _)| *offset <= at as u64).unwrap();
            // A flip in the padding hits nothing.
            let padding = at as u64 >= records[hit].0 + (crate::record::HEADER + records[hit].1.len()) as u64;
            assert_eq!(found.len(), records.len() - usize::from(!padding), "flip at {at}");
            if padding {
                assert_eq!((shape.damaged, shape.torn_at), (false, None));
            } else if (at as u64) < last {
                assert_eq!((shape.damaged, shape.cut()), (true, bytes.len() as u64), "flip at {at}");
            } else {
                assert_eq!((shape.damaged, shape.cut()), (false, records[hit].0), "flip at {at}");
            }
        }
    }

    #[test]
    fn a_cut_at_any_byte_leaves_the_whole_records_before_it() {
        let (bytes, records, _) = sample();
        for at in FILE_HEADER..bytes.len() {
            // As it is, and with space that was taken ahead.
            for ahead in [0, 64 << 10] {
                let mut cut = bytes[..at].to_vec();
                cut.resize(at + ahead, 0);
                let file = file(&cut);
                let shape = shape(&file, PLACE).unwrap();
                assert!(!shape.damaged, "cut at {at}");
                let before: Vec<_> = records
                    .iter()
                    .filter(|(offset, body)| {
                        let end = *offset + (crate::record::HEADER + body.len()) as u64;
                        end <= at as u64
                            || (ahead > 0 && bytes[at..].iter().take((end - at as u64) as usize).all(|byte| *byte == 0))
                    })
                    .cloned()
                    .collect();
                assert_eq!(whole(&file, shape.cut()), before, "cut at {at}");
            }
        }
    }

    #[test]
    fn a_record_is_not_found_inside_another_ones_body() {
        let (bytes, records, _) = sample();
        // A log that prints a segment file: the same bytes at another offset, and at their own in another store.
        let mut batch = Batch::new(PLACE, FILE_HEADER as u64);
        batch.push(Header::new(Kind::Event, 1, 1, &bytes, 0), Body::Copied(&bytes));
        let mut printed = vec![0; FILE_HEADER];
        for slice in batch.slices() {
            printed.extend_from_slice(&slice);
        }
        printed[FILE_HEADER + 5] ^= 1;
        assert_eq!(whole(&file(&printed), u64::MAX), []);
        let other = Place { salt: 12, ..PLACE };
        let mut found = 0;
        walk(&file(&bytes), other, u64::MAX, true, |item| found += usize::from(matches!(item, Found::Record(..))))
            .unwrap();
        assert_eq!((found, records.len()), (0, 9));
    }
}
