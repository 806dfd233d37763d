//! Workers whose job cannot begin, and such as nobody hears of.

use std::collections::HashSet;
use std::sync::atomic::AtomicU32;

use otto_proto::v1::worker_event::Type;

use super::*;
use crate::driver::{DriverError, Trouble, WorkerKey};
use crate::task::Outcome;

fn why(class: Class, message: &str) -> Outcome {
    Outcome { message: message.to_owned(), ..outcome(class) }
}

fn waits(f: &Fixture, key: &WorkerKey, (why, hopeless, usual): (Outcome, bool, bool)) {
    f.driver.put(key, State::Created { waiting: Some(Waiting { outcome: why, hopeless, usual }) });
    f.driver.tell(key);
}

fn waiting(f: &Fixture, task: &str) -> Option<String> {
    Some(f.handle.board().get(task)?.workers[0].waiting.as_ref()?.message.clone())
}

async fn until_waiting(f: &Fixture, task: &str, message: &str) {
    f.until(message, |f| waiting(f, task).as_deref() == Some(message)).await;
}

fn told_with_messages(f: &mut Fixture) -> Vec<String> {
    let events = std::iter::from_fn(|| f.events.try_recv().ok());
    let told = events.map(|event| format!("{:?} {}: {}", event.r#type(), event.worker_id, event.message));
    told.collect()
}

#[tokio::test(start_paused = true)]
async fn told_once_and_given_up_when_patience_is_over() {
    let mut f = fresh().await;
    changed(f.up("a", 1).await);
    f.until_created("a", 0, 1).await;
    let key = key("a", 0, 1);
    waits(&f, &key, (why(Class::Image, "no image, try 1"), false, false));
    until_waiting(&f, "a", "no image, try 1").await;
    // Numbers change, and reasons take turns: that is no news, and begins no patience anew.
    for number in 2..7 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(f.driver.stops.lock().unwrap().is_empty(), "{number}");
        waits(&f, &key, (why(Class::Image, &format!("no image, try {number}")), false, false));
        waits(&f, &key, (why(Class::Config, &format!("no secret {number}")), false, false));
    }
    f.until_phase("a", Phase::Failed).await;
    assert_eq!(*f.driver.stops.lock().unwrap(), [key]);
    let record = f.store.record("a").unwrap();
    assert_eq!(record.error.as_deref(), Some("worker 0 failed: no secret 6; given up after 1m"));
    assert_eq!(record.workers[0].waiting, None);
    assert_eq!(
        told_with_messages(&mut f),
        [
            "Queued : accepted: 1 worker wanted",
            "Created a-0-1: created",
            "Waiting a-0-1: no image, try 1",
            "Waiting a-0-1: no secret 2",
            "Failed a-0-1: no secret 6; given up after 1m",
            "TaskEnded : worker 0 failed: no secret 6; given up after 1m",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_hopeless_ends_at_once() {
    let f = fresh().await;
    changed(f.up("a", 1).await);
    f.until_created("a", 0, 1).await;
    let before = tokio::time::Instant::now();
    waits(&f, &key("a", 0, 1), (why(Class::Image, "no name"), true, false));
    f.until_phase("a", Phase::Failed).await;
    assert!(before.elapsed() < Duration::from_secs(1), "{:?}", before.elapsed());
    assert_eq!(f.store.record("a").unwrap().error.as_deref(), Some("worker 0 failed: no name"));
}

#[tokio::test(start_paused = true)]
async fn what_is_usual_is_told_when_it_lasts_and_not_when_it_passes() {
    let mut f = fresh().await;
    changed(f.up("quick", 1).await);
    changed(f.up("slow", 1).await);
    for task in ["quick", "slow"] {
        f.until_created(task, 0, 1).await;
        waits(&f, &key(task, 0, 1), (why(Class::Unschedulable, "nobody looks"), false, true));
    }
    tokio::time::sleep(Duration::from_secs(20)).await;
    f.driver.start(&key("quick", 0, 1));
    until_waiting(&f, "slow", "nobody looks").await;
    f.driver.start(&key("slow", 0, 1));
    f.until("it waits still", |f| waiting(f, "slow").is_none()).await;
    let told = told_with_messages(&mut f);
    let waited: Vec<_> = told.iter().filter(|told| told.starts_with("Waiting")).collect();
    assert_eq!(waited, ["Waiting slow-0-1: nobody looks"]);
}

#[tokio::test(start_paused = true)]
async fn a_place_is_waited_for_longer_and_another_attempt_follows() {
    let f = fresh().await;
    changed(f.up("a", 1).await);
    for attempt in 1..=4 {
        f.until_created("a", 0, attempt).await;
        waits(&f, &key("a", 0, attempt), (why(Class::Unschedulable, "no node fits"), false, false));
    }
    f.until_phase("a", Phase::Failed).await;
    let worker = &f.store.record("a").unwrap().workers[0];
    assert_eq!((worker.attempt, worker.infrastructure_failures, worker.job_failures), (4, 4, 0));
    assert_eq!(worker.outcome.as_ref().unwrap().message, "no node fits; given up after 2m");
}

#[tokio::test(start_paused = true)]
async fn a_full_quota_is_told_once_and_a_place_in_it_is_taken() {
    let mut f = fresh().await;
    let tries = AtomicU32::new(0);
    f.driver.refusal.lock().unwrap().replace(Box::new(move |key| {
        let number = tries.fetch_add(1, Ordering::Relaxed);
        let message = format!("exceeded quota: used: pods={number}");
        let full = key.task_id == "never" || number < 6;
        full.then_some(DriverError::Busy {
            class: Class::Quota,
            retry_after: 1_000,
            message,
            common: true,
            unclear_for: 0,
        })
    }));
    changed(f.up("a", 1).await);
    until_waiting(&f, "a", "exceeded quota: used: pods=0").await;
    f.until_created("a", 0, 1).await;
    f.until("it waits still", |f| waiting(f, "a").is_none()).await;
    assert_eq!(told_with_messages(&mut f).iter().filter(|told| told.starts_with("Waiting")).count(), 1);
    f.driver.start(&key("a", 0, 1));
    f.driver.end(&key("a", 0, 1), Class::Success);
    // One that never gets in, though nobody of ours is there, fails: as often as the infrastructure may.
    changed(f.up("never", 1).await);
    f.until_phase("never", Phase::Failed).await;
    let worker = &f.store.record("never").unwrap().workers[0];
    assert_eq!((worker.attempt, worker.outcome.as_ref().unwrap().class), (4, Class::Quota));
    assert!(f.driver.stops.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_scaler_that_starts_again_knows_from_the_record() {
    let f = fresh().await;
    changed(f.up("a", 1).await);
    f.until_created("a", 0, 1).await;
    waits(&f, &key("a", 0, 1), (why(Class::Config, "no secret"), false, false));
    f.until("stored", |f| f.store.record("a").is_some_and(|record| record.workers[0].waiting.is_some())).await;
    let (store, driver) = f.kill().await;
    // Somebody removed it meanwhile.
    driver.workers.lock().unwrap().clear();
    let mut f = start(&store, &driver);
    f.ready().await;
    f.until_phase("a", Phase::Failed).await;
    assert_eq!(f.store.record("a").unwrap().error.as_deref(), Some("worker 0 failed: no secret"));
    assert_eq!(f.driver.created.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_nobody_hears_of_is_told_and_so_is_its_return() {
    let mut f = fresh().await;
    changed(f.up("a", 1).await);
    f.until_created("a", 0, 1).await;
    let key = key("a", 0, 1);
    f.driver.start(&key);
    let is = |f: &Fixture, message: &str, lasts| {
        let outcome = why(Class::NodeLost, message);
        let trouble = (!message.is_empty()).then_some(Trouble { outcome, lasts });
        f.driver.workers.lock().unwrap().get_mut(&key).unwrap().trouble = trouble;
        f.driver.tell(&key);
    };
    let told = |f: &Fixture| f.store.record("a")?.workers[0].trouble.clone().map(|told| told.why.message);
    for _ in 0..2 {
        is(&f, "node n is away", 0);
        f.until("told", |f| told(f).as_deref() == Some("node n is away")).await;
        is(&f, "", 0);
        f.until("taken back", |f| told(f).is_none()).await;
    }
    // Cancelled, it does not go: nothing tells so but time.
    is(&f, "its Pod stays", 60_000);
    changed(f.down("a", 0).await);
    f.until("told", |f| told(f).as_deref() == Some("its Pod stays")).await;
    assert_eq!(f.store.record("a").unwrap().phase, Phase::Cancelling);
    f.driver.end(&key, Class::Stopped);
    f.until_phase("a", Phase::Cancelled).await;
    assert_eq!(told(&f), None);
    let events = std::iter::from_fn(|| f.events.try_recv().ok());
    let troubled: Vec<_> = events.filter(|event| event.r#type() == Type::Troubled).collect();
    let (away, back) = ("node n is away", "it is heard of again");
    let messages: Vec<_> = troubled.iter().map(|event| event.message.as_str()).collect();
    assert_eq!(messages, [away, back, away, back, "its Pod stays"]);
    let ids: HashSet<_> = troubled.iter().map(|event| &event.event_id).collect();
    assert_eq!(ids.len(), troubled.len(), "each is told: {ids:?}");
}

/// Its name is nobody else's as long as a request to create it may come through.
#[tokio::test(start_paused = true)]
async fn what_may_still_come_about_has_not_ended() {
    let f = fresh().await;
    f.driver.refusal.lock().unwrap().replace(Box::new(|_| {
        Some(DriverError::Busy {
            class: Class::Infrastructure,
            retry_after: 1_000,
            message: "nobody knows".to_owned(),
            common: false,
            unclear_for: 70_000,
        })
    }));
    for task in ["late", "never"] {
        changed(f.up(task, 1).await);
        until_waiting(&f, task, "nobody knows").await;
        changed(f.down(task, 0).await);
    }
    tokio::time::sleep(Duration::from_secs(30)).await;
    for task in ["late", "never"] {
        assert_eq!(f.store.record(task).unwrap().phase, Phase::Cancelling);
    }
    f.driver.put(&key("late", 0, 1), State::Created { waiting: None });
    f.driver.tell(&key("late", 0, 1));
    f.until_phase("late", Phase::Cancelled).await;
    assert_eq!(*f.driver.stops.lock().unwrap(), [key("late", 0, 1)]);
    // Another request may come through when that one is gone.
    let deleted = f.handle.delete("late".into()).await;
    assert!(matches!(&deleted, Err(DeleteError::Remains(why)) if why.contains("late-0-1")), "{deleted:?}");
    f.until_phase("never", Phase::Cancelled).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    f.handle.delete("late".into()).await.unwrap();
    f.handle.delete("never".into()).await.unwrap();
}

/// A registry that is away fails each start within seconds: it has the time that a start has.
#[tokio::test(start_paused = true)]
async fn what_fails_before_it_begins_has_time_to_pass() {
    let f = fresh().await;
    changed(f.up("a", 1).await);
    let began = tokio::time::Instant::now();
    let mut attempts = 0;
    while f.store.record("a").is_none_or(|record| !record.phase.is_terminal()) {
        attempts += 1;
        let key = key("a", 0, attempts);
        f.until("it is created or given up", |f| {
            f.driver.state(&key).is_some() || f.store.record("a").unwrap().phase.is_terminal()
        })
        .await;
        if f.driver.state(&key).is_some() {
            f.driver.end(&key, Class::Infrastructure);
        }
    }
    assert!(began.elapsed() > Duration::from_secs(60) && attempts > 5, "{attempts} in {:?}", began.elapsed());
    // One that passes in time costs nothing.
    changed(f.up("b", 1).await);
    for attempt in 1..=5 {
        f.until_created("b", 0, attempt).await;
        f.driver.end(&key("b", 0, attempt), Class::Infrastructure);
    }
    f.until_created("b", 0, 6).await;
    f.driver.start(&key("b", 0, 6));
    f.driver.end(&key("b", 0, 6), Class::Success);
    f.until_phase("b", Phase::Succeeded).await;
    // Jobs that had begun are another matter.
    changed(f.up("c", 1).await);
    for attempt in 1..=4 {
        f.until_created("c", 0, attempt).await;
        f.driver.start(&key("c", 0, attempt));
        f.driver.end(&key("c", 0, attempt), Class::Infrastructure);
    }
    f.until_phase("c", Phase::Failed).await;
}
