//! Against a real Redis. The controller is a stand-in which decides with the real rules and writes to the real store.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use otto_testkit::{RedisServer, eventually};
use redis::aio::MultiplexedConnection;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::link::Health;
use super::*;
use crate::apply::{self, Decision, Defaults};
use crate::controller::Change;
use crate::inbox::DeadLetters;
use crate::store::{StoreError, TaskStore};
use crate::task::Record;

mod faults;
mod flow;
mod followers;
mod leaders;
mod links;
mod owners;
mod starts;
mod storing;

const STREAM: &str = "otto:scale:events";
const GROUP: &str = "ottoscaler";
const DAY: Duration = Duration::from_secs(86_400);

fn options(url: &str) -> Options {
    Options {
        url: url.parse().unwrap(),
        ca: None,
        stream: STREAM.to_owned(),
        group: GROUP.to_owned(),
        start: EventStart::Auto,
        retention: 7 * DAY,
        keep_events: Some(DAY),
        max_dead_letters: 1000,
        worker_events: "otto:worker:events".to_owned(),
        max_worker_events: 1000,
    }
}

fn now() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

fn id(text: &str) -> EntryId {
    text.parse().unwrap()
}

/// Decides as the controller does, one event of a task at a time, and counts what it was given.
struct Fake {
    store: RedisStore,
    /// By task, held while an event is applied: the order is that of `submit`.
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    seen: Mutex<Vec<(EntryId, String)>>,
    changed: Mutex<HashMap<String, usize>>,
    lost: Mutex<Vec<EntryId>>,
    /// So many answers are UNAVAILABLE.
    fail: AtomicUsize,
}

impl Fake {
    fn new(store: RedisStore) -> Arc<Self> {
        Arc::new(Self {
            store,
            turns: Mutex::default(),
            seen: Mutex::default(),
            changed: Mutex::default(),
            lost: Mutex::default(),
            fail: AtomicUsize::new(0),
        })
    }

    /// How often each task was changed.
    fn changed(&self) -> BTreeMap<String, usize> {
        self.changed.lock().unwrap().clone().into_iter().collect()
    }

    fn seen(&self) -> Vec<EntryId> {
        self.seen.lock().unwrap().iter().map(|(id, _)| *id).collect()
    }

    fn lost(&self) -> Vec<EntryId> {
        self.lost.lock().unwrap().clone()
    }

    async fn decide(&self, event: &ScaleEvent) -> Result<Applied, StoreError> {
        let defaults = Defaults {
            image: String::new(),
            command: vec!["true".to_owned()],
            timeout_seconds: 0,
            max_attempts: 1,
            max_count: 100,
            retention: 7 * 86_400_000,
            pods: None,
        };
        loop {
            let current = self.store.get(&event.task_id).await?;
            let change = |record: Record| Change { record: Arc::new(record), worker_names: Vec::new() };
            match apply::apply(current.as_ref(), event, &defaults, now()) {
                Decision::Put { record, .. } => match self.store.put(&record, event.entry).await {
                    Ok(()) => {
                        *self.changed.lock().unwrap().entry(event.task_id.clone()).or_default() += 1;
                        return Ok(Applied::Changed(change(record)));
                    }
                    Err(StoreError::Conflict(_)) => {}
                    Err(error) => return Err(error),
                },
                Decision::AlreadyProcessed => {
                    self.store.acknowledge(event.entry.unwrap()).await?;
                    return Ok(Applied::AlreadyProcessed(change(current.unwrap())));
                }
                Decision::Dead(reason) => return Ok(Applied::Dead(reason)),
            }
        }
    }
}

struct FakeTarget(Arc<Fake>);

impl Target for FakeTarget {
    fn submit(
        &self,
        event: ScaleEvent,
    ) -> BoxFuture<'_, Result<oneshot::Receiver<Result<Applied, ApplyError>>, ApplyError>> {
        let (reply, answer) = oneshot::channel();
        let fake = Arc::clone(&self.0);
        Box::pin(async move {
            fake.seen.lock().unwrap().push((event.entry.unwrap(), event.task_id.clone()));
            let fails = fake.fail.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
            let turn = Arc::clone(fake.turns.lock().unwrap().entry(event.task_id.clone()).or_default());
            tokio::spawn(async move {
                // First come, first served; and they come in the order in which they were spawned.
                let _turn = turn.lock().await;
                let unavailable = |message: String| ApplyError::Unavailable { retry_after: 1, message };
                let result = if fails {
                    Err(unavailable("told to fail".to_owned()))
                } else {
                    fake.decide(&event).await.map_err(|e| unavailable(e.to_string()))
                };
                let _ = reply.send(result);
            });
            Ok(answer)
        })
    }

    fn lost(&self, entry: EntryId) {
        self.0.lost.lock().unwrap().push(entry);
    }
}

/// A Redis, and an inbox on it.
struct World {
    server: RedisServer,
    redis: Redis,
    fake: Arc<Fake>,
    connection: MultiplexedConnection,
}

impl World {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Options)) -> Self {
        let server = RedisServer::start().await.unwrap();
        let mut options = options(&server.url());
        change(&mut options);
        let redis = Redis::new(options).unwrap();
        let connection = server.connect().await.unwrap();
        Self { fake: Fake::new(redis.store()), server, redis, connection }
    }

    /// A reader as the leader runs it.
    fn start(&self) -> Reader {
        self.start_on(self.redis.clone())
    }

    fn start_on(&self, redis: Redis) -> Reader {
        let inbox = redis.inbox(Arc::new(FakeTarget(Arc::clone(&self.fake))), Metrics::default());
        let (stop, health) = (CancellationToken::new(), inbox.health());
        Reader { task: tokio::spawn(inbox.run(stop.clone())), stop, health }
    }

    async fn run<T: redis::FromRedisValue>(&self, line: &str) -> T {
        let mut words = line.split(' ');
        let mut command = redis::cmd(words.next().unwrap());
        for word in words {
            command.arg(word);
        }
        command.query_async(&mut self.connection.clone()).await.unwrap_or_else(|e| panic!("{line}: {e}"))
    }

    /// `XADD otto:scale:events * …`
    async fn add(&self, fields: &str) -> EntryId {
        id(&self.run::<String>(&format!("XADD {STREAM} * {fields}")).await)
    }

    async fn scale_up(&self, task_id: &str) -> EntryId {
        self.add(&format!("type scale_up task_id {task_id}")).await
    }

    async fn pending(&self) -> usize {
        let answer: redis::Value = self.run(&format!("XPENDING {STREAM} {GROUP}")).await;
        match answer {
            redis::Value::Array(parts) => redis::from_redis_value_ref(&parts[0]).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    async fn marker(&self) -> Option<EntryId> {
        let marker: Option<String> = self.run(&format!("GET {{{STREAM}}}:applied")).await;
        marker.map(|marker| id(&marker))
    }

    /// Waits until everything up to `entry` is settled.
    async fn settled(&self, entry: EntryId) {
        eventually(&format!("{entry} is settled"), async || {
            (self.marker().await >= Some(entry) && self.pending().await == 0).then_some(())
        })
        .await;
    }

    /// Reasons of all dead letters by their entry, oldest first.
    async fn dead(&self) -> Vec<(EntryId, String)> {
        let mut letters = self.redis.dead_letters().list(1000, None).await.unwrap();
        letters.reverse();
        letters.into_iter().map(|letter| (letter.entry, letter.reason)).collect()
    }

    /// Waits until Redis has noticed that no reader is there any more: until then it delivers to the one that left.
    async fn nobody_reads(&self) {
        eventually("no reader is left", async || {
            let clients: String = self.run("INFO clients").await;
            clients.contains("blocked_clients:0").then_some(())
        })
        .await;
    }

    async fn task(&self, task_id: &str) -> Record {
        self.redis.store().get(task_id).await.unwrap().unwrap_or_else(|| panic!("no task {task_id}"))
    }
}

/// A running inbox.
struct Reader {
    task: JoinHandle<()>,
    stop: CancellationToken,
    health: watch::Receiver<Health>,
}

impl Reader {
    async fn serving(&mut self) {
        self.becomes(|health| *health == Health::Serving).await;
    }

    async fn becomes(&mut self, wanted: impl FnMut(&Health) -> bool) {
        let waiting = self.health.wait_for(wanted);
        tokio::time::timeout(otto_testkit::PATIENCE, waiting).await.expect("its health does not change").unwrap();
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }

    /// Ends it in the middle of whatever it does.
    async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}
