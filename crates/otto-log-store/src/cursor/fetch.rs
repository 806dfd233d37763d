//! Reading that may wait for a disk.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::Arc;

use otto_proto::block::DecodedBlock;
use otto_proto::v1::LogGap;
use prost::Message;

use super::{Block, Filter, From, Item, simple};
use crate::catalogue::Step;
use crate::index::IndexError;
use crate::record::{Kind, Place};
use crate::rows::{Entry, EntryKind, damaged};
use crate::segment::{Loaded, file_name, load};
use crate::shared::{Shared, add};

/// Entries looked up at once.
const ENTRIES: usize = 64;
/// Bytes of payload before compression read ahead; at least one block is.
const AHEAD: u64 = 1 << 20;
/// How often a file may be replaced while it is looked for.
const REPLACED: usize = 5;

/// What a reader gets, with the position after it.
pub(super) enum Fetched {
    Item(Box<Item>, u64, u8),
    /// The filter passes over it.
    Skipped(u64, u8),
    Nothing,
    Unknown,
}

impl Fetched {
    pub(super) fn gap(gap: LogGap) -> Self {
        let (end, rank) = if gap.last_sequence == 0 { (gap.first_sequence, 1) } else { (gap.last_sequence + 1, 0) };
        Self::Item(Box::new(Item::Gap(gap)), end, rank)
    }
}

pub(super) fn place(shared: &Shared, entry: &Entry) -> Place {
    Place { salt: shared.directory.salt, segment: entry.segment, generation: entry.generation }
}

/// The item that was read for an entry.
pub(super) fn item_of(shared: &Shared, entry: &Entry, loaded: Loaded, position: u64) -> Fetched {
    let lost = |message: &str| {
        add(&shared.counters.damaged, 1);
        tracing::error!(
            segment = entry.segment,
            offset = entry.offset,
            "a stored block is unreadable and shown as a gap: {message}"
        );
        let last = entry.end.saturating_sub(1).max(position);
        LogGap { message: message.to_owned(), ..damaged(position.max(entry.first), last) }
    };
    let Loaded::Record(header, body) = loaded else {
        return Fetched::gap(lost("the stored bytes are damaged"));
    };
    if header.first != entry.first {
        return Fetched::gap(lost("the stored bytes are damaged"));
    }
    match (header.kind, entry.kind) {
        (Kind::Block, EntryKind::Block) => match DecodedBlock::decode(&header.to_block(body)) {
            Ok(decoded) => {
                let from = position.max(entry.first);
                Fetched::Item(Box::new(Item::Block(Block { decoded, from })), entry.end, 0)
            }
            Err(error) => Fetched::gap(lost(&format!("the block as it was sent: {error}"))),
        },
        (Kind::Gap, EntryKind::Gap) => match LogGap::decode(body) {
            Ok(gap) if gap.last_sequence == 0 => Fetched::gap(gap),
            Ok(gap) => Fetched::gap(LogGap { first_sequence: position.max(gap.first_sequence), ..gap }),
            Err(_) => Fetched::gap(lost("the stored bytes are damaged")),
        },
        _ => Fetched::gap(lost("the stored bytes are damaged")),
    }
}

/// The next items of a run.
pub(super) fn fetch(
    shared: &Shared,
    run: u64,
    position: u64,
    rank: u8,
    filter: &Filter,
) -> Result<VecDeque<Fetched>, IndexError> {
    for _ in 0..REPLACED {
        let snapshot = shared.catalogue().run_snapshot(run, position, rank)?;
        let steps = snapshot.steps(run, position, rank, ENTRIES)?;
        if let Some(fetched) = load_steps(shared, steps, position, filter)? {
            return Ok(fetched);
        }
    }
    Err(IndexError("segment files are being replaced faster than they can be read".to_owned()))
}

/// `None`: the first one's file has been replaced meanwhile.
fn load_steps(
    shared: &Shared,
    steps: Vec<Step>,
    mut position: u64,
    filter: &Filter,
) -> Result<Option<VecDeque<Fetched>>, IndexError> {
    let mut fetched = VecDeque::with_capacity(steps.len());
    let mut bytes = 0;
    let mut open: Option<(Place, Arc<File>)> = None;
    for step in steps {
        let entry = match &step {
            Step::Entry(entry, _) if entry.kind != EntryKind::Damaged && !filter.passes_over(entry) => *entry,
            _ => {
                fetched.extend(simple(step, position, filter));
                if let Some(Fetched::Item(_, end, _) | Fetched::Skipped(end, _)) = fetched.back() {
                    position = *end;
                }
                continue;
            }
        };
        if bytes > 0 && bytes + u64::from(entry.payload_bytes) > AHEAD {
            break;
        }
        bytes += u64::from(entry.payload_bytes).max(1);
        let place = place(shared, &entry);
        let file = match (step, &open) {
            (Step::Entry(_, Some(file)), _) => file,
            (_, Some((opened, file))) if *opened == place => file.clone(),
            _ => {
                let path = shared.directory.segments().join(file_name(place.segment, place.generation));
                match File::open(&path) {
                    Ok(file) => {
                        let file = Arc::new(file);
                        open = Some((place, file.clone()));
                        file
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        return Ok((!fetched.is_empty()).then_some(fetched));
                    }
                    Err(error) => return Err(IndexError(format!("open {}: {error}", path.display()))),
                }
            }
        };
        let loaded = load(&file, place, entry.offset, entry.body_len)
            .map_err(|error| IndexError(format!("read a segment: {error}")))?;
        let item = item_of(shared, &entry, loaded, position);
        if let Fetched::Item(_, end, _) = &item {
            position = *end;
        }
        fetched.push_back(item);
    }
    Ok(Some(fetched))
}

/// Where a cursor begins; `None`: no such run.
pub(super) fn resolve(shared: &Shared, run: u64, from: From) -> Result<Option<(u64, u8)>, IndexError> {
    match from {
        From::Sequence(sequence) => {
            let lookup = shared.catalogue().run_lookup(run)?;
            Ok(lookup.row()?.map(|_| (sequence.max(1), 0)))
        }
        From::Tail(lines) => tail(shared, run, lines),
        From::Time(time) => at_time(shared, run, time),
    }
}

fn tail(shared: &Shared, run: u64, mut lines: u64) -> Result<Option<(u64, u8)>, IndexError> {
    let (lookup, in_memory) = {
        let catalogue = shared.catalogue();
        let mut entries = if lines == 0 { None } else { Some(catalogue.entries_back(run)) };
        let found = entries.as_mut().and_then(|entries| entries.find_map(|entry| back(entry, &mut lines)));
        (catalogue.run_lookup(run)?, found)
    };
    let Some(row) = lookup.row()? else { return Ok(None) };
    if let Some(position) = in_memory {
        return Ok(Some((position, 0)));
    }
    if lines == 0 {
        return Ok(Some((row.expected, 1)));
    }
    let mut found = None;
    lookup.reader.entries_back(run, |entry| {
        found = back(&entry, &mut lines);
        found.is_none()
    })?;
    let first = row.expired_through + 1;
    Ok(Some((found.unwrap_or(first).max(first), 0)))
}

/// The sequence at which the last `lines` lines begin, if that is in this entry; otherwise its lines are counted.
fn back(entry: &Entry, lines: &mut u64) -> Option<u64> {
    if entry.lines() >= *lines {
        return Some(entry.end - *lines);
    }
    *lines -= entry.lines();
    None
}

fn at_time(shared: &Shared, run: u64, time: i64) -> Result<Option<(u64, u8)>, IndexError> {
    let wanted = |entry: &Entry| entry.kind == EntryKind::Block && entry.max_time >= time;
    let (lookup, in_memory) = {
        let catalogue = shared.catalogue();
        let found = catalogue.entries(run).find(|entry| wanted(entry)).map(|entry| entry.first);
        (catalogue.run_lookup(run)?, found)
    };
    let Some(row) = lookup.row()? else { return Ok(None) };
    let first = row.expired_through + 1;
    let mut position = first;
    loop {
        let entries = lookup.reader.entries(run, position, 0, 1024)?;
        let Some(last) = entries.last() else { break };
        if let Some(entry) = entries.iter().find(|entry| wanted(entry)) {
            return Ok(Some((entry.first.max(first), 0)));
        }
        position = last.end.max(last.first + 1);
    }
    Ok(Some((in_memory.unwrap_or(row.expected), 0)))
}
