//! One trace from the event to the log server, at a real OTLP receiver.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use otto_testkit::{LogIngest, RedisServer, Scaler, eventually};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::system::{add, finished_workers};

/// (trace id, service name) of every span received.
#[derive(Clone, Default)]
struct Receiver(Arc<Mutex<BTreeSet<(String, String)>>>);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut seen = self.0.lock().expect("not poisoned");
        for spans in request.into_inner().resource_spans {
            let attributes = spans.resource.map(|resource| resource.attributes).unwrap_or_default();
            let service = attributes.into_iter().find(|pair| pair.key == "service.name");
            let name = match service.and_then(|pair| pair.value).and_then(|value| value.value) {
                Some(Value::StringValue(name)) => name,
                _ => String::new(),
            };
            for span in spans.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                let trace: String = span.trace_id.iter().map(|byte| format!("{byte:02x}")).collect();
                seen.insert((trace, name.clone()));
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn event_worker_and_log_server_are_in_one_trace() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = format!("http://{}", listener.local_addr()?);
    let receiver = Receiver::default();
    let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(receiver.clone()));
    let server = tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));

    let dir = tempfile::tempdir()?;
    let redis = RedisServer::start().await?;
    let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("OTEL_BSP_SCHEDULE_DELAY", "50")];
    let logs = LogIngest::start_with_env(dir.path(), &[], &env).await?;
    let (redis_url, log_url) = (redis.url(), logs.grpc_url());
    let flags = ["--redis-url", redis_url.as_str(), "--log-server", log_url.as_str()];
    let _scaler = Scaler::start_with_env(dir.path(), &flags, &env).await?;

    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let traceparent = format!("00-{trace}-00f067aa0ba902b7-01");
    let mut connection = redis.connect().await?;
    let event = [
        ("type", "scale_up"),
        ("task_id", "traced"),
        ("command", r#"["sh","-c","echo $TRACEPARENT"]"#),
        ("traceparent", &traceparent),
    ];
    add(&mut connection, &event).await?;
    finished_workers(&logs, "traced", 1).await?;
    let lines = crate::system::messages(&logs, "traced").await?;
    assert!(lines[0].contains(trace), "the job sees another trace: {lines:?}");
    for service in ["otto-scaler", "otto-worker", "otto-log-ingest"] {
        eventually(&format!("a span of {service} in the event's trace"), || async {
            let seen = receiver.0.lock().expect("not poisoned");
            seen.contains(&(trace.to_owned(), service.to_owned())).then_some(())
        })
        .await;
    }
    server.abort();
    Ok(())
}
