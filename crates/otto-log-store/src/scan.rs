//! Reading a segment file from its beginning, over whatever is damaged in it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::record::{ALIGN, FILE_HEADER, HEADER, Header, Kind, Place, may_begin};

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
    walk(file, place, u64::MAX, true, |found| {
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
/// reported, unless it is not zeros.
pub(crate) fn walk(
    file: &File,
    place: Place,
    until: u64,
    verify: bool,
    mut found: impl FnMut(Found<'_>),
) -> io::Result<()> {
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
                    return Ok(());
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
    Ok(())
}

/// A stretch of the file in memory.
struct Window<'a> {
    file: &'a File,
    len: u64,
    start: u64,
    buffer: Vec<u8>,
}

const STRETCH: usize = 128 << 10;

impl<'a> Window<'a> {
    fn new(file: &'a File, until: u64) -> io::Result<Self> {
        Ok(Self { file, len: file.metadata()?.len().min(until), start: 0, buffer: Vec::new() })
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
            self.file.read_exact_at(&mut self.buffer, offset)?;
        }
        let from = (offset - self.start) as usize;
        Ok(Some(&self.buffer[from..from + len]))
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
