//! What every implementation must do, run against each.

use super::{StoreError, TaskStore};
use crate::task::{EntryId, Phase, Record, Spec};

pub(crate) fn record(task_id: &str, version: u64) -> Record {
    Record {
        task_id: task_id.to_owned(),
        version,
        spec: Spec { command: vec!["true".to_owned()], ..Spec::default() }.into(),
        wanted: 1,
        phase: Phase::Live,
        workers: Vec::new(),
        created_at: 1_000,
        ended_at: None,
        last_entry: None,
        error: None,
    }
}

pub(crate) fn ended(task_id: &str, version: u64, at: i64) -> Record {
    Record { phase: Phase::Succeeded, ended_at: Some(at), ..record(task_id, version) }
}

pub(crate) async fn all(store: &dyn TaskStore) {
    store.ping().await.unwrap();
    versions(store).await;
    racing_writers(store).await;
    loading_and_expiry(store).await;
}

async fn versions(store: &dyn TaskStore) {
    let conflict = |result: Result<(), StoreError>| match result {
        Err(StoreError::Conflict(task)) => assert_eq!(task, "v"),
        other => panic!("{other:?}"),
    };
    assert_eq!(store.get("v").await.unwrap(), None);
    conflict(store.put(&record("v", 2), None).await);
    store.put(&record("v", 1), None).await.unwrap();
    // The answer was lost: the same again is the same.
    store.put(&record("v", 1), None).await.unwrap();
    // Another writer's first version is not.
    conflict(store.put(&Record { wanted: 9, ..record("v", 1) }, None).await);
    store.put(&Record { wanted: 2, ..record("v", 2) }, None).await.unwrap();
    conflict(store.put(&record("v", 1), None).await);
    conflict(store.put(&record("v", 4), None).await);
    assert_eq!(store.get("v").await.unwrap().map(|record| (record.version, record.wanted)), Some((2, 2)));
    conflict(store.remove("v", 1).await);
    store.remove("v", 2).await.unwrap();
    store.remove("v", 2).await.unwrap();
    assert_eq!(store.get("v").await.unwrap(), None);
    store.acknowledge(EntryId { millis: 1, sequence: 1 }).await.unwrap();
}

/// Of many that write the same version, one wins.
async fn racing_writers(store: &dyn TaskStore) {
    let rivals: Vec<_> = (0..20).map(|n| Record { wanted: n, ..record("race", 1) }).collect();
    let results = futures::future::join_all(rivals.iter().map(|rival| store.put(rival, None))).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
    let winner = results.iter().position(Result::is_ok).unwrap();
    assert_eq!(store.get("race").await.unwrap().as_ref(), Some(&rivals[winner]));
    store.remove("race", 1).await.unwrap();
}

async fn loading_and_expiry(store: &dyn TaskStore) {
    let names = |mut records: Vec<Record>| {
        records.sort_by(|a, b| a.task_id.cmp(&b.task_id));
        records.into_iter().map(|record| record.task_id).collect::<Vec<_>>().join(" ")
    };
    for (task, at) in [("e1", 100), ("e2", 300), ("e3", 200)] {
        store.put(&record(task, 1), None).await.unwrap();
        store.put(&ended(task, 2, at), None).await.unwrap();
    }
    store.put(&record("l1", 1), None).await.unwrap();
    store.put(&record("l2", 1), None).await.unwrap();
    assert_eq!(names(store.load(0).await.unwrap()), "l1 l2");
    assert_eq!(names(store.load(2).await.unwrap()), "e2 e3 l1 l2");
    assert_eq!(names(store.load(usize::MAX).await.unwrap()), "e1 e2 e3 l1 l2");

    assert_eq!(store.expire(100, 10).await.unwrap(), 0);
    assert_eq!(store.expire(301, 2).await.unwrap(), 2);
    assert_eq!(names(store.load(10).await.unwrap()), "e2 l1 l2");
    assert_eq!(store.get("e1").await.unwrap(), None);
    assert_eq!(store.expire(301, 2).await.unwrap(), 1);
    assert_eq!(store.expire(i64::MAX, 2).await.unwrap(), 0);
    // What expired may come again.
    store.put(&record("e1", 1), None).await.unwrap();
    assert_eq!(names(store.load(10).await.unwrap()), "e1 l1 l2");
}
