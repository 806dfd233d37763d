//! What operators and probes ask: `/metrics`, `/livez`, `/readyz`.

use crate::auth::Policy;
use crate::drain::Drain;
use crate::listener::IntoListener;
use crate::web;
use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::get;
use http::{StatusCode, header};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// Paths that need no token: probes carry none.
const PROBES: [&str; 2] = ["/livez", "/readyz"];

/// Metrics and readiness of a program. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Admin {
    shared: Arc<Shared>,
    drain: Drain,
    policy: Policy,
}

#[derive(Debug)]
struct Shared {
    registry: Mutex<Registry>,
    parts: Mutex<Parts>,
}

#[derive(Debug, Default)]
struct Parts {
    next: u64,
    /// Why a part is not ready, by its name and number; ready parts are not in here.
    waiting: BTreeMap<(String, u64), String>,
    /// What parts that are ready say besides.
    notes: BTreeMap<(String, u64), String>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct BuildInfo {
    version: &'static str,
}

/// One part's say in whether the program is ready. The program is when all its parts are, and it is not draining.
///
/// A part that ends without a word keeps what it said last: a crashed part that was not ready stays not ready.
#[derive(Debug)]
pub struct Readiness {
    shared: Arc<Shared>,
    key: (String, u64),
}

impl Admin {
    /// `version` of the program: `env!("CARGO_PKG_VERSION")`.
    pub fn new(version: &'static str, drain: Drain) -> Self {
        let mut registry = Registry::default();
        let info = Family::<BuildInfo, Gauge>::default();
        info.get_or_create(&BuildInfo { version }).set(1);
        registry.register("otto_build_info", "Version of the program; the value is always 1", info);
        let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        registry.register(
            "process_start_time_seconds",
            "Start of the process as seconds since the Unix epoch",
            ConstGauge::new(started),
        );
        let shared = Shared { registry: Mutex::new(registry), parts: Mutex::default() };
        Admin { shared: Arc::new(shared), drain, policy: Policy::open() }
    }

    /// Demands what the policy demands for `/metrics`; probes stay open.
    #[must_use]
    pub fn with_policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Where metrics are registered. Do not hold it across an await.
    pub fn registry(&self) -> MutexGuard<'_, Registry> {
        self.shared.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new part of the program, of this name (shown by `/readyz`), which is not ready yet.
    pub fn readiness(&self, name: impl Into<String>) -> Readiness {
        let mut parts = self.shared.parts();
        parts.next += 1;
        let key = (name.into(), parts.next);
        parts.waiting.insert(key.clone(), "is starting".to_owned());
        Readiness { shared: self.shared.clone(), key }
    }

    /// Whether all parts are ready and the program is not draining; otherwise why not, a line each.
    pub fn ready(&self) -> Result<(), String> {
        let mut reasons: Vec<String> = Vec::new();
        if self.drain.is_requested() {
            reasons.push("draining".to_owned());
        }
        reasons.extend(self.shared.parts().waiting.iter().map(|((name, _), reason)| format!("{name}: {reason}")));
        if reasons.is_empty() { Ok(()) } else { Err(reasons.join("\n")) }
    }

    /// All metrics in the OpenMetrics text format.
    pub fn metrics(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry());
        text
    }

    /// `/metrics`, `/livez` (200 while the process runs), `/readyz` (200, or 503 with the reasons): to be served alone
    /// or merged into a program's router. The policy is not applied: see [`Admin::serve`].
    pub fn router(&self) -> Router {
        Router::new()
            .route("/metrics", get(metrics))
            .route("/livez", get(async || "ok\n"))
            .route("/readyz", get(readyz))
            .with_state(self.clone())
    }

    /// Serves [`Admin::router`] under the policy until drained.
    ///
    /// # Errors
    /// If the listener is broken.
    pub async fn serve(&self, listener: impl IntoListener, drain: Drain) -> anyhow::Result<()> {
        let limits = web::Limits { max_connections: 64, ..web::Limits::default() };
        web::serve(self.router().layer(self.policy.http_layer(&PROBES)), listener, limits, drain).await
    }
}

impl Shared {
    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Readiness {
    /// The part does its work.
    pub fn ready(&self) {
        let mut parts = self.shared.parts();
        parts.waiting.remove(&self.key);
        parts.notes.remove(&self.key);
    }

    /// The part does its work, and has something to say that `/readyz` shows: `stands by; … leads`.
    pub fn ready_saying(&self, note: impl Into<String>) {
        let mut parts = self.shared.parts();
        parts.waiting.remove(&self.key);
        parts.notes.insert(self.key.clone(), note.into());
    }

    /// The part cannot do its work, and why: `cannot reach Redis at …`.
    pub fn not_ready(&self, reason: impl Into<String>) {
        let mut parts = self.shared.parts();
        parts.notes.remove(&self.key);
        parts.waiting.insert(self.key.clone(), reason.into());
    }
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], admin.metrics())
}

async fn readyz(State(admin): State<Admin>) -> (StatusCode, String) {
    match admin.ready() {
        Ok(()) => {
            let notes: String =
                admin.shared.parts().notes.iter().map(|((name, _), note)| format!("{name}: {note}\n")).collect();
            (StatusCode::OK, format!("ready\n{notes}"))
        }
        Err(reasons) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready\n{reasons}\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_every_part_is() {
        let drain = Drain::new();
        let admin = Admin::new("1.2.3", drain.clone());
        assert_eq!(admin.ready(), Ok(()));
        let (redis, store) = (admin.readiness("redis"), admin.readiness("store"));
        assert_eq!(admin.ready(), Err("redis: is starting\nstore: is starting".to_owned()));
        redis.ready();
        store.ready();
        assert_eq!(admin.ready(), Ok(()));
        redis.not_ready("connection refused");
        drop(redis);
        assert_eq!(admin.ready(), Err("redis: connection refused".to_owned()));
        drain.request();
        assert_eq!(admin.ready(), Err("draining\nredis: connection refused".to_owned()));
    }

    #[test]
    fn metrics_have_their_conventional_names() {
        let text = Admin::new("1.2.3", Drain::new()).metrics();
        assert!(text.contains("otto_build_info{version=\"1.2.3\"} 1\n"), "{text}");
        assert!(text.contains("\nprocess_start_time_seconds "), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
