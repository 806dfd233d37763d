//! Records that other replicas write.

use super::*;

/// Another replica writes a record.
fn write(store: &MemoryStore, task: &str, change: impl FnOnce(&mut Record)) {
    let mut records = store.records.lock().unwrap();
    let record = records.get_mut(task).unwrap();
    change(record);
    record.version += 1;
}

/// The loop has carried out what it was asked before.
async fn all_is_heard(f: &Fixture) {
    let _ = f.up("another", 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_change_while_the_one_before_it_is_read_is_read_too() {
    let f = fresh().await;
    changed(f.up("a", 1).await);
    f.until_created("a", 0, 1).await;
    f.driver.start(&key("a", 0, 1));
    f.until("it runs", |f| f.store.record("a").unwrap().workers[0].phase == WorkerPhase::Running).await;

    write(&f.store, "a", |record| record.error = Some("something".into()));
    *f.store.slow_read.lock().unwrap() = Some("a".to_owned());
    f.handle.changed(vec!["a".to_owned()]).await;
    f.until("it is read", |f| f.store.reads.load(Ordering::Relaxed) == 1).await;
    write(&f.store, "a", |record| {
        record.phase = Phase::Cancelling;
        record.workers[0].phase = WorkerPhase::Stopping;
    });
    f.handle.changed(vec!["a".to_owned()]).await;
    all_is_heard(&f).await;
    *f.store.slow_read.lock().unwrap() = None;
    f.store.go.notify_one();
    f.until_phase("a", Phase::Cancelled).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_written_while_all_is_read_is_read_too() {
    let f = fresh().await;
    changed(f.up("a", 1).await);
    f.until_created("a", 0, 1).await;
    let (store, driver) = f.kill().await;

    store.set(Mood::Away);
    let mut f = start(&store, &driver);
    // Answered: reading has failed once.
    assert!(matches!(f.up("x", 1).await, Err(ApplyError::Unavailable { .. })));
    *store.slow_read.lock().unwrap() = Some(String::new());
    store.set(Mood::Well);
    f.until("all is read", |f| f.store.reads.load(Ordering::Relaxed) == 1).await;
    let added = {
        let mut records = store.records.lock().unwrap();
        let added = Record { task_id: "b".into(), version: 1, ..records["a"].clone() };
        records.insert("b".into(), Record { workers: vec![crate::task::Worker::queued(0, 1)], ..added })
    };
    assert!(added.is_none());
    f.handle.changed(vec!["b".to_owned()]).await;
    assert!(matches!(f.up("x", 1).await, Err(ApplyError::Unavailable { .. })));
    *store.slow_read.lock().unwrap() = None;
    store.go.notify_one();
    f.ready().await;
    f.until_created("b", 0, 1).await;
}

/// A call is answered from what the store has, not from what was heard of it so far.
#[tokio::test(start_paused = true)]
async fn what_another_has_lowered_is_raised_again() {
    let f = fresh().await;
    changed(f.up("a", 3).await);
    f.until_created("a", 2, 1).await;
    write(&f.store, "a", |record| {
        record.wanted = 1;
        record.workers[1].phase = WorkerPhase::Stopping;
        record.workers[2].phase = WorkerPhase::Stopping;
    });
    changed(f.up("a", 3).await);
    assert_eq!(f.store.record("a").unwrap().wanted, 3);
    already(f.up("a", 3).await);
}
