//! Metrics of calls, named like those of other gRPC servers (`go-grpc-prometheus`).

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use prost::Message as _;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tonic::Code;

/// From half a millisecond to half a minute; streams live longer and count in the last.
const BUCKETS: [f64; 11] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0, 30.0];

const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct MethodLabels {
    grpc_service: String,
    grpc_method: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct HandledLabels {
    grpc_service: String,
    grpc_method: String,
    grpc_code: &'static str,
}

/// A server's metrics.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    handled: Family<HandledLabels, Counter>,
    seconds: Family<MethodLabels, Histogram, fn() -> Histogram>,
    in_flight: Family<MethodLabels, Gauge>,
    pub(super) connections: Gauge,
    pub(super) refused: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            handled: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            in_flight: Family::default(),
            connections: Gauge::default(),
            refused: Counter::default(),
        }
    }
}

impl Metrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("grpc_server_handled", "Calls ended, by their status code", self.handled.clone());
        registry.register(
            "grpc_server_handling_seconds",
            "Time from a call's headers to its end in seconds",
            self.seconds.clone(),
        );
        registry.register("grpc_server_in_flight", "Calls going on now", self.in_flight.clone());
        registry.register("grpc_server_connections", "Connections open now", self.connections.clone());
        registry.register(
            "grpc_server_connections_refused",
            "Connections refused because there were too many",
            self.refused.clone(),
        );
    }

    /// One entry per method of the services served, by path. Labels come from here alone, so that no caller can make
    /// up new ones.
    pub(super) fn methods(&self, descriptors: &[&[u8]], services: &[&str]) -> Methods {
        let mut by_path = HashMap::new();
        for set in descriptors {
            let Ok(set) = prost_types::FileDescriptorSet::decode(*set) else { continue };
            for file in &set.file {
                for service in &file.service {
                    let full = match file.package() {
                        "" => service.name().to_owned(),
                        package => format!("{package}.{}", service.name()),
                    };
                    if !services.contains(&full.as_str()) {
                        continue;
                    }
                    for method in &service.method {
                        let path = format!("/{full}/{}", method.name());
                        by_path.insert(path, Arc::new(Method::new(self, &full, method.name())));
                    }
                }
            }
        }
        Methods { by_path, unknown: Arc::new(Method::new(self, "unknown", "unknown")) }
    }
}

/// The methods of a server.
#[derive(Debug)]
pub(super) struct Methods {
    by_path: HashMap<String, Arc<Method>>,
    unknown: Arc<Method>,
}

impl Methods {
    pub(super) fn by_path(&self, path: &str) -> &Arc<Method> {
        self.by_path.get(path).unwrap_or(&self.unknown)
    }
}

/// Metrics of one method.
#[derive(Debug)]
pub(super) struct Method {
    pub(super) service: String,
    pub(super) name: String,
    handled_family: Family<HandledLabels, Counter>,
    handled: [OnceLock<Counter>; CODES.len()],
    seconds: OnceLock<Histogram>,
    seconds_family: Family<MethodLabels, Histogram, fn() -> Histogram>,
    pub(super) in_flight: Gauge,
}

impl Method {
    fn new(metrics: &Metrics, service: &str, name: &str) -> Self {
        let labels = MethodLabels { grpc_service: service.to_owned(), grpc_method: name.to_owned() };
        Method {
            service: service.to_owned(),
            name: name.to_owned(),
            handled_family: metrics.handled.clone(),
            handled: Default::default(),
            seconds: OnceLock::new(),
            seconds_family: metrics.seconds.clone(),
            in_flight: metrics.in_flight.get_or_create_owned(&labels),
        }
    }

    pub(super) fn ended(&self, code: Code, after: Duration) {
        let index = (code as usize).min(CODES.len() - 1);
        let handled = self.handled[index].get_or_init(|| {
            self.handled_family.get_or_create_owned(&HandledLabels {
                grpc_service: self.service.clone(),
                grpc_method: self.name.clone(),
                grpc_code: CODES[index],
            })
        });
        handled.inc();
        let seconds = self.seconds.get_or_init(|| {
            self.seconds_family.get_or_create_owned(&MethodLabels {
                grpc_service: self.service.clone(),
                grpc_method: self.name.clone(),
            })
        });
        seconds.observe(after.as_secs_f64());
    }
}
