//! The loop with a store and a driver in memory, and a clock that jumps from one timer to the next.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};

use self::fakes::{MemoryStore, Mood, key, outcome};
use super::*;
use crate::driver::{DriverError, State, Waiting};
use crate::event::{Direction, GivenSpec};
use crate::task::{Class, EntryId, Phase, WorkerPhase};

mod doors;
mod fakes;
mod forgetting;
mod others;
mod waiting;

pub(crate) use fakes::MemoryDriver;

/// A controller that runs, and what it runs on.
struct Fixture {
    store: Arc<MemoryStore>,
    driver: Arc<MemoryDriver>,
    handle: Handle,
    health: watch::Receiver<Health>,
    events: tokio::sync::broadcast::Receiver<Arc<otto_proto::v1::WorkerEvent>>,
    metrics: Metrics,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<anyhow::Result<()>>,
}

fn options() -> Options {
    Options {
        defaults: Defaults {
            image: String::new(),
            command: vec!["true".into()],
            timeout_seconds: 0,
            max_attempts: 2,
            max_count: 100,
            retention: 7 * 24 * 3_600_000,
            pods: None,
        },
        policy: Policy {
            infrastructure_retries: 3,
            backoff_min: 1_000,
            backoff_max: 60_000,
            keep_ended: 600_000,
            overdue: 40_000,
            stop_again: 40_000,
            patience: crate::plan::patience::Patience { start: Some(60_000), schedule: Some(120_000) },
        },
        limits: Limits { total: Some(50), ..Limits::default() },
        creations: 8,
        writes: 256,
        remains: 2_000,
    }
}

fn start(store: &Arc<MemoryStore>, driver: &Arc<MemoryDriver>) -> Fixture {
    start_with(options(), store, driver)
}

fn start_with(options: Options, store: &Arc<MemoryStore>, driver: &Arc<MemoryDriver>) -> Fixture {
    let (loaded, stop) = (CancellationToken::new(), CancellationToken::new());
    let metrics = Metrics::default();
    let (publisher, _) = crate::worker_events::new(Vec::new(), &metrics);
    let board = Arc::new(Board::new(metrics.clone()));
    let events = publisher.watch();
    let (controller, handle, health) = new(
        options,
        Arc::clone(store) as Arc<dyn TaskStore>,
        Arc::clone(driver) as Arc<dyn Driver>,
        publisher,
        board,
        metrics.clone(),
        (loaded, stop.clone()),
    );
    let running = tokio::spawn(controller.run());
    Fixture { store: Arc::clone(store), driver: Arc::clone(driver), handle, health, events, metrics, stop, running }
}

async fn fresh() -> Fixture {
    let mut fixture = start(&Arc::default(), &Arc::default());
    fixture.ready().await;
    fixture
}

impl Fixture {
    async fn ready(&mut self) {
        self.health.wait_for(|health| health.store && health.driver).await.unwrap();
    }

    async fn up(&self, task: &str, count: u32) -> Result<Applied, ApplyError> {
        self.handle.apply(event(task, Direction::Up, count, None)).await
    }

    async fn down(&self, task: &str, count: u32) -> Result<Applied, ApplyError> {
        self.handle.apply(event(task, Direction::Down, count, None)).await
    }

    async fn until(&self, what: &str, condition: impl Fn(&Fixture) -> bool) {
        // The clock is paused: an hour passes at once if nothing happens.
        for _ in 0..3_600_000 / 20 {
            if condition(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{what}; the store has {:?}", self.store.records.lock().unwrap());
    }

    async fn until_created(&self, task: &str, index: u32, attempt: u32) {
        let key = key(task, index, attempt);
        self.until(&format!("{key:?} is not created"), |f| f.driver.state(&key).is_some()).await;
    }

    async fn until_phase(&self, task: &str, phase: Phase) {
        let there = |f: &Fixture| f.store.record(task).is_some_and(|record| record.phase == phase);
        self.until(&format!("{task} is not {phase:?}"), there).await;
    }

    /// Killed: nothing is finished.
    async fn kill(self) -> (Arc<MemoryStore>, Arc<MemoryDriver>) {
        self.running.abort();
        let _ = self.running.await;
        (self.store, self.driver)
    }

    fn told(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.events.try_recv().ok())
            .map(|event| format!("{:?} {}", event.r#type(), event.worker_id).trim().to_owned())
            .collect()
    }
}

fn event(task: &str, direction: Direction, count: u32, entry: Option<u64>) -> ScaleEvent {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    let entry = entry.map(|sequence| EntryId { millis: u64::try_from(now).unwrap() / 100_000 * 100_000, sequence });
    ScaleEvent { task_id: task.to_owned(), direction, count, spec: GivenSpec::default(), entry }
}

fn changed(applied: Result<Applied, ApplyError>) -> Vec<String> {
    match applied {
        Ok(Applied::Changed(change)) => change.worker_names,
        other => panic!("{other:?}"),
    }
}

fn already(applied: Result<Applied, ApplyError>) -> Vec<String> {
    match applied {
        Ok(Applied::AlreadyProcessed(change)) => change.worker_names,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn from_event_to_end() {
    let mut f = fresh().await;
    assert_eq!(changed(f.up("a", 2).await), ["a-0-1", "a-1-1"]);
    assert_eq!(already(f.up("a", 1).await), ["a-0-1", "a-1-1"]);
    f.until_created("a", 1, 1).await;
    f.driver.start(&key("a", 0, 1));
    f.driver.start(&key("a", 1, 1));
    f.driver.end(&key("a", 0, 1), Class::Success);
    f.driver.end(&key("a", 1, 1), Class::Exited);
    // It failed by itself: a second attempt, later.
    f.until_created("a", 1, 2).await;
    f.driver.start(&key("a", 1, 2));
    f.driver.end(&key("a", 1, 2), Class::Success);
    f.until_phase("a", Phase::Succeeded).await;
    assert_eq!(f.handle.board().get("a").unwrap().phase, Phase::Succeeded);
    already(f.up("a", 5).await);
    let mut told = f.told();
    assert_eq!(told.remove(0), "Queued");
    assert_eq!(told.pop().unwrap(), "TaskEnded");
    told.sort();
    let expected = [
        "Created a-0-1",
        "Created a-1-1",
        "Created a-1-2",
        "Failed a-1-1",
        "Retrying a-1-1",
        "Started a-0-1",
        "Started a-1-1",
        "Started a-1-2",
        "Succeeded a-0-1",
        "Succeeded a-1-2",
    ];
    assert_eq!(told, expected);
    let exited = crate::metrics::ClassLabel { class: "exited" };
    assert_eq!(f.metrics.retries.get_or_create(&exited).get(), 1);
    // What is left is removed after its time, not before.
    assert!(f.driver.state(&key("a", 1, 1)).is_some());
    f.until("remains", |f| f.driver.workers.lock().unwrap().is_empty()).await;
    assert_eq!(f.driver.created.lock().unwrap().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn of_too_many_remains_the_oldest_go_little_by_little() {
    let mut f = start_with(Options { remains: 20, ..options() }, &Arc::default(), &Arc::default());
    f.ready().await;
    changed(f.up("a", 50).await);
    f.until_created("a", 49, 1).await;
    let left = |f: &Fixture| f.driver.workers.lock().unwrap().len();
    for index in 0..50 {
        f.driver.end(&key("a", index, 1), Class::Success);
    }
    f.until_phase("a", Phase::Succeeded).await;
    f.until("twice as many", |f| left(f) <= 40).await;
    let ended = tokio::time::Instant::now();
    assert_eq!(left(&f), 40);
    assert!(f.driver.state(&key("a", 9, 1)).is_none() && f.driver.state(&key("a", 10, 1)).is_some());
    f.until("as many as may stay", |f| left(f) <= 20).await;
    assert_eq!(left(&f), 20);
    assert!((1..=4).contains(&ended.elapsed().as_secs()), "{:?}", ended.elapsed());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(left(&f), 20);
}

#[tokio::test(start_paused = true)]
async fn scale_down_and_cancel() {
    let f = fresh().await;
    changed(f.up("a", 3).await);
    f.until_created("a", 2, 1).await;
    assert_eq!(changed(f.down("a", 1).await), ["a-1-1", "a-2-1"]);
    f.until("stopped", |f| {
        let record = f.store.record("a").unwrap();
        record.workers[1].phase == WorkerPhase::Stopped && record.workers[2].phase == WorkerPhase::Stopped
    })
    .await;
    assert_eq!(f.store.record("a").unwrap().phase, Phase::Live);
    assert_eq!(changed(f.up("a", 2).await), ["a-1-2"]);
    f.until_created("a", 1, 2).await;
    changed(f.down("a", 0).await);
    f.until_phase("a", Phase::Cancelled).await;
    already(f.up("a", 9).await);
    assert!(matches!(f.down("b", 1).await, Ok(Applied::Dead(Reason::UnknownTask(_)))));
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_cancelled_too() {
    let f = fresh().await;
    f.driver.refusal.lock().unwrap().replace(Box::new(|_| {
        Some(DriverError::Busy {
            class: Class::Infrastructure,
            retry_after: 600_000,
            message: "full".into(),
            common: false,
            unclear_for: 0,
        })
    }));
    changed(f.up("a", 2).await);
    changed(f.down("a", 0).await);
    f.until_phase("a", Phase::Cancelled).await;
    assert!(f.driver.workers.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_store_is_away() {
    let mut f = fresh().await;
    changed(f.up("a", 1).await);
    f.until_created("a", 0, 1).await;
    f.driver.start(&key("a", 0, 1));
    f.store.set(Mood::Away);
    let unavailable = f.up("b", 1).await;
    assert!(matches!(unavailable, Err(ApplyError::Unavailable { retry_after: 1.., .. })), "{unavailable:?}");
    assert!(!f.health.borrow_and_update().store);
    f.driver.end(&key("a", 0, 1), Class::Success);
    f.until("seen", |f| f.handle.board().get("a").unwrap().phase == Phase::Succeeded).await;
    tokio::time::sleep(Duration::from_secs(700)).await;
    // Not stored: so nothing of it is removed.
    assert!(f.driver.state(&key("a", 0, 1)).is_some());
    f.store.set(Mood::Well);
    let back = tokio::time::Instant::now();
    f.ready().await;
    assert!(back.elapsed() < Duration::from_secs(10));
    f.until_phase("a", Phase::Succeeded).await;
    changed(f.up("b", 1).await);
    f.until_created("b", 0, 1).await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_the_store_is_lost() {
    let mut f = fresh().await;
    f.store.set(Mood::Mumbling);
    let first = event("a", Direction::Up, 1, Some(1));
    assert!(matches!(f.handle.apply(first.clone()).await, Err(ApplyError::Unavailable { .. })));
    f.store.set(Mood::Well);
    // It was written after all: it runs although nobody asks again, and once.
    f.until_created("a", 0, 1).await;
    f.ready().await;
    already(f.handle.apply(first).await);
    assert_eq!(f.driver.times_created(&key("a", 0, 1)), 1);
    // A result of which the answer is lost is not counted twice.
    f.driver.start(&key("a", 0, 1));
    f.store.set(Mood::Mumbling);
    f.driver.end(&key("a", 0, 1), Class::Exited);
    f.until("written", |f| f.store.record("a").unwrap().workers[0].attempt == 2).await;
    f.store.set(Mood::Well);
    f.until_created("a", 0, 2).await;
    assert_eq!(f.store.record("a").unwrap().workers[0].job_failures, 1);
}

#[tokio::test(start_paused = true)]
async fn another_writer() {
    let f = fresh().await;
    changed(f.up("a", 1).await);
    f.until_created("a", 0, 1).await;
    {
        let mut records = f.store.records.lock().unwrap();
        let record = records.get_mut("a").unwrap();
        record.version += 1;
        record.wanted = 3;
        record.fill();
    }
    // It is applied to what the other wrote.
    assert_eq!(already(f.up("a", 3).await).len(), 3);
    f.until_created("a", 2, 1).await;
    assert_eq!(f.driver.times_created(&key("a", 0, 1)), 1);
}

#[tokio::test(start_paused = true)]
async fn a_failing_list_is_never_none_running() {
    let driver = Arc::new(MemoryDriver::default());
    driver.list_fails.store(true, Ordering::Relaxed);
    let mut f = start(&Arc::default(), &driver);
    f.health.wait_for(|health| health.store).await.unwrap();
    changed(f.up("a", 1).await);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(f.driver.created.lock().unwrap().is_empty());
    driver.list_fails.store(false, Ordering::Relaxed);
    f.until_created("a", 0, 1).await;
}

#[tokio::test(start_paused = true)]
async fn survivors_are_found_again() {
    let f = fresh().await;
    changed(f.up("a", 2).await);
    f.until_created("a", 1, 1).await;
    f.driver.start(&key("a", 0, 1));
    let (store, driver) = f.kill().await;
    // One ends while nobody looks.
    driver.put(&key("a", 0, 1), State::Ended { at: 5, outcome: outcome(Class::Success) });
    let mut f = start(&store, &driver);
    f.ready().await;
    driver.start(&key("a", 1, 1));
    driver.end(&key("a", 1, 1), Class::Success);
    f.until_phase("a", Phase::Succeeded).await;
    assert_eq!(driver.created.lock().unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_ended_task_is_recognised_without_being_held() {
    let f = fresh().await;
    changed(f.up("a", 0).await);
    let (store, driver) = f.kill().await;
    store.forgetful.store(true, Ordering::Relaxed);
    let mut f = start(&store, &driver);
    f.ready().await;
    assert!(f.handle.board().get("a").is_none());
    let repeated = event("a", Direction::Up, 1, Some(7));
    already(f.handle.apply(repeated.clone()).await);
    assert!(store.acknowledged.lock().unwrap().contains(&repeated.entry.unwrap()));
    already(f.down("a", 3).await);
    assert!(driver.created.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_vanished_worker_is_a_failure_and_never_started_again() {
    let f = fresh().await;
    changed(f.up("a", 1).await);
    f.until_created("a", 0, 1).await;
    f.driver.start(&key("a", 0, 1));
    f.until("running", |f| f.handle.board().get("a").unwrap().workers[0].phase == WorkerPhase::Running).await;
    f.driver.workers.lock().unwrap().clear();
    f.until_created("a", 0, 2).await;
    assert_eq!(f.driver.times_created(&key("a", 0, 1)), 1);
    assert_eq!(f.store.record("a").unwrap().workers[0].infrastructure_failures, 1);
}

#[tokio::test(start_paused = true)]
async fn workers_that_nobody_knows_are_stopped_after_a_second_look() {
    let driver = Arc::new(MemoryDriver::default());
    driver.put(&key("lost", 0, 1), State::Running);
    let mut f = start(&Arc::default(), &driver);
    f.ready().await;
    tokio::time::sleep(Duration::from_secs(9 * 60)).await;
    assert!(driver.stops.lock().unwrap().is_empty());
    f.until("stopped", |f| !f.driver.stops.lock().unwrap().is_empty()).await;
    f.until("removed", |f| f.driver.workers.lock().unwrap().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn the_driver_is_the_second_witness_of_a_task_the_store_lost() {
    let driver = Arc::new(MemoryDriver::default());
    driver.put(&key("a", 0, 1), State::Ended { at: 5, outcome: outcome(Class::Success) });
    let mut f = start(&Arc::default(), &driver);
    f.ready().await;
    changed(f.up("a", 1).await);
    f.until_phase("a", Phase::Succeeded).await;
    assert!(driver.created.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn refused_and_busy() {
    let mut f = fresh().await;
    let busy = std::sync::atomic::AtomicU32::new(3);
    f.driver.refusal.lock().unwrap().replace(Box::new(move |key| match key.task_id.as_str() {
        "never" => Some(DriverError::Refused(outcome(Class::Image))),
        _ if busy.fetch_sub(1, Ordering::Relaxed) > 1 => Some(DriverError::Busy {
            class: Class::Infrastructure,
            retry_after: 100,
            message: "full".into(),
            common: false,
            unclear_for: 0,
        }),
        _ => None,
    }));
    changed(f.up("never", 1).await);
    f.until_phase("never", Phase::Failed).await;
    assert_eq!(f.store.record("never").unwrap().error.as_deref(), Some("worker 0 failed: image"));
    assert!(!f.told().iter().any(|told| told.starts_with("Created")));
    changed(f.up("later", 1).await);
    f.until_created("later", 0, 1).await;
    assert!(f.told().contains(&"Waiting later-0-1".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_slow_creation_holds_up_nobody() {
    let f = fresh().await;
    f.driver.slow.lock().unwrap().replace("slow".into());
    changed(f.up("slow", 3).await);
    changed(f.up("quick", 1).await);
    f.until_created("quick", 0, 1).await;
    // Cancelled while it is being created: first there, then stopped.
    changed(f.down("slow", 0).await);
    f.driver.go.notify_waiters();
    f.until_phase("slow", Phase::Cancelled).await;
    assert!(
        f.driver
            .workers
            .lock()
            .unwrap()
            .values()
            .all(|seen| { seen.key.task_id != "slow" || matches!(seen.state, State::Ended { .. }) })
    );
}

#[tokio::test(start_paused = true)]
async fn nothing_starts_whose_stop_is_being_stored() {
    let mut f = fresh().await;
    f.driver.slow.lock().unwrap().replace("slow".into());
    changed(f.up("slow", 8).await);
    changed(f.up("a", 1).await);
    f.told();
    f.store.slow.lock().unwrap().replace("a".into());
    let cancel = f.handle.submit(event("a", Direction::Down, 0, None)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    // Places become free while the store has the stop and has not answered.
    f.driver.slow.lock().unwrap().take();
    f.driver.go.notify_waiters();
    f.until_created("slow", 7, 1).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    f.store.slow.lock().unwrap().take();
    f.store.go.notify_waiters();
    changed(cancel.await.unwrap());
    f.until_phase("a", Phase::Cancelled).await;
    assert_eq!(f.driver.times_created(&key("a", 0, 1)), 0);
}

#[tokio::test(start_paused = true)]
async fn an_older_look_takes_nobody_back() {
    let f = fresh().await;
    changed(f.up("a", 1).await);
    f.until_created("a", 0, 1).await;
    f.driver.start(&key("a", 0, 1));
    let running = |f: &Fixture| f.handle.board().get("a").unwrap().workers[0].phase == WorkerPhase::Running;
    f.until("running", running).await;
    f.driver.put(
        &key("a", 0, 1),
        State::Created { waiting: Some(Waiting { outcome: outcome(Class::Quota), hopeless: false, usual: false }) },
    );
    f.driver.tell(&key("a", 0, 1));
    // Told in order: once this is seen, the older look was too.
    changed(f.up("b", 1).await);
    f.until_created("b", 0, 1).await;
    f.driver.start(&key("b", 0, 1));
    f.until("seen", |f| f.handle.board().get("b").unwrap().workers[0].phase == WorkerPhase::Running).await;
    assert!(running(&f));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_lost_everything_is_told_again() {
    let f = fresh().await;
    for task in ["a", "b"] {
        changed(f.up(task, 2).await);
        f.until_created(task, 1, 1).await;
        f.driver.start(&key(task, 0, 1));
        f.driver.start(&key(task, 1, 1));
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    f.store.records.lock().unwrap().clear();
    // It is noticed by a result, or by an event.
    f.driver.end(&key("a", 0, 1), Class::Success);
    changed(f.down("b", 1).await);
    f.driver.end(&key("a", 1, 1), Class::Success);
    f.driver.end(&key("b", 0, 1), Class::Success);
    f.until_phase("a", Phase::Succeeded).await;
    f.until_phase("b", Phase::Succeeded).await;
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    assert_eq!(*f.driver.stops.lock().unwrap(), [key("b", 1, 1)]);
    assert_eq!(f.driver.created.lock().unwrap().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_went_back_is_told_again() {
    let mut f = fresh().await;
    let first = event("over", Direction::Up, 1, Some(1));
    changed(f.handle.apply(first.clone()).await);
    changed(f.up("live", 1).await);
    let before = f.store.records.lock().unwrap().clone();
    changed(f.up("live", 2).await);
    for key in [key("over", 0, 1), key("live", 0, 1), key("live", 1, 1)] {
        f.until_created(&key.task_id, key.index, 1).await;
        f.driver.start(&key);
    }
    f.driver.end(&key("over", 0, 1), Class::Success);
    f.until_phase("over", Phase::Succeeded).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    // The entry comes again: it is not acknowledged before the store has its effect again.
    for older in [Some(before["over"].clone()), None] {
        {
            let mut records = f.store.records.lock().unwrap();
            records.remove("over");
            records.extend(older.clone().map(|older| ("over".to_owned(), older)));
            f.store.acknowledged.lock().unwrap().clear();
        }
        already(f.handle.apply(first.clone()).await);
        let record = f.store.record("over").unwrap();
        assert_eq!((record.phase, record.version), (Phase::Succeeded, older.map_or(0, |older| older.version) + 1));
        assert!(f.store.acknowledged.lock().unwrap().contains(&first.entry.unwrap()));
    }
    // The store was away, and nothing else happens.
    f.store.set(Mood::Away);
    f.health.wait_for(|health| !health.store).await.unwrap();
    *f.store.records.lock().unwrap() = before;
    f.store.set(Mood::Well);
    f.ready().await;
    f.until("written again", |f| {
        let phase = |task| f.store.record(task).map(|record| (record.phase, record.workers.len()));
        phase("over") == Some((Phase::Succeeded, 1)) && phase("live") == Some((Phase::Live, 2))
    })
    .await;
    assert_eq!(f.driver.created.lock().unwrap().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_record_stops_nobody_else() {
    let f = fresh().await;
    f.store.damaged.lock().unwrap().replace("bad".into());
    changed(f.up("other", 1).await);
    assert!(matches!(f.up("bad", 1).await, Ok(Applied::Dead(Reason::Unreadable(_)))));
    assert!(f.handle.delete("bad".into()).await.is_err());
    changed(f.up("good", 1).await);
    f.until_created("good", 0, 1).await;
}

#[tokio::test(start_paused = true)]
async fn forgetting() {
    let f = fresh().await;
    assert!(matches!(f.handle.delete("a".into()).await, Err(DeleteError::NotFound)));
    changed(f.up("a", 1).await);
    assert!(matches!(f.handle.delete("a".into()).await, Err(DeleteError::Live)));
    f.until_created("a", 0, 1).await;
    f.driver.start(&key("a", 0, 1));
    f.driver.end(&key("a", 0, 1), Class::Success);
    f.until_phase("a", Phase::Succeeded).await;
    f.driver.remove_fails.store(true, Ordering::Relaxed);
    assert!(matches!(f.handle.delete("a".into()).await, Err(DeleteError::Remains(_))));
    f.driver.remove_fails.store(false, Ordering::Relaxed);
    f.until("deleted", |f| f.driver.workers.lock().unwrap().is_empty()).await;
    f.handle.delete("a".into()).await.unwrap();
    assert!(f.store.record("a").is_none() && f.handle.board().get("a").is_none());
    // Nothing is left by which it would be taken for done.
    changed(f.up("a", 1).await);
    f.until_created("a", 0, 1).await;
    // And after the retention it goes by itself.
    changed(f.down("b", 0).await);
    f.until("expired", |f| f.store.record("b").is_some()).await;
    tokio::time::sleep(Duration::from_secs(8 * 24 * 3600)).await;
    assert!(f.store.record("b").is_none() && f.handle.board().get("b").is_none());
}

#[tokio::test(start_paused = true)]
async fn stopping_answers_what_is_under_way() {
    let f = fresh().await;
    let answer = f.handle.submit(event("a", Direction::Up, 1, None)).await.unwrap();
    f.until("taken", |f| f.store.record("a").is_some()).await;
    f.stop.cancel();
    assert!(answer.await.unwrap().is_ok());
    f.running.await.unwrap().unwrap();
    assert!(matches!(f.handle.apply(event("b", Direction::Up, 1, None)).await, Err(ApplyError::Stopping)));
}

/// Whoever is to lead next waits no longer for a driver or a store that hangs.
#[tokio::test(start_paused = true)]
async fn stopping_waits_for_nobody_for_long() {
    let mut f = fresh().await;
    f.driver.slow.lock().unwrap().replace("slow".into());
    changed(f.up("slow", 1).await);
    tokio::time::sleep(Duration::from_millis(20)).await;
    let began = tokio::time::Instant::now();
    f.stop.cancel();
    (&mut f.running).await.unwrap().unwrap();
    assert_eq!(began.elapsed(), f.driver.ends_within());

    let mut f = fresh().await;
    f.store.slow.lock().unwrap().replace("slow".into());
    let answer = f.handle.submit(event("slow", Direction::Up, 1, None)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let began = tokio::time::Instant::now();
    f.stop.cancel();
    (&mut f.running).await.unwrap().unwrap();
    assert_eq!(began.elapsed(), STORE_ENDS);
    assert!(answer.await.is_err());
}

/// Everything goes wrong at random: the store comes and goes, answers are lost, the scaler is killed, creations fail,
/// jobs fail. Each attempt starts at most once (the fake panics otherwise), every event has its effect, everything ends.
#[tokio::test(start_paused = true)]
async fn random_faults() {
    for seed in 0..8 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut f = fresh().await;
        let mut targets: BTreeMap<String, u32> = BTreeMap::new();
        for round in 0..300_u64 {
            match random.random_range(0..100) {
                0..25 => {
                    let task = format!("task-{}", random.random_range(0..40));
                    let count = random.random_range(1..5);
                    let event = event(&task, Direction::Up, count, Some(seed * 1000 + round));
                    // As an inbox does: until it is known.
                    if let Ok(applied) = f.handle.apply(event).await {
                        assert!(matches!(applied, Applied::Changed(_) | Applied::AlreadyProcessed(_)), "{applied:?}");
                        let target = targets.entry(task).or_default();
                        *target = (*target).max(count);
                    }
                }
                25..60 => {
                    let worker = {
                        let workers = f.driver.workers.lock().unwrap();
                        workers
                            .values()
                            .filter(|w| !matches!(w.state, State::Ended { .. }))
                            .choose(&mut random)
                            .cloned()
                    };
                    let Some(worker) = worker else { continue };
                    if worker.state == State::Running {
                        let class =
                            [Class::Success, Class::Success, Class::Exited, Class::Evicted][random.random_range(0..4)];
                        f.driver.end(&worker.key, class);
                    } else {
                        f.driver.start(&worker.key);
                    }
                }
                60..75 => f.store.set([Mood::Well, Mood::Well, Mood::Away, Mood::Mumbling][random.random_range(0..4)]),
                75..78 => {
                    let (store, driver) = f.kill().await;
                    store.set(Mood::Well);
                    f = start(&store, &driver);
                    f.ready().await;
                }
                78..80 => {
                    let odds = random.random_range(0..3_u32);
                    f.driver.refusal.lock().unwrap().replace(Box::new(move |key| {
                        (key.index + odds).is_multiple_of(3).then(|| DriverError::Busy {
                            class: Class::Infrastructure,
                            retry_after: 50,
                            message: "full".into(),
                            common: key.index.is_multiple_of(2),
                            unclear_for: 0,
                        })
                    }));
                }
                _ => tokio::time::sleep(Duration::from_millis(random.random_range(1..3_000))).await,
            }
        }
        f.store.set(Mood::Well);
        f.driver.refusal.lock().unwrap().take();
        for _ in 0..2_000 {
            let workers: Vec<_> = f.driver.workers.lock().unwrap().values().cloned().collect();
            for worker in workers {
                match worker.state {
                    State::Created { .. } => f.driver.start(&worker.key),
                    State::Running => f.driver.end(&worker.key, Class::Success),
                    State::Ended { .. } | State::Gone => {}
                }
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        for (task, count) in targets {
            let record = f.store.record(&task).unwrap_or_else(|| panic!("seed {seed}: {task} is unknown"));
            assert!(record.phase.is_terminal(), "seed {seed}: {record:?}");
            // An event that came after the end started nothing, so there may be fewer.
            assert!(record.workers.len() <= 4 && record.wanted <= count.max(4), "seed {seed}: {record:?}");
        }
        assert!(f.driver.workers.lock().unwrap().is_empty(), "seed {seed}");
    }
}
