use otto_log_store::{From, Item, Options, Record, Store};
use otto_proto::v1::{LogGap, log_gap::Reason};

use crate::support::*;

#[tokio::test]
async fn small_blocks_become_large_ones_and_nothing_else_changes() {
    let directory = tempfile::tempdir().unwrap();
    let options = || Options { merge: true, segment_bytes: 256 << 10, ..options(directory.path()) };
    let mut store = Store::open(options()).unwrap();
    let mut runs = Vec::new();
    for seed in 0..4u64 {
        runs.push(store.open_run(&key("t", &format!("w{seed}")), None).await.unwrap().id);
    }
    let gone = store.open_run(&key("gone", "w"), None).await.unwrap().id;
    append(&store, gone, 9, 1, 50).await;
    store.delete_task("gone").await.unwrap();
    store.put_events(vec![event("t", "1", otto_proto::v1::worker_event::Type::Queued)]).await.unwrap();
    let mut next = 1;
    let mut segments = store.stats().segments;
    while next < 6000 {
        let mut pending = Vec::new();
        for (seed, run) in runs.iter().enumerate() {
            pending.push(store.append(*run, Record::Block(block(seed as u64, next, 8))));
        }
        for append in pending {
            append.await.unwrap();
        }
        let_merge(&store, &mut segments).await;
        next += 8;
        if next == 2001 {
            let gap = LogGap {
                first_sequence: next,
                last_sequence: next + 7,
                reason: Reason::SpoolFull.into(),
                message: "m".into(),
            };
            for run in &runs {
                store.append(*run, Record::Gap(gap.clone())).await.unwrap();
            }
            next += 8;
        }
    }
    let before = store.runs("t").await.unwrap();
    let task = store.task("t").await.unwrap();
    let stats = eventually("merged", async || {
        let stats = store.stats();
        (stats.merged_segments >= 5).then_some(stats)
    })
    .await;
    assert!(stats.segment_bytes < stats.written_bytes / 2, "{stats:?}");
    for round in 0..3 {
        assert_eq!(store.runs("t").await.unwrap(), before, "round {round}");
        assert_eq!(store.task("t").await.unwrap(), task);
        assert_eq!(store.task("gone").await.unwrap(), None);
        assert_eq!(store.events("t", 0).await.unwrap().len(), 1);
        for (seed, run) in runs.iter().enumerate() {
            for from in [1, 5, 1999, 2003, 4444] {
                let seen = read(&store, *run, From::Sequence(from)).await;
                seen.check(seed as u64, from, next);
                assert_eq!(seen.gaps.len(), usize::from(from <= 2008));
            }
        }
        let mut cursor = store.cursor(runs[0], From::Sequence(1));
        let Some(Item::Block(first)) = cursor.next().await.unwrap() else { panic!("a block") };
        assert!(first.decoded.line_count() > 100, "{}", first.decoded.line_count());
        store.close().await;
        if round == 0 {
            std::fs::remove_file(directory.path().join("index.redb")).unwrap();
        }
        if round == 1 {
            // What a crash in the midst of merging leaves.
            let names = segment_files(directory.path());
            let segments = directory.path().join("segments");
            std::fs::write(segments.join("00000000000000ff.1.seg.tmp"), b"half").unwrap();
            std::fs::copy(segments.join(&names[0]), segments.join(names[0].replace(".1.seg", ".0.seg"))).unwrap();
            std::fs::copy(segments.join(&names[1]), segments.join(names[1].replace(".1.seg", ".2.seg"))).unwrap();
        }
        store = Store::open(options()).unwrap();
        let left = segment_files(directory.path());
        assert!(!left.iter().any(|name| name.ends_with(".tmp") || name.ends_with(".2.seg")), "{left:?}");
    }
    assert_eq!(store.stats().damaged, 0);
}
