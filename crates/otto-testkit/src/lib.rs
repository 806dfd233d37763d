//! Dev-only: starts the real programs, a real Redis and a real Kubernetes control plane for tests, and ends what it
//! started.
//!
//! Everything is waited for by its state with a bound, never by a duration; ports are chosen by the kernel, or proved to
//! be ours after the fact.

mod control_plane;
mod fault_proxy;
mod process;
mod redis_server;
mod services;

pub use control_plane::{
    AuditEvent, AuditObject, AuditStatus, AuditUser, ControlPlane, Namespace, Options as ControlPlaneOptions,
    PodHistory, Webhook, scaler_rules,
};
pub use fault_proxy::{Asked, Fault, FaultProxy, Fired, Rule};
pub use process::{Process, binary, program};
pub use redis_server::RedisServer;
pub use services::{
    AnyScaler, LogIngest, LogIngestProgram, PodScaler, PodScalerProgram, Program, Scaler, ScalerProgram, Service,
};

use std::future::Future;
use std::time::{Duration, Instant};

/// How long a test waits for a state before it fails. Generous: the machine may be loaded.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `probe` gives a value.
///
/// # Panics
/// After [`PATIENCE`], with `what` in the message.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut probe: impl FnMut() -> F) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = probe().await {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until `probe` gives a value, as long as it gets on: patience begins anew whenever what it counts (`Err`) has risen.
///
/// # Panics
/// When nothing has risen for [`PATIENCE`], with `what` in the message.
pub async fn eventually_progressing<T, F>(what: &str, mut probe: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, usize>>,
{
    let (mut most, mut since) = (0, Instant::now());
    loop {
        let count = match probe().await {
            Ok(value) => return value,
            Err(count) => count,
        };
        if count > most {
            (most, since) = (count, Instant::now());
        }
        assert!(since.elapsed() < PATIENCE, "no progress within {PATIENCE:?} after {most}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
