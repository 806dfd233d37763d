//! The check as a tower layer, for gRPC and for HTTP.

use super::{Denied, Grant, Policy, Scope};
use futures::future::{Either, Ready, ready};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::Status;
use tower::{Layer, Service};

/// Cookie in which a browser may carry the token for requests that change nothing.
pub const COOKIE: &str = "otto-token";

/// Lets requests through as a [`Policy`] says.
#[derive(Clone, Debug)]
pub struct AuthLayer {
    rules: Arc<Rules>,
}

#[derive(Debug)]
struct Rules {
    policy: Policy,
    /// Exact paths, or all below one that ends in `/`.
    exempt: Vec<String>,
    grpc: bool,
}

impl AuthLayer {
    pub(super) fn grpc(policy: Policy) -> Self {
        let exempt = vec!["/grpc.health.v1.Health/".to_owned()];
        AuthLayer { rules: Arc::new(Rules { policy, exempt, grpc: true }) }
    }

    pub(super) fn http(policy: Policy, exempt: &[&str]) -> Self {
        let exempt = exempt.iter().map(|path| (*path).to_owned()).collect();
        AuthLayer { rules: Arc::new(Rules { policy, exempt, grpc: false }) }
    }
}

impl Rules {
    fn check<B>(&self, request: &Request<B>) -> Result<(), Denied> {
        if !self.policy.demands_token() || self.is_exempt(request.uri().path()) {
            return Ok(());
        }
        let checked = self.policy.check(request.headers());
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        let granted = match checked {
            // A cookie is sent by the browser on its own, also for another site's page: it may not change anything.
            Err(Denied::Missing) if !self.grpc && reads => match cookie(request.headers()) {
                Some(token) => self.policy.grant(token.as_bytes()).ok_or(Denied::Wrong),
                None => Err(Denied::Missing),
            },
            other => other,
        }?;
        let path = request.uri().path();
        match granted {
            Grant::Everything => Ok(()),
            Grant::Only { scope: Scope::Service(name), .. } if self.grpc && is_within(name, path) => Ok(()),
            Grant::Only { scope: Scope::Path(only), .. } if !self.grpc && reads && only == path => Ok(()),
            Grant::Only { scope, flag } => Err(Denied::Elsewhere { scope, flag }),
        }
    }

    fn is_exempt(&self, path: &str) -> bool {
        self.exempt.iter().any(|exempt| path == exempt || (exempt.ends_with('/') && path.starts_with(exempt.as_str())))
    }

    fn refuse<B: TextBody>(&self, denied: Denied) -> Response<B> {
        if self.grpc {
            return match denied {
                Denied::Missing | Denied::Malformed | Denied::Wrong => Status::unauthenticated(denied.to_string()),
                Denied::Elsewhere { .. } => Status::permission_denied(denied.to_string()),
            }
            .into_http();
        }
        // 401 in any case, so that a page asks for another token: RFC 9110, section 15.5.2.
        let body = serde_json::json!({ "error": { "code": "unauthenticated", "message": denied.to_string() } });
        let mut response = Response::new(B::text(body.to_string()));
        *response.status_mut() = StatusCode::UNAUTHORIZED;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"ottoscaler\""));
        response
    }
}

/// Whether a path is one of this service, or of reflection, which shows nothing but the contract.
fn is_within(service: &str, path: &str) -> bool {
    let named = path.strip_prefix('/').and_then(|path| path.split_once('/')).map(|(service, _)| service);
    named.is_some_and(|named| named == service || named.starts_with("grpc.reflection."))
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .find_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('='))
}

/// A body that can carry a refusal.
pub trait TextBody: Default {
    /// The body with this text.
    fn text(text: String) -> Self;
}

impl TextBody for axum::body::Body {
    fn text(text: String) -> Self {
        text.into()
    }
}

impl TextBody for tonic::body::Body {
    fn text(text: String) -> Self {
        tonic::body::Body::new(axum::body::Body::from(text))
    }
}

impl<S> Layer<S> for AuthLayer {
    type Service = Auth<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Auth { inner, rules: self.rules.clone() }
    }
}

/// The service behind [`AuthLayer`].
#[derive(Clone, Debug)]
pub struct Auth<S> {
    inner: S,
    rules: Arc<Rules>,
}

impl<S, Q, B> Service<Request<Q>> for Auth<S>
where
    S: Service<Request<Q>, Response = Response<B>>,
    B: TextBody,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<S::Response, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        match self.rules.check(&request) {
            Ok(()) => Either::Left(self.inner.call(request)),
            Err(denied) => Either::Right(ready(Ok(self.rules.refuse(denied)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ServerAuth;
    use super::*;
    use axum::body::Body;
    use axum::routing::get;
    use tower::ServiceExt as _;

    async fn answer(method: Method, path: &str, headers: &[(&str, &str)]) -> Response<Body> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "s3cret").unwrap();
        let weak = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(weak.path(), "weak").unwrap();
        let metrics = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(metrics.path(), "count").unwrap();
        let auth = ServerAuth {
            auth_token_file: Some(file.path().into()),
            metrics_token_file: Some(metrics.path().into()),
            insecure_no_auth: false,
        };
        let policy = auth.policy(&[]).unwrap();
        let policy = policy.with_limited(weak.path(), "--worker-token-file", Scope::Service("test.v1.Echo")).unwrap();
        let layer = policy.http_layer(&["/livez", "/assets/"]);
        let router = axum::Router::new().fallback(get(async || "ok").post(async || "ok")).layer(layer);
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    }

    #[tokio::test]
    async fn http_paths_headers_and_cookies() {
        let bearer = ("authorization", "Bearer s3cret");
        for (method, path, headers, status) in [
            (Method::GET, "/api", &[bearer][..], 200),
            (Method::POST, "/api", &[bearer], 200),
            (Method::GET, "/api", &[], 401),
            (Method::GET, "/api", &[("authorization", "Bearer other")], 401),
            (Method::GET, "/api", &[("cookie", "a=b; otto-token=s3cret")], 200),
            (Method::GET, "/api", &[("cookie", "otto-token=other")], 401),
            (Method::GET, "/api", &[("cookie", "otto-tokens3cret")], 401),
            // The header wins over a cookie that would do.
            (Method::GET, "/api", &[("authorization", "Bearer other"), ("cookie", "otto-token=s3cret")], 401),
            (Method::POST, "/api", &[("cookie", "otto-token=s3cret")], 401),
            // One that is good for a gRPC service is good for nothing here.
            (Method::GET, "/api", &[("authorization", "Bearer weak")], 401),
            (Method::GET, "/test.v1.Echo/Echo", &[("authorization", "Bearer weak")], 401),
            (Method::GET, "/api", &[("cookie", "otto-token=weak")], 401),
            // One that is good for one path.
            (Method::GET, "/metrics", &[("authorization", "Bearer count")], 200),
            (Method::HEAD, "/metrics", &[("authorization", "Bearer count")], 200),
            (Method::POST, "/metrics", &[("authorization", "Bearer count")], 401),
            (Method::GET, "/metrics/", &[("authorization", "Bearer count")], 401),
            (Method::GET, "/api", &[("authorization", "Bearer count")], 401),
            (Method::GET, "/metrics", &[("authorization", "Bearer weak")], 401),
            (Method::GET, "/metrics", &[], 401),
            (Method::GET, "/livez", &[], 200),
            (Method::GET, "/livez/x", &[], 401),
            (Method::GET, "/assets/app.js", &[], 200),
            (Method::GET, "/assets", &[], 401),
        ] {
            let response = answer(method.clone(), path, headers).await;
            assert_eq!(response.status(), status, "{method} {path} {headers:?}");
        }
    }

    #[test]
    fn a_service_is_named_by_the_first_part_of_the_path() {
        for path in ["/a.B/Call", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"] {
            assert!(is_within("a.B", path), "{path}");
        }
        for path in ["/a.Bc/Call", "/a.B", "a.B/Call", "//a.B/Call", "/x/a.B/Call", "/", ""] {
            assert!(!is_within("a.B", path), "{path}");
        }
    }

    #[tokio::test]
    async fn a_refusal_says_what_is_wanted() {
        let response = answer(Method::GET, "/api", &[]).await;
        assert_eq!(response.headers()["www-authenticate"], "Bearer realm=\"ottoscaler\"");
        let body = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["error"]["code"], "unauthenticated");
        assert!(body["error"]["message"].as_str().unwrap().contains("authorization: Bearer"));
    }
}
