//! A service for tests, and a server around it.

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _};
use otto_service::auth::{ClientAuth, Policy};
use otto_service::client::{Channel, Endpoint};
use otto_service::drain::Drain;
use otto_service::grpc::{self, HealthReporter, Limits, Server};
use prost::Message as _;
use prost_types::{
    DescriptorProto, FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto, ServiceDescriptorProto,
};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::task::{Context, Poll};
use tokio::task::JoinHandle;
use tonic::body::Body;
use tonic::server::{NamedService, StreamingService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

pub(crate) const NAME: &str = "test.v1.Echo";

/// `Echo` sends every text back, `Hang` sends one and then nothing forever, `Stuck` does not even
/// answer, `Trace` sends the trace context of the call.
#[derive(Clone, Debug)]
pub(crate) struct Echo {
    pub(crate) max_message_size: usize,
}

impl NamedService for Echo {
    const NAME: &'static str = NAME;
}

impl tower::Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let limit = self.max_message_size;
        Box::pin(async move {
            let mut server = tonic::server::Grpc::new(ProstCodec::<String, String>::default())
                .apply_max_message_size_config(Some(limit), None);
            Ok(server.streaming(Method(method), request).await)
        })
    }
}

struct Method(String);

impl StreamingService<String> for Method {
    type Response = String;
    type ResponseStream = BoxStream<'static, Result<String, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<String>>) -> Self::Future {
        let method = self.0.clone();
        Box::pin(async move {
            assert!(request.remote_addr().is_some(), "services see who calls");
            match method.as_str() {
                "Echo" => Ok(Response::new(request.into_inner().boxed())),
                "Hang" => {
                    let first = futures::stream::iter([Ok("hanging".to_owned())]);
                    Ok(Response::new(first.chain(futures::stream::pending()).boxed()))
                }
                "Trace" => {
                    let header = request.metadata().get("traceparent").and_then(|value| value.to_str().ok());
                    let text = header.unwrap_or_default().to_owned();
                    Ok(Response::new(futures::stream::iter([Ok(text)]).boxed()))
                }
                "Stuck" => futures::future::pending().await,
                other => Err(Status::unimplemented(format!("no method {other}"))),
            }
        })
    }
}

/// The service's descriptors, as a generated crate would have them.
pub(crate) static DESCRIPTORS: LazyLock<&'static [u8]> = LazyLock::new(|| {
    let method = |name: &str| MethodDescriptorProto {
        name: Some(name.to_owned()),
        input_type: Some(".test.v1.Text".to_owned()),
        output_type: Some(".test.v1.Text".to_owned()),
        client_streaming: Some(true),
        server_streaming: Some(true),
        ..Default::default()
    };
    let service = |name: &str| ServiceDescriptorProto {
        name: Some(name.to_owned()),
        method: vec![method("Echo"), method("Hang"), method("Stuck")],
        ..Default::default()
    };
    let file = FileDescriptorProto {
        name: Some("test/v1/echo.proto".to_owned()),
        package: Some("test.v1".to_owned()),
        message_type: vec![DescriptorProto { name: Some("Text".to_owned()), ..Default::default() }],
        service: vec![service("Echo"), service("NotServedHere")],
        syntax: Some("proto3".to_owned()),
        ..Default::default()
    };
    FileDescriptorSet { file: vec![file] }.encode_to_vec().leak()
});

/// A server that runs until it is drained.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) drain: Drain,
    pub(crate) health: HealthReporter,
    pub(crate) ended: JoinHandle<anyhow::Result<()>>,
}

pub(crate) fn start(limits: Limits) -> Running {
    start_with(limits, Policy::open(), |server| server)
}

pub(crate) fn start_with(limits: Limits, policy: Policy, with: impl FnOnce(Server) -> Server) -> Running {
    let listener = grpc::bind("--grpc-addr", "127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let drain = Drain::new();
    let echo = Echo { max_message_size: limits.max_message_size() };
    let server = with(Server::new(limits, policy)).descriptors(*DESCRIPTORS).add_service(echo);
    let health = server.health();
    let ended = tokio::spawn(server.serve(listener, drain.clone()));
    Running { address, drain, health, ended }
}

impl Running {
    pub(crate) fn channel(&self) -> Channel {
        self.channel_with(&ClientAuth::default())
    }

    pub(crate) fn channel_with(&self, auth: &ClientAuth) -> Channel {
        Endpoint::new(&format!("http://{}", self.address), auth).unwrap().connect_lazy()
    }
}

/// Calls a method of [`Echo`].
pub(crate) async fn call(
    channel: &Channel,
    method: &str,
    texts: impl Stream<Item = String> + Send + 'static,
) -> Result<Streaming<String>, Status> {
    call_with(channel, method, Request::new(texts)).await
}

pub(crate) async fn call_with(
    channel: &Channel,
    method: &str,
    request: Request<impl Stream<Item = String> + Send + 'static>,
) -> Result<Streaming<String>, Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = format!("/{NAME}/{method}").parse().unwrap();
    let response = client.streaming(request, path, ProstCodec::<String, String>::default()).await?;
    Ok(response.into_inner())
}

/// A stream of texts that stays open, and its end.
pub(crate) fn texts() -> (tokio::sync::mpsc::Sender<String>, impl Stream<Item = String> + Send + 'static) {
    let (sender, receiver) = tokio::sync::mpsc::channel(16);
    (sender, tokio_stream::wrappers::ReceiverStream::new(receiver))
}
