use std::sync::atomic::{AtomicU32, Ordering};

use futures::FutureExt;

use super::*;
use crate::apply::{Decision, Defaults, apply};
use crate::controller::tests::MemoryDriver;
use crate::driver::State;
use crate::event::{Direction, GivenSpec, ScaleEvent};
use crate::plan::{self, Fact, Facts};
use crate::task::{Class, Outcome, Phase, Record};

/// Fails as often as it is told to, and remembers what it took.
#[derive(Default)]
struct Shelf {
    failures: AtomicU32,
    /// Larger ones are refused, as a server's limit of message size would.
    most: Option<usize>,
    taken: Mutex<Vec<String>>,
}

impl Sink for Shelf {
    fn name(&self) -> &'static str {
        "shelf"
    }

    fn publish<'a>(&'a self, events: &'a [Arc<WorkerEvent>]) -> BoxFuture<'a, Result<(), NotTaken>> {
        assert!(!events.is_empty() && events.len() <= BATCH);
        let bytes: usize = events.iter().map(|event| event.encoded_len()).sum();
        if self.most.is_some_and(|most| bytes > most) {
            return std::future::ready(Err(NotTaken::Refused(anyhow::anyhow!("{bytes} bytes")))).boxed();
        }
        let fails =
            self.failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        if !fails {
            self.taken.lock().unwrap().extend(events.iter().map(|event| event.event_id.clone()));
        }
        std::future::ready(if fails { Err(NotTaken::Away(anyhow::anyhow!("away"))) } else { Ok(()) }).boxed()
    }
}

struct Fixture {
    shelf: Arc<Shelf>,
    publisher: Publisher,
    board: Arc<Board>,
    loaded: CancellationToken,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<()>,
}

fn start(failures: u32) -> Fixture {
    start_on(Shelf { failures: failures.into(), ..Shelf::default() })
}

fn start_on(shelf: Shelf) -> Fixture {
    let shelf = Arc::new(shelf);
    let metrics = Metrics::default();
    let (publisher, mut carriers) = new(vec![Arc::clone(&shelf) as Arc<dyn Sink>], &metrics);
    let board = Arc::new(Board::new(metrics));
    let (loaded, stop) = (CancellationToken::new(), CancellationToken::new());
    let driver = Arc::new(MemoryDriver::default());
    let carrier = carriers.remove(0);
    let running = tokio::spawn(carrier.run(Arc::clone(&board), driver, loaded.clone(), stop.clone()));
    Fixture { shelf, publisher, board, loaded, stop, running }
}

fn numbered(from: u32, to: u32) -> Vec<WorkerEvent> {
    (from..to).map(|number| WorkerEvent { event_id: format!("{number:06}"), ..WorkerEvent::default() }).collect()
}

fn record(task_id: &str) -> Record {
    let event = ScaleEvent {
        task_id: task_id.to_owned(),
        direction: Direction::Up,
        count: 0,
        spec: GivenSpec::default(),
        entry: None,
    };
    let defaults = Defaults {
        image: String::new(),
        command: vec!["true".into()],
        timeout_seconds: 0,
        max_attempts: 1,
        max_count: 1,
        retention: 1,
        pods: None,
    };
    match apply(None, &event, &defaults, 5) {
        Decision::Put { record, .. } => record,
        other => panic!("{other:?}"),
    }
}

async fn until(fixture: &Fixture, count: usize) -> Vec<String> {
    for _ in 0..100_000 {
        let taken = fixture.shelf.taken.lock().unwrap().clone();
        if taken.len() >= count {
            return taken;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("only {} of {count}", fixture.shelf.taken.lock().unwrap().len());
}

#[tokio::test(start_paused = true)]
async fn in_order_once_whatever_fails() {
    let f = start(3);
    let mut watcher = f.publisher.watch();
    for part in 0..50 {
        f.publisher.publish(numbered(part * 100, (part + 1) * 100));
        tokio::task::yield_now().await;
    }
    let taken = until(&f, 5_000).await;
    assert_eq!(taken.len(), 5_000);
    assert!(taken.is_sorted());
    // A watcher that did not read skips, and knows how many.
    let skipped = watcher.recv().await;
    assert!(matches!(skipped, Err(broadcast::error::RecvError::Lagged(904))), "{skipped:?}");
}

/// One that a server refuses for good, alone or with others, does not keep the rest from it.
#[tokio::test(start_paused = true)]
async fn what_is_refused_stops_nobody_else() {
    let f = start_on(Shelf { most: Some(100_000), ..Shelf::default() });
    let mut events = numbered(0, 1_000);
    events.iter_mut().for_each(|event| event.message = "x".repeat(16_000));
    events[500].message = "x".repeat(200_000);
    f.publisher.publish(events);
    f.publisher.publish(numbered(1_000, 1_001));
    let taken = until(&f, 1_000).await;
    assert!(taken.is_sorted() && taken.len() == 1_000);
    assert!(!taken.contains(&"000500".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_sink_is_given_no_more_than_a_server_takes() {
    let f = start_on(Shelf { most: Some(BATCH_BYTES), ..Shelf::default() });
    let mut events = numbered(0, 1_000);
    events.iter_mut().for_each(|event| event.message = "x".repeat(16_000));
    f.publisher.publish(events);
    assert_eq!(until(&f, 1_000).await.len(), 1_000);
    // Not as many bytes as there may be events.
    let mut events = numbered(0, 10_000);
    events.iter_mut().for_each(|event| event.message = "x".repeat(16_000));
    f.publisher.publish(events);
    assert!(until(&f, 1_001).await.len() < 1_000 + QUEUE_BYTES / 16_000 + 1);
}

#[tokio::test(start_paused = true)]
async fn what_did_not_fit_is_derived_again() {
    let f = start(20);
    f.board.show(Arc::new(record("a")));
    f.loaded.cancel();
    f.publisher.publish(numbered(0, 30_000));
    // The queue's worth, and everything that the records tell.
    let taken = until(&f, QUEUE + 2).await;
    let told: Vec<_> = taken.iter().filter(|id| id.starts_with("a/")).collect();
    assert!(told.len() >= 2, "{told:?}");
    assert!(told[0].ends_with("TYPE_QUEUED") && told[1].ends_with("TYPE_TASK_ENDED/succeeded"), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn the_end_gives_one_last_try() {
    let f = start(0);
    f.publisher.publish(numbered(0, 2_500));
    f.stop.cancel();
    f.running.await.unwrap();
    assert_eq!(f.shelf.taken.lock().unwrap().len(), 2_500);
    let f = start(u32::MAX);
    f.publisher.publish(numbered(0, 10));
    f.stop.cancel();
    tokio::time::timeout(Duration::from_secs(5), f.running).await.unwrap().unwrap();
}

/// A record alone tells how each attempt ended, as it was told when it happened.
#[test]
fn earlier_attempts_are_told_again() {
    let driver = MemoryDriver::default();
    let policy = plan::Policy {
        infrastructure_retries: 3,
        backoff_min: 1_000,
        backoff_max: 60_000,
        keep_ended: 600_000,
        overdue: 40_000,
        stop_again: 40_000,
        patience: plan::patience::Patience::default(),
    };
    let mut record = Record { wanted: 1, phase: Phase::Live, ..record("a") };
    record.fill();
    let mut told = Vec::new();
    for (attempt, class) in [(1, Class::Evicted), (2, Class::NodeLost), (3, Class::Success)] {
        let mut facts = Facts { complete: true, ..Facts::default() };
        let outcome = Outcome { class, exit_code: None, signal: None, message: class.as_str().to_owned() };
        let at = i64::from(attempt) * 1_000;
        facts.workers.insert((0, attempt), Box::new(Fact::new(State::Ended { at, outcome }, at)));
        let (after, _) = plan::settle(&record, &facts, &policy, at).unwrap();
        told.extend(Teller { driver: &driver, record: &after }.since(Some(&record), at));
        record = after;
    }
    let again = Teller { driver: &driver, record: &record }.all(9_000);
    assert_eq!(told.len(), 6, "{told:?}");
    for told in told {
        assert!(again.contains(&told), "{told:?} is not among {again:?}");
    }
}
