//! Health, reflection, and what happens to calls.

use crate::echo::{self, NAME, Running, call, call_with, start, start_with, texts};
use crate::wait::within;
use futures::StreamExt as _;
use otto_service::admin::Admin;
use otto_service::auth::Policy;
use otto_service::client::Channel;
use otto_service::drain::Drain;
use otto_service::grpc::{self, Limits};
use otto_service::settings::ByteSize;
use std::time::Duration;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

async fn check(channel: &Channel, service: &str) -> Result<ServingStatus, Status> {
    let request = HealthCheckRequest { service: service.to_owned() };
    HealthClient::new(channel.clone()).check(request).await.map(|response| response.into_inner().status())
}

#[tokio::test]
async fn health_tells_the_truth_about_each_service() {
    let server = start(Limits::default());
    let channel = server.channel();
    assert_eq!(check(&channel, NAME).await.unwrap(), ServingStatus::Serving);
    assert_eq!(check(&channel, "").await.unwrap(), ServingStatus::Serving);

    server.health.set_not_serving(NAME);
    assert_eq!(check(&channel, NAME).await.unwrap(), ServingStatus::NotServing);
    assert_eq!(check(&channel, "").await.unwrap(), ServingStatus::NotServing, "the whole is not better than its parts");
    let own = check(&channel, "grpc.health.v1.Health").await.unwrap();
    assert_eq!(own, ServingStatus::Serving, "the server answers, whatever its services cannot do");
    server.health.set_serving(NAME);
    assert_eq!(check(&channel, "").await.unwrap(), ServingStatus::Serving);

    let error = check(&channel, "no.such.Service").await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    assert!(error.message().contains("no.such.Service"), "{error}");
}

#[tokio::test]
async fn health_can_be_watched_until_the_drain() {
    let server = start(Limits::default());
    let mut client = HealthClient::new(server.channel());
    let mut watch = async |service: &str| {
        let request = HealthCheckRequest { service: service.to_owned() };
        client.watch(request).await.unwrap().into_inner().map(|item| item.unwrap().status()).boxed()
    };
    let (mut known, mut unknown) = (watch(NAME).await, watch("later.v1.Service").await);
    assert_eq!(known.next().await, Some(ServingStatus::Serving));
    assert_eq!(unknown.next().await, Some(ServingStatus::ServiceUnknown));
    server.health.set_not_serving(NAME);
    assert_eq!(within("a change", known.next()).await, Some(ServingStatus::NotServing));
    server.health.set_serving(NAME);
    assert_eq!(within("a change", known.next()).await, Some(ServingStatus::Serving));
    server.health.set_serving("later.v1.Service");
    assert_eq!(within("a new service", unknown.next()).await, Some(ServingStatus::Serving));

    server.drain.request();
    assert_eq!(within("the drain", known.next()).await, Some(ServingStatus::NotServing));
    assert_eq!(within("the end", known.next()).await, None, "a watcher does not hold up the drain");
    within("the server's end", server.ended).await.unwrap().unwrap();
}

#[tokio::test]
async fn reflection_lists_and_describes_what_is_served() {
    use tonic_reflection::pb::{v1, v1alpha};
    let server = start(Limits::default());
    let channel = server.channel();
    let expected = [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        NAME,
    ];

    let ask = |message| v1::ServerReflectionRequest { host: String::new(), message_request: Some(message) };
    let requests = [
        ask(v1::server_reflection_request::MessageRequest::ListServices(String::new())),
        ask(v1::server_reflection_request::MessageRequest::FileContainingSymbol(NAME.to_owned())),
        ask(v1::server_reflection_request::MessageRequest::FileContainingSymbol("grpc.health.v1.Health".to_owned())),
    ];
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel.clone());
    let answers = client.server_reflection_info(futures::stream::iter(requests)).await.unwrap().into_inner();
    let answers: Vec<_> = answers.map(|answer| answer.unwrap().message_response.unwrap()).collect().await;
    let v1::server_reflection_response::MessageResponse::ListServicesResponse(list) = &answers[0] else {
        panic!("{answers:?}")
    };
    let mut names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, expected);
    for answer in &answers[1..] {
        assert!(
            matches!(answer, v1::server_reflection_response::MessageResponse::FileDescriptorResponse(_)),
            "{answer:?}"
        );
    }

    let request = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1alpha::server_reflection_request::MessageRequest::ListServices(String::new())),
    };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let mut answers = client.server_reflection_info(futures::stream::iter([request])).await.unwrap().into_inner();
    let answer = answers.next().await.unwrap().unwrap().message_response.unwrap();
    let v1alpha::server_reflection_response::MessageResponse::ListServicesResponse(list) = answer else { panic!() };
    assert_eq!(list.service.len(), expected.len());
}

#[tokio::test]
async fn a_message_over_the_limit_ends_its_own_stream_only() {
    let server = start(Limits { message_size: ByteSize::new(10_000), ..Limits::default() });
    let channel = server.channel();
    let (send, requests) = texts();
    send.send("first".to_owned()).await.unwrap();
    let mut other = call(&channel, "Echo", requests).await.unwrap();
    assert_eq!(other.message().await.unwrap().as_deref(), Some("first"));

    for _ in 0..20 {
        let big = futures::stream::iter(["fits".to_owned(), "x".repeat(100_000), "never read".to_owned()]);
        let mut stream = call(&channel, "Echo", big).await.unwrap();
        assert_eq!(stream.message().await.unwrap().as_deref(), Some("fits"));
        let error = stream.message().await.unwrap_err();
        assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
        assert!(error.message().contains("too large") && error.message().contains("10000 bytes"), "{error}");

        send.send("still here".to_owned()).await.unwrap();
        assert_eq!(within("the other stream", other.message()).await.unwrap().as_deref(), Some("still here"));
    }
}

#[tokio::test]
async fn what_a_client_reads_over_its_own_limit_can_be_mapped() {
    let server = start(Limits::default());
    let mut client = tonic::client::Grpc::new(server.channel()).max_decoding_message_size(1000);
    client.ready().await.unwrap();
    let request = Request::new(futures::stream::iter(["x".repeat(2000)]));
    let codec = tonic_prost::ProstCodec::<String, String>::default();
    let path = format!("/{NAME}/Echo").parse().unwrap();
    let mut stream = client.streaming(request, path, codec).await.unwrap().into_inner();
    let error = stream.message().await.unwrap_err();
    // Should tonic change its code or its text one day, the mapping has to follow.
    assert_eq!(error.code(), Code::OutOfRange);
    assert_eq!(grpc::map_decode_status(error).code(), Code::ResourceExhausted);
    assert_eq!(grpc::map_decode_status(Status::out_of_range("offset 7")).code(), Code::OutOfRange);
}

#[tokio::test]
async fn the_client_s_deadline_ends_a_call_on_the_server() {
    let server = start(Limits::default());
    let channel = server.channel();
    for method in ["Hang", "Stuck"] {
        let (_open, requests) = texts();
        let mut request = Request::new(requests);
        request.set_timeout(Duration::from_millis(300));
        let result = match within("headers", call_with(&channel, method, request)).await {
            Ok(mut stream) => match within("the first message", stream.message()).await {
                Ok(first) => {
                    assert_eq!(first.as_deref(), Some("hanging"));
                    within("the deadline", stream.message()).await
                }
                // The time may be up before it comes.
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        assert_eq!(result.unwrap_err().code(), Code::DeadlineExceeded, "{method}");
    }
}

#[tokio::test]
async fn an_unknown_service_is_named() {
    let server = start(Limits::default());
    let mut client = tonic::client::Grpc::new(server.channel());
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<String, String>::default();
    let path = "/ottoscaler.v1.Missing/Get".parse().unwrap();
    let error = client.unary(Request::new(String::new()), path, codec).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
    assert!(error.message().contains("ottoscaler.v1.Missing") && error.message().contains(NAME), "{error}");
}

#[tokio::test]
async fn calls_are_counted_by_method_and_code_and_by_nothing_a_caller_makes_up() {
    let admin = Admin::new("0", Drain::new());
    let limits = Limits { message_size: ByteSize::new(1000), ..Limits::default() };
    let server = start_with(limits, Policy::open(), |server| server.metrics(&admin));
    let channel = server.channel();
    let echo = async |text: String| {
        let mut stream = call(&channel, "Echo", futures::stream::iter([text])).await?;
        while stream.message().await?.is_some() {}
        Ok::<(), Status>(())
    };
    echo("a".to_owned()).await.unwrap();
    echo("b".to_owned()).await.unwrap();
    echo("x".repeat(2000)).await.unwrap_err();
    call(&channel, "MadeUp", futures::stream::iter([String::new()])).await.unwrap_err();
    let (open, requests) = texts();
    let mut hanging = call(&channel, "Hang", requests).await.unwrap();
    hanging.message().await.unwrap();
    let labels = |method: &str, code: &str| {
        let code = if code.is_empty() { String::new() } else { format!(",grpc_code=\"{code}\"") };
        format!("{{grpc_service=\"{NAME}\",grpc_method=\"{method}\"{code}}}")
    };
    assert!(admin.metrics().contains(&format!("grpc_server_in_flight{} 1\n", labels("Hang", ""))));
    // A call is cancelled when both of its directions are dropped.
    drop((open, hanging));
    let expected = [
        format!("grpc_server_handled_total{} 2\n", labels("Echo", "OK")),
        format!("grpc_server_handled_total{} 1\n", labels("Echo", "ResourceExhausted")),
        format!("grpc_server_handled_total{} 1\n", labels("Hang", "Canceled")),
        format!("grpc_server_in_flight{} 0\n", labels("Hang", "")),
        format!("grpc_server_handling_seconds_count{} 3\n", labels("Echo", "")),
        "grpc_server_handled_total{grpc_service=\"unknown\",grpc_method=\"unknown\",grpc_code=\"Unimplemented\"} 1\n"
            .to_owned(),
        "grpc_server_connections 1\n".to_owned(),
    ];
    crate::wait::until("the counts", async || {
        let text = admin.metrics();
        expected.iter().all(|line| text.contains(line)).then_some(())
    })
    .await;
    assert!(!admin.metrics().contains("MadeUp"));
    assert!(!admin.metrics().contains("NotServedHere"));
}

#[tokio::test]
async fn a_restarted_server_is_found_again_by_the_same_channel() {
    let first = start(Limits::default());
    let channel = first.channel();
    check(&channel, "").await.unwrap();
    let address = first.address;
    first.drain.request();
    within("the first server's end", first.ended).await.unwrap().unwrap();
    assert_eq!(check(&channel, "").await.unwrap_err().code(), Code::Unavailable);

    let listener = crate::wait::until("the address", async || grpc::bind("--grpc-addr", address).ok()).await;
    let drain = Drain::new();
    let server =
        grpc::Server::new(Limits::default(), Policy::open()).add_service(echo::Echo { max_message_size: 1000 });
    let health = server.health();
    let second = Running { address, drain: drain.clone(), health, ended: tokio::spawn(server.serve(listener, drain)) };
    crate::wait::until("the second server", async || check(&channel, NAME).await.ok()).await;
    second.drain.request();
    within("the second server's end", second.ended).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_program_that_exports_no_traces_can_pass_them_on() {
    let server = start(Limits::default());
    let seen = async |channel: Channel| {
        call(&channel, "Trace", futures::stream::pending()).await.unwrap().message().await.unwrap()
    };
    assert_eq!(seen(server.channel()).await.as_deref(), Some(""));
    let context = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    assert_eq!(seen(server.channel().passing_on(context)).await.as_deref(), Some(context));
}
