//! Puts the parts together, serves, and ends them in order: first no new events, then the controller, then the carriers
//! of its last worker events. Workers outlive all of it.

use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use otto_proto::v1::ottoscaler_service_server::OttoscalerServiceServer;
use otto_proto::v1::task_service_server::TaskServiceServer;
use otto_service::admin::{Admin, Readiness};
use otto_service::client::Endpoint;
use otto_service::drain::Drain;
use otto_service::grpc::{self, HealthReporter, Server};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::codec::CompressionEncoding;

use crate::config::{Config, DriverKind};
use crate::controller::board::Board;
use crate::controller::{self, Health};
use crate::driver::Driver;
use crate::driver::kubernetes::{Cluster, KubernetesDriver};
use crate::driver::process::ProcessDriver;
use crate::grpc::scaler::Scaler;
use crate::grpc::tasks::Tasks;
use crate::inbox::DeadLetters;
use crate::inbox::redis::Redis;
use crate::inbox::redis::link;
use crate::inbox::redis::owner::Identity;
use crate::leadership::Leadership;
use crate::metrics::Metrics;
use crate::store::TaskStore;
use crate::store::embedded::EmbeddedStore;
use crate::worker_events::log_server::LogServer;
use crate::worker_events::{self, Sink};

/// Health names: the two services, and the reader of the event stream.
const SCALER: &str = "ottoscaler.v1.OttoscalerService";
const TASKS: &str = "ottoscaler.v1.TaskService";
const INBOX: &str = "ottoscaler.v1.Inbox";

/// The ready file waits so long for everything to be well.
const READY_WITHIN: std::time::Duration = std::time::Duration::from_secs(2);

/// Another process may hold the data directory so long.
const LOCK_WITHIN: std::time::Duration = std::time::Duration::from_secs(3);

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
    let _lock = tokio::task::spawn_blocking(move || lock(&data_dir)).await??;
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
    let redis = config.redis.options(config.limits.record_retention)?;
    let redis = redis.map(Redis::new).transpose().map_err(|error| anyhow::anyhow!(error))?;
    let redis = match redis {
        Some(redis) => {
            let data_dir = config.data_dir.clone();
            Some(redis.owned_by(tokio::task::spawn_blocking(move || Identity::of(&data_dir)).await??))
        }
        None => None,
    };
    let owner = redis.as_ref().map(Redis::owner);
    let store: Arc<dyn TaskStore> = match &redis {
        Some(redis) => Arc::new(redis.store()),
        None => {
            let data_dir = config.data_dir.clone();
            Arc::new(tokio::task::spawn_blocking(move || EmbeddedStore::open(&data_dir)).await??)
        }
    };
    let stop_driver = CancellationToken::new();
    let driver: Arc<dyn Driver> = match config.driver {
        DriverKind::Process => {
            let (options, stop) = (config.process(), stop_driver.clone());
            Arc::new(tokio::task::spawn_blocking(move || ProcessDriver::open(options, stop)).await??)
        }
        DriverKind::Kubernetes => {
            let (options, leadership) = (config.kubernetes(), Leadership::unlimited());
            let cluster = Cluster::connect(&options.settings).await?;
            Arc::new(KubernetesDriver::open(cluster, options, leadership, stop_driver.clone()).await?)
        }
    };
    let channel = Endpoint::new(&config.log_server, &config.auth.client()).context("--log-server")?.connect_lazy();
    let mut sinks: Vec<Arc<dyn Sink>> = vec![Arc::new(LogServer::new(channel))];
    if let Some(redis) = &redis {
        sinks.push(Arc::new(redis.worker_events()));
    }
    let (publisher, carriers) = worker_events::new(sinks, &metrics);
    let board = Arc::new(Board::new(metrics.clone()));
    let (loaded, stop) = (CancellationToken::new(), CancellationToken::new());
    let (controller, handle, health) = controller::new(
        options,
        Arc::clone(&store),
        Arc::clone(&driver),
        publisher.clone(),
        Arc::clone(&board),
        metrics.clone(),
        (loaded.clone(), stop.clone()),
    );

    let stop_carriers = CancellationToken::new();
    let mut back = JoinSet::new();
    for carrier in carriers {
        let (board, driver) = (Arc::clone(&board), Arc::clone(&driver));
        let (loaded, stop) = (loaded.clone(), stop_carriers.clone());
        back.spawn(async move {
            carrier.run(board, driver, loaded, stop).await;
            ("worker events", Ok(()))
        });
    }
    let mut core = JoinSet::<Part>::new();
    core.spawn(async move { ("controller", controller.run().await) });

    let mut front = JoinSet::<Part>::new();
    let watchers = TaskTracker::new();
    let size = config.grpc.max_message_size();
    let scaler = Scaler { handle: handle.clone(), store: Arc::clone(&store), driver: Arc::clone(&driver) };
    let tasks = Tasks {
        handle: handle.clone(),
        store,
        driver: Arc::clone(&driver),
        publisher: publisher.clone(),
        dead_letters: redis.as_ref().map(|redis| Arc::new(redis.dead_letters()) as Arc<dyn DeadLetters>),
        watchers: watchers.clone(),
        drain: drain.clone(),
    };
    let (gzip, zstd) = (CompressionEncoding::Gzip, CompressionEncoding::Zstd);
    let server = Server::new(config.grpc.clone(), policy)
        .descriptors(otto_proto::FILE_DESCRIPTOR_SET)
        .metrics(&admin)
        .add_service(
            OttoscalerServiceServer::new(scaler)
                .max_decoding_message_size(size)
                .accept_compressed(gzip)
                .accept_compressed(zstd)
                .send_compressed(gzip)
                .send_compressed(zstd),
        )
        .add_service(
            TaskServiceServer::new(tasks)
                .max_decoding_message_size(size)
                .accept_compressed(gzip)
                .accept_compressed(zstd)
                .send_compressed(gzip)
                .send_compressed(zstd),
        );
    let inbox = redis.map(|redis| redis.inbox(Arc::new((handle, publisher)), metrics));
    let ready = all_ready(health.clone(), inbox.as_ref().map(|inbox| inbox.health()));
    let truth = Truth {
        reporter: server.health(),
        store: admin.readiness("task store"),
        driver: admin.readiness("driver"),
        inbox: inbox.as_ref().map(|inbox| (admin.readiness("event stream"), inbox.health())),
        health,
    };
    truth.tell();
    front.spawn({
        let drain = drain.token();
        async move {
            drain.run_until_cancelled(truth.keep_telling()).await;
            ("health", Ok(()))
        }
    });
    if let Some(inbox) = inbox {
        let stop = drain.token();
        front.spawn(async move {
            inbox.run(stop).await;
            ("event stream", Ok(()))
        });
    }
    front.spawn({
        let drain = drain.clone();
        async move { ("gRPC server", server.serve(grpc_listener, drain).await) }
    });
    front.spawn({
        let drain = drain.clone();
        async move { ("admin server", admin.serve(admin_listener, drain).await) }
    });
    if let Some(path) = &config.ready_file {
        // What is well is ready in a moment; a store that is away is reported by health checks, not by silence.
        let _ = tokio::time::timeout(READY_WITHIN, ready).await;
        write_ready_file(path, grpc_addr, admin_addr)?;
    }
    tracing::info!(
        grpc = %grpc_addr, admin = %admin_addr, data_dir = %config.data_dir.display(),
        redis = config.redis.redis_url.is_some(), "serving"
    );

    let failure = tokio::select! {
        // Parts end by themselves once this is requested.
        biased;
        () = drain.requested() => None,
        Some(part) = front.join_next() => Some(ended(part)),
        Some(part) = core.join_next() => Some(ended(part)),
        Some(part) = back.join_next() => Some(ended(part)),
    };
    drain.request();
    watchers.close();
    rest(&mut front).await;
    watchers.wait().await;
    stop.cancel();
    rest(&mut core).await;
    if let Some(owner) = owner {
        // Another scaler may go on.
        owner.release().await;
    }
    stop_carriers.cancel();
    rest(&mut back).await;
    stop_driver.cancel();
    driver.closed().await;
    failure.map_or(Ok(()), Err)
}

/// A part that ended by itself.
fn ended(part: Result<Part, tokio::task::JoinError>) -> anyhow::Error {
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

/// Makes the data directory this process's own, for as long as the lock is held.
fn lock(data_dir: &Path) -> anyhow::Result<std::fs::File> {
    let shown = data_dir.display();
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data_dir)
        .with_context(|| format!("cannot create the data directory {shown} (--data-dir)"))?;
    let file = std::fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(data_dir.join("scaler.lock"))
        .with_context(|| format!("cannot write to the data directory {shown} (--data-dir)"))?;
    // A scaler that was killed while it started a worker lets go when that process is the worker's program.
    let deadline = std::time::Instant::now() + LOCK_WITHIN;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(std::fs::TryLockError::WouldBlock) if std::time::Instant::now() < deadline => {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            Err(std::fs::TryLockError::WouldBlock) => {
                anyhow::bail!("the data directory {shown} (--data-dir) is in use by another process")
            }
            Err(std::fs::TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock the data directory {shown} (--data-dir)"));
            }
        }
    }
}

fn write_ready_file(path: &Path, grpc_addr: SocketAddr, admin_addr: SocketAddr) -> anyhow::Result<()> {
    let text = serde_json::json!({ "grpc_addr": grpc_addr, "admin_addr": admin_addr }).to_string();
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    std::fs::write(&temporary, text)
        .and_then(|()| std::fs::rename(&temporary, path))
        .with_context(|| format!("cannot write {} (--ready-file)", path.display()))
}

async fn all_ready(mut health: watch::Receiver<Health>, inbox: Option<watch::Receiver<link::Health>>) {
    // A part that ended is noticed elsewhere.
    let _ = health.wait_for(|health| health.store && health.driver).await;
    if let Some(mut inbox) = inbox {
        let _ = inbox.wait_for(|health| *health == link::Health::Serving).await;
    }
}

/// Says what can do its work: to gRPC health checks and to `/readyz`.
struct Truth {
    reporter: HealthReporter,
    store: Readiness,
    driver: Readiness,
    inbox: Option<(Readiness, watch::Receiver<link::Health>)>,
    health: watch::Receiver<Health>,
}

impl Truth {
    fn tell(&self) {
        let health = *self.health.borrow();
        let say = |name: &str, serving: bool| {
            if serving { self.reporter.set_serving(name) } else { self.reporter.set_not_serving(name) }
        };
        say(SCALER, health.store && health.driver);
        say(TASKS, health.store);
        match health.store {
            true => self.store.ready(),
            false => self.store.not_ready("it cannot be read or written"),
        }
        match health.driver {
            true => self.driver.ready(),
            false => self.driver.not_ready("it has not told yet which workers exist"),
        }
        if let Some((readiness, inbox)) = &self.inbox {
            match &*inbox.borrow() {
                link::Health::Serving => {
                    readiness.ready();
                    say(INBOX, true);
                }
                link::Health::NotServing(why) => {
                    readiness.not_ready(why.clone());
                    say(INBOX, false);
                }
            }
        }
    }

    async fn keep_telling(mut self) {
        loop {
            let inbox = async {
                match &mut self.inbox {
                    Some((_, inbox)) => inbox.changed().await,
                    None => std::future::pending().await,
                }
            };
            let changed = tokio::select! {
                changed = self.health.changed() => changed,
                changed = inbox => changed,
            };
            self.tell();
            if changed.is_err() {
                // A part ended: that ends the program.
                std::future::pending::<()>().await;
            }
        }
    }
}
