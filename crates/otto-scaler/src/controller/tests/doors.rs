//! Workers that are turned away together: by a quota that is full, by a permission that is missing.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicUsize};

use super::*;
use crate::driver::WorkerKey;
use crate::task::Outcome;

/// A quota with so much room; what it is asked is counted.
#[derive(Default)]
struct Quota {
    room: AtomicUsize,
    asked: Mutex<Vec<String>>,
}

fn quota(f: &Fixture, room: usize) -> Arc<Quota> {
    let quota = Arc::new(Quota { room: room.into(), ..Quota::default() });
    let of_driver = Arc::clone(&quota);
    f.driver.refusal.lock().unwrap().replace(Box::new(move |key| {
        of_driver.asked.lock().unwrap().push(key.task_id.clone());
        let taken = of_driver.room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |room| room.checked_sub(1));
        taken.is_err().then(|| DriverError::Busy {
            class: Class::Quota,
            retry_after: 3_000,
            message: "exceeded quota: pods=5".to_owned(),
            common: true,
            unclear_for: 0,
        })
    }));
    quota
}

/// Of those that are created, the ones that have not begun; they begin.
fn begin(f: &Fixture) -> Vec<WorkerKey> {
    let created = f.driver.created.lock().unwrap().clone();
    let new: Vec<_> =
        created.into_iter().filter(|key| matches!(f.driver.state(key), Some(State::Created { .. }))).collect();
    new.iter().for_each(|key| f.driver.start(key));
    new
}

#[tokio::test(start_paused = true)]
async fn a_quota_that_is_full_of_our_own_workers_is_a_queue() {
    const TASKS: usize = 40;
    let mut f = fresh().await;
    let quota = quota(&f, 5);
    for number in 0..TASKS {
        changed(f.up(&format!("t{number:02}"), 1).await);
    }
    f.until("five are there", |f| f.driver.created.lock().unwrap().len() == 5).await;
    // Everybody who waits is told why, and few ask.
    let told = |f: &Fixture| {
        let waiting = |number| f.handle.board().get(&format!("t{number:02}"))?.workers[0].waiting.clone();
        (0..TASKS).filter_map(waiting).filter(|why: &Outcome| why.class == Class::Quota).count()
    };
    f.until("all others are told", |f| told(f) == TASKS - 5).await;
    let asked = quota.asked.lock().unwrap().len();
    assert!(asked <= 5 + options().creations, "{asked}");
    // Jobs of an hour each: far longer than anybody's patience with what others take.
    for round in 0..TASKS / 5 {
        let running = begin(&f);
        assert_eq!(running.len(), 5, "in round {round}");
        let before = quota.asked.lock().unwrap().len();
        tokio::time::sleep(Duration::from_secs(3_600)).await;
        let asked = quota.asked.lock().unwrap().len() - before;
        assert!(asked <= 3_600 / 30 + 8, "{asked} requests in an hour in which nothing happened");
        for key in running {
            quota.room.fetch_add(1, Ordering::Relaxed);
            f.driver.end(&key, Class::Success);
        }
        let next = (TASKS - 5).min((round + 1) * 5) + 5;
        let start = tokio::time::Instant::now();
        f.until("the next are there", |f| f.driver.created.lock().unwrap().len() >= next.min(TASKS)).await;
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    }
    for number in 0..TASKS {
        f.until_phase(&format!("t{number:02}"), Phase::Succeeded).await;
    }
    assert_eq!(f.driver.created.lock().unwrap().len(), TASKS);
    assert!(f.told().iter().all(|told| !told.starts_with("Failed") && !told.starts_with("Retrying")));
}

#[tokio::test(start_paused = true)]
async fn room_is_for_the_first_in_line() {
    let f = fresh().await;
    let quota = quota(&f, 1);
    changed(f.up("first", 1).await);
    f.until_created("first", 0, 1).await;
    for number in 0..20 {
        changed(f.up(&format!("low{number:02}"), 1).await);
    }
    let mut urgent = event("urgent", Direction::Up, 1, None);
    urgent.spec.priority = Some(5);
    changed(f.handle.apply(urgent).await);
    tokio::time::sleep(Duration::from_secs(100)).await;
    quota.room.fetch_add(1, Ordering::Relaxed);
    f.driver.start(&key("first", 0, 1));
    f.driver.end(&key("first", 0, 1), Class::Success);
    f.until_created("urgent", 0, 1).await;
    assert_eq!(f.driver.created.lock().unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_permission_that_is_missing_is_asked_for_by_one_and_all_go_on_when_it_is_there() {
    let f = fresh().await;
    let asked = Arc::new(AtomicU32::new(0));
    let of_driver = Arc::clone(&asked);
    f.driver.refusal.lock().unwrap().replace(Box::new(move |_| {
        of_driver.fetch_add(1, Ordering::Relaxed);
        Some(DriverError::Busy {
            class: Class::Infrastructure,
            retry_after: 10_000,
            message: "may not create pods".to_owned(),
            common: true,
            unclear_for: 0,
        })
    }));
    for number in 0..40 {
        changed(f.up(&format!("t{number:02}"), 1).await);
    }
    tokio::time::sleep(Duration::from_secs(100)).await;
    let tries = asked.load(Ordering::Relaxed);
    assert!((8..=10 + 10).contains(&tries), "{tries}");
    f.driver.refusal.lock().unwrap().take();
    let start = tokio::time::Instant::now();
    f.until("all are there", |f| f.driver.created.lock().unwrap().len() == 40).await;
    assert!(start.elapsed() <= Duration::from_secs(11), "{:?}", start.elapsed());
    f.until("nobody is told that it waits", |f| {
        let waiting = |number| f.handle.board().get(&format!("t{number:02}")).unwrap().workers[0].waiting.is_some();
        !(0..40).any(waiting)
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_has_not_given_back_its_place_takes_it() {
    let options = Options { limits: Limits { total: Some(1), ..Limits::default() }, ..options() };
    let f = start_with(options, &Arc::default(), &Arc::default());
    changed(f.up("a", 1).await);
    f.until_created("a", 0, 1).await;
    f.driver.start(&key("a", 0, 1));
    f.driver.linger(&key("a", 0, 1), Class::Success);
    f.until_phase("a", Phase::Succeeded).await;
    changed(f.up("b", 1).await);
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(f.driver.state(&key("b", 0, 1)), None, "the log of the first is not delivered");
    assert_eq!(f.metrics.lingering.get(), 1);
    f.driver.end(&key("a", 0, 1), Class::Success);
    f.until_created("b", 0, 1).await;
    assert_eq!(f.metrics.lingering.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_event_for_a_task_that_waits_for_room_costs_no_attempt() {
    let f = fresh().await;
    let _quota = quota(&f, 1);
    changed(f.up("first", 1).await);
    f.until_created("first", 0, 1).await;
    f.driver.start(&key("first", 0, 1));
    changed(f.up("probes", 1).await);
    changed(f.up("behind", 1).await);
    changed(f.up("cancelled", 1).await);
    // Far longer than patience with others' quota.
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    changed(f.up("behind", 2).await);
    changed(f.down("cancelled", 0).await);
    f.until_phase("cancelled", Phase::Cancelled).await;
    let record = f.store.record("behind").unwrap();
    let attempts: Vec<_> = record.workers.iter().map(|worker| (worker.attempt, worker.phase)).collect();
    assert_eq!(attempts, [(1, WorkerPhase::Queued), (1, WorkerPhase::Queued)]);
}

#[tokio::test(start_paused = true)]
async fn whoever_is_not_the_first_in_line_is_given_up_too_if_nobody_of_ours_is_there() {
    let f = fresh().await;
    let _quota = quota(&f, 0);
    changed(f.up("probes", 1).await);
    changed(f.up("behind", 1).await);
    // By the clock, not when its turn to try comes.
    tokio::time::sleep(Duration::from_secs(121)).await;
    assert_eq!(f.store.record("behind").unwrap().workers[0].infrastructure_failures, 1);
    f.until_phase("behind", Phase::Failed).await;
    assert_eq!(f.store.record("behind").unwrap().workers[0].attempt, 4);
}

#[tokio::test(start_paused = true)]
async fn who_fails_for_a_reason_of_its_own_stands_in_nobodys_way() {
    let f = fresh().await;
    let quota = quota(&f, 0);
    // Two that take their time to fail, each time, and are the first in line.
    let of_quota = f.driver.refusal.lock().unwrap().take().unwrap();
    f.driver.refusal.lock().unwrap().replace(Box::new(move |key| match key.task_id.starts_with("bad") {
        true => Some(DriverError::Busy {
            class: Class::Infrastructure,
            retry_after: 1_000,
            message: "nobody knows".to_owned(),
            common: false,
            unclear_for: 0,
        }),
        false => of_quota(key),
    }));
    f.driver.takes.lock().unwrap().insert("bad".to_owned(), Duration::from_secs(15));
    changed(f.up("bad", 2).await);
    changed(f.up("good", 3).await);
    tokio::time::sleep(Duration::from_secs(60)).await;
    quota.room.fetch_add(3, Ordering::Relaxed);
    for index in 0..3 {
        f.until_created("good", index, 1).await;
    }
    assert!(f.store.record("good").unwrap().workers.iter().all(|worker| worker.attempt == 1));
}
