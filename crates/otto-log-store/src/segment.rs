//! Segment files: writing the active one, reading any.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::FallocateFlags;
use rustix::io::{Errno, ReadWriteFlags};

use crate::batch::Batch;
use crate::options::Faults;
use crate::record::{FILE_HEADER, FileHeader, HEADER, Header, Place};

/// Space is taken ahead in steps of this, so that a commit seldom changes the file's size.
const STEP: u64 = 4 << 20;

/// Most slices of one write (`IOV_MAX` of Linux).
const SLICES: usize = 1024;

/// Why a commit did not reach the disk.
#[derive(Debug)]
pub(crate) enum WriteError {
    /// Nothing of it is left in the file.
    NoSpace,
    /// What is on disk is not known.
    Fatal(String),
}

/// The segment that is written to.
pub(crate) struct ActiveFile {
    pub(crate) place: Place,
    pub(crate) file: Arc<File>,
    /// Where the next commit begins. Everything before is on disk.
    pub(crate) end: u64,
    allocated: u64,
    can_allocate: bool,
    /// No more space is taken than is needed: the disk is full.
    pub(crate) sparing: bool,
}

impl ActiveFile {
    /// Makes a new segment, durably.
    pub(crate) fn create(directory: &Path, header: &FileHeader) -> Result<Self, WriteError> {
        let path = directory.join(file_name(header.place.segment, header.place.generation));
        let made = (|| {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
            file.write_all_at(&header.encode(), 0)?;
            file.sync_all()?;
            sync_directory(directory)?;
            Ok(file)
        })();
        match made {
            Ok(file) => Ok(Self::resume(header.place, file, FILE_HEADER as u64)),
            Err(error) => {
                // Not a record is in it: it can be made again.
                let _ = std::fs::remove_file(&path);
                Err(classify(&error, "make a segment"))
            }
        }
    }

    /// Goes on with a segment whose valid part ends at `end`; the caller has cut off the rest.
    pub(crate) fn resume(place: Place, file: File, end: u64) -> Self {
        Self { place, file: Arc::new(file), end, allocated: end, can_allocate: true, sparing: false }
    }

    /// Writes a commit and waits until it is on disk: one fdatasync. After an error that is not
    /// [`WriteError::NoSpace`] the file must not be written again: a second fsync would lie.
    pub(crate) fn commit(&mut self, batch: &Batch, faults: &dyn Faults) -> Result<std::time::Duration, WriteError> {
        let written = faults
            .before_write(batch.len())
            .and_then(|()| self.allocate(self.end + batch.len()))
            .and_then(|()| write_all(&self.file, batch.slices(), self.end));
        if let Err(error) = written {
            let cause = classify(&error, "write to a segment");
            // What was written of it must never look like a record.
            if let Err(error) = self.file.set_len(self.end) {
                return Err(WriteError::Fatal(format!("cut off a segment: {error}")));
            }
            self.allocated = self.end;
            return Err(cause);
        }
        let begun = std::time::Instant::now();
        faults
            .before_sync()
            .and_then(|()| Ok(rustix::fs::fdatasync(&self.file)?))
            .map_err(|error| WriteError::Fatal(format!("fdatasync of a segment: {error}")))?;
        self.end += batch.len();
        Ok(begun.elapsed())
    }

    /// Space up to `need`, and some more if there is.
    fn allocate(&mut self, need: u64) -> io::Result<()> {
        if need <= self.allocated || !self.can_allocate {
            return Ok(());
        }
        let step = if self.sparing { need } else { need.next_multiple_of(STEP) };
        for target in [step, need] {
            let from = self.allocated;
            match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), from, target - from) {
                Ok(()) => {
                    self.allocated = target;
                    return Ok(());
                }
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                    self.can_allocate = false;
                    return Ok(());
                }
                Err(error) if target == need => return Err(error.into()),
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Frees the space taken ahead; nothing is written to the file afterwards.
    pub(crate) fn seal(&mut self) -> Result<(), WriteError> {
        self.file.set_len(self.end).map_err(|error| WriteError::Fatal(format!("cut off a segment: {error}")))
    }
}

fn classify(error: &io::Error, action: &str) -> WriteError {
    if is_no_space(error) { WriteError::NoSpace } else { WriteError::Fatal(format!("{action}: {error}")) }
}

/// Whether space is what is missing (also: a quota, a limit on the size of files).
pub(crate) fn is_no_space(error: &io::Error) -> bool {
    let codes = [Errno::NOSPC, Errno::DQUOT, Errno::FBIG].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// Writes everything at an offset.
pub(crate) fn write_all(file: &File, mut slices: Vec<IoSlice<'_>>, mut offset: u64) -> io::Result<()> {
    let mut left = &mut slices[..];
    while !left.is_empty() {
        let count = left.len().min(SLICES);
        match rustix::io::pwritev(file, &left[..count], offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset += written as u64;
                IoSlice::advance_slices(&mut left, written);
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Makes created, renamed and removed names durable.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

pub(crate) fn file_name(segment: u64, generation: u32) -> String {
    format!("{segment:016x}.{generation}.seg")
}

/// Segment and generation, if it is the name of a segment.
pub(crate) fn parse_file_name(name: &str) -> Option<(u64, u32)> {
    let (segment, rest) = name.strip_suffix(".seg")?.split_once('.')?;
    let parsed = (u64::from_str_radix(segment, 16).ok()?, rest.parse().ok()?);
    (file_name(parsed.0, parsed.1) == name).then_some(parsed)
}

/// What is at the place of a record.
#[derive(Debug)]
pub(crate) enum Loaded {
    Record(Header, Bytes),
    Damaged,
    /// It would have to come from the disk ([`load_cached`] only).
    NotCached,
}

/// The disk does not give what is there.
pub(crate) fn is_unreadable(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::IO.raw_os_error())
}

/// Reads one record.
pub(crate) fn load(file: &File, place: Place, offset: u64, body_len: u32) -> io::Result<Loaded> {
    let mut buffer = vec![0; HEADER + body_len as usize];
    match file.read_exact_at(&mut buffer, offset) {
        Ok(()) => Ok(check(buffer, place, offset)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Loaded::Damaged),
        // A sector that cannot be read is damage, not a reason to stop reading the rest.
        Err(error) if is_unreadable(&error) => Ok(Loaded::Damaged),
        Err(error) => Err(error),
    }
}

/// Reads one record if it is in the page cache, without waiting for a disk.
pub(crate) fn load_cached(file: &File, place: Place, offset: u64, body_len: u32) -> Loaded {
    let mut buffer = vec![0; HEADER + body_len as usize];
    let wanted = buffer.len();
    match rustix::io::preadv2(file, &mut [IoSliceMut::new(&mut buffer)], offset, ReadWriteFlags::NOWAIT) {
        Ok(read) if read == wanted => check(buffer, place, offset),
        _ => Loaded::NotCached,
    }
}

fn check(buffer: Vec<u8>, place: Place, offset: u64) -> Loaded {
    let bytes = Bytes::from(buffer);
    match Header::decode(&bytes, place, offset) {
        Some(header) if header.matches(&bytes[HEADER..]) => Loaded::Record(header, bytes.slice(HEADER..)),
        _ => Loaded::Damaged,
    }
}
