//! Opening: what a crash left is brought back to a whole.
//!
//! Sealed segments that are in the index are trusted as they are (readers check every block). The others are read again.
//! Only the newest file can end torn: a new segment is begun after the one before it was synced and ended. In the
//! newest file, damage followed by a record of a later group commit is damage to acknowledged data, since a commit is
//! written only after the one before it was synced; it is kept, and shown as a gap. Damage in the last commit is a
//! write that was never acknowledged, and is cut off.
//!
//! A whole last commit may be one whose fdatasync failed: the kernel may then keep its pages in the page cache, marked
//! clean, though they never reached the disk. Reading them proves nothing, and neither does a sync, which finds nothing
//! to write. So the last commit is written once more, the same bytes to the same place, and synced, before anything of
//! it counts as stored. If that fails, so does the opening.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use crate::catalogue::Catalogue;
use crate::directory::{Directory, failed};
use crate::error::OpenError;
use crate::index::{Index, IndexError, Meta, SegmentRow};
use crate::layer::Layer;
use crate::options::{Faults, Options};
use crate::record::{FILE_HEADER, FileHeader, HEADER, Header, Kind, Place};
use crate::scan::{Found, Shape, shape, walk};
use crate::segment::{ActiveFile, file_name, is_no_space, parse_file_name, sync_directory};
use crate::stage::Stage;

/// More segments than this that are not in the index are put there while opening, not behind it.
const BEHIND: usize = 4;

/// What a store starts with.
pub(crate) struct Recovered {
    pub(crate) catalogue: Catalogue,
    /// The segment to go on with; `None`: a new one is made for the first record.
    pub(crate) active: Option<ActiveFile>,
    /// Number for the next new segment.
    pub(crate) next_segment: u64,
    /// Segments that are in the index.
    pub(crate) sealed: BTreeMap<u64, SegmentRow>,
    /// Places found damaged.
    pub(crate) damaged: u64,
}

struct Recovery<'a> {
    options: &'a Options,
    directory: &'a Directory,
    catalogue: Catalogue,
    damaged: u64,
}

/// Opens what is in the directory.
pub(crate) fn recover(options: &Options, directory: &Directory) -> Result<Recovered, OpenError> {
    let files = list(&directory.segments())?;
    let path = directory.index();
    let index_failed = |error: IndexError| OpenError::Index { path: path.clone(), message: error.0.trim().to_owned() };
    let open = || {
        Index::open(&path, options.index_cache_bytes).or_else(|_| {
            // It may be space that is missing, and the reserve is for this.
            directory.give_reserve();
            Index::open(&path, options.index_cache_bytes)
        })
    };
    let (mut index, mut meta) = open().map_err(index_failed)?;
    let mut sealed: BTreeMap<u64, SegmentRow> =
        index.reader().and_then(|reader| reader.segments()).map_err(index_failed)?.into_iter().collect();
    let replaced = sealed.iter().any(|(id, row)| files.get(id).is_some_and(|found| !found.contains(&row.generation)));
    if replaced {
        tracing::warn!("the index does not fit the segments and is built anew");
        drop(index);
        std::fs::remove_file(&path).map_err(|error| failed(&path, "remove", error))?;
        (index, meta) = open().map_err(index_failed)?;
        sealed.clear();
    }
    let index = Arc::new(index);
    let mut recovery = Recovery {
        options,
        directory,
        catalogue: Catalogue {
            active: Layer::default(),
            frozen: VecDeque::new(),
            index: index.clone(),
            next_run: meta.next_run,
            next_task: meta.next_task,
        },
        damaged: 0,
    };
    recovery.check_sealed(&files, &mut sealed, meta).map_err(index_failed)?;

    let pending: Vec<(u64, u32)> = files
        .iter()
        .filter(|(id, _)| **id > meta.covered)
        .filter_map(|(id, generations)| generations.iter().max().map(|generation| (*id, *generation)))
        .collect();
    for (id, newest) in &pending {
        for generation in files[id].iter().filter(|generation| *generation != newest) {
            remove(&directory.segments().join(file_name(*id, *generation)));
        }
    }
    let next_segment = files.keys().max().copied().unwrap_or(0).max(meta.covered) + 1;
    let mut active = None;
    let mut left = pending.len();
    for (id, generation) in pending {
        left -= 1;
        let (shape, file) = recovery.replay(id, generation, left == 0)?;
        let goes_on = left == 0
            && generation == 0
            && !shape.sealed
            && !recovery.catalogue.active.damaged
            && shape.cut() < options.segment_bytes;
        if goes_on {
            let place = recovery.place(id, generation);
            active = Some(ActiveFile::resume(place, file, shape.cut()));
        } else if left > BEHIND {
            let layer = std::mem::take(&mut recovery.catalogue.active);
            let meta =
                Meta { covered: id, next_run: recovery.catalogue.next_run, next_task: recovery.catalogue.next_task };
            index.commit_layer(&layer, None, meta).map_err(index_failed)?;
            let row = SegmentRow { generation, bytes: layer.bytes, oldest: layer.oldest, newest: layer.newest };
            sealed.insert(id, row);
        } else {
            let layer = std::mem::take(&mut recovery.catalogue.active);
            recovery.catalogue.frozen.push_back(Arc::new(layer));
        }
    }
    Ok(Recovered { catalogue: recovery.catalogue, active, next_segment, sealed, damaged: recovery.damaged })
}

impl Recovery<'_> {
    fn place(&self, segment: u64, generation: u32) -> Place {
        Place { salt: self.directory.salt, segment, generation }
    }

    /// Files that the index knows nothing of are left over; segments whose file is gone are forgotten, which readers
    /// see as gaps.
    fn check_sealed(
        &mut self,
        files: &BTreeMap<u64, Vec<u32>>,
        sealed: &mut BTreeMap<u64, SegmentRow>,
        meta: Meta,
    ) -> Result<(), IndexError> {
        for (id, generations) in files.range(..=meta.covered) {
            for generation in generations {
                if sealed.get(id).is_none_or(|row| row.generation != *generation) {
                    remove(&self.directory.segments().join(file_name(*id, *generation)));
                }
            }
        }
        let lost: Vec<u64> = sealed.keys().filter(|id| !files.contains_key(id)).copied().collect();
        for id in lost {
            tracing::error!(segment = id, "a segment file is missing; its lines are shown as damaged");
            self.damaged += 1;
            let expiry = self.catalogue.index.reader()?.expiry(id)?;
            self.catalogue.index.forget_segment(&expiry)?;
            sealed.remove(&id);
        }
        Ok(())
    }

    /// Brings the last commit to the disk, whatever became of it before, and everything before it.
    fn prove(&self, file: &File, place: Place, from: u64, to: u64) -> std::io::Result<()> {
        let faults = &*self.options.faults;
        let mut written = write_again(file, place, from, to, faults);
        if written.as_ref().is_err_and(is_no_space) {
            // Where a file's blocks are not written in place, this takes space.
            self.directory.give_reserve();
            written = write_again(file, place, from, to, faults);
        }
        written.and_then(|()| faults.before_sync()).and_then(|()| file.sync_all())
    }

    /// Reads a segment into the active layer.
    fn replay(&mut self, id: u64, generation: u32, last: bool) -> Result<(Shape, File), OpenError> {
        let place = self.place(id, generation);
        let path = self.directory.segments().join(file_name(id, generation));
        let named = path.clone();
        let io = |action: &'static str| {
            let path = named.clone();
            move |error| failed(&path, action, error)
        };
        let mut file = OpenOptions::new().read(true).write(true).open(&path).map_err(io("open"))?;
        let mut bytes = [0; FILE_HEADER];
        let header = file.read_exact(&mut bytes).ok().and_then(|()| FileHeader::decode(&bytes));
        if let Some(header) = header.filter(|header| header.place == place) {
            self.catalogue.next_run = self.catalogue.next_run.max(header.next_run);
            self.catalogue.next_task = self.catalogue.next_task.max(header.next_task);
        }
        let merged = generation > 0;
        let mut until = u64::MAX;
        let mut seen = Shape { end: FILE_HEADER as u64, ..Shape::default() };
        if last && !merged {
            seen = shape(&file, place).map_err(io("read"))?;
            if seen.sealed {
                self.prove(&file, place, seen.last_commit, seen.end).map_err(io("write again the last records of"))?;
            } else {
                until = seen.cut();
                let torn = written_after(&file, until).map_err(io("read"))?;
                if torn > 0 {
                    tracing::warn!(
                        segment = id,
                        from = until,
                        bytes = torn,
                        "a write that was never acknowledged is cut off"
                    );
                }
                file.set_len(until.max(FILE_HEADER as u64)).map_err(io("cut off the end of"))?;
                self.prove(&file, place, seen.last_commit, until).map_err(io("write again the last records of"))?;
            }
        }
        let now = self.options.clock.now_unix_nanos();
        let mut stage = Stage::new(&self.catalogue, now);
        let mut problem = None;
        let mut damage: Vec<(u64, u64)> = Vec::new();
        // The record after damage tells of the one before it.
        let told = |damage: &[(u64, u64)], offset: u64, header: &Header| {
            damage.last().filter(|(_, to)| *to == offset).map(|_| header.lost_before())
        };
        // Blocks of segments that are not the newest are checked by their readers.
        walk(&file, place, until, last, |found| {
            let done = match found {
                Found::Record(offset, header, body) => {
                    seen.sealed = header.kind == Kind::End;
                    let lost = told(&damage, offset, &header);
                    stage
                        .replay_lost(place, lost, merged)
                        .and_then(|()| stage.replay(place, offset, &header, body, merged))
                }
                Found::DamagedBody(offset, header) => {
                    let lost = told(&damage, offset, &header);
                    damage.push((offset, offset + header.size()));
                    stage.replay_lost(place, lost, merged).and_then(|()| stage.replay_damaged(place, &header, merged))
                }
                Found::Damaged(from, to) => {
                    damage.push((from, to));
                    stage.delta.damaged = true;
                    Ok(())
                }
            };
            if let Err(error) = done {
                problem.get_or_insert(error);
            }
        })
        .map_err(io("read"))?;
        if let Some(error) = problem {
            return Err(OpenError::Index { path: self.directory.index(), message: error.0 });
        }
        if !seen.sealed && (!last || merged) {
            tracing::error!(segment = id, "a sealed segment lacks its end");
            stage.delta.damaged = true;
        }
        for (from, to) in &damage {
            tracing::error!(segment = id, from, to, "stored bytes are damaged; their lines are shown as a gap");
        }
        self.damaged += damage.len() as u64;
        let staged = stage.finish();
        let mut layer = Layer {
            segment: id,
            generation,
            bytes: file.metadata().map_err(io("read"))?.len(),
            file: Some(Arc::new(file.try_clone().map_err(io("open"))?)),
            ..Layer::default()
        };
        layer.absorb(staged.delta);
        self.catalogue.next_run = staged.next_run;
        self.catalogue.next_task = staged.next_task;
        self.catalogue.active = layer;
        Ok((seen, file))
    }
}

/// How many bytes behind `from` are there that are not the zeros of a file made long in advance.
fn written_after(file: &File, from: u64) -> std::io::Result<u64> {
    let (mut at, mut last) = (from, from);
    let mut bytes = vec![0; 64 << 10];
    loop {
        let count = file.read_at(&mut bytes, at)?;
        if count == 0 {
            return Ok(last - from);
        }
        if let Some(index) = bytes[..count].iter().rposition(|byte| *byte != 0) {
            last = at + index as u64 + 1;
        }
        at += count as u64;
    }
}

/// Writes the records from `from` to `to` once more where they are. They are whole, or it fails: what was read before
/// may have left the page cache meanwhile, and what the disk has instead is something else.
fn write_again(file: &File, place: Place, from: u64, to: u64, faults: &dyn Faults) -> std::io::Result<()> {
    let changed = || std::io::Error::other("it reads otherwise than a moment ago");
    let mut bytes = Vec::new();
    let mut offset = from;
    while offset < to {
        bytes.resize(HEADER, 0);
        file.read_exact_at(&mut bytes, offset)?;
        let header = Header::decode(&bytes, place, offset).ok_or_else(changed)?;
        if offset + header.size() > to {
            return Err(changed());
        }
        bytes.resize(header.size() as usize, 0);
        file.read_exact_at(&mut bytes[HEADER..], offset + HEADER as u64)?;
        if !header.matches(&bytes[HEADER..HEADER + header.body_len as usize]) {
            return Err(changed());
        }
        faults.before_write(header.size())?;
        file.write_all_at(&bytes, offset)?;
        offset += header.size();
    }
    Ok(())
}

/// Segments with the generations that are there. Half-made files are removed.
fn list(directory: &Path) -> Result<BTreeMap<u64, Vec<u32>>, OpenError> {
    let mut files: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
    let entries = std::fs::read_dir(directory).map_err(|error| failed(directory, "read", error))?;
    let mut removed = false;
    for entry in entries {
        let entry = entry.map_err(|error| failed(directory, "read", error))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some((segment, generation)) = parse_file_name(&name) {
            files.entry(segment).or_default().push(generation);
        } else if name.ends_with(".tmp") {
            remove(&entry.path());
            removed = true;
        }
    }
    if removed {
        sync_directory(directory).map_err(|error| failed(directory, "sync", error))?;
    }
    Ok(files)
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "cannot remove a file that is not needed any more");
    }
}
