//! The gRPC edge: one module per service. Parses, traces, maps errors; decides nothing.

mod events;
mod query;
mod status;
mod streaming;

use otto_proto::v1::log_query_service_server::LogQueryServiceServer;
use otto_proto::v1::log_streaming_service_server::LogStreamingServiceServer;
use otto_proto::v1::worker_event_service_server::WorkerEventServiceServer;
use otto_service::grpc::{Limits, Server};
use tonic::codec::CompressionEncoding;
use tonic::server::NamedService;

use crate::query::Query;
use crate::session::Context;

/// The one service that workers need.
pub(crate) const FOR_WORKERS: &str = <LogStreamingServiceServer<streaming::Streaming> as NamedService>::NAME;
/// Services that cannot do their work while the store cannot write.
pub(crate) const WRITING: [&str; 2] = [FOR_WORKERS, <WorkerEventServiceServer<events::Events> as NamedService>::NAME];
/// Services that only read the store.
pub(crate) const READING: [&str; 1] = [<LogQueryServiceServer<query::Queries> as NamedService>::NAME];

/// Adds the services of a log server.
pub(crate) fn add_services(server: Server, limits: &Limits, context: &Context, query: Query) -> Server {
    let size = limits.max_message_size();
    let streaming = LogStreamingServiceServer::new(streaming::Streaming(context.clone()))
        .max_decoding_message_size(size)
        .accept_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Zstd);
    let events = WorkerEventServiceServer::new(events::Events(context.clone()))
        .max_decoding_message_size(size)
        .accept_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Zstd);
    let queries = LogQueryServiceServer::new(query::Queries { query, drain: context.drain.clone() })
        .max_decoding_message_size(size)
        .send_compressed(CompressionEncoding::Zstd)
        .send_compressed(CompressionEncoding::Gzip);
    server.descriptors(otto_proto::FILE_DESCRIPTOR_SET).add_service(streaming).add_service(events).add_service(queries)
}
