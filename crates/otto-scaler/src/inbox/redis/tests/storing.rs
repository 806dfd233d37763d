//! The task store, and the script that applies and acknowledges in one step.

use super::*;
use crate::store::tests_of_every_store::{self as every, ended, record};

#[tokio::test]
async fn behaves_as_every_store() {
    let world = World::new().await;
    every::all(&world.redis.store()).await;
}

/// Delivers the entry to the group, as the inbox does.
async fn delivered(world: &World) -> EntryId {
    let entry = world.scale_up("t").await;
    let _: redis::Value = world.run(&format!("XREADGROUP GROUP {GROUP} c STREAMS {STREAM} >")).await;
    assert_eq!(world.pending().await, 1);
    world.redis.progress.deliver(entry);
    entry
}

async fn with_group() -> World {
    let world = World::new().await;
    let _: () = world.run(&format!("XGROUP CREATE {STREAM} {GROUP} 0 MKSTREAM")).await;
    world
}

#[tokio::test]
async fn applies_marks_and_acknowledges_in_one_step() {
    let world = with_group().await;
    let store = world.redis.store();
    let entry = delivered(&world).await;
    let applied = Record { last_entry: Some(entry), ..record("t", 1) };

    // Refused: nothing is marked or acknowledged.
    let wrong = Record { version: 2, ..applied.clone() };
    assert!(matches!(store.put(&wrong, Some(entry)).await, Err(StoreError::Conflict(_))));
    assert_eq!((world.pending().await, world.marker().await), (1, None));

    store.put(&applied, Some(entry)).await.unwrap();
    assert_eq!((world.pending().await, world.marker().await), (0, Some(entry)));
    // Its answer was lost, and it is decided again, a little later: success, and what is stored stays.
    let again = Record { created_at: 2_000, ..applied.clone() };
    store.put(&again, Some(entry)).await.unwrap();
    assert_eq!(world.task("t").await, applied);
    // The task has moved on since: it must be read again.
    store.put(&Record { version: 2, ..applied.clone() }, None).await.unwrap();
    assert!(matches!(store.put(&applied, Some(entry)).await, Err(StoreError::Conflict(_))));
}

#[tokio::test]
async fn an_entry_applied_before_is_only_acknowledged() {
    let world = with_group().await;
    let store = world.redis.store();
    let entry = delivered(&world).await;
    store.put(&Record { last_entry: Some(entry), ..record("t", 1) }, Some(entry)).await.unwrap();
    // A failover undid the acknowledgement.
    let _: () = world.run(&format!("XGROUP SETID {STREAM} {GROUP} 0")).await;
    let _: redis::Value = world.run(&format!("XREADGROUP GROUP {GROUP} c STREAMS {STREAM} >")).await;
    assert_eq!(world.pending().await, 1);
    let group = group::Group { link: world.redis.link.clone(), keys: Arc::clone(&world.redis.keys) };
    assert!(!group.applied_before("other", entry).await.unwrap());
    assert!(!group.applied_before("t", id("1-1")).await.unwrap());
    assert_eq!(world.pending().await, 1);
    assert!(group.applied_before("t", entry).await.unwrap());
    assert_eq!((world.pending().await, world.task("t").await.version), (0, 1));
}

#[tokio::test]
async fn acknowledging_never_moves_the_marker_back() {
    let world = with_group().await;
    let store = world.redis.store();
    for (entry, marker) in [("9-0", "9-0"), ("10-2", "10-2"), ("10-1", "10-2"), ("9-999", "10-2")] {
        world.redis.progress.deliver(id(entry));
        store.acknowledge(id(entry)).await.unwrap();
        world.redis.progress.settle(id(entry));
        assert_eq!(world.marker().await, Some(id(marker)), "{entry}");
    }
    let highest = format!("{}-{}", u64::MAX, u64::MAX);
    world.redis.progress.deliver(id(&highest));
    store.acknowledge(id(&highest)).await.unwrap();
    store.acknowledge(id(&format!("{}-{}", u64::MAX, u64::MAX - 1))).await.unwrap();
    assert_eq!(world.marker().await, Some(id(&highest)));
}

#[tokio::test]
async fn ended_records_expire_by_themselves_and_live_ones_never() {
    let world = World::new().await;
    let store = world.redis.store();
    store.put(&record("t", 1), None).await.unwrap();
    let ttl = async || world.run::<i64>(&format!("PTTL {{{STREAM}}}:task:t")).await;
    assert_eq!(ttl().await, -1);
    store.put(&ended("t", 2, now()), None).await.unwrap();
    let left = ttl().await;
    assert!(left > 13 * 86_400_000 && left <= 14 * 86_400_000, "{left}");
    // Expired: its place in the index is cleaned by the next load.
    let _: () = world.run(&format!("DEL {{{STREAM}}}:task:t")).await;
    assert_eq!(store.load(10).await.unwrap(), []);
    assert_eq!(world.run::<u32>(&format!("ZCARD {{{STREAM}}}:tasks:ended")).await, 0);
}

#[tokio::test]
async fn a_damaged_record_stops_nobody_else() {
    let world = World::new().await;
    let store = world.redis.store();
    store.put(&record("bad", 1), None).await.unwrap();
    store.put(&record("newer", 1), None).await.unwrap();
    store.put(&record("good", 1), None).await.unwrap();
    let _: () = world.run(&format!("HSET {{{STREAM}}}:task:bad record {{")).await;
    let _: () = world.run(&format!("HSET {{{STREAM}}}:task:newer format 2")).await;
    assert_eq!(store.load(10).await.unwrap(), [record("good", 1)]);
    let error = store.get("bad").await.unwrap_err().to_string();
    assert!(error.contains("`bad`"), "{error}");
    let error = store.get("newer").await.unwrap_err().to_string();
    assert!(error.contains("format 2"), "{error}");
}

#[tokio::test]
async fn thousands_of_records_are_loaded_in_pages() {
    let world = World::new().await;
    let store = world.redis.store();
    let records: Vec<_> = (0..1500).map(|n| record(&format!("t{n:04}"), 1)).collect();
    let results = futures::future::join_all(records.iter().map(|record| store.put(record, None))).await;
    assert!(results.iter().all(Result::is_ok));
    assert_eq!(store.load(0).await.unwrap(), records);
}

#[tokio::test]
async fn worker_events_are_bounded_in_number() {
    let world = World::with(|options| options.max_worker_events = 100).await;
    let sink = world.redis.worker_events();
    let events: Vec<_> = (0..1000)
        .map(|n| Arc::new(otto_proto::v1::WorkerEvent { event_id: format!("e{n}"), ..Default::default() }))
        .collect();
    crate::worker_events::Sink::publish(&sink, &events).await.unwrap();
    let length: usize = world.run("XLEN otto:worker:events").await;
    assert!((100..=300).contains(&length), "{length}");
    let newest: entry::Entries = world.run("XREVRANGE otto:worker:events + - COUNT 1").await;
    assert_eq!(newest.0[0].fields[0], (b"event_id".to_vec(), b"e999".to_vec()));
}
