//! What only a leader does: the controller, the reader of events, and the carriers of worker events.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use otto_service::client::Endpoint;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::health::Vitals;
use super::{Part, ended, rest};
use crate::config::Config;
use crate::controller::board::Board;
use crate::controller::{self, Options};
use crate::driver::Driver;
use crate::grpc::desk::Lead;
use crate::inbox::redis::Redis;
use crate::inbox::redis::owner::{Identity, Owner, Turn};
use crate::metrics::Metrics;
use crate::store::TaskStore;
use crate::worker_events::log_server::LogServer;
use crate::worker_events::{self, Sink};

/// Redis may take so long to say where changes by others end, before leading begins without.
const BEGIN_WITHIN: Duration = Duration::from_secs(1);

/// What leading needs.
pub(super) struct Ground {
    pub(super) options: Options,
    pub(super) driver: Arc<dyn Driver>,
    pub(super) redis: Option<Redis>,
    /// Where there is no Redis.
    pub(super) embedded: Option<Arc<dyn TaskStore>>,
    pub(super) metrics: Metrics,
    /// No more events are read.
    pub(super) drain: CancellationToken,
}

/// A leader at work.
pub(super) struct Leading {
    pub(super) lead: Lead,
    pub(super) vitals: Vitals,
    /// The records are read: it knows what it leads.
    pub(super) loaded: CancellationToken,
    owner: Option<Owner>,
    front: JoinSet<Part>,
    core: JoinSet<Part>,
    back: JoinSet<Part>,
    stop: CancellationToken,
    stop_carriers: CancellationToken,
}

impl Leading {
    /// Begins. `elected`: by a Lease, under this name; then there are other replicas, which write records, too.
    ///
    /// # Errors
    /// Names the setting at fault.
    pub(super) async fn start(
        config: &Config,
        ground: &Ground,
        elected: Option<(String, Turn)>,
    ) -> anyhow::Result<Self> {
        let shared = elected.is_some();
        let redis = match elected {
            Some((name, turn)) => {
                let me = Identity { id: name.clone(), name };
                ground.redis.as_ref().map(|redis| redis.led_by(me, turn))
            }
            None => ground.redis.clone(),
        };
        let store: Arc<dyn TaskStore> = match (&redis, &ground.embedded) {
            (Some(redis), _) => Arc::new(redis.store()),
            (None, Some(embedded)) => Arc::clone(embedded),
            (None, None) => anyhow::bail!("there is no task store"),
        };
        let channel = Endpoint::new(&config.log_server, &config.auth.client()).context("--log-server")?.connect_lazy();
        let mut sinks: Vec<Arc<dyn Sink>> = vec![Arc::new(LogServer::new(channel))];
        if let Some(redis) = &redis {
            sinks.push(Arc::new(redis.worker_events()));
        }
        let (publisher, carriers) = worker_events::new(sinks, &ground.metrics);
        let board = Arc::new(Board::new(ground.metrics.clone()));
        let (loaded, stop) = (CancellationToken::new(), CancellationToken::new());
        let (controller, handle, health) = controller::new(
            ground.options.clone(),
            store,
            Arc::clone(&ground.driver),
            publisher.clone(),
            Arc::clone(&board),
            ground.metrics.clone(),
            (loaded.clone(), stop.clone()),
        );

        let mut front = JoinSet::new();
        if let Some(redis) = redis.as_ref().filter(|_| shared) {
            // Before the records are read: what is written from now on is read again.
            let mut changes = redis.changes();
            let _ = tokio::time::timeout(BEGIN_WITHIN, changes.begin()).await;
            let (handle, stop) = (handle.clone(), stop.clone());
            front.spawn(async move {
                changes.run(handle, stop).await;
                ("reader of changes", Ok(()))
            });
        }
        let stop_carriers = CancellationToken::new();
        let mut back = JoinSet::new();
        for carrier in carriers {
            let (board, driver) = (Arc::clone(&board), Arc::clone(&ground.driver));
            let (loaded, stop) = (loaded.clone(), stop_carriers.clone());
            back.spawn(async move {
                carrier.run(board, driver, loaded, stop).await;
                ("worker events", Ok(()))
            });
        }
        let mut core = JoinSet::new();
        core.spawn(async move { ("controller", controller.run().await) });

        let owner = redis.as_ref().map(Redis::owner);
        let target = Arc::new((handle.clone(), publisher.clone()));
        let inbox = redis.map(|redis| redis.inbox(target, ground.metrics.clone()));
        let vitals = Vitals { controller: health, inbox: inbox.as_ref().map(|inbox| inbox.health()) };
        if let Some(inbox) = inbox {
            let stop = ground.drain.clone();
            front.spawn(async move {
                inbox.run(stop).await;
                ("event stream", Ok(()))
            });
        }
        Ok(Self { lead: Lead { handle, publisher }, vitals, loaded, owner, front, core, back, stop, stop_carriers })
    }

    /// Waits for a part that ends although it should not.
    pub(super) async fn failed(&mut self) -> anyhow::Error {
        tokio::select! {
            Some(part) = self.front.join_next() => ended(part),
            Some(part) = self.core.join_next() => ended(part),
            Some(part) = self.back.join_next() => ended(part),
            else => std::future::pending().await,
        }
    }

    /// Ends the driving, after the drain was requested: calls under way are answered, and another may lead.
    pub(super) async fn stop(&mut self) {
        self.stop.cancel();
        rest(&mut self.front).await;
        rest(&mut self.core).await;
        if let Some(owner) = &self.owner {
            // Another scaler may go on.
            owner.release().await;
        }
    }

    /// Tells the last worker events.
    pub(super) async fn finish(mut self) {
        self.stop_carriers.cancel();
        rest(&mut self.back).await;
    }
}
