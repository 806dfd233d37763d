//! Watches that are open.

use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::Fault;

/// What is done to all open watches.
#[derive(Clone, Copy, Debug)]
pub(super) enum Live {
    /// An event of this error, and the end.
    Error(u16),
    /// The end.
    End,
}

struct Watch {
    upstream: BoxStream<'static, anyhow::Result<Bytes>>,
    orders: broadcast::Receiver<Live>,
    slow: Duration,
    silent: bool,
    /// What was sent so far ends with a whole event, so that one of ours may follow.
    at_boundary: bool,
    order: Option<Live>,
    ended: bool,
}

/// The body of a watch, obeying.
pub(super) fn body(
    upstream: Body,
    orders: broadcast::Receiver<Live>,
    fault: Option<Fault>,
) -> UnsyncBoxBody<Bytes, anyhow::Error> {
    let upstream = upstream.into_data_stream().map(|part| part.map_err(|error| anyhow::anyhow!("{error}"))).boxed();
    let mut watch =
        Watch { upstream, orders, slow: Duration::ZERO, silent: false, at_boundary: true, order: None, ended: false };
    match fault {
        Some(Fault::WatchError(code)) => watch.order = Some(Live::Error(code)),
        Some(Fault::SlowWatch(delay)) => watch.slow = delay,
        Some(Fault::SilentWatch) => watch.silent = true,
        _ => {}
    }
    let parts = stream::unfold(watch, |mut watch| async move { watch.next().await.map(|part| (part, watch)) });
    StreamBody::new(parts.map(|part| part.map(Frame::data))).boxed_unsync()
}

impl Watch {
    async fn next(&mut self) -> Option<anyhow::Result<Bytes>> {
        loop {
            if self.ended {
                return None;
            }
            if let (Some(order), true) = (self.order, self.at_boundary) {
                self.ended = true;
                return match order {
                    Live::End => None,
                    Live::Error(code) => {
                        let event = json!({"type": "ERROR", "object": status(code, "too old resource version")});
                        Some(Ok(format!("{event}\n").into()))
                    }
                };
            }
            tokio::select! {
                order = self.orders.recv(), if self.order.is_none() => match order {
                    Ok(order) => self.order = Some(order),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    // The proxy is gone.
                    Err(broadcast::error::RecvError::Closed) => return None,
                },
                part = self.upstream.next(), if !self.silent => {
                    let part = part?;
                    tokio::time::sleep(self.slow).await;
                    if let Ok(bytes) = &part {
                        self.at_boundary = bytes.last() == Some(&b'\n');
                    }
                    return Some(part);
                }
            }
        }
    }
}

/// A Status object as the API server writes it.
pub(super) fn status(code: u16, message: &str) -> Value {
    let reason = match code {
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        409 => "AlreadyExists",
        410 => "Expired",
        429 => "TooManyRequests",
        500 => "InternalError",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _ => "Unknown",
    };
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    })
}
