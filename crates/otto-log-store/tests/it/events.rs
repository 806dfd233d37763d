use otto_log_store::{Record, StoreError};
use otto_proto::v1::{WorkerEvent, worker_event::Type};

use crate::support::*;

#[tokio::test]
async fn events_are_stored_once_in_order_and_tell_of_their_task() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let mut queued = event("t", "1", Type::Queued);
    queued.context.insert("repository".into(), "r".into());
    let mut ended = event("t", "3", Type::TaskEnded);
    ended.task_state = "failed".into();
    let started = event("t", "2", Type::Started);
    assert_eq!(store.put_events(vec![queued.clone(), started.clone(), queued.clone()]).await, Ok(2));
    assert_eq!(store.put_events(vec![started.clone(), ended.clone(), event("u", "2", Type::Queued)]).await, Ok(2));
    assert!(matches!(store.put_events(vec![WorkerEvent::default()]).await, Err(StoreError::Invalid(_))));
    let expected = vec![(0, queued.clone()), (1, started.clone()), (2, ended)];
    assert_eq!(store.events("t", 0).await.unwrap(), expected);
    // Into the index, and more after it.
    let run = store.open_run(&key("t", "w"), None).await.unwrap().id;
    for first in (1..3001).step_by(100) {
        append(&store, run, 1, first, 100).await;
    }
    for round in 0..3 {
        let store = if round == 0 { store.clone() } else { open(directory.path()) };
        assert_eq!(store.put_events(vec![started.clone(), queued.clone()]).await, Ok(0), "round {round}");
        assert_eq!(store.events("t", 0).await.unwrap(), expected);
        assert_eq!(store.events("t", 2).await.unwrap(), expected[2..]);
        assert_eq!(store.events("none", 0).await.unwrap(), []);
        let task = store.task("t").await.unwrap().unwrap();
        assert_eq!((&*task.task_state, &*task.context["repository"], task.runs), ("failed", "r", 1));
        assert_eq!(store.tasks(None, 10).await.unwrap().tasks.len(), 2);
        store.close().await;
        if round == 1 {
            std::fs::remove_file(directory.path().join("index.redb")).unwrap();
        }
    }
}

#[tokio::test]
async fn a_deleted_task_is_gone_for_good_and_can_come_again() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = open(directory.path());
    let keep = store.open_run(&key("keep", "w"), None).await.unwrap().id;
    append(&store, keep, 2, 1, 10).await;
    let mut ids = Vec::new();
    for worker in ["a", "b"] {
        let run = store.open_run(&key("t", worker), None).await.unwrap().id;
        for first in (1..2001).step_by(100) {
            append(&store, run, 1, first, 100).await;
        }
        ids.push(run);
    }
    store.put_events(vec![event("t", "1", Type::Queued)]).await.unwrap();
    let mut cursor = store.cursor(ids[1], otto_log_store::From::Tail(10));
    drain(&mut cursor).await;
    assert_eq!(store.delete_task("t").await, Ok(true));
    assert_eq!(store.delete_task("t").await, Ok(false));
    assert!(cursor.changed().await);
    assert!(cursor.next().await.is_err());
    assert!(!cursor.changed().await);
    drop(cursor);
    for round in 0..3 {
        assert_eq!(store.task("t").await.unwrap(), None, "round {round}");
        assert_eq!(store.runs("t").await.unwrap(), []);
        assert_eq!(store.events("t", 0).await.unwrap(), []);
        assert_eq!(store.tasks(None, 10).await.unwrap().tasks.len(), 1);
        assert_eq!(store.append(ids[0], Record::Block(block(1, 2001, 1))).await, Err(StoreError::UnknownRun));
        assert!(store.cursor(ids[0], otto_log_store::From::Sequence(1)).next().await.is_err());
        store.close().await;
        if round == 1 {
            std::fs::remove_file(directory.path().join("index.redb")).unwrap();
        }
        store = open(directory.path());
    }
    let again = store.open_run(&key("t", "a"), None).await.unwrap();
    assert!(again.created && again.id != ids[0]);
    append(&store, again.id, 3, 1, 10).await;
    assert_eq!(store.put_events(vec![event("t", "1", Type::Queued)]).await, Ok(1));
    store.close().await;
    std::fs::remove_file(directory.path().join("index.redb")).unwrap();
    store = open(directory.path());
    assert_eq!(store.runs("t").await.unwrap().len(), 1);
    assert_eq!(store.events("t", 0).await.unwrap().len(), 1);
    read(&store, again.id, otto_log_store::From::Sequence(1)).await.check(3, 1, 11);
    read(&store, keep, otto_log_store::From::Sequence(1)).await.check(2, 1, 11);
}
