//! What happens to every call: a span with the caller's trace context, the deadline the caller set, the right code for
//! messages that are too large, metrics.

use super::map_decode_status;
use super::metrics::{Method, Methods};
use crate::telemetry;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use pin_project_lite::pin_project;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::time::Sleep;
use tonic::body::Body;
use tonic::transport::server::TcpConnectInfo;
use tonic::{Code, Status};
use tower::Service;
use tracing::Span;
use tracing::field::Empty;

const STATUS: &str = "grpc-status";
const TIMEOUT: &str = "grpc-timeout";

/// The outermost service of a server, for one connection.
#[derive(Clone, Debug)]
pub(super) struct Calls<S> {
    pub(super) inner: S,
    pub(super) methods: Arc<Methods>,
    pub(super) local: Option<SocketAddr>,
    pub(super) peer: SocketAddr,
}

impl<S> hyper::service::Service<Request<hyper::body::Incoming>> for Calls<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone,
{
    type Response = Response<CallBody>;
    type Error = Infallible;
    type Future = CallFuture<S::Future>;

    fn call(&self, request: Request<hyper::body::Incoming>) -> Self::Future {
        let method = self.methods.by_path(request.uri().path()).clone();
        let span = tracing::info_span!(
            target: "otto_service::rpc",
            "rpc",
            otel.name = Empty,
            otel.kind = "server",
            otel.status_code = Empty,
            rpc.system = "grpc",
            rpc.service = %method.service,
            rpc.method = %method.name,
            rpc.grpc.status_code = Empty,
            peer = %self.peer,
        );
        if telemetry::exporting() {
            span.record("otel.name", format!("{}/{}", method.service, method.name));
            telemetry::extract(&span, request.headers());
        }
        let deadline = request.headers().get(TIMEOUT).and_then(|value| parse_timeout(value.to_str().ok()?));
        let deadline = deadline.map(|after| Box::pin(tokio::time::sleep(after)));
        method.in_flight.inc();
        let call = Call { method, started: Instant::now(), span, ended: false };

        let mut request = request.map(Body::new);
        request.extensions_mut().insert(TcpConnectInfo { local_addr: self.local, remote_addr: Some(self.peer) });
        // The services are routes, which are always ready.
        let inner = call.span.in_scope(|| self.inner.clone().call(request));
        CallFuture { inner, call: Some(call), deadline }
    }
}

/// A call going on. Dropped before its status was sent, it was cancelled by the client.
#[derive(Debug)]
struct Call {
    method: Arc<Method>,
    started: Instant,
    span: Span,
    ended: bool,
}

impl Call {
    fn end(&mut self, code: Code) {
        if self.ended {
            return;
        }
        self.ended = true;
        self.method.in_flight.dec();
        self.method.ended(code, self.started.elapsed());
        self.span.record("rpc.grpc.status_code", code as i32);
        // What is the server's fault, by the semantic conventions of OpenTelemetry for gRPC.
        if matches!(
            code,
            Code::Unknown
                | Code::DeadlineExceeded
                | Code::Unimplemented
                | Code::Internal
                | Code::Unavailable
                | Code::DataLoss
        ) {
            self.span.record("otel.status_code", "ERROR");
        }
    }

    /// Notes the status in these headers or trailers, and corrects it.
    fn end_with(&mut self, headers: &mut HeaderMap) {
        let Some(value) = headers.get(STATUS) else { return };
        let mut code = Code::from_bytes(value.as_bytes());
        if code == Code::OutOfRange
            && let Some(status) = Status::from_header_map(headers)
        {
            let mapped = map_decode_status(status);
            code = mapped.code();
            headers.remove("grpc-message");
            headers.remove(STATUS);
            // Only metadata that is no valid header fails, and there is none beside what came from headers.
            let _ = mapped.add_header(headers);
        }
        self.end(code);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

fn too_late() -> Status {
    Status::deadline_exceeded("the call did not end within the time the client gave it")
}

pin_project! {
    /// The response headers to come.
    pub(super) struct CallFuture<F> {
        #[pin]
        inner: F,
        call: Option<Call>,
        deadline: Option<Pin<Box<Sleep>>>,
    }
}

impl<F> Future for CallFuture<F>
where
    F: Future<Output = Result<Response<Body>, Infallible>>,
{
    type Output = Result<Response<CallBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let polled = match this.call {
            Some(call) => call.span.in_scope(|| this.inner.poll(cx)),
            None => this.inner.poll(cx),
        };
        let mut response = match polled {
            Poll::Ready(Ok(response)) => response,
            Poll::Ready(Err(never)) => match never {},
            Poll::Pending => {
                let Some(deadline) = this.deadline else { return Poll::Pending };
                ready!(deadline.as_mut().poll(cx));
                too_late().into_http()
            }
        };
        let mut call = this.call.take();
        if let Some(call) = &mut call {
            call.end_with(response.headers_mut());
        }
        let deadline = this.deadline.take();
        Poll::Ready(Ok(response.map(|body| CallBody { body, call, deadline })))
    }
}

/// A response body that watches for its end.
pub(super) struct CallBody {
    body: Body,
    call: Option<Call>,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl http_body::Body for CallBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = &mut *self;
        let body = Pin::new(&mut this.body);
        let polled = match &this.call {
            Some(call) => call.span.in_scope(|| body.poll_frame(cx)),
            None => body.poll_frame(cx),
        };
        match polled {
            Poll::Ready(Some(Ok(mut frame))) => {
                if let (Some(trailers), Some(call)) = (frame.trailers_mut(), &mut this.call) {
                    call.end_with(trailers);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(status))) => {
                if let Some(call) = &mut this.call {
                    call.end(status.code());
                }
                Poll::Ready(Some(Err(status)))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                let Some(deadline) = &mut this.deadline else { return Poll::Pending };
                ready!(deadline.as_mut().poll(cx));
                this.deadline = None;
                // Dropping the body tells the service to stop.
                this.body = Body::empty();
                let mut trailers = HeaderMap::new();
                let _ = too_late().add_header(&mut trailers);
                if let Some(call) = &mut this.call {
                    call.end(Code::DeadlineExceeded);
                }
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// `grpc-timeout`: at most 8 digits and a unit. Longer than the digits allow is no deadline.
/// <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts() {
        assert_eq!(parse_timeout("1S"), Some(Duration::from_secs(1)));
        assert_eq!(parse_timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse_timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for bad in ["", "S", "1", "1s", "-1S", "+1S", "123456789S", "1 S", "é"] {
            assert_eq!(parse_timeout(bad), None, "{bad}");
        }
    }
}
