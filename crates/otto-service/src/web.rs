//! Serving an axum router with the same bounds and the same drain as gRPC.

use crate::drain::Drain;
use crate::listener::{Accept, IntoListener};
use anyhow::Context as _;
use axum::extract::ConnectInfo;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// Bounds of an HTTP server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open connections at most.
    pub max_connections: usize,
    /// A request's headers must have arrived after so long.
    pub header_timeout: Duration,
    /// How long requests may go on after draining was requested.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_connections: 1024,
            header_timeout: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(10),
        }
    }
}

/// Serves HTTP/1.1 and HTTP/2 (prior knowledge) until drained. Handlers may extract
/// [`ConnectInfo`]`<SocketAddr>`. An endless response must end by itself on `drain`, or is cut at the deadline.
///
/// # Errors
/// If the listener is broken.
pub async fn serve(
    router: axum::Router,
    listener: impl IntoListener,
    limits: Limits,
    drain: Drain,
) -> anyhow::Result<()> {
    let listener = listener.into_listener().context("the listening socket is broken")?;
    let accept = Accept {
        protocol: "HTTP",
        max_connections: limits.max_connections,
        drain_timeout: limits.drain_timeout,
        refusal: Some(refuse),
        open: Default::default(),
        refused: Default::default(),
    };
    accept
        .run(listener, &drain, move |stream, peer, draining| connection(router.clone(), stream, peer, limits, draining))
        .await
}

async fn connection(
    router: axum::Router,
    stream: TcpStream,
    peer: SocketAddr,
    limits: Limits,
    draining: CancellationToken,
) {
    let service = router.map_request(move |mut request: http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        request.map(axum::body::Body::new)
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(limits.header_timeout);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(20))
        .max_local_error_reset_streams(1024)
        .max_header_list_size(16 << 10);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = draining.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%peer, %error, "HTTP connection ended");
    }
}

fn refuse(stream: &TcpStream) {
    const ANSWER: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\ncontent-length: 21\r\n\r\ntoo many connections\n";
    // Best effort: the connection is closed either way.
    let _ = stream.try_write(ANSWER);
}
