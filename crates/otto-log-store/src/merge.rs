//! Small neighbouring blocks of a run become large ones when a segment is sealed: ordered by run, compressed better,
//! read with one read. The new file takes the old one's place whole or not at all: it is synced and renamed before the
//! index points to it, and the old one is removed after that.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use otto_proto::block::{Builder, DecodedBlock};
use prost::Message;

use crate::batch::{Batch, Body};
use crate::index::Merged;
use crate::layer::{Layer, LayerRun};
use crate::record::{FILE_HEADER, FileHeader, Header, Kind, Place};
use crate::rows::{Entry, EntryKind};
use crate::segment::{Loaded, file_name, load, sync_directory, write_all};
use crate::shared::Shared;

/// Blocks with at least so many bytes of payload stay as they came.
const LARGE: u32 = 64 << 10;
/// Bytes of text of a merged block; the last one of a run may have fewer.
const TARGET: usize = 1 << 20;
/// Level of zstd. This runs in the background, and what it saves is kept for days.
const LEVEL: i32 = 3;
/// Bytes written at once.
const CHUNK: u64 = 1 << 20;

/// Whether there is enough to gain.
pub(crate) fn is_worth_it(layer: &Layer) -> bool {
    let (mut small, mut needed) = (0u64, 0u64);
    for run in layer.runs.values() {
        let of_run = run.entries.iter().filter(|entry| entry.kind == EntryKind::Block && entry.payload_bytes < LARGE);
        let (mut blocks, mut bytes) = (0u64, 0u64);
        for entry in of_run {
            blocks += 1;
            bytes += u64::from(entry.payload_bytes);
        }
        small += blocks;
        needed += bytes.div_ceil(TARGET as u64);
    }
    small >= 16 && small >= 2 * needed
}

/// Writes the layer's segment anew. `None`: it cannot be read as it should be, or the store is being closed; the segment
/// stays as it is.
pub(crate) fn merge(shared: &Shared, layer: &Layer) -> io::Result<Option<Merged>> {
    let Some(source) = &layer.file else { return Ok(None) };
    let old = Place { salt: shared.directory.salt, segment: layer.segment, generation: layer.generation };
    let place = Place { generation: layer.generation + 1, ..old };
    let directory = shared.directory.segments();
    let path = directory.join(file_name(place.segment, place.generation));
    let temporary = path.with_extension("seg.tmp");
    let made = (|| {
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&temporary)?;
        let (next_run, next_task) = {
            let catalogue = shared.catalogue();
            (catalogue.next_run, catalogue.next_task)
        };
        let header = FileHeader { place, created_at: shared.options.clock.now_unix_nanos(), next_run, next_task };
        file.write_all_at(&header.encode(), 0)?;
        let mut output = Output { file, batch: Batch::new(place, FILE_HEADER as u64), written: FILE_HEADER as u64 };
        output.rows(layer)?;
        let mut entries = HashMap::new();
        let mut runs: Vec<&LayerRun> = layer.runs.values().filter(|run| !run.row.removed).collect();
        runs.sort_unstable_by_key(|run| run.row.id);
        for run in runs {
            if shared.closing.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let row = run.row.encode(run.created);
            output.put(Header::new(Kind::Run, run.row.id, 0, &row, layer.newest), &row)?;
            match blocks(&mut output, source, old, run)? {
                Some(new) => entries.insert(run.row.id, new),
                None => return Ok(None),
            };
        }
        output.put(Header::new(Kind::End, 0, 0, &[], layer.newest), &[])?;
        output.flush()?;
        output.file.sync_all()?;
        std::fs::rename(&temporary, &path)?;
        sync_directory(&directory)?;
        Ok(Some(Merged { generation: place.generation, bytes: output.written, entries }))
    })();
    if !matches!(made, Ok(Some(_))) {
        let _ = std::fs::remove_file(&temporary);
    }
    made
}

struct Output {
    file: File,
    batch: Batch,
    written: u64,
}

impl Output {
    fn put(&mut self, header: Header, body: &[u8]) -> io::Result<u64> {
        self.push(header, Body::Copied(body))
    }

    fn push(&mut self, header: Header, body: Body<'_>) -> io::Result<u64> {
        if self.batch.len() >= CHUNK {
            self.flush()?;
        }
        Ok(self.batch.push(header, body))
    }

    fn flush(&mut self) -> io::Result<()> {
        write_all(&self.file, self.batch.slices(), self.written)?;
        self.written += self.batch.len();
        let place = self.batch.place();
        self.batch.restart(place, self.written);
        Ok(())
    }

    /// What is not lines. Removals come first: what was made again under the same name comes after.
    fn rows(&mut self, layer: &Layer) -> io::Result<()> {
        let at = layer.newest;
        for (_, name) in &layer.removed_tasks {
            self.put(Header::new(Kind::TaskRemoved, 0, 0, name.as_bytes(), at), name.as_bytes())?;
        }
        for run in layer.runs.values().filter(|run| run.row.removed && !run.created) {
            self.put(Header::new(Kind::RunRemoved, run.row.id, 0, &[], at), &[])?;
        }
        for task in layer.tasks.values().filter(|task| !task.row.removed) {
            let row = task.row.encode();
            self.put(Header::new(Kind::Task, task.row.number, 0, &row, at), &row)?;
            for (number, event) in &task.events {
                let body = event.encode_to_vec();
                self.put(Header::new(Kind::Event, task.row.number, *number, &body, at), &body)?;
            }
        }
        Ok(())
    }
}

/// Writes a run's blocks and gaps; `None` if one of them is damaged.
fn blocks(output: &mut Output, source: &File, old: Place, run: &LayerRun) -> io::Result<Option<Vec<Entry>>> {
    let mut new = Vec::new();
    let mut pending = Pending { builder: Builder::new(), first: 0, next: 0, stored_at: 0 };
    for entry in &run.entries {
        if entry.kind == EntryKind::Damaged {
            return Ok(None);
        }
        let Loaded::Record(header, body) = load(source, old, entry.offset, entry.body_len)? else {
            return Ok(None);
        };
        let small = header.kind == Kind::Block && header.payload_bytes < LARGE;
        let decoded = if small { DecodedBlock::decode(&header.to_block(body.clone())).ok() } else { None };
        let Some(decoded) = decoded else {
            // A gap, a large block, or one that its sender made wrong.
            pending.write(output, run.row.id, &mut new)?;
            let offset = output.push(header, Body::Shared(body))?;
            let place = output.batch.place();
            new.push(Entry { offset, generation: place.generation, ..*entry });
            continue;
        };
        if pending.next != entry.first || !pending.builder.fits(header.payload_bytes as usize) {
            pending.write(output, run.row.id, &mut new)?;
        }
        if pending.builder.is_empty() {
            (pending.first, pending.stored_at) = (entry.first, header.stored_at);
        }
        for line in decoded.lines() {
            match line.metadata {
                None => pending.builder.push(line.bytes, line.attributes),
                Some(values) => pending.builder.push_with_metadata(
                    line.bytes,
                    line.attributes,
                    values.iter().map(|(name, value)| (name.clone(), value.clone())),
                ),
            }
        }
        pending.next = entry.end;
        if pending.builder.text_bytes() >= TARGET {
            pending.write(output, run.row.id, &mut new)?;
        }
    }
    pending.write(output, run.row.id, &mut new)?;
    Ok(Some(new))
}

/// Lines for the next merged block.
struct Pending {
    builder: Builder,
    first: u64,
    next: u64,
    stored_at: i64,
}

impl Pending {
    fn write(&mut self, output: &mut Output, run: u64, new: &mut Vec<Entry>) -> io::Result<()> {
        let Some(block) = self.builder.finish(self.first, Some(LEVEL)) else { return Ok(()) };
        let header = Header::block(run, &block, self.stored_at);
        let offset = output.push(header, Body::Shared(block.payload))?;
        let place = output.batch.place();
        new.push(Entry::new(EntryKind::Block, &header, self.next, place.segment, place.generation, offset));
        Ok(())
    }
}
