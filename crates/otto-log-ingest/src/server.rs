//! Puts the parts together and runs them.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use otto_log_store::{Health, Store};
use otto_service::admin::{Admin, Readiness};
use otto_service::auth::{Policy, Scope};
use otto_service::drain::Drain;
use otto_service::grpc::{self, HealthReporter};
use otto_service::web;
use tokio_util::task::TaskTracker;

use crate::AppState;
use crate::grpc::{FOR_WORKERS, READING, WRITING, add_services};
use crate::metrics::Metrics;
use crate::query::Query;
use crate::registry::Registry;
use crate::session::Context;
use crate::session::memory::Memory;
use crate::settings::Settings;

/// How long sessions may take to store what they have read, after their connections have ended.
const LAST_SESSIONS: Duration = Duration::from_secs(5);

/// Sockets that are bound, and whom they let in.
#[derive(Debug)]
pub struct Bound {
    grpc: TcpListener,
    http: TcpListener,
    policy: Policy,
}

impl Bound {
    /// Binds both addresses and checks that they may be served.
    ///
    /// # Errors
    /// Names the flag, what was wrong, and what to do.
    pub fn new(settings: &Settings) -> anyhow::Result<Self> {
        if settings.limits.max_line_bytes.as_usize() + (64 << 10) > settings.grpc.max_message_size() {
            anyhow::bail!(
                "--grpc-max-message-size must be larger than --max-line-bytes by 64KiB at least ({} and {} bytes)",
                settings.grpc.max_message_size(),
                settings.limits.max_line_bytes.as_u64()
            );
        }
        let mut policy = settings.auth.policy(&[settings.grpc_addr, settings.http_addr])?;
        if let Some(path) = &settings.worker_token_file {
            policy = policy.with_limited(path, "--worker-token-file", Scope::Service(FOR_WORKERS))?;
        }
        let grpc = grpc::bind("--grpc-addr", settings.grpc_addr)?;
        let http = grpc::bind("--http-addr", settings.http_addr)?;
        Ok(Self { grpc, http, policy })
    }

    /// Address of the gRPC services, with its real port.
    ///
    /// # Errors
    /// If the socket is broken.
    pub fn grpc_addr(&self) -> std::io::Result<SocketAddr> {
        self.grpc.local_addr()
    }

    /// Address of the page and the HTTP API, with its real port.
    ///
    /// # Errors
    /// If the socket is broken.
    pub fn http_addr(&self) -> std::io::Result<SocketAddr> {
        self.http.local_addr()
    }
}

/// Serves until drained, then closes the store.
///
/// # Errors
/// If a listener breaks, or the store can no longer write: then the process must end and open it again.
pub async fn run(settings: Settings, bound: Bound, store: Store, drain: Drain) -> anyhow::Result<()> {
    let (grpc_addr, http_addr) = (bound.grpc_addr()?, bound.http_addr()?);
    let admin = Admin::new(env!("CARGO_PKG_VERSION"), drain.clone()).with_policy(bound.policy.clone());
    let metrics = Metrics::register(&mut admin.registry(), store.clone());
    let limits = Arc::new(settings.limits.clone());
    let registry = Arc::new(Registry::new(
        limits.max_workers as usize,
        limits.worker_ttl,
        limits.max_sessions as usize,
        metrics.sessions.clone(),
    ));
    let query = Query::new(store.clone(), registry.clone(), &limits, &metrics);
    let tasks = TaskTracker::new();
    let context = Context {
        store: store.clone(),
        registry: registry.clone(),
        memory: Memory::new(limits.max_held_bytes.as_usize()),
        limits,
        metrics,
        drain: drain.token(),
        tasks: tasks.clone(),
    };
    let state = AppState { store: store.clone(), query: query.clone(), registry, drain: drain.token() };

    let server = grpc::Server::new(settings.grpc.clone(), bound.policy.clone()).metrics(&admin);
    let server = add_services(server, &settings.grpc, &context, query);
    let health = watch_store(store.clone(), server.health(), admin.readiness("store"), drain.clone());
    let router = crate::http::router(state, &bound.policy, admin.router());
    let web_limits = web::Limits { max_connections: settings.http_max_connections as usize, ..web::Limits::default() };
    if let Some(file) = &settings.ready_file {
        write_ready_file(file, grpc_addr, http_addr)?;
    }
    tracing::info!(%grpc_addr, %http_addr, data_dir = %settings.store.data_dir.display(), "serving");

    let (grpc, http, health) = tokio::join!(
        ended(server.serve(bound.grpc, drain.clone()), &drain),
        ended(web::serve(router, bound.http, web_limits, drain.clone()), &drain),
        health,
    );
    tasks.close();
    if tokio::time::timeout(LAST_SESSIONS, tasks.wait()).await.is_err() {
        tracing::warn!(sessions = tasks.len(), "sessions have not ended although their connections are closed");
    }
    store.close().await;
    tracing::info!("stopped");
    health.and(grpc).and(http)
}

/// A server that ends by itself ends the program.
async fn ended(server: impl Future<Output = anyhow::Result<()>>, drain: &Drain) -> anyhow::Result<()> {
    let result = server.await;
    drain.request();
    result
}

/// Tells the truth about the store until the program drains; drains it when the store has failed.
async fn watch_store(store: Store, reporter: HealthReporter, readiness: Readiness, drain: Drain) -> anyhow::Result<()> {
    let mut health = store.watch_health();
    loop {
        let now = health.borrow_and_update().clone();
        match now {
            Health::Ok => {
                WRITING.iter().for_each(|service| reporter.set_serving(service));
                readiness.ready();
            }
            Health::DiskFull => {
                tracing::error!("the disk is full: workers keep their lines until there is space; readers are served");
                WRITING.iter().for_each(|service| reporter.set_not_serving(service));
                // Readers need this server: it stays ready.
                readiness.ready();
            }
            Health::Failed(error) => {
                tracing::error!(
                    error,
                    "the log store cannot write any more; the program ends and must be started again"
                );
                WRITING.iter().chain(&READING).for_each(|service| reporter.set_not_serving(service));
                readiness.not_ready("the log store cannot write");
                drain.request();
                anyhow::bail!("the log store cannot write: {error}");
            }
        }
        tokio::select! {
            changed = health.changed() => if changed.is_err() {
                return Ok(());
            },
            () = drain.requested() => return Ok(()),
        }
    }
}

/// Whoever reads the file finds nothing or all of it.
fn write_ready_file(file: &Path, grpc_addr: SocketAddr, http_addr: SocketAddr) -> anyhow::Result<()> {
    let text = serde_json::json!({ "grpc_addr": grpc_addr.to_string(), "http_addr": http_addr.to_string() });
    let temporary = file.with_added_extension(format!("{}.tmp", std::process::id()));
    std::fs::write(&temporary, format!("{text}\n"))
        .and_then(|()| std::fs::rename(&temporary, file))
        .with_context(|| format!("cannot write {} (--ready-file)", file.display()))
}
