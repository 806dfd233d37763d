//! Puts the parts together, serves, and ends them in order: first no new events, then the controller, then the carriers
//! of its last worker events. Workers outlive all of it.
//!
//! With the Kubernetes driver there may be several replicas. Each serves; the one that holds the Lease leads ([`lead`]).
//! A leader that drains gives the Lease back as soon as nothing of the controller is under way, or has had its time, and
//! answers its last calls as a replica that stands by. A leader that loses the Lease ends.

use std::sync::Arc;
use std::time::Duration;

use otto_service::admin::Admin;
use otto_service::drain::Drain;
use otto_service::grpc;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::front::Counter;
use self::health::Truth;
use self::lead::{Ground, Leading};
use crate::config::{Config, DriverKind};
use crate::driver::Driver;
use crate::driver::kubernetes::lease::{self, Elector, Standing};
use crate::driver::kubernetes::{Cluster, KubernetesDriver};
use crate::driver::process::ProcessDriver;
use crate::grpc::desk::Role;
use crate::inbox::DeadLetters;
use crate::inbox::redis::Redis;
use crate::inbox::redis::owner::{Identity, Turn};
use crate::leadership::Leadership;
use crate::metrics::Metrics;
use crate::standby::Follower;
use crate::store::TaskStore;
use crate::store::embedded::EmbeddedStore;

mod data_dir;
mod front;
mod health;
mod lead;

/// The ready file waits so long for everything to be well.
const READY_WITHIN: Duration = Duration::from_secs(2);

/// A part of the program: its name, and how it ended.
type Part = (&'static str, anyhow::Result<()>);

/// Runs until drained.
///
/// # Errors
/// Names the setting, file or address at fault; or the part that ended although it should not.
pub(crate) async fn run(config: Config, drain: Drain) -> anyhow::Result<()> {
    let options = config.options()?;
    // Before the addresses: what a killed scaler was just starting holds both for a moment.
    let data_dir = config.data_dir.clone();
    let mut owned = tokio::task::spawn_blocking(move || data_dir::lock(&data_dir)).await??;
    let grpc_listener = grpc::bind("--grpc-addr", config.grpc_addr)?;
    let admin_listener = grpc::bind("--admin-addr", config.admin_addr)?;
    let (grpc_addr, admin_addr) = (grpc_listener.local_addr()?, admin_listener.local_addr()?);
    let policy = config.auth.policy(&[grpc_addr, admin_addr])?;
    if let Err(error) = grpc::raise_descriptor_limit() {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
    let metrics = Metrics::default();
    let admin = Admin::new(env!("CARGO_PKG_VERSION"), drain.clone()).with_policy(policy.clone());
    metrics.register(&mut admin.registry());

    let stop_driver = CancellationToken::new();
    let (driver, elector) = open_driver(&config, &mut owned, &metrics, grpc_addr, &stop_driver).await?;
    let (redis, embedded) = open_store(&config, elector.is_some()).await?;
    let follower_store = redis.as_ref().filter(|_| elector.is_some()).map(|redis| Arc::new(redis.follower_store()));
    let follower_store = follower_store.map(|store| store as Arc<dyn TaskStore>);
    let store = match (&follower_store, &redis, &embedded) {
        (Some(store), ..) | (None, None, Some(store)) => Arc::clone(store),
        (None, Some(redis), _) => Arc::new(redis.store()),
        (None, None, None) => anyhow::bail!("there is no task store"),
    };
    let dead_letters = redis.as_ref().map(|redis| Arc::new(redis.dead_letters()) as Arc<dyn DeadLetters>);
    let defaults = options.defaults.clone();
    let follower =
        follower_store.clone().map(|store| Follower::new(store, Arc::clone(&driver), defaults, metrics.clone()));
    let ground = Ground {
        options,
        driver: Arc::clone(&driver),
        redis,
        embedded,
        metrics: metrics.clone(),
        drain: drain.token(),
    };

    // Who leads: this one, if there are no others.
    let mut leading = match elector {
        Some(_) => None,
        None => Some(Leading::start(&config, &ground, None).await?),
    };
    let (role, vitals) = match &leading {
        Some(leading) => (Role::Lead(leading.lead.clone()), Some(leading.vitals.clone())),
        None => (Role::StandBy(None), None),
    };
    metrics.leader.set(i64::from(leading.is_some()));
    let (role, vitals) = (watch::Sender::new(role), watch::Sender::new(vitals));
    let release = CancellationToken::new();
    let mut election = elector.map(|elector| Election::start(elector, drain.token(), release.clone()));

    let watchers = TaskTracker::new();
    let counter = Counter {
        role: role.subscribe(),
        store,
        follower,
        driver: Arc::clone(&driver),
        dead_letters,
        watchers: watchers.clone(),
        drain: drain.clone(),
    };
    let server = front::server(&config, policy, &admin, counter);
    let truth = Truth::new(server.health(), &admin, role.subscribe(), vitals.subscribe(), follower_store);
    let mut well = truth.well();
    let mut front = JoinSet::<Part>::new();
    front.spawn({
        let drain = drain.token();
        async move {
            drain.run_until_cancelled(truth.keep_telling()).await;
            ("health", Ok(()))
        }
    });
    front.spawn({
        let drain = drain.clone();
        async move { ("gRPC server", server.serve(grpc_listener, drain).await) }
    });
    front.spawn({
        let drain = drain.clone();
        async move { ("admin server", admin.serve(admin_listener, drain).await) }
    });
    if let Some(path) = config.ready_file.clone() {
        front.spawn({
            let drain = drain.token();
            async move {
                // What is well is ready in a moment; a store that is away is reported by health checks, not by silence.
                let _ = tokio::time::timeout(READY_WITHIN, well.wait_for(|well| *well)).await;
                let written = data_dir::write_ready_file(&path, grpc_addr, admin_addr);
                if written.is_ok() {
                    drain.cancelled().await;
                }
                ("ready file", written)
            }
        });
    }
    tracing::info!(
        grpc = %grpc_addr, admin = %admin_addr, data_dir = %config.data_dir.display(),
        redis = config.redis.redis_url.is_some(), "serving"
    );

    let mut loading = None;
    let failure = loop {
        tokio::select! {
            // Parts end by themselves once this is requested.
            biased;
            () = drain.requested() => break None,
            Some(part) = front.join_next() => break Some(ended(part)),
            error = failed(&mut leading) => break Some(error),
            news = news(&mut election) => match news {
                News::Ended(error) => break Some(error),
                News::Leader(peer) => {
                    if leading.is_none() {
                        role.send_replace(Role::StandBy(peer));
                    }
                }
                News::Won(name, turn) => {
                    match Leading::start(&config, &ground, Some((name, turn))).await {
                        Ok(started) => {
                            loading = Some(started.loaded.clone());
                            leading = Some(started);
                        }
                        Err(error) => break Some(error),
                    }
                }
            },
            // From here on the controller knows more than the store.
            () = loaded(&loading) => {
                loading = None;
                if let Some(leading) = &leading {
                    role.send_replace(Role::Lead(leading.lead.clone()));
                    vitals.send_replace(Some(leading.vitals.clone()));
                    metrics.leader.set(1);
                }
            }
        }
    };
    drain.request();
    watchers.close();
    match &mut election {
        // Another one leads as soon as nothing is under way here.
        Some(election) => {
            if let Some(leading) = &mut leading {
                leading.stop().await;
                role.send_replace(Role::StandBy(None));
            }
            metrics.leader.set(0);
            release.cancel();
            rest(&mut election.running).await;
            rest(&mut front).await;
            watchers.wait().await;
        }
        None => {
            rest(&mut front).await;
            watchers.wait().await;
            if let Some(leading) = &mut leading {
                leading.stop().await;
            }
        }
    }
    if let Some(leading) = leading {
        leading.finish().await;
    }
    stop_driver.cancel();
    driver.closed().await;
    failure.map_or(Ok(()), Err)
}

/// The driver; and a candidate, where another scaler may drive the same workers.
async fn open_driver(
    config: &Config,
    owned: &mut data_dir::Owned,
    metrics: &Metrics,
    grpc_addr: std::net::SocketAddr,
    stop: &CancellationToken,
) -> anyhow::Result<(Arc<dyn Driver>, Option<Elector>)> {
    match config.driver {
        DriverKind::Process => {
            let (options, stop) = (config.process(), stop.clone());
            let driver = tokio::task::spawn_blocking(move || ProcessDriver::open(options, stop)).await??;
            Ok((Arc::new(driver), None))
        }
        DriverKind::Kubernetes => {
            let (options, timing) = (config.kubernetes(), config.lease.timing()?);
            let cluster = Cluster::connect(&options.settings, metrics.api_requests.clone()).await?;
            let name = lease::identity();
            // A replica that starts again where it was goes on at once, instead of waiting until its Lease runs out.
            let ended = owned.sign(&name)?;
            let elector = Elector::new(&cluster, timing, name, ended, config.lease.address(grpc_addr));
            let driver = KubernetesDriver::open(cluster, options, elector.leadership(), stop.clone()).await?;
            Ok((Arc::new(driver), Some(elector)))
        }
    }
}

/// Redis, or the file in the data directory.
async fn open_store(config: &Config, elected: bool) -> anyhow::Result<(Option<Redis>, Option<Arc<dyn TaskStore>>)> {
    let data_dir = config.data_dir.clone();
    let redis = config.redis.options(config.limits.record_retention)?;
    match redis.map(Redis::new).transpose().map_err(|error| anyhow::anyhow!(error))? {
        // A leader that is elected has the stream by its election.
        Some(redis) if elected => Ok((Some(redis), None)),
        Some(redis) => {
            let me = tokio::task::spawn_blocking(move || Identity::of(&data_dir)).await??;
            Ok((Some(redis.owned_by(me)), None))
        }
        None => {
            if elected {
                tracing::warn!(
                    data_dir = %config.data_dir.display(),
                    "without --redis-url the task records are in this data directory alone: run one replica, and keep it"
                );
            }
            let store = tokio::task::spawn_blocking(move || EmbeddedStore::open(&data_dir)).await??;
            Ok((None, Some(Arc::new(store))))
        }
    }
}

/// The election as it runs.
struct Election {
    me: String,
    leadership: Leadership,
    standing: watch::Receiver<Standing>,
    running: JoinSet<Part>,
}

/// What came of it.
enum News {
    Won(String, Turn),
    Leader(Option<crate::leadership::Peer>),
    Ended(anyhow::Error),
}

impl Election {
    fn start(elector: Elector, drain: CancellationToken, release: CancellationToken) -> Self {
        let (me, leadership, standing) = (elector.name().to_owned(), elector.leadership(), elector.standing());
        let mut running = JoinSet::new();
        running.spawn(async move { ("leader election", elector.run(drain, release).await) });
        Self { me, leadership, standing, running }
    }

    async fn news(&mut self) -> News {
        tokio::select! {
            biased;
            Some(part) = self.running.join_next() => News::Ended(ended(part)),
            Ok(()) = self.standing.changed() => match self.standing.borrow_and_update().clone() {
                Standing::Leading { turn } => {
                    News::Won(self.me.clone(), Turn { number: turn, leadership: self.leadership.clone() })
                }
                Standing::StandingBy(peer) => News::Leader(peer),
            },
            else => std::future::pending().await,
        }
    }
}

async fn news(election: &mut Option<Election>) -> News {
    match election {
        Some(election) => election.news().await,
        None => std::future::pending().await,
    }
}

async fn failed(leading: &mut Option<Leading>) -> anyhow::Error {
    match leading {
        Some(leading) => leading.failed().await,
        None => std::future::pending().await,
    }
}

async fn loaded(loading: &Option<CancellationToken>) {
    match loading {
        Some(loading) => loading.cancelled().await,
        None => std::future::pending().await,
    }
}

/// A part that ended by itself.
fn ended(part: Result<Part, JoinError>) -> anyhow::Error {
    match part {
        Ok((name, Ok(()))) => anyhow::anyhow!("the {name} ended although it should not"),
        Ok((name, Err(error))) => error.context(format!("the {name} failed")),
        Err(error) => anyhow::Error::new(error).context("a part of the program panicked"),
    }
}

async fn rest(parts: &mut JoinSet<Part>) {
    while let Some(part) = parts.join_next().await {
        match part {
            Ok((_, Ok(()))) => {}
            Ok((name, Err(error))) => tracing::error!(part = name, error = format!("{error:#}"), "did not end well"),
            Err(error) => tracing::error!(%error, "a part of the program panicked"),
        }
    }
}
