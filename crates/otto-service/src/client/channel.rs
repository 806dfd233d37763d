//! tonic's channel with a token and a span for every call.

use crate::auth::TokenFile;
use crate::telemetry;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body::{Frame, SizeHint};
use pin_project_lite::pin_project;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tonic::body::Body;
use tonic::transport::channel::ResponseFuture;
use tonic::{Code, Status};
use tower::Service;
use tracing::Span;
use tracing::field::Empty;

/// What generated clients are built on: `XClient::new(channel)`. Cheap to clone; clones share the connection.
#[derive(Clone, Debug)]
pub struct Channel {
    inner: tonic::transport::Channel,
    token: Option<Arc<TokenFile>>,
    traceparent: Option<HeaderValue>,
}

impl Channel {
    pub(super) fn new(inner: tonic::transport::Channel, token: Option<Arc<TokenFile>>) -> Self {
        Channel { inner, token, traceparent: None }
    }

    /// Sends this W3C `traceparent` with every call where traces are not exported, so that a program which takes no
    /// part in a trace does not break it. Where they are, calls carry their own spans' contexts, and this is not used.
    #[must_use]
    pub fn passing_on(mut self, traceparent: &str) -> Self {
        self.traceparent = HeaderValue::try_from(traceparent.trim()).ok();
        self
    }
}

impl Service<Request<Body>> for Channel {
    type Response = Response<ChannelBody>;
    type Error = tonic::transport::Error;
    type Future = ChannelFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if let Some(token) = &self.token
            && let Ok(mut value) = HeaderValue::try_from(format!("Bearer {}", token.first()))
        {
            value.set_sensitive(true);
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        if let Some(traceparent) = &self.traceparent {
            // Replaced by the call's own context, if it has one.
            request.headers_mut().insert("traceparent", traceparent.clone());
        }
        let call = Call::begin(&mut request);
        let inner = call.span.in_scope(|| self.inner.call(request));
        ChannelFuture { inner, call: Some(call) }
    }
}

/// The client's span of a call. Without export there is none: log messages of a caller have its own spans.
#[derive(Debug)]
struct Call {
    span: Span,
}

impl Call {
    fn begin(request: &mut Request<Body>) -> Self {
        if !telemetry::exporting() {
            return Call { span: Span::none() };
        }
        let path = request.uri().path().trim_start_matches('/').to_owned();
        let (service, method) = path.split_once('/').unwrap_or((&path, ""));
        let span = tracing::info_span!(
            target: "otto_service::rpc",
            "rpc",
            otel.name = path,
            otel.kind = "client",
            otel.status_code = Empty,
            rpc.system = "grpc",
            rpc.service = service,
            rpc.method = method,
            rpc.grpc.status_code = Empty,
        );
        telemetry::inject(&span, request.headers_mut());
        Call { span }
    }

    fn end(&self, code: Code) {
        if self.span.is_disabled() {
            return;
        }
        self.span.record("rpc.grpc.status_code", code as i32);
        // Every error is one for the client, by the semantic conventions of OpenTelemetry for gRPC.
        if code != Code::Ok {
            self.span.record("otel.status_code", "ERROR");
        }
    }

    fn end_with(&self, headers: &http::HeaderMap) {
        if let Some(value) = headers.get("grpc-status") {
            self.end(Code::from_bytes(value.as_bytes()));
        }
    }
}

pin_project! {
    /// The response's headers to come.
    pub struct ChannelFuture {
        #[pin]
        inner: ResponseFuture,
        call: Option<Call>,
    }
}

impl Future for ChannelFuture {
    type Output = Result<Response<ChannelBody>, tonic::transport::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        // tonic calls its own timeout CANCELLED, which a caller could not tell from a server that gave up.
        let result = match ready!(this.inner.poll(cx)) {
            Err(error) if is_timeout(&error) => {
                Ok(Status::deadline_exceeded("the server did not answer in time").into_http())
            }
            other => other,
        };
        let call = this.call.take();
        match (&result, &call) {
            (Ok(response), Some(call)) => call.end_with(response.headers()),
            (Err(_), Some(call)) => call.end(Code::Unavailable),
            (_, None) => {}
        }
        Poll::Ready(result.map(|response| response.map(|inner| ChannelBody { inner, call })))
    }
}

fn is_timeout(error: &tonic::transport::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if error.is::<tonic::TimeoutExpired>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// A response's body. The call's span ends with it.
#[derive(Debug)]
pub struct ChannelBody {
    inner: Body,
    call: Option<Call>,
}

impl http_body::Body for ChannelBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let polled = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        match (&polled, &self.call) {
            (Some(Ok(frame)), Some(call)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    call.end_with(trailers);
                }
            }
            (Some(Err(status)), Some(call)) => call.end(status.code()),
            _ => {}
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
