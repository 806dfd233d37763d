use std::sync::Arc;
use std::time::Duration;

use otto_log_store::{From, Options, Record, RunId, Store, StoreError};
use otto_proto::v1::{log_gap::Reason, worker_event::Type};

use crate::support::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

async fn fill(store: &Store, run: RunId, seed: u64, from: u64, end: u64) {
    for first in (from..end).step_by(100) {
        append(store, run, seed, first, 100).await;
    }
}

#[tokio::test]
async fn the_oldest_segments_go_when_there_is_too_much() {
    let directory = tempfile::tempdir().unwrap();
    let options = || Options { retention_bytes: Some(256 << 10), ..options(directory.path()) };
    let mut store = Store::open(options()).unwrap();
    let run = store.open_run(&key("t", "w"), None).await.unwrap().id;
    let silent = store.open_run(&key("t", "silent"), None).await.unwrap().id;
    append(&store, silent, 2, 1, 5).await;
    let finished = store.open_run(&key("done", "w"), None).await.unwrap().id;
    append(&store, finished, 3, 1, 5).await;
    store.append(finished, finish(5)).await.unwrap();
    store.put_events(vec![event("done", "1", Type::Queued)]).await.unwrap();
    let mut early = store.cursor(run, From::Sequence(1));
    fill(&store, run, 1, 1, 101).await;
    let mut seen = drain(&mut early).await;
    fill(&store, run, 1, 101, 20_001).await;
    store.apply_retention().await.unwrap();
    let stats = store.stats();
    assert!(stats.expired_segments > 3 && stats.segment_bytes <= 256 << 10, "{stats:?}");
    // A reader that was in the midst of it is told what it missed.
    while let Some(item) = early.next().await.unwrap() {
        seen.add(item);
    }
    assert_eq!(seen.gaps.len(), 1);
    assert_eq!(seen.gaps[0].2, Reason::Expired);
    assert_eq!(seen.gaps[0].0, 101);
    seen.check(1, 1, 20_001);
    drop(early);
    for round in 0..3 {
        let info = store.run(run).await.unwrap().unwrap();
        let first = info.gaps[0].last_sequence + 1;
        assert!(first > 10_000 && info.lines == 20_001 - first && info.missing_lines == first - 1, "{info:?}");
        let seen = read(&store, run, From::Sequence(1)).await;
        assert_eq!(seen.gaps, [(1, first - 1, Reason::Expired)]);
        seen.check(1, 1, 20_001);
        read(&store, run, From::Tail(1_000_000)).await.check(1, first, 20_001);
        // It goes on where it was, though all its lines are gone.
        let state = store.open_run(&key("t", "silent"), None).await.unwrap();
        assert_eq!((state.id, state.expected, state.created), (silent, 6, false), "round {round}");
        let seen = read(&store, silent, From::Sequence(1)).await;
        assert_eq!(seen.gaps, [(1, 5, Reason::Expired)]);
        let task = store.task("t").await.unwrap().unwrap();
        assert_eq!((task.lines, task.runs, task.workers), (info.lines, 2, 2));
        // What was finished is gone altogether.
        assert_eq!(store.run(finished).await.unwrap(), None);
        assert_eq!(store.task("done").await.unwrap(), None);
        assert_eq!(store.events("done", 0).await.unwrap(), []);
        assert_eq!(store.tasks(None, 10).await.unwrap().tasks.len(), 1);
        store.close().await;
        if round == 1 {
            std::fs::remove_file(directory.path().join("index.redb")).unwrap();
        }
        store = Store::open(options()).unwrap();
    }
    append(&store, silent, 2, 6, 5).await;
    let seen = read(&store, silent, From::Sequence(1)).await;
    seen.check(2, 1, 11);
    let again = store.open_run(&key("done", "w"), None).await.unwrap();
    assert!(again.created && again.id != finished);
    assert_eq!(store.append(finished, finish(5)).await, Err(StoreError::UnknownRun));
}

#[tokio::test]
async fn what_is_too_old_goes_and_silent_runs_go_later() {
    let directory = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let options = || Options {
        retention_age: Some(7 * DAY),
        idle_run_age: 30 * DAY,
        clock: clock.clone() as Arc<dyn otto_log_store::Clock>,
        ..options(directory.path())
    };
    let store = Store::open(options()).unwrap();
    let old = store.open_run(&key("old", "w"), None).await.unwrap().id;
    append(&store, old, 1, 1, 10).await;
    store.append(old, finish(10)).await.unwrap();
    let silent = store.open_run(&key("silent", "w"), None).await.unwrap().id;
    append(&store, silent, 2, 1, 10).await;
    clock.advance(3 * DAY);
    store.apply_retention().await.unwrap();
    let young = store.open_run(&key("young", "w"), None).await.unwrap().id;
    append(&store, young, 3, 1, 10).await;
    clock.advance(5 * DAY);
    store.apply_retention().await.unwrap();
    assert_eq!(store.task("old").await.unwrap(), None);
    assert!(store.cursor(old, From::Sequence(1)).next().await.is_err());
    read(&store, young, From::Sequence(1)).await.check(3, 1, 11);
    assert_eq!(read(&store, silent, From::Sequence(1)).await.gaps, [(1, 10, Reason::Expired)]);
    clock.advance(10 * DAY);
    store.apply_retention().await.unwrap();
    assert_eq!(store.run(silent).await.unwrap().unwrap().expected, 11);
    for _ in 0..5 {
        clock.advance(8 * DAY);
        store.apply_retention().await.unwrap();
    }
    assert_eq!(store.run(silent).await.unwrap(), None);
    assert_eq!(store.tasks(None, 10).await.unwrap().tasks, []);
    let stats = store.stats();
    assert!(stats.segments <= 2, "{stats:?}");
    store.close().await;
    assert!(segment_files(directory.path()).len() <= 2);
    let store = Store::open(options()).unwrap();
    assert_eq!(store.tasks(None, 10).await.unwrap().tasks, []);
    assert!(store.open_run(&key("silent", "w"), None).await.unwrap().created);
}

#[tokio::test]
async fn a_clock_that_jumps_back_removes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let store = Store::open(Options { clock: clock.clone(), ..options(directory.path()) }).unwrap();
    let run = store.open_run(&key("t", "w"), None).await.unwrap().id;
    append(&store, run, 1, 1, 10).await;
    clock.jump(-(DAY.as_nanos() as i64) / 100);
    assert_eq!(store.append(run, Record::Block(block(1, 11, 1000))).await, Ok(1011));
    store.apply_retention().await.unwrap();
    read(&store, run, From::Sequence(1)).await.check(1, 1, 1011);
}

#[tokio::test]
async fn a_clock_that_jumps_forward_removes_nothing_and_what_is_really_old_still_goes() {
    let directory = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let options = || Options {
        retention_age: Some(7 * DAY),
        idle_run_age: 30 * DAY,
        clock: clock.clone() as Arc<dyn otto_log_store::Clock>,
        ..options(directory.path())
    };
    let store = Store::open(options()).unwrap();
    let run = store.open_run(&key("t", "w"), None).await.unwrap().id;
    append(&store, run, 1, 1, 10).await;
    clock.advance(DAY);
    store.apply_retention().await.unwrap();
    // Longer than everything is kept.
    let year = 365 * DAY.as_nanos() as i64;
    clock.jump(year);
    for _ in 0..3 {
        clock.advance(DAY);
        store.apply_retention().await.unwrap();
    }
    read(&store, run, From::Sequence(1)).await.check(1, 1, 11);
    assert_eq!(store.stats().expired_segments, 0);
    append(&store, run, 1, 11, 10).await;
    // Its time is over though the clock is still wrong; that of what was stored in the meantime is not.
    clock.advance(5 * DAY);
    store.apply_retention().await.unwrap();
    let seen = read(&store, run, From::Sequence(1)).await;
    assert_eq!(seen.gaps, [(1, 10, Reason::Expired)]);
    seen.check(1, 1, 21);
    // The clock is put right.
    clock.jump(-year);
    store.apply_retention().await.unwrap();
    append(&store, run, 1, 21, 10).await;
    read(&store, run, From::Sequence(11)).await.check(1, 11, 31);
    // One that is ahead when the store is opened is believed (so far that what it stamped before is old, too).
    store.close().await;
    clock.jump(2 * year);
    let store = Store::open(options()).unwrap();
    store.apply_retention().await.unwrap();
    assert!(store.stats().expired_segments > 0);
}

/// The limit by size removes a segment while the clock is wrong: silent runs can go on all the same.
#[tokio::test]
async fn a_clock_that_jumps_forward_forgets_no_silent_run() {
    let directory = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let store = Store::open(Options {
        retention_age: None,
        retention_bytes: Some(128 << 10),
        clock: clock.clone(),
        ..options(directory.path())
    })
    .unwrap();
    let silent = store.open_run(&key("t", "silent"), None).await.unwrap().id;
    append(&store, silent, 2, 1, 5).await;
    let run = store.open_run(&key("t", "w"), None).await.unwrap().id;
    clock.jump(365 * DAY.as_nanos() as i64);
    fill(&store, run, 1, 1, 8_001).await;
    store.apply_retention().await.unwrap();
    assert!(store.stats().expired_segments > 0);
    append(&store, silent, 2, 6, 5).await;
}
