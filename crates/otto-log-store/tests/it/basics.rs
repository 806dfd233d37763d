use otto_log_store::{Filter, From, Item, Record, RunId, RunKey, StoreError};
use otto_proto::v1::{LogGap, WorkerMetadata, log_gap::Reason};

use crate::support::*;

fn gap(first: u64, last: u64) -> Record {
    Record::Gap(LogGap {
        first_sequence: first,
        last_sequence: last,
        reason: Reason::SpoolFull.into(),
        message: "full".into(),
    })
}

#[tokio::test]
async fn a_run_is_stored_and_read_and_outlives_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let key = key("task", "worker");
    let metadata = WorkerMetadata { pod_name: "pod".into(), ..WorkerMetadata::default() };
    let state = store.open_run(&key, Some(metadata.clone())).await.unwrap();
    assert_eq!((state.expected, state.finished, state.created), (1, false, true));
    append(&store, state.id, 1, 1, 10).await;
    append(&store, state.id, 1, 11, 200).await;
    assert_eq!(store.append(state.id, gap(211, 220)).await, Ok(221));
    append(&store, state.id, 1, 221, 1).await;
    for round in 0..2 {
        let store = if round == 0 { store.clone() } else { open(directory.path()) };
        let again = store.open_run(&key, None).await.unwrap();
        assert_eq!((again.id, again.expected, again.created), (state.id, 222, false));
        let info = store.run(state.id).await.unwrap().unwrap();
        assert_eq!((info.lines, info.missing_lines, info.gaps.len()), (211, 10, 1));
        assert_eq!(info.metadata, Some(metadata.clone()));
        assert_eq!(info.first_time_unix_nanos, Some(time_of(1)));
        assert_eq!(info.last_time_unix_nanos, Some(time_of(221)));
        let seen = read(&store, state.id, From::Sequence(1)).await;
        seen.check(1, 1, 222);
        assert_eq!(seen.gaps, [(211, 220, Reason::SpoolFull)]);
        assert!(!seen.finished);
        store.close().await;
    }
    let store = open(directory.path());
    assert_eq!(store.append(state.id, finish(221)).await, Ok(222));
    let mut cursor = store.cursor(state.id, From::Sequence(222));
    assert!(matches!(cursor.next().await, Ok(Some(Item::Finish(_)))));
    assert!(matches!(cursor.next().await, Ok(None)));
    assert!(!cursor.changed().await);
    assert!(!store.run(state.id).await.unwrap().unwrap().is_complete());
    drop(store);
    drop(cursor);
    let store = open(directory.path());
    let state = store.open_run(&key, None).await.unwrap();
    assert!(state.finished);
    assert_eq!(store.append(state.id, gap(222, 222)).await, Err(StoreError::Finished));
}

#[tokio::test]
async fn a_record_must_begin_where_the_run_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let run = store.open_run(&key("t", "w"), None).await.unwrap().id;
    let wrong = Err(StoreError::Sequence { expected: 1 });
    assert_eq!(store.append(run, Record::Block(block(1, 2, 1))).await, wrong);
    assert_eq!(store.append(run, gap(2, 3)).await, wrong);
    assert_eq!(store.append(run, finish(1)).await, wrong);
    // Queued together: what follows a refused record is refused too.
    let appends = [1, 6, 9, 4].map(|first| store.append(run, Record::Block(block(1, first, 3))));
    let [first, second, third, fourth] = appends;
    let wrong = Err(StoreError::Sequence { expected: 4 });
    assert_eq!((first.await, second.await, third.await), (Ok(4), wrong.clone(), wrong));
    assert_eq!(fourth.await, Ok(7));
    assert_eq!(store.append(RunId(99), gap(1, 1)).await, Err(StoreError::UnknownRun));
    let mut damaged = block(1, 7, 3);
    damaged.payload_crc32c ^= 1;
    assert!(
        matches!(store.append(run, Record::Block(damaged)).await, Err(StoreError::Invalid(text)) if text.contains("crc32c"))
    );
    assert!(matches!(store.append(run, gap(7, 6)).await, Err(StoreError::Invalid(_))));
    assert!(
        matches!(store.open_run(&key("", "w"), None).await, Err(StoreError::Invalid(text)) if text.contains("task_id"))
    );
    assert!(store.cursor(RunId(99), From::Sequence(1)).next().await.is_err());
    read(&store, run, From::Sequence(1)).await.check(1, 1, 7);
}

#[tokio::test]
async fn a_gap_without_an_end_is_told_once_and_the_run_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let run = store.open_run(&key("t", "w"), None).await.unwrap().id;
    append(&store, run, 1, 1, 5).await;
    let mut live = store.cursor(run, From::Sequence(1));
    let mut seen = drain(&mut live).await;
    assert_eq!(store.append(run, gap(6, 0)).await, Ok(6));
    while let Some(item) = live.next().await.unwrap() {
        seen.add(item);
    }
    append(&store, run, 1, 6, 5).await;
    assert_eq!(store.append(run, finish(10)).await, Ok(11));
    while let Some(item) = live.next().await.unwrap() {
        seen.add(item);
    }
    assert_eq!(seen.gaps, [(6, 0, Reason::SpoolFull)]);
    seen.check(1, 1, 11);
    assert!(seen.finished);
    assert_eq!(read(&store, run, From::Sequence(0)).await, seen);
    assert_eq!(read(&store, run, From::Sequence(7)).await.gaps, []);
}

#[tokio::test]
async fn a_gap_without_an_end_is_known_however_many_gaps_there_were() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = open(directory.path());
    let run = store.open_run(&key("t", "w"), None).await.unwrap().id;
    let open_gap = async |store: &otto_log_store::Store| {
        let info = store.run(run).await.unwrap().unwrap();
        assert!(info.gaps.len() <= 1_000);
        info.open_gap
    };
    // More than are listed.
    let gaps: Vec<_> = (1..=1_001).map(|first| store.append(run, gap(first, first))).collect();
    for append in gaps {
        append.await.unwrap();
    }
    assert!(!open_gap(&store).await);
    assert_eq!(store.append(run, gap(1_002, 0)).await, Ok(1_002));
    for rebuilt in [false, true] {
        assert!(open_gap(&store).await);
        store.close().await;
        if rebuilt {
            std::fs::remove_file(directory.path().join("index.redb")).unwrap();
        }
        store = open(directory.path());
    }
    assert!(open_gap(&store).await);
    append(&store, run, 1, 1_002, 5).await;
    assert!(!open_gap(&store).await);
    assert_eq!(store.append(run, gap(1_007, 0)).await, Ok(1_007));
    assert_eq!(store.append(run, gap(1_007, 1_008)).await, Ok(1_009));
    assert!(!open_gap(&store).await);
    assert_eq!(store.append(run, gap(1_009, 0)).await, Ok(1_009));
    store.append(run, finish(1_008)).await.unwrap();
    assert!(!open_gap(&store).await);
}

#[tokio::test]
async fn reading_begins_at_a_sequence_a_time_or_some_lines_before_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let run = store.open_run(&key("t", "w"), None).await.unwrap().id;
    // Enough for several segments.
    for at in 0..60 {
        append(&store, run, 1, 1 + at * 50, 50).await;
    }
    append(&store, run, 1, 3001, 20).await;
    let sealed = async || store.stats().segments;
    assert!(sealed().await > 3, "{:?}", store.stats());
    for from in [1, 49, 50, 51, 1500, 3000, 3001, 3020, 3021] {
        read(&store, run, From::Sequence(from)).await.check(1, from, 3021);
    }
    for lines in [0, 1, 19, 20, 21, 1000, 3020, 5000] {
        let seen = read(&store, run, From::Tail(lines)).await;
        seen.check(1, 3021 - lines.min(3020), 3021);
    }
    for wanted in [1, 777, 3000, 3020] {
        let seen = read(&store, run, From::Time(time_of(wanted))).await;
        let first = seen.lines[0].0;
        assert!(first <= wanted && first + 50 > wanted, "{first} for {wanted}");
        seen.check(1, first, 3021);
    }
    assert_eq!(read(&store, run, From::Time(time_of(4000))).await, Seen::default());
    let ahead = read(&store, run, From::Sequence(4000)).await;
    assert_eq!(ahead, Seen::default());
}

#[tokio::test]
async fn blocks_without_a_wanted_line_are_passed_over() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let run = store.open_run(&key("t", "w"), None).await.unwrap().id;
    for first in (1..1000).step_by(3) {
        append(&store, run, 1, first, 3).await;
    }
    let filter = Filter { level_mask: 1 << 5, ..Filter::default() };
    let seen = drain(&mut store.cursor(run, From::Sequence(1)).with_filter(filter)).await;
    assert_eq!(seen.lines.len(), 297);
    assert_eq!(seen.lines.iter().filter(|(sequence, _)| sequence % 10 == 0).count(), 99);
    let filter =
        Filter { since_unix_nanos: Some(time_of(500)), until_unix_nanos: Some(time_of(503)), ..Filter::default() };
    let mut cursor = store.cursor(run, From::Sequence(1)).with_filter(filter);
    let seen = drain(&mut cursor).await;
    assert_eq!(seen.lines.iter().map(|(sequence, _)| *sequence).collect::<Vec<_>>(), (499..=504).collect::<Vec<_>>());
    assert_eq!(cursor.position(), 1000);
}

#[tokio::test]
async fn a_reader_follows_and_a_task_is_watched() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let mut watch = store.watch_task("t");
    let mut all = store.watch_tasks();
    let run = store.open_run(&key("t", "w"), None).await.unwrap().id;
    assert!(watch.changed().await && all.changed().await);
    let follower = tokio::spawn({
        let mut cursor = store.cursor(run, From::Sequence(1));
        async move {
            let mut seen = Seen::default();
            loop {
                match cursor.next().await.unwrap() {
                    Some(item) => seen.add(item),
                    None if cursor.changed().await => {}
                    None => return seen,
                }
            }
        }
    });
    for first in (1..2001).step_by(4) {
        append(&store, run, 1, first, 4).await;
    }
    store.append(run, finish(2000)).await.unwrap();
    assert!(watch.changed().await);
    let seen = tokio::time::timeout(PATIENCE, follower).await.unwrap().unwrap();
    seen.check(1, 1, 2001);
    assert!(seen.finished && seen.gaps.is_empty());
    assert!(store.run(run).await.unwrap().unwrap().is_complete());
    // A reader that waits is told that the store was closed.
    let other = store.open_run(&key("t", "other"), None).await.unwrap().id;
    let mut cursor = store.cursor(other, From::Tail(0));
    assert!(cursor.next().await.unwrap().is_none());
    let (more, ()) = tokio::join!(cursor.changed(), store.close());
    assert!(!more);
    assert_eq!(store.open_run(&key("t", "w"), None).await, Err(StoreError::Closed));
}

#[tokio::test]
async fn tasks_are_listed_newest_first_in_pages_and_counted() {
    let directory = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let options = || otto_log_store::Options { clock: clock.clone(), ..options(directory.path()) };
    let mut store = otto_log_store::Store::open(options()).unwrap();
    let mut expected = Vec::new();
    for number in 0..25u64 {
        let task = format!("task-{number}");
        for run in 0..3 {
            let worker = format!("w{}", run % 2);
            let key = RunKey { task_id: task.clone(), worker_id: worker, run_id: format!("r{run}") };
            let id = store.open_run(&key, None).await.unwrap().id;
            append(&store, id, 1, 1, 20).await;
        }
        expected.insert(0, task);
        if number % 10 == 9 {
            // Some of it goes into the index.
            clock.advance(std::time::Duration::from_secs(24 * 3600));
            store.apply_retention().await.unwrap();
        }
        if number == 12 {
            store.close().await;
            store = otto_log_store::Store::open(options()).unwrap();
        }
    }
    assert!(store.stats().segments >= 3, "{:?}", store.stats());
    let (mut page, mut found) = (None, Vec::new());
    loop {
        let tasks = store.tasks(page, 7).await.unwrap();
        for task in &tasks.tasks {
            assert_eq!((task.workers, task.runs, task.lines), (2, 3, 60), "{}", task.task_id);
        }
        found.extend(tasks.tasks.into_iter().map(|task| task.task_id));
        page = tasks.next;
        if page.is_none() {
            break;
        }
    }
    assert_eq!(found, expected);
    assert_eq!(store.runs("task-3").await.unwrap().len(), 3);
    assert_eq!(store.runs("none").await.unwrap(), []);
    assert_eq!(store.task("none").await.unwrap(), None);
    let found = store.find_run(&RunKey { run_id: "r2".into(), ..key("task-5", "w0") }).await.unwrap().unwrap();
    assert_eq!(found.lines, 20);
    assert_eq!(store.find_run(&key("task-5", "none")).await.unwrap(), None);
}
