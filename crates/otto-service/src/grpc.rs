//! The gRPC server.
//!
//! tonic's services on hyper's HTTP/2 connection, with an accept loop of our own: tonic's server has no bound on
//! connections, spins when descriptors run out, waits forever for a client that never speaks, and drains without a
//! deadline.
//!
//! ```no_run
//! # use otto_service::{auth, drain, grpc};
//! # async fn example<S>(service: S, limits: grpc::Limits, auth: auth::ServerAuth, addr: std::net::SocketAddr) -> anyhow::Result<()>
//! # where S: tower::Service<http::Request<tonic::body::Body>, Error = std::convert::Infallible, Response = http::Response<tonic::body::Body>, Future: Send>
//! #    + tonic::server::NamedService + Clone + Send + Sync + 'static {
//! # const DESCRIPTORS: &[u8] = &[];
//! let listener = grpc::bind("--grpc-addr", addr)?;
//! let policy = auth.policy(&[listener.local_addr()?])?;
//! let (drain, _abort) = drain::signals()?;
//! grpc::Server::new(limits, policy).descriptors(DESCRIPTORS).add_service(service).serve(listener, drain).await
//! # }
//! ```

mod call;
mod connection;
mod health;
mod limits;
mod metrics;
mod server;

pub use crate::listener::{IntoListener, bind, raise_descriptor_limit};
pub use health::HealthReporter;
pub use limits::Limits;
pub use server::Server;

use tonic::{Code, Status};

/// Turns tonic's OUT_OF_RANGE for a message over the size limit into RESOURCE_EXHAUSTED, which the gRPC specification
/// asks for (<https://grpc.github.io/grpc/core/md_doc_statuscodes.html>); every other status stays.
///
/// [`Server`] does so for each status it sends; services and clients need it for what they read from a stream.
pub fn map_decode_status(status: Status) -> Status {
    const PREFIX: &str = "Error, decoded message length too large: ";
    match status.message().strip_prefix(PREFIX) {
        Some(sizes) if status.code() == Code::OutOfRange => {
            Status::resource_exhausted(format!("the message is too large: {sizes}"))
        }
        _ => status,
    }
}
