//! `grpc.health.v1.Health`: <https://github.com/grpc/grpc/blob/master/doc/health-checking.md>.
//!
//! The empty name stands for the whole server: it serves while each of its services does. `tonic-health`'s own service
//! leaves that to the caller, answers `Watch` of an unknown service with an error, and holds up the drain.

use crate::drain::Drain;
use futures::Stream;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

type Statuses = BTreeMap<String, bool>;

/// Says which services can do their work. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct HealthReporter {
    statuses: Arc<watch::Sender<Statuses>>,
}

impl HealthReporter {
    pub(super) fn new() -> Self {
        HealthReporter { statuses: Arc::new(watch::Sender::new(Statuses::new())) }
    }

    /// The service of this full name (`ottoscaler.v1.OttoscalerService`) can do its work.
    pub fn set_serving(&self, service: &str) {
        self.set(service, true);
    }

    /// The service of this full name cannot do its work for now.
    pub fn set_not_serving(&self, service: &str) {
        self.set(service, false);
    }

    /// Nothing is said of it any more: it is none of this server's for now.
    pub fn forget(&self, service: &str) {
        self.statuses.send_if_modified(|statuses| statuses.remove(service).is_some());
    }

    /// A service just added serves, unless something else was said before.
    pub(super) fn add(&self, service: &str) {
        self.statuses.send_if_modified(|statuses| {
            let new = !statuses.contains_key(service);
            statuses.entry(service.to_owned()).or_insert(true);
            new
        });
    }

    fn set(&self, service: &str, serving: bool) {
        self.statuses.send_if_modified(|statuses| statuses.insert(service.to_owned(), serving) != Some(serving));
    }

    pub(super) fn service(&self, drain: Drain) -> HealthService {
        HealthService { statuses: self.statuses.subscribe(), drain }
    }
}

/// The gRPC service.
#[derive(Debug)]
pub(super) struct HealthService {
    statuses: watch::Receiver<Statuses>,
    drain: Drain,
}

fn status_of(statuses: &Statuses, service: &str, draining: bool) -> Option<ServingStatus> {
    let serving =
        if service.is_empty() { statuses.values().all(|serving| *serving) } else { *statuses.get(service)? };
    Some(if serving && !draining { ServingStatus::Serving } else { ServingStatus::NotServing })
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    let mut response = HealthCheckResponse::default();
    response.set_status(status);
    response
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let service = &request.get_ref().service;
        let status = status_of(&self.statuses.borrow(), service, self.drain.is_requested());
        match status {
            Some(status) => Ok(Response::new(response(status))),
            None => Err(Status::not_found(format!("this server has no service {service:?}"))),
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        struct Watch {
            statuses: watch::Receiver<Statuses>,
            drain: Drain,
            service: String,
            sent: Option<ServingStatus>,
            ended: bool,
        }
        let watch = Watch {
            statuses: self.statuses.clone(),
            drain: self.drain.clone(),
            service: request.into_inner().service,
            sent: None,
            ended: false,
        };
        let stream = futures::stream::unfold(watch, async |mut watch| {
            loop {
                if watch.ended {
                    return None;
                }
                watch.ended = watch.drain.is_requested();
                let status = status_of(&watch.statuses.borrow_and_update(), &watch.service, watch.ended)
                    .unwrap_or(ServingStatus::ServiceUnknown);
                if watch.sent != Some(status) {
                    watch.sent = Some(status);
                    return Some((Ok(response(status)), watch));
                }
                tokio::select! {
                    changed = watch.statuses.changed() => watch.ended |= changed.is_err(),
                    () = watch.drain.requested() => {}
                }
            }
        });
        Ok(Response::new(Box::pin(stream)))
    }
}
