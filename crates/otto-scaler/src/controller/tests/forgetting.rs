//! What is removed, forgotten, and asked for again under the same name.

use super::*;

async fn runs(f: &Fixture, task: &str) {
    changed(f.up(task, 1).await);
    f.until_created(task, 0, 1).await;
    f.driver.start(&key(task, 0, 1));
}

async fn succeeds(f: &Fixture, task: &str) {
    runs(f, task).await;
    f.driver.end(&key(task, 0, 1), Class::Success);
    f.until_phase(task, Phase::Succeeded).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_deleted_before_the_workers_are_known() {
    let f = fresh().await;
    succeeds(&f, "a").await;
    let (store, driver) = f.kill().await;

    driver.list_fails.store(true, Ordering::Relaxed);
    let mut f = start(&store, &driver);
    f.health.wait_for(|health| health.store).await.unwrap();
    let deleted = f.handle.delete("a".into()).await;
    assert!(matches!(&deleted, Err(DeleteError::Apply(ApplyError::Unavailable { .. }))), "{deleted:?}");
    driver.list_fails.store(false, Ordering::Relaxed);
    f.ready().await;
    f.handle.delete("a".into()).await.unwrap();
    // A task of this name is another one.
    changed(f.up("a", 1).await);
    f.until("it is created", |f| f.driver.times_created(&key("a", 0, 1)) == 2).await;
    assert_eq!(f.store.record("a").unwrap().phase, Phase::Live);
}

#[tokio::test(start_paused = true)]
async fn a_deletion_tries_at_once_what_was_to_be_tried_later() {
    let f = fresh().await;
    // Its log was not delivered when it was to be removed, and is by now.
    succeeds(&f, "a").await;
    f.driver.remove_fails.store(true, Ordering::Relaxed);
    assert!(matches!(f.handle.delete("a".into()).await, Err(DeleteError::Remains(_))));
    f.driver.remove_fails.store(false, Ordering::Relaxed);
    f.handle.delete("a".into()).await.unwrap();
    // The answer to its stop was lost.
    runs(&f, "b").await;
    f.driver.stop_mumbles.store(true, Ordering::Relaxed);
    changed(f.down("b", 0).await);
    f.until_phase("b", Phase::Cancelled).await;
    f.handle.delete("b".into()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_stays_though_it_is_removed_takes_no_place_for_ever() {
    let mut f = start_with(
        Options { limits: Limits { total: Some(1), ..Limits::default() }, ..options() },
        &Arc::default(),
        &Arc::default(),
    );
    f.ready().await;
    changed(f.up("a", 1).await);
    f.until_created("a", 0, 1).await;
    f.driver.start(&key("a", 0, 1));
    f.driver.stays.store(true, Ordering::Relaxed);
    f.driver.linger(&key("a", 0, 1), Class::Success);
    f.until_phase("a", Phase::Succeeded).await;
    changed(f.up("b", 1).await);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((f.driver.times_created(&key("b", 0, 1)), f.metrics.lingering.get()), (0, 1));
    f.until_created("b", 0, 1).await;
    assert_eq!(f.metrics.lingering.get(), 0);
    // Seen again as it was, it takes none again.
    f.driver.tell(&key("a", 0, 1));
    f.driver.end(&key("b", 0, 1), Class::Success);
    changed(f.up("c", 1).await);
    f.until_created("c", 0, 1).await;
    f.driver.stays.store(false, Ordering::Relaxed);
    f.until("it goes", |f| f.driver.state(&key("a", 0, 1)).is_none()).await;
}

/// What never began holds its node, and there is nothing to witness.
#[tokio::test(start_paused = true)]
async fn what_could_not_be_started_is_removed_at_once() {
    let f = fresh().await;
    changed(f.up("a", 1).await);
    f.until_created("a", 0, 1).await;
    f.driver.linger(&key("a", 0, 1), Class::Config);
    f.until_phase("a", Phase::Failed).await;
    let failed = tokio::time::Instant::now();
    f.until("it is removed", |f| f.driver.state(&key("a", 0, 1)).is_none()).await;
    assert!(failed.elapsed() < Duration::from_secs(10), "{:?}", failed.elapsed());
}

#[tokio::test(start_paused = true)]
async fn some_that_cannot_be_forgotten_keep_no_others() {
    let f = fresh().await;
    f.driver.remove_fails.store(true, Ordering::Relaxed);
    for number in 0..20 {
        let task = format!("stuck-{number}");
        changed(f.up(&task, 1).await);
        f.until_created(&task, 0, 1).await;
        f.driver.end(&key(&task, 0, 1), Class::Success);
        f.until_phase(&task, Phase::Succeeded).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    for number in 0..300 {
        changed(f.up(&format!("t{number}"), 0).await);
    }
    let _ = f.up("last", 0).await;
    let held = f.handle.board().page(None, 1_000, |_| true).len();
    assert!(held <= ENDED_HELD + 1, "{held}");
}

/// The record of a task that was deleted, or has expired, is not written over that of another one of its name.
#[tokio::test(start_paused = true)]
async fn a_later_task_of_the_same_name_is_not_a_loss() {
    let f = fresh().await;
    succeeds(&f, "a").await;
    f.until("it is removed", |f| f.driver.state(&key("a", 0, 1)).is_none()).await;
    {
        let mut records = f.store.records.lock().unwrap();
        let record = records.get_mut("a").unwrap();
        assert!(record.version > 1);
        record.version = 1;
        record.created_at += 5;
        record.phase = Phase::Live;
        record.ended_at = None;
        record.workers = vec![crate::task::Worker::queued(0, 1)];
    }
    f.handle.changed(vec!["a".to_owned()]).await;
    f.until("it is created again", |f| f.driver.times_created(&key("a", 0, 1)) == 2).await;
}
