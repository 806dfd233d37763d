use otto_log_store::{From, Options, Record, Store, StoreError};

use crate::support::*;

/// Segments roll, are merged and indexed, and the oldest expire, while many write and read.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_write_and_read_while_segments_are_sealed_and_merged() {
    let directory = tempfile::tempdir().unwrap();
    let options = || Options { merge: true, ..options(directory.path()) };
    let store = Store::open(options()).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    const LINES: u64 = 2500;
    for seed in 0..8u64 {
        let run = store.open_run(&key(&format!("t{}", seed % 3), &format!("w{seed}")), None).await.unwrap().id;
        let writer = store.clone();
        tasks.spawn(async move {
            let mut next = 1;
            while next <= LINES {
                let mut pending = Vec::new();
                for _ in 0..4 {
                    let lines = (1 + (next * 13 + seed) % 9).min(LINES + 1 - next);
                    if lines == 0 {
                        break;
                    }
                    pending.push(writer.append(run, Record::Block(block(seed, next, lines))));
                    next += lines;
                }
                for append in pending {
                    append.await.unwrap();
                }
            }
            writer.append(run, finish(LINES)).await.unwrap();
        });
        for reader in 0..2u64 {
            let store = store.clone();
            tasks.spawn(async move {
                let from = 1 + reader * 700;
                let mut cursor = store.cursor(run, From::Sequence(from));
                let mut seen = Seen::default();
                loop {
                    match cursor.next().await.unwrap() {
                        Some(item) => seen.add(item),
                        None if cursor.changed().await => {}
                        None => break,
                    }
                }
                assert!(seen.finished && seen.gaps.is_empty(), "{:?}", seen.gaps);
                seen.check(seed, from, LINES + 1);
            });
        }
    }
    tokio::time::timeout(PATIENCE, async {
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    })
    .await
    .unwrap();
    // On a busy machine the writers leave no time for it.
    let more = store.open_run(&key("more", "w"), None).await.unwrap().id;
    let (mut next, mut segments) = (1, store.stats().segments);
    while store.stats().merged_segments <= 3 && next < 100_000 {
        append(&store, more, 9, next, 8).await;
        let_merge(&store, &mut segments).await;
        next += 8;
    }
    let merged = eventually("segments merged", async || {
        let stats = store.stats();
        (stats.merged_segments > 3).then_some(stats)
    })
    .await;
    assert!(merged.commits <= merged.records, "{merged:?}");
    store.close().await;
    let store = Store::open(options()).unwrap();
    for (task, seed) in (0..8u64).map(|seed| (format!("t{}", seed % 3), seed)) {
        let run = store.find_run(&key(&task, &format!("w{seed}"))).await.unwrap().unwrap();
        assert!(run.is_complete());
        read(&store, run.id, From::Sequence(1)).await.check(seed, 1, LINES + 1);
    }
}

#[tokio::test]
async fn a_full_queue_refuses_and_tells_when_there_is_room() {
    let directory = tempfile::tempdir().unwrap();
    let (faults, gate) = crate::faults::Gate::new();
    let options = Options { queue_records: 4, faults, ..options(directory.path()) };
    let store = Store::open(options).unwrap();
    let run = store.open_run(&key("t", "w"), None).await.unwrap().id;
    gate.shut();
    // One is being written, four wait.
    let first = store.append(run, Record::Block(block(1, 1, 1)));
    gate.wait_until_waiting();
    let waiting: Vec<_> = (2..6).map(|at| store.append(run, Record::Block(block(1, at, 1)))).collect();
    assert_eq!(store.append(run, Record::Block(block(1, 6, 1))).await, Err(StoreError::Busy));
    assert!(futures::FutureExt::now_or_never(store.ready()).is_none());
    gate.open();
    store.ready().await;
    assert_eq!(first.await, Ok(2));
    for (at, append) in waiting.into_iter().enumerate() {
        assert_eq!(append.await, Ok(3 + at as u64));
    }
    append(&store, run, 1, 6, 1).await;
}

#[tokio::test]
async fn what_is_not_on_disk_is_not_seen_and_waits_share_one_sync() {
    let directory = tempfile::tempdir().unwrap();
    let (faults, gate) = crate::faults::Gate::new();
    let store = Store::open(Options { faults, ..options(directory.path()) }).unwrap();
    let run = store.open_run(&key("t", "w"), None).await.unwrap().id;
    gate.shut();
    let before = store.stats().commits;
    let mut pending = vec![store.append(run, Record::Block(block(1, 1, 1)))];
    gate.wait_until_waiting();
    pending.extend((2..100).map(|at| store.append(run, Record::Block(block(1, at, 1)))));
    assert_eq!(read(&store, run, From::Sequence(1)).await, Seen::default());
    assert_eq!(store.run(run).await.unwrap().unwrap().expected, 1);
    gate.open();
    for append in pending {
        append.await.unwrap();
    }
    assert_eq!(store.stats().commits - before, 2);
    read(&store, run, From::Sequence(1)).await.check(1, 1, 100);
}
