//! Opens a run that another agent left.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use anyhow::Context;
use otto_proto::v1::{FinishRun, LogGap, log_gap};

use super::record::{self, Record};
use super::state::{Files, Segment, Spool, State, read_acked};
use super::writer::Writer;
use super::{SEGMENT_BYTES, lock, segment_path};
use crate::access::Access;

/// Opens what is left of a run, to send it. A run without its end gets one: a gap from there on and a finish with
/// `lost`, which says why. `None`: another process has the run.
///
/// # Errors
/// When its files cannot be read or written.
pub(crate) fn recover(dir: &Path, lost: FinishRun) -> anyhow::Result<Option<Spool>> {
    let Some(lock) = lock(dir)? else { return Ok(None) };
    let access = Access::of(dir)?;
    let acked = access.options().read(true).write(true).create(true).truncate(false).open(dir.join("acked"))?;
    let acked_sequence = read_acked(&acked);
    let scan = scan(dir, acked_sequence).with_context(|| format!("reading the spool {}", dir.display()))?;
    let finished = scan.finished;
    let bytes = scan.state.bytes;
    // Nothing but the end is added, so no limit is needed.
    let files = Files { dir: dir.to_owned(), access, acked, lock };
    let spool = Spool::new(files, u64::MAX, 0, scan.state);
    if finished {
        spool.completed();
        return Ok(Some(spool));
    }
    let last_sequence = spool.pending().last_sequence;
    tracing::debug!(bytes, last_sequence, "a run without its end: {}", dir.display());
    let mut writer = Writer::begin(spool.clone(), SEGMENT_BYTES)?;
    let message = lost.error_message.clone();
    let gap = LogGap {
        first_sequence: last_sequence + 1,
        last_sequence: 0,
        reason: log_gap::Reason::AgentLost.into(),
        message,
    };
    writer.append(Record::Gap(gap), true)?;
    writer.append(Record::Finish(FinishRun { last_sequence, digest: Vec::new().into(), ..lost }), true)?;
    writer.complete();
    Ok(Some(spool))
}

struct Scan {
    state: State,
    finished: bool,
}

/// Looks through all segments. A torn end is cut off. After damage within a segment the next one is taken up again; the
/// lines between are a gap, which the sender finds by the jump of the sequence.
fn scan(dir: &Path, acked: u64) -> io::Result<Scan> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let number: Option<u64> =
            name.to_str().and_then(|name| name.strip_suffix(".seg")).and_then(|number| number.parse().ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    let mut state = State { acked, next_sequence: acked + 1, ..State::default() };
    let mut finished = false;
    let mut segments = VecDeque::new();
    for number in numbers {
        let file = File::options().read(true).write(true).open(segment_path(dir, number))?;
        let length = file.metadata()?.len();
        let mut segment = Segment { number, first: 0, end: 0, bytes: 0 };
        while segment.bytes < length {
            let located = match record::locate(&file, segment.bytes) {
                Ok(located) if located.next <= length => located,
                Ok(_) => break,
                Err(error) if record::is_damage(&error) => break,
                Err(error) => return Err(error),
            };
            let next = located.next;
            // The payload is read too: what is damaged is to be known before it is sent.
            let end = located.head().end();
            let record = match located.read(&file) {
                Ok(record) => record,
                // Others follow: it alone is lost.
                Err(error)
                    if record::is_damage(&error)
                        && record::locate(&file, next).is_ok_and(|following| following.next <= length) =>
                {
                    tracing::warn!("{} is damaged: a record of it is lost", segment_path(dir, number).display());
                    state.next_sequence = state.next_sequence.max(end.unwrap_or(0));
                    segment.bytes = next;
                    continue;
                }
                Err(error) if record::is_damage(&error) => break,
                Err(error) => return Err(error),
            };
            if let (Some(first), Some(end)) = (record.first(), record.end()) {
                if segment.first == 0 {
                    segment.first = first;
                }
                state.next_sequence = state.next_sequence.max(end);
            }
            finished |= matches!(record, Record::Finish(_));
            segment.bytes = next;
        }
        if segment.bytes < length {
            tracing::warn!(
                "{} is damaged: {} of its {length} bytes cannot be read and are cut off",
                segment_path(dir, number).display(),
                length - segment.bytes
            );
            file.set_len(segment.bytes)?;
        }
        segment.end = state.next_sequence;
        if segment.first == 0 {
            segment.first = state.next_sequence;
        }
        state.bytes += segment.bytes;
        segments.push_back(segment);
    }
    state.segments = segments;
    Ok(Scan { state, finished })
}
