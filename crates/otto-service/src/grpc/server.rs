//! Putting services, health, reflection and bounds together.

use super::call::Calls;
use super::connection::Protocol;
use super::metrics::Metrics;
use super::{HealthReporter, Limits};
use crate::admin::Admin;
use crate::auth::Policy;
use crate::drain::Drain;
use crate::listener::{Accept, IntoListener};
use anyhow::Context as _;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;
use tower::{Layer as _, Service};

/// What is left of calls after their connections were closed gets so long to notice.
const LAST_CALLS: Duration = Duration::from_secs(1);
const HEALTH: &str = "grpc.health.v1.Health";
const REFLECTION: [&str; 2] = ["grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"];

/// A gRPC server: services, and for each of them health and reflection.
///
/// Everything but `grpc.health.v1.Health` needs what the [`Policy`] demands.
#[derive(Clone, Debug)]
pub struct Server {
    limits: Limits,
    policy: Policy,
    routes: Routes,
    names: Vec<&'static str>,
    descriptors: Vec<&'static [u8]>,
    health: HealthReporter,
    metrics: Metrics,
}

impl Server {
    /// A server without services.
    ///
    /// The health of `grpc.health.v1.Health` itself says that the server answers and is not draining, whatever its services say: for
    /// probes that must not end a program because something else is away.
    pub fn new(limits: Limits, policy: Policy) -> Self {
        let health = HealthReporter::new();
        health.add(HEALTH);
        Server {
            limits,
            policy,
            routes: Routes::default(),
            names: Vec::new(),
            descriptors: Vec::new(),
            health,
            metrics: Metrics::default(),
        }
    }

    /// Adds a service. Its health is SERVING unless [`Server::health`] says otherwise, and reflection lists it.
    ///
    /// Give the generated server its message size: `.max_decoding_message_size(limits.max_message_size())`.
    #[must_use]
    pub fn add_service<S>(mut self, service: S) -> Self
    where
        S: Service<http::Request<Body>, Error = Infallible> + NamedService + Clone + Send + Sync + 'static,
        S::Response: axum::response::IntoResponse,
        S::Future: Send + 'static,
    {
        self.health.add(S::NAME);
        self.names.push(S::NAME);
        self.routes = self.routes.add_service(service);
        self
    }

    /// Adds a serialised `FileDescriptorSet` for reflection and for the names of methods in metrics:
    /// `otto_proto::FILE_DESCRIPTOR_SET`. Services in it that were not added are not listed.
    #[must_use]
    pub fn descriptors(mut self, set: &'static [u8]) -> Self {
        self.descriptors.push(set);
        self
    }

    /// Registers the server's metrics (`grpc_server_…`). Once per program.
    #[must_use]
    pub fn metrics(self, admin: &Admin) -> Self {
        self.metrics.register(&mut admin.registry());
        self
    }

    /// Where services tell whether they can do their work.
    pub fn health(&self) -> HealthReporter {
        self.health.clone()
    }

    /// Serves until draining is requested and all calls have ended, at most [`Limits::drain_timeout`] later.
    ///
    /// Endless streams of a service should end by themselves on `drain`; the deadline cuts those that do not.
    ///
    /// # Errors
    /// If the listener is broken, or a descriptor set cannot be read.
    pub async fn serve(self, listener: impl IntoListener, drain: Drain) -> anyhow::Result<()> {
        let listener = listener.into_listener().context("the listening socket is broken")?;
        let local = listener.local_addr().ok();
        let routes = self.routes(&drain)?;
        let methods = Arc::new(self.methods());
        let service = self.policy.grpc_layer().layer(routes);
        let calls = TaskTracker::new();
        let protocol = Protocol::new(&self.limits, calls.clone());

        let accept = Accept {
            protocol: "gRPC",
            max_connections: usize::try_from(self.limits.connections).unwrap_or(usize::MAX),
            drain_timeout: self.limits.drain_timeout,
            refusal: Some(refuse),
            open: self.metrics.connections.clone(),
            refused: self.metrics.refused.clone(),
        };
        let result = accept
            .run(listener, &drain, |stream, peer, draining| {
                let calls = Calls { inner: service.clone(), methods: methods.clone(), local, peer };
                protocol.clone().serve(stream, calls, draining)
            })
            .await;
        calls.close();
        if tokio::time::timeout(LAST_CALLS, calls.wait()).await.is_err() {
            tracing::warn!(calls = calls.len(), "calls have not ended although their connections are closed");
        }
        result
    }

    fn routes(&self, drain: &Drain) -> anyhow::Result<Routes> {
        let mut v1 = self.reflection();
        let mut v1alpha = self.reflection();
        for set in &self.descriptors {
            v1 = v1.register_encoded_file_descriptor_set(set);
            v1alpha = v1alpha.register_encoded_file_descriptor_set(set);
        }
        let routes = self
            .routes
            .clone()
            .add_service(HealthServer::new(self.health.service(drain.clone())))
            .add_service(v1.build_v1().context("the descriptors for reflection")?)
            .add_service(v1alpha.build_v1alpha().context("the descriptors for reflection")?);
        let offered = self.names.join(", ");
        let router = routes.into_axum_router().fallback(async move |request: axum::extract::Request| {
            let path = request.uri().path().trim_start_matches('/');
            let service = path.split('/').next().unwrap_or_default();
            Status::unimplemented(format!("there is no service {service:?} here, but {offered}"))
                .into_http::<Body>()
                .map(axum::body::Body::new)
        });
        Ok(Routes::from(router).prepare())
    }

    fn reflection(&self) -> tonic_reflection::server::Builder<'static> {
        let mut builder = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
        for name in self.names.iter().copied().chain([HEALTH]).chain(REFLECTION) {
            builder = builder.with_service_name(name);
        }
        builder
    }

    fn methods(&self) -> super::metrics::Methods {
        let mut sets: Vec<&[u8]> = vec![
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ];
        sets.extend(&self.descriptors);
        let names: Vec<&str> = self.names.iter().copied().chain([HEALTH]).chain(REFLECTION).collect();
        self.metrics.methods(&sets, &names)
    }
}

/// Tells a client on a connection over the limit why it is closed: empty SETTINGS, then GOAWAY with
/// ENHANCE_YOUR_CALM (RFC 9113, section 6.8).
fn refuse(stream: &TcpStream) {
    const REASON: &[u8] = b"too many connections";
    let mut frames = vec![0, 0, 0, 4, 0, 0, 0, 0, 0];
    frames.extend([0, 0, 8 + REASON.len() as u8, 7, 0, 0, 0, 0, 0]);
    frames.extend([0, 0, 0, 0, 0, 0, 0, 0xb]);
    frames.extend(REASON);
    // Best effort: the connection is closed either way.
    let _ = stream.try_write(&frames);
}
