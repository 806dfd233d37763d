//! Replicas that do not lead: they write records by the same rules, and the leader drives what they wrote.

use std::collections::BTreeSet;

use super::owner::{Identity, Turn};
use super::*;
use crate::controller::board::Board;
use crate::controller::tests::MemoryDriver;
use crate::controller::{self, Reason};
use crate::driver::Driver;
use crate::event::{Direction, GivenSpec};
use crate::leadership::Leadership;
use crate::standby::Follower;
use crate::task::Phase;

const CHANGES: &str = "{otto:scale:events}:changes";

fn controller_options() -> controller::Options {
    let config = <crate::config::Config as clap::Parser>::try_parse_from(["otto-scaler"]).unwrap();
    config.options().unwrap()
}

fn event(task_id: &str, direction: Direction, count: u32) -> ScaleEvent {
    ScaleEvent { task_id: task_id.to_owned(), direction, count, spec: GivenSpec::default(), entry: None }
}

/// A leader: the real controller on the real store, with workers in memory.
struct LeaderAtWork {
    driver: Arc<MemoryDriver>,
    handle: Handle,
    stop: CancellationToken,
    running: Vec<JoinHandle<()>>,
}

impl LeaderAtWork {
    async fn start(world: &World) -> Self {
        Self::start_on(world, Arc::default()).await
    }

    async fn start_on(world: &World, driver: Arc<MemoryDriver>) -> Self {
        let me = Identity { id: "leader".to_owned(), name: "leader".to_owned() };
        let redis = world.redis.led_by(me, Turn { number: 1, leadership: Leadership::unlimited() });
        let metrics = Metrics::default();
        let (publisher, _) = crate::worker_events::new(Vec::new(), &metrics);
        let (loaded, stop) = (CancellationToken::new(), CancellationToken::new());
        let (controller, handle, _) = controller::new(
            controller_options(),
            Arc::new(redis.store()),
            Arc::clone(&driver) as Arc<dyn Driver>,
            publisher,
            Arc::new(Board::new(metrics.clone())),
            metrics,
            (loaded.clone(), stop.clone()),
        );
        let mut changes = redis.changes();
        changes.begin().await;
        let follow = tokio::spawn(changes.run(handle.clone(), stop.clone()));
        let drive = tokio::spawn(async move { controller.run().await.unwrap() });
        loaded.cancelled().await;
        Self { driver, handle, stop, running: vec![follow, drive] }
    }

    async fn workers(&self) -> BTreeSet<String> {
        self.driver.list().await.unwrap().into_iter().map(|worker| self.driver.worker_name(&worker.key)).collect()
    }

    async fn creates(&self, name: &str) {
        eventually(&format!("{name} is created"), async || self.workers().await.contains(name).then_some(())).await;
    }

    async fn stop(self) {
        self.stop.cancel();
        for running in self.running {
            running.await.unwrap();
        }
    }
}

fn follower(world: &World) -> Follower {
    let driver: Arc<dyn Driver> = Arc::<MemoryDriver>::default();
    Follower::new(Arc::new(world.redis.follower_store()), driver, controller_options().defaults, Metrics::default())
}

fn names(applied: Result<Applied, ApplyError>) -> (bool, Vec<String>) {
    match applied {
        Ok(Applied::Changed(change)) => (true, change.worker_names),
        Ok(Applied::AlreadyProcessed(change)) => (false, change.worker_names),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_a_follower_takes_the_leader_drives() {
    let world = World::new().await;
    let leader = LeaderAtWork::start(&world).await;
    let follower = follower(&world);
    assert_eq!(
        names(follower.apply(&event("t", Direction::Up, 2)).await),
        (true, vec!["t-0-1".into(), "t-1-1".into()])
    );
    leader.creates("t-1-1").await;
    // The same again, there and here.
    assert!(!names(follower.apply(&event("t", Direction::Up, 2)).await).0);
    assert!(!names(leader.handle.apply(event("t", Direction::Up, 1)).await).0);
    assert_eq!(names(follower.apply(&event("t", Direction::Up, 3)).await), (true, vec!["t-2-1".into()]));
    leader.creates("t-2-1").await;
    // A contradiction, and a task that nobody knows.
    let mut other = event("t", Direction::Up, 4);
    other.spec.command = Some(vec!["false".to_owned()]);
    assert!(matches!(follower.apply(&other).await, Ok(Applied::Dead(Reason::Contradicts { .. }))));
    assert!(matches!(follower.apply(&event("u", Direction::Down, 1)).await, Ok(Applied::Dead(Reason::UnknownTask(_)))));
    names(follower.apply(&event("t", Direction::Down, 0)).await);
    eventually("it is cancelled", async || (world.task("t").await.phase == Phase::Cancelled).then_some(())).await;
    assert!(!names(follower.apply(&event("t", Direction::Up, 5)).await).0);
    let shown = follower.board().await.unwrap();
    assert_eq!(shown.get("t").unwrap().phase, Phase::Cancelled);
    leader.stop().await;
}

/// The leader, two followers and the plan write the same records at the same time: nothing is lost.
#[tokio::test]
async fn many_writers_of_one_task() {
    let world = World::new().await;
    let leader = LeaderAtWork::start(&world).await;
    let (one, two) = (follower(&world), follower(&world));
    let apply = async |count: u32| {
        for task in ["a", "b", "c"] {
            let event = event(task, Direction::Up, count);
            // As any client, who asks again.
            let applied = eventually("it is applied", async || {
                let applied = match count % 3 {
                    0 => one.apply(&event).await,
                    1 => two.apply(&event).await,
                    _ => leader.handle.apply(event.clone()).await,
                };
                Some(applied).filter(|applied| !matches!(applied, Err(ApplyError::Unavailable { .. })))
            });
            names(applied.await);
        }
    };
    futures::future::join_all((1..=30).map(apply)).await;
    for task in ["a", "b", "c"] {
        assert_eq!(world.task(task).await.wanted, 30);
        leader.creates(&format!("{task}-29-1")).await;
    }
    eventually("all of them are created", async || (leader.workers().await.len() == 90).then_some(())).await;
    leader.stop().await;
}

#[tokio::test]
async fn what_came_while_nobody_led_is_driven_by_the_next() {
    let world = World::new().await;
    let follower = follower(&world);
    names(follower.apply(&event("before", Direction::Up, 1)).await);
    let leader = LeaderAtWork::start(&world).await;
    leader.creates("before-0-1").await;
    names(follower.apply(&event("after", Direction::Up, 1)).await);
    leader.creates("after-0-1").await;
    leader.stop().await;
}

/// The stream of changes is lost, or trimmed while the leader does not read it: all records are read again.
#[tokio::test]
async fn lost_changes_are_noticed() {
    let world = World::new().await;
    let leader = LeaderAtWork::start(&world).await;
    let follower = follower(&world);
    names(follower.apply(&event("first", Direction::Up, 1)).await);
    leader.creates("first-0-1").await;
    // In one step, as trimming does it: told, and gone before it is read.
    let mut connection = world.connection.clone();
    let mut gone = redis::pipe();
    gone.atomic();
    for n in 0..3 {
        gone.cmd("XADD").arg(CHANGES).arg("*").arg("task").arg(format!("t{n}")).ignore();
    }
    gone.cmd("XTRIM").arg(CHANGES).arg("MAXLEN").arg(0).ignore();
    // Written by a follower whose note is among those.
    let unfenced = world.redis.store();
    let mut record = world.task("first").await;
    record.task_id = "unheard".to_owned();
    record.version = 1;
    unfenced.put(&record, None).await.unwrap();
    gone.query_async::<()>(&mut connection).await.unwrap();
    eventually("it is read", async || leader.handle.board().get("unheard").map(drop)).await;

    // The whole stream, and it begins again.
    record.task_id = "unheard too".to_owned();
    unfenced.put(&record, None).await.unwrap();
    let _: () = world.run(&format!("DEL {CHANGES}")).await;
    eventually("it is read", async || leader.handle.board().get("unheard too").map(drop)).await;
    names(follower.apply(&event("last", Direction::Up, 1)).await);
    leader.creates("last-0-1").await;
    leader.stop().await;
}

#[tokio::test]
async fn redis_away_is_said_and_survived() {
    let mut world = World::new().await;
    let leader = LeaderAtWork::start(&world).await;
    let follower = follower(&world);
    names(follower.apply(&event("t", Direction::Up, 1)).await);
    leader.creates("t-0-1").await;
    world.server.kill().await.unwrap();
    assert!(matches!(follower.apply(&event("u", Direction::Up, 1)).await, Err(ApplyError::Unavailable { .. })));
    world.server.restart().await.unwrap();
    eventually("it takes events again", async || follower.apply(&event("u", Direction::Up, 1)).await.ok()).await;
    leader.creates("u-0-1").await;
    leader.stop().await;
}

/// From a follower's answer to the leader's driver.
#[tokio::test]
async fn the_leader_hears_at_once() {
    let world = World::new().await;
    let leader = LeaderAtWork::start(&world).await;
    let follower = follower(&world);
    let mut waits = Vec::new();
    for n in 0..50 {
        names(follower.apply(&event(&format!("t{n}"), Direction::Up, 1)).await);
        let answered = Instant::now();
        let name = format!("t{n}-0-1");
        while !leader.workers().await.contains(&name) {
            assert!(answered.elapsed() < otto_testkit::PATIENCE);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        waits.push(answered.elapsed());
    }
    waits.sort();
    println!("from the follower's answer to the driver: median {:?}, longest {:?}", waits[25], waits[49]);
    // A loaded machine may take longer, but not as long as any timer does: a read waits for 2 s.
    assert!(waits[25] < Duration::from_secs(1), "{waits:?}");
    leader.stop().await;
}
