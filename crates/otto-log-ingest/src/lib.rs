//! The log server: takes the output of workers over gRPC, keeps it in the embedded store, and serves it over gRPC and
//! HTTP. The program is `main.rs`; everything it does is here, so that a test can run it in its own process.
//!
//! - `grpc`: the edge. Parses, authenticates, maps errors; one module per service.
//! - `session`: what happens to a stream of lines: numbering, duplicates, holes, takeover, acknowledgements.
//! - [`query`]: reading, merging, filtering, following. Knows no transport; gRPC and HTTP both use it.
//! - [`http`]: JSON, Server-Sent Events, raw download, the page.
//!
//! **Invariants.** An acknowledgement is sent only after the store said that the line is on disk. No line is dropped
//! without a gap record. A reader never slows a writer. Memory is bounded whatever clients do.

mod app;
mod grpc;
pub mod http;
mod metrics;
pub mod query;
pub mod registry;
pub mod server;
mod session;
pub mod settings;

pub use app::AppState;
