//! Counts requests and how they were answered.

use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Request, Response};
use tower::{Layer, Service};

use crate::metrics::ApiRequests;

/// Counts what passes through it.
#[derive(Clone, Debug)]
pub(super) struct Counted<S> {
    inner: S,
    requests: ApiRequests,
}

/// Makes [`Counted`].
#[derive(Clone, Debug)]
pub(super) struct CountLayer(pub(super) ApiRequests);

impl<S> Layer<S> for CountLayer {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted { inner, requests: self.0.clone() }
    }
}

impl<S, B, R> Service<Request<B>> for Counted<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (requests, method) = (self.requests.clone(), request.method().clone());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let result = answer.await;
            requests.answered(&method, result.as_ref().ok().map(Response::status));
            result
        })
    }
}
