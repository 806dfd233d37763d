//! What Prometheus reads. No labels by task.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// One label: what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ResultLabel {
    pub(crate) result: &'static str,
}

/// One label: in which state.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct StateLabel {
    pub(crate) state: &'static str,
}

/// One label: a failure class.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ClassLabel {
    pub(crate) class: &'static str,
}

/// One label: where worker events go.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct SinkLabel {
    pub(crate) sink: &'static str,
}

/// Two labels: what was asked, and the answer's status code, or `error` if there was none.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabel {
    method: String,
    code: String,
}

/// Requests to the Kubernetes API server, by method and status code.
#[derive(Clone, Debug, Default)]
pub(crate) struct ApiRequests(Family<RequestLabel, Counter>);

impl ApiRequests {
    /// Counts one. `status`: `None` if there was no answer.
    pub(crate) fn answered(&self, method: &http::Method, status: Option<http::StatusCode>) {
        let code = status.map_or_else(|| "error".to_owned(), |status| status.as_str().to_owned());
        self.0.get_or_create(&RequestLabel { method: method.to_string(), code }).inc();
    }
}

/// Cheap to clone: every metric shares its value.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    /// Events by what came of them: `applied`, `already_processed`, `dead_letter`, `lost`, `unavailable`.
    pub(crate) events: Family<ResultLabel, Counter>,
    /// Workers now: `queued`, `created`, `running`, `stopping`.
    pub(crate) workers: Family<StateLabel, Gauge>,
    /// 1: this replica leads.
    pub(crate) leader: Gauge,
    /// Tasks that have not ended.
    pub(crate) live_tasks: Gauge,
    /// Workers whose job has ended, and which take a place all the same.
    pub(crate) lingering: Gauge,
    /// From the event's acceptance to the job's first instruction, in seconds; first attempts without backoff only.
    pub(crate) start_seconds: Histogram,
    /// Attempts that ended, by class (`success` too).
    pub(crate) ended: Family<ClassLabel, Counter>,
    /// Attempts that are tried again, by the class of the failure.
    pub(crate) retries: Family<ClassLabel, Counter>,
    /// Calls to the driver that failed and are made again.
    pub(crate) driver_errors: Counter,
    /// Calls to the task store that failed and are made again.
    pub(crate) store_errors: Counter,
    /// Requests to the Kubernetes API server.
    pub(crate) api_requests: ApiRequests,
    /// Worker events that did not fit the queue of a sink (they are derived from the records again later).
    pub(crate) worker_events_overflowed: Family<SinkLabel, Counter>,
    /// Worker events that a sink will never take.
    pub(crate) worker_events_refused: Family<SinkLabel, Counter>,
    /// Worker events taken by a sink.
    pub(crate) worker_events_sent: Family<SinkLabel, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            events: Family::default(),
            workers: Family::default(),
            leader: Gauge::default(),
            live_tasks: Gauge::default(),
            lingering: Gauge::default(),
            start_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 18)),
            ended: Family::default(),
            retries: Family::default(),
            driver_errors: Counter::default(),
            store_errors: Counter::default(),
            api_requests: ApiRequests::default(),
            worker_events_overflowed: Family::default(),
            worker_events_refused: Family::default(),
            worker_events_sent: Family::default(),
        }
    }
}

impl Metrics {
    /// Counts one event.
    pub(crate) fn event(&self, result: &'static str) {
        self.events.get_or_create(&ResultLabel { result }).inc();
    }

    /// Makes all of them readable under `otto_scaler_…`.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("otto_scaler");
        // From the start, so that the first one of each is a change.
        for result in ["applied", "already_processed", "dead_letter", "lost", "unavailable"] {
            let _ = self.events.get_or_create(&ResultLabel { result });
        }
        registry.register("events", "Scaling events by what came of them", self.events.clone());
        registry.register("workers", "Workers by state", self.workers.clone());
        registry.register("leader", "1: this replica leads; 0: it stands by", self.leader.clone());
        registry.register("live_tasks", "Tasks that have not ended", self.live_tasks.clone());
        registry.register(
            "lingering_workers",
            "Workers whose job has ended and whose log is not delivered: they take a place",
            self.lingering.clone(),
        );
        registry.register_with_unit(
            "start",
            "From accepting an event to the job's start (first attempts)",
            Unit::Seconds,
            self.start_seconds.clone(),
        );
        registry.register("attempts_ended", "Attempts that ended, by class", self.ended.clone());
        registry.register("retries", "Attempts that are tried again, by the failure's class", self.retries.clone());
        registry.register("driver_errors", "Driver calls that failed", self.driver_errors.clone());
        registry.register("store_errors", "Task store calls that failed", self.store_errors.clone());
        registry.register(
            "kubernetes_requests",
            "Requests to the Kubernetes API server, by method and status code (`error`: no answer)",
            self.api_requests.0.clone(),
        );
        registry.register(
            "worker_events_overflowed",
            "Worker events that did not fit a sink's queue",
            self.worker_events_overflowed.clone(),
        );
        registry.register(
            "worker_events_refused",
            "Worker events that a sink refuses; they are left out",
            self.worker_events_refused.clone(),
        );
        registry.register("worker_events_sent", "Worker events taken by a sink", self.worker_events_sent.clone());
    }
}
