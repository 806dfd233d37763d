//! Export to a real OTLP receiver.

use crate::echo::{call, start, texts};
use crate::wait::{Program, until, within};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span as Exported;
use otto_service::auth::Policy;
use otto_service::drain::Drain;
use otto_service::grpc::{self, Limits, Server};
use otto_service::settings::Common;
use otto_service::telemetry;
use std::sync::{Arc, Mutex};
use tonic::{Request, Response, Status};
use tracing::Instrument as _;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

#[derive(Clone, Default)]
struct Receiver(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Receiver {
    fn spans(&self) -> Vec<Exported> {
        let requests = self.0.lock().unwrap();
        let resources = requests.iter().flat_map(|request| &request.resource_spans);
        resources.flat_map(|resource| &resource.scope_spans).flat_map(|scope| scope.spans.clone()).collect()
    }

    fn service_names(&self) -> Vec<String> {
        let requests = self.0.lock().unwrap();
        let resources =
            requests.iter().flat_map(|request| &request.resource_spans).filter_map(|spans| spans.resource.as_ref());
        let attributes = resources.flat_map(|resource| &resource.attributes).filter(|pair| pair.key == "service.name");
        attributes
            .filter_map(|pair| match pair.value.as_ref()?.value.as_ref()? {
                Value::StringValue(name) => Some(name.clone()),
                _ => None,
            })
            .collect()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn receiver() -> (Receiver, String, Drain) {
    let listener = grpc::bind("--grpc-addr", "127.0.0.1:0".parse().unwrap()).unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (receiver, drain) = (Receiver::default(), Drain::new());
    let server = Server::new(Limits::default(), Policy::open()).add_service(TraceServiceServer::new(receiver.clone()));
    tokio::spawn(server.serve(listener, drain.clone()));
    (receiver, endpoint, drain)
}

async fn run(mut program: Program) -> (bool, String) {
    within(
        "the program's end",
        tokio::task::spawn_blocking(move || {
            let output = std::io::read_to_string(program.child.stderr.take().unwrap()).unwrap();
            (program.child.wait().unwrap().success(), output)
        }),
    )
    .await
    .unwrap()
}

#[tokio::test]
async fn one_trace_goes_from_the_caller_s_context_through_client_and_server() {
    let (receiver, endpoint, _drain) = receiver().await;
    let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("RUST_LOG", "warn")];
    let (ok, stderr) = run(Program::start("telemetry::program_that_calls_itself", &env)).await;
    assert!(ok, "{stderr}");

    let spans = until("four spans", async || Some(receiver.spans()).filter(|spans| spans.len() >= 4)).await;
    let find = |name: &str, kind: i32| {
        let found: Vec<_> = spans.iter().filter(|span| span.name == name && span.kind == kind).collect();
        assert_eq!(found.len(), 1, "{name} {kind}: {spans:#?}");
        found[0].clone()
    };
    // Kinds of opentelemetry.proto.trace.v1.Span: 1 internal, 2 server, 3 client.
    let work = find("work", 1);
    let client = find("test.v1.Echo/Echo", 3);
    let server = find("test.v1.Echo/Echo", 2);
    assert_eq!(hex(&work.trace_id), TRACE);
    assert_eq!(hex(&work.parent_span_id), PARENT);
    assert_eq!(client.trace_id, work.trace_id);
    assert_eq!(client.parent_span_id, work.span_id);
    assert_eq!(server.trace_id, work.trace_id);
    assert_eq!(server.parent_span_id, client.span_id);
    let failed = find("test.v1.Echo/MadeUp", 3);
    assert_eq!(failed.status.unwrap().code, 2, "an error for the client");
    assert_eq!(server.status.unwrap_or_default().code, 0);
    assert_eq!(receiver.service_names()[0], "otto-test");
}

#[tokio::test]
async fn the_standard_variables_are_respected() {
    let (receiver, endpoint, _drain) = receiver().await;
    let base = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", endpoint.as_str());
    for (variables, expected) in [
        (&[base, ("OTEL_SERVICE_NAME", "renamed")][..], Some("renamed")),
        (&[base, ("OTEL_RESOURCE_ATTRIBUTES", "a=b,service.name=attribute")], Some("attribute")),
        (&[base, ("OTEL_SDK_DISABLED", "true")], None),
        (&[base, ("OTEL_TRACES_SAMPLER", "always_off")], None),
        (&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")], None),
    ] {
        receiver.0.lock().unwrap().clear();
        let (ok, stderr) = run(Program::start("telemetry::program_that_calls_itself", variables)).await;
        assert!(ok, "{stderr}");
        // The program has exported all it will when it ends.
        assert_eq!(receiver.service_names().first().map(String::as_str), expected, "{variables:?}");
    }
}

#[tokio::test]
async fn a_collector_that_is_away_or_impossible_harms_nobody() {
    for (endpoint, message) in [
        ("http://127.0.0.1:1", ""),
        ("https://127.0.0.1:1", "traces are not exported"),
        ("not a url", "traces are not exported"),
    ] {
        let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)];
        let (ok, stderr) = run(Program::start("telemetry::program_that_calls_itself", &env)).await;
        assert!(ok && stderr.contains(message), "{endpoint}: {stderr}");
    }
}

#[tokio::test]
async fn messages_are_filtered_by_rust_log_and_are_json_when_nobody_reads_them_on_a_terminal() {
    for (filter, written) in
        [("", true), ("error", false), ("otto_test=warn,error", true), ("info,otto_test=off", false)]
    {
        let (ok, stderr) = run(Program::start("telemetry::program_that_calls_itself", &[("RUST_LOG", filter)])).await;
        assert!(ok, "{stderr}");
        assert_eq!(stderr.contains("said within the span"), written, "{filter}: {stderr}");
    }
    let (ok, stderr) =
        run(Program::start("telemetry::program_that_calls_itself", &[("RUST_LOG", "otto_test=loud")])).await;
    assert!(!ok && stderr.contains("RUST_LOG"), "{stderr}");

    let (ok, stderr) = run(Program::start("telemetry::program_that_calls_itself", &[("RUST_LOG", "info")])).await;
    assert!(ok, "{stderr}");
    let line = stderr.lines().find(|line| line.contains("said within the span")).unwrap();
    assert!(line.starts_with('{') && line.ends_with('}') && line.contains("\"level\":\"WARN\""), "{line}");
    assert!(line.contains("\"answer\":42"), "{line}");
}

/// Not a test by itself: a program with telemetry, of the tests above.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a program for other tests"]
async fn program_that_calls_itself() {
    let guard = telemetry::init("otto-test", &Common::default()).unwrap();
    let work = tracing::info_span!(target: "otto_test", "work");
    telemetry::parent_from(&work, &format!("00-{TRACE}-{PARENT}-01"));
    telemetry::parent_from(&tracing::Span::none(), "garbage");
    async {
        tracing::warn!(target: "otto_test", answer = 42, "said within the span");
        let server = start(Limits::default());
        let channel = server.channel();
        let (send, requests) = texts();
        let mut echo = call(&channel, "Echo", requests).await.unwrap();
        send.send("x".to_owned()).await.unwrap();
        echo.message().await.unwrap();
        drop(send);
        assert_eq!(echo.message().await.unwrap(), None);
        let channel = channel.passing_on("00-00000000000000000000000000000001-0000000000000002-01");
        call(&channel, "MadeUp", futures::stream::iter([String::new()])).await.unwrap_err();
        drop(channel);
        server.drain.request();
        within("the server's end", server.ended).await.unwrap().unwrap();
    }
    .instrument(work.clone())
    .await;
    if let Some(traceparent) = telemetry::traceparent(&work) {
        assert!(traceparent.starts_with(&format!("00-{TRACE}-")), "{traceparent}");
    }
    drop(work);
    within("the last export", guard.shutdown()).await;
}
