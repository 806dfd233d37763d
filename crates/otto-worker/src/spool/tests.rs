use std::fs::File;
use std::time::Duration;

use otto_proto::block::{Attributes, Builder, DecodedBlock};
use otto_proto::v1::{FinishRun, LogBlock, LogGap, LogLevel, LogSource};
use proptest::prelude::*;

use super::*;

fn block(first: u64, lines: u64, bytes: usize) -> LogBlock {
    let mut builder = Builder::new();
    for line in 0..lines {
        let attributes = Attributes {
            time_unix_nanos: (first + line).cast_signed(),
            level: LogLevel::Info,
            source: LogSource::Stdout,
        };
        let mut text = format!("{} ", first + line).into_bytes();
        text.resize(text.len() + bytes, b'x');
        text.push(b'\n');
        builder.push(&text, attributes);
    }
    builder.finish(first, None).unwrap()
}

fn begin(dir: &Path, limit: u64, reserve: u64) -> (Writer, Spool) {
    create(dir, &RunInfo::new("t", "w", 1), limit, reserve).unwrap()
}

/// Sequences of all lines the reader gives, those of gaps too.
fn sequences(reader: &mut Reader) -> Vec<u64> {
    let mut found = Vec::new();
    while let Some(record) = reader.next().unwrap() {
        match record {
            Record::Block(block) => {
                found.extend(DecodedBlock::decode(&block).unwrap().lines().map(|line| line.sequence));
            }
            Record::Gap(gap) if gap.last_sequence > 0 => found.extend(gap.first_sequence..=gap.last_sequence),
            Record::Gap(_) | Record::Finish(_) => {}
        }
    }
    found
}

fn disk_bytes(dir: &Path) -> u64 {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let segments = files.filter(|file| file.path().extension().is_some_and(|name| name == "seg"));
    segments.map(|file| file.metadata().unwrap().len()).sum()
}

#[derive(Debug, Clone)]
enum Step {
    Append {
        lines: u64,
        bytes: usize,
    },
    Gap(u64),
    Read(usize),
    /// Of what is not acknowledged, in 1/256.
    Ack(u8),
    /// Begin to read again at a place that is not acknowledged.
    Seek(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..20u64, 0..2000usize).prop_map(|(lines, bytes)| Step::Append { lines, bytes }),
        1 => (1..50u64).prop_map(Step::Gap),
        3 => (1..5usize).prop_map(Step::Read),
        2 => any::<u8>().prop_map(Step::Ack),
        1 => any::<u8>().prop_map(Step::Seek),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_is_not_acknowledged_is_there_in_order_and_within_the_limit(steps in prop::collection::vec(step(), 0..80)) {
        const LIMIT: u64 = 64 << 10;
        let temporary = tempfile::tempdir().unwrap();
        let (mut writer, spool) = begin(temporary.path(), LIMIT, 8 << 10);
        let mut reader = Reader::at(spool.clone(), 1).unwrap();
        // What the reader gives next.
        let (mut next, mut acked, mut read) = (1, 0, 1);
        for step in steps {
            match step {
                Step::Append { lines, bytes } => {
                    if writer.append(Record::Block(block(next, lines, bytes)), false).is_ok() {
                        next += lines;
                    }
                }
                Step::Gap(lines) => {
                    let gap = LogGap { first_sequence: next, last_sequence: next + lines - 1, ..LogGap::default() };
                    if writer.append(Record::Gap(gap), false).is_ok() {
                        next += lines;
                    }
                }
                Step::Read(records) => {
                    for _ in 0..records {
                        let Some(record) = reader.next().unwrap() else { break };
                        prop_assert!(record.first().unwrap() <= read && record.end().unwrap() > read);
                        read = record.end().unwrap();
                    }
                }
                Step::Ack(share) => {
                    acked = acked.max((read - 1) * u64::from(share) / 256);
                    spool.acknowledge(acked);
                }
                Step::Seek(share) => {
                    read = acked + 1 + (read - 1 - acked) * u64::from(share) / 256;
                    reader = Reader::at(spool.clone(), read).unwrap();
                }
            }
            prop_assert_eq!(spool.pending().last_sequence, next - 1);
            prop_assert_eq!(spool.pending().lines, next - 1 - acked);
            prop_assert!(disk_bytes(spool.dir()) <= LIMIT);
            prop_assert_eq!(disk_bytes(spool.dir()), spool.pending().bytes);
        }
        let expected: Vec<u64> = (acked + 1..next).collect();
        let from_memory_and_files = sequences(&mut Reader::at(spool.clone(), acked + 1).unwrap());
        prop_assert!(from_memory_and_files.ends_with(&expected), "{from_memory_and_files:?}");
        // Another agent finds the same.
        let dir = spool.dir().to_owned();
        drop((writer, spool, reader));
        let (dir, _) = leftovers(dir.parent().unwrap()).unwrap().remove(0);
        let spool = recover(&dir, FinishRun::default()).unwrap().unwrap();
        prop_assert_eq!(spool.next_to_send(), acked + 1);
        prop_assert_eq!(spool.pending().last_sequence, next - 1);
        let found = sequences(&mut Reader::at(spool, acked + 1).unwrap());
        prop_assert!(found.ends_with(&expected), "{found:?}");
    }

    #[test]
    fn a_torn_end_is_cut_off(cut in 0..2000u64, flip in any::<bool>()) {
        let temporary = tempfile::tempdir().unwrap();
        let (mut writer, spool) = begin(temporary.path(), 1 << 20, 0);
        let mut ends = vec![(0, 0)];
        for n in 0..10 {
            writer.append(Record::Block(block(n * 3 + 1, 3, 50)), false).unwrap();
            ends.push((spool.pending().bytes, n * 3 + 3));
        }
        let dir = spool.dir().to_owned();
        drop((writer, spool));
        let path = segment_path(&dir, 1);
        let length = fs::metadata(&path).unwrap().len();
        let at = cut.min(length - 1);
        if flip {
            let mut bytes = fs::read(&path).unwrap();
            bytes[at as usize] ^= 0x10;
            fs::write(&path, bytes).unwrap();
        } else {
            File::options().write(true).open(&path).unwrap().set_len(at).unwrap();
        }
        let spool = recover(&dir, FinishRun::default()).unwrap().unwrap();
        let (_, whole) = ends.iter().rev().find(|(bytes, _)| *bytes <= at).unwrap();
        // A flip in a block's text costs that block alone, if others follow.
        let alone = flip && spool.pending().last_sequence == 30;
        let last = if alone { 30 } else { *whole };
        prop_assert_eq!(spool.pending().last_sequence, last);
        let mut reader = Reader::at(spool, 1).unwrap();
        let mut records = Vec::new();
        while let Some(record) = reader.next().unwrap() {
            records.push(record);
        }
        let (tail, blocks) = (records.split_off(records.len() - 2), records);
        prop_assert_eq!(blocks.len() as u64, if alone { 9 } else { whole / 3 });
        prop_assert!(blocks.iter().all(|block| block.first() != Some(whole + 1)));
        prop_assert!(matches!(&tail[0], Record::Gap(gap) if gap.first_sequence == last + 1 && gap.last_sequence == 0));
        prop_assert!(matches!(&tail[1], Record::Finish(finish) if finish.last_sequence == last));
    }
}

#[test]
fn a_full_spool_takes_more_once_it_is_acknowledged() {
    let temporary = tempfile::tempdir().unwrap();
    let (mut writer, spool) = begin(temporary.path(), 64 << 10, 16 << 10);
    let mut next = 1;
    while writer.append(Record::Block(block(next, 1, 1000)), false).is_ok() {
        next += 1;
    }
    assert!(matches!(writer.append(Record::Block(block(next, 1, 1000)), false), Err(AppendError::Full)));
    assert!(spool.fill() >= 240);
    // The reserve is for the end.
    writer.append(Record::Block(block(next, 1, 1000)), true).unwrap();
    spool.acknowledge(next);
    writer.append(Record::Block(block(next + 1, 1, 1000)), false).unwrap();
    assert!(spool.pending().bytes < 16 << 10);
}

#[test]
fn a_block_as_large_as_the_room_gets_in_when_all_is_acknowledged() {
    let temporary = tempfile::tempdir().unwrap();
    let (mut writer, spool) = begin(temporary.path(), 64 << 10, 0);
    let large = 60 << 10;
    for first in 1..10 {
        writer.append(Record::Block(block(first, 1, large)), false).unwrap();
        assert!(writer.append(Record::Block(block(first + 1, 1, large)), false).is_err());
        spool.acknowledge(first);
    }
}

#[test]
fn damage_in_the_middle_costs_its_record_or_its_segment() {
    // In a head nobody knows where the next record begins; in a text it is known.
    for (at, lost) in [(30, 2..10), (100, 1..2)] {
        let temporary = tempfile::tempdir().unwrap();
        let (mut writer, spool) = begin(temporary.path(), 64 << 10, 0);
        for first in 1..40 {
            writer.append(Record::Block(block(first, 1, 1000)), false).unwrap();
        }
        writer.append(Record::Finish(FinishRun { last_sequence: 39, ..FinishRun::default() }), false).unwrap();
        let dir = spool.dir().to_owned();
        let flip = || {
            let mut bytes = fs::read(segment_path(&dir, 2)).unwrap();
            bytes[at] ^= 1;
            fs::write(segment_path(&dir, 2), bytes).unwrap();
        };
        // While its agent lives, too, which has it in memory no more.
        flip();
        spool.state().recent.clear();
        let live = sequences(&mut Reader::at(spool.clone(), 1).unwrap());
        drop((writer, spool));
        let spool = recover(&dir, FinishRun::default()).unwrap().unwrap();
        assert_eq!(spool.pending().last_sequence, 39);
        let found = sequences(&mut Reader::at(spool, 1).unwrap());
        assert_eq!(found, live);
        let missing: Vec<u64> = (1..40).filter(|sequence| !found.contains(sequence)).collect();
        assert!(lost.contains(&missing.len()), "{missing:?}");
        assert!(missing.windows(2).all(|pair| pair[0] + 1 == pair[1]));
    }
}

#[test]
fn a_run_in_use_is_left_alone() {
    let temporary = tempfile::tempdir().unwrap();
    let (_writer, spool) = begin(temporary.path(), 1 << 20, 0);
    let found = leftovers(temporary.path()).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].1.task_id.as_str(), found[0].1.worker_id.as_str()), ("t", "w"));
    assert!(recover(&found[0].0, FinishRun::default()).unwrap().is_none());
    assert_eq!(spool.dir(), found[0].0);
    assert!(leftovers(&temporary.path().join("nothing")).unwrap().is_empty());
}

#[test]
fn a_directory_that_cannot_be_used_is_named() {
    let temporary = tempfile::tempdir().unwrap();
    let file = temporary.path().join("file");
    fs::write(&file, "").unwrap();
    let error = create(&file, &RunInfo::new("t", "w", 1), 1 << 20, 0).err().unwrap();
    let text = format!("{error:#}");
    assert!(text.contains("--spool-dir") && text.contains(file.to_str().unwrap()), "{text}");
}

#[tokio::test]
async fn a_change_is_not_missed() {
    let temporary = tempfile::tempdir().unwrap();
    let (mut writer, spool) = begin(temporary.path(), 1 << 20, 0);
    writer.append(Record::Block(block(1, 1, 0)), false).unwrap();
    tokio::time::timeout(Duration::from_secs(10), spool.changed()).await.unwrap();
    writer.complete();
    tokio::time::timeout(Duration::from_secs(10), spool.changed()).await.unwrap();
    assert!(spool.is_complete());
}
