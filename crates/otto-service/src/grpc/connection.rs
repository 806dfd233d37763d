//! One HTTP/2 connection.

use super::Limits;
use super::call::Calls;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// `PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n`, with which every client begins: RFC 9113, section 3.4.
const PREFACE_LENGTH: usize = 24;

/// How to serve connections.
#[derive(Clone, Debug)]
pub(super) struct Protocol {
    builder: http2::Builder<Tracked>,
    handshake_timeout: Duration,
}

impl Protocol {
    pub(super) fn new(limits: &Limits, calls: TaskTracker) -> Self {
        let bounded = |size: u64| u32::try_from(size).unwrap_or(u32::MAX);
        let mut builder = http2::Builder::new(Tracked(calls));
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.streams)
            .max_header_list_size(bounded(limits.header_size.as_u64()))
            .initial_stream_window_size(bounded(limits.stream_window.as_u64()))
            .initial_connection_window_size(bounded(limits.connection_window.as_u64()))
            .keep_alive_interval(limits.keepalive_interval)
            .keep_alive_timeout(limits.keepalive_timeout)
            // Without it a client that provokes errors makes the server keep a record of each reset stream.
            .max_local_error_reset_streams(1024);
        Protocol { builder, handshake_timeout: limits.handshake_timeout }
    }

    /// Serves a connection until it ends, or, once draining, until its calls have ended.
    pub(super) async fn serve<S>(self, stream: TcpStream, calls: Calls<S>, draining: CancellationToken)
    where
        Calls<S>: hyper::service::Service<
                http::Request<hyper::body::Incoming>,
                Response = http::Response<super::call::CallBody>,
                Error = std::convert::Infallible,
                Future: Send + 'static,
            > + Send
            + 'static,
    {
        let peer = calls.peer;
        let greeted = Arc::new(AtomicBool::new(false));
        let io = TokioIo::new(Greeted { inner: stream, missing: PREFACE_LENGTH, greeted: greeted.clone() });
        let connection = self.builder.serve_connection(io, calls);
        tokio::pin!(connection);
        let handshake = tokio::time::sleep(self.handshake_timeout);
        tokio::pin!(handshake);
        let (mut is_draining, mut is_checked) = (false, false);
        loop {
            tokio::select! {
                result = connection.as_mut() => return log_end(peer, result),
                () = draining.cancelled(), if !is_draining => {
                    // hyper would wait for the preface first.
                    if !greeted.load(Ordering::Relaxed) {
                        return;
                    }
                    is_draining = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = &mut handshake, if !is_checked => {
                    is_checked = true;
                    if !greeted.load(Ordering::Relaxed) {
                        tracing::debug!(%peer, "closing a connection that did not begin to speak HTTP/2");
                        return;
                    }
                }
            }
        }
    }
}

fn log_end(peer: SocketAddr, result: hyper::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(%peer, error = %anyhow::Error::new(error), "connection ended");
    }
}

/// Runs calls as tasks that the server knows of.
#[derive(Clone, Debug)]
pub(super) struct Tracked(TaskTracker);

impl<F> hyper::rt::Executor<F> for Tracked
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}

/// Notices when the client's preface has arrived.
struct Greeted {
    inner: TcpStream,
    /// Bytes of the preface still to come.
    missing: usize,
    greeted: Arc<AtomicBool>,
}

impl AsyncRead for Greeted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        if self.missing > 0 {
            self.missing = self.missing.saturating_sub(buf.filled().len() - before);
            if self.missing == 0 {
                self.greeted.store(true, Ordering::Relaxed);
            }
        }
        polled
    }
}

impl AsyncWrite for Greeted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }
}
