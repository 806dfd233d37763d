//! Bits that flip and ends that are cut off, in copies of a real directory.

use std::path::{Path, PathBuf};

use otto_log_store::{From, RunId, Store};
use otto_proto::v1::log_gap::Reason;
use proptest::prelude::*;

use crate::support::*;

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to.join("segments")).unwrap();
    for name in ["FORMAT", "index.redb"] {
        std::fs::copy(from.join(name), to.join(name)).unwrap();
    }
    for name in segment_files(from) {
        std::fs::copy(from.join("segments").join(&name), to.join("segments").join(&name)).unwrap();
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

/// One segment; the file's length after each acknowledged block of five lines of one of two runs.
struct Log {
    directory: tempfile::TempDir,
    runs: [RunId; 2],
    /// Run, end sequence, bytes of the file.
    acknowledged: Vec<(usize, u64, u64)>,
}

fn log() -> Log {
    runtime().block_on(async {
        let source = tempfile::tempdir().unwrap();
        let store = open(source.path());
        let runs = [
            store.open_run(&key("t", "w0"), None).await.unwrap().id,
            store.open_run(&key("t", "w1"), None).await.unwrap().id,
        ];
        let mut acknowledged = Vec::new();
        for at in 0..20u64 {
            let run = (at % 2) as usize;
            append(&store, runs[run], run as u64, 1 + at / 2 * 5, 5).await;
            acknowledged.push((run, 1 + at / 2 * 5 + 5, store.stats().segment_bytes));
        }
        // As after kill -9: the file is not closed in order.
        let directory = tempfile::tempdir().unwrap();
        copy(source.path(), directory.path());
        Log { directory, runs, acknowledged }
    })
}

fn segment(directory: &Path) -> PathBuf {
    directory.join("segments").join(&segment_files(directory)[0])
}

async fn read_both(store: &Store, log: &Log) -> [(Seen, u64); 2] {
    let mut both = Vec::new();
    for (seed, run) in log.runs.into_iter().enumerate() {
        let Some(info) = store.run(run).await.unwrap() else {
            both.push((Seen::default(), 1));
            continue;
        };
        let seen = read(store, run, From::Sequence(1)).await;
        seen.check(seed as u64, 1, info.expected);
        both.push((seen, info.expected));
    }
    both.try_into().unwrap()
}

#[test]
fn a_cut_loses_nothing_that_lies_before_it_and_a_flip_gives_no_wrong_bytes() {
    let log = log();
    let end = log.acknowledged.last().unwrap().2;
    let runtime = runtime();
    let strategy = (0..end, any::<bool>(), 0..8u32);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(60));
    runner
        .run(&strategy, |(at, cut, bit)| {
            let directory = tempfile::tempdir().unwrap();
            copy(log.directory.path(), directory.path());
            let path = segment(directory.path());
            let mut bytes = std::fs::read(&path).unwrap();
            if cut {
                bytes.truncate(at as usize);
            } else {
                bytes[at as usize] ^= 1 << bit;
            }
            std::fs::write(&path, bytes).unwrap();
            runtime.block_on(async {
                let store = open(directory.path());
                let both = read_both(&store, &log).await;
                for (run, acknowledged_end, file_end) in &log.acknowledged {
                    let (seen, expected) = &both[*run];
                    if *file_end <= at {
                        let lines = acknowledged_end - 5..*acknowledged_end;
                        let present = seen.lines.iter().filter(|(sequence, _)| lines.contains(sequence)).count();
                        prop_assert_eq!(present, 5, "run {} up to {}", run, acknowledged_end);
                    }
                    // A flip is damage to what was acknowledged, unless it is in the last commit.
                    let in_last = at >= log.acknowledged[18].2;
                    if !cut && !in_last {
                        prop_assert!(*expected >= *acknowledged_end || *file_end == end, "{} {}", expected, at);
                        prop_assert!(seen.gaps.iter().all(|(.., reason)| *reason == Reason::Damaged));
                    }
                }
                // It goes on.
                for (seed, run) in log.runs.into_iter().enumerate() {
                    if let Some(info) = store.run(run).await.unwrap() {
                        append(&store, run, seed as u64, info.expected, 3).await;
                    }
                }
                store.close().await;
                // Another opening finds the same.
                let store = open(directory.path());
                for (before, (after, expected)) in both.iter().zip(read_both(&store, &log).await) {
                    if before.1 > 1 {
                        prop_assert_eq!(before.1 + 3, expected);
                        prop_assert_eq!(&before.0.gaps, &after.gaps);
                    }
                }
                Ok(())
            })
        })
        .unwrap();
}

#[test]
fn damage_in_a_sealed_segment_is_a_gap_and_the_rest_is_served() {
    let directory = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let store = open(directory.path());
        let run = store.open_run(&key("t", "w"), None).await.unwrap().id;
        for first in (1..4001).step_by(50) {
            append(&store, run, 1, first, 50).await;
        }
        assert!(store.stats().segments > 4);
        store.close().await;
        let path = segment(directory.path());
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
        std::fs::write(&path, &bytes).unwrap();
        for round in 0..2 {
            let store = open(directory.path());
            let seen = read(&store, run, From::Sequence(1)).await;
            seen.check(1, 1, 4001);
            let (first, last, reason) = seen.gaps[0];
            assert_eq!((seen.gaps.len(), last - first, reason), (1, 49, Reason::Damaged), "round {round}");
            assert!(store.stats().damaged > 0);
            // What a reader could not have is not said to be there any more.
            let info = store.run(run).await.unwrap().unwrap();
            assert_eq!((info.missing_lines, info.lines, info.gaps.len()), (50, 3950, 1));
            let _ = read(&store, run, From::Sequence(first + 10)).await;
            assert_eq!(store.runs("t").await.unwrap()[0].missing_lines, 50, "once");
        }
    });
}
