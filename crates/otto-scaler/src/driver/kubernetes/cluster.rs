//! The API server: how it is found, and how it is asked.
//!
//! Requests go over HTTP/1.1, one connection per request under way: the server does less for such a request than for a
//! stream of one shared HTTP/2 connection, and one lost packet holds up one request. Nothing limits their rate here; the
//! server does that, and is obeyed (`Retry-After`).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::header::{RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use http_body_util::BodyExt;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ClientBuilder, ConfigExt};
use kube::config::KubeConfigOptions;
use kube::{Client, Config};

use self::counted::CountLayer;
use super::errors::Failure;
use super::pause::Pause;
use super::settings::Settings;
use crate::leadership::Leadership;
use crate::metrics::ApiRequests;

mod counted;
mod proxy;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for an answer. The server gives up after 60 s; admission webhooks may take up to 30 s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(35);
/// Unused connections are closed after this: before the server does (90 s).
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// A connection whose other end is gone is noticed after this and three times the next.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Less than this of the leadership is not enough for a write.
const SHORTEST: Duration = Duration::from_millis(50);

/// A Kubernetes cluster, one namespace of it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Cluster {
    client: Client,
    namespace: Arc<str>,
    url: Arc<str>,
    pause: Arc<Pause>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("url", &self.url).field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

/// A successful answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) body: Bytes,
}

impl Cluster {
    /// Finds the API server as kubectl does: `$KUBECONFIG`, `~/.kube/config`, or the service account of this Pod. Nothing
    /// is asked of it yet.
    ///
    /// # Errors
    /// If there is no usable configuration; names what was looked at.
    pub(crate) async fn connect(settings: &Settings, requests: ApiRequests) -> anyhow::Result<Self> {
        let config = if std::env::var_os("KUBECONFIG").is_some_and(|path| !path.is_empty()) {
            let config = Config::from_kubeconfig(&KubeConfigOptions::default()).await;
            config.context("the kubeconfig named by KUBECONFIG cannot be used")?
        } else {
            let config = Config::infer().await;
            config.context(
                "--driver kubernetes: there is neither a kubeconfig (KUBECONFIG, ~/.kube/config) nor the service account of a Pod",
            )?
        };
        Self::of(config, settings, requests)
    }

    /// By a configuration.
    ///
    /// # Errors
    /// Names the setting at fault, or what the configuration refers to.
    pub(super) fn of(mut config: Config, settings: &Settings, requests: ApiRequests) -> anyhow::Result<Self> {
        if let Some(namespace) = &settings.namespace {
            anyhow::ensure!(
                is_label(namespace),
                "--namespace: `{namespace}` is no namespace; accepted: at most 63 of a-z, 0-9 and `-`, not `-` at an end"
            );
            config.default_namespace.clone_from(namespace);
        }
        let namespace = Arc::from(config.default_namespace.as_str());
        let url = Arc::from(config.cluster_url.to_string().trim_end_matches('/'));
        let pause = Arc::new(Pause::default());
        let client = client(config, Arc::clone(&pause), requests).context("the client of the API server")?;
        Ok(Self { client, namespace, url, pause })
    }

    /// For requests that wait for no pause and have their own deadlines.
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// Where workers, anchor and lease are.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The API server, for messages.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// A path below the namespace: `pods/NAME`.
    pub(super) fn path(&self, rest: &str) -> String {
        format!("/api/v1/namespaces/{}/{rest}", self.namespace)
    }

    /// Waits for the end of a pause that the server asked for.
    pub(super) async fn rested(&self) {
        self.pause.over().await;
    }

    /// Asks for something that changes nothing.
    pub(super) async fn read(&self, request: http::request::Builder) -> Result<Answer, Failure> {
        self.pause.over().await;
        self.send(request, Vec::new(), ANSWER_TIMEOUT).await
    }

    /// Tries what would change something, but does not (`dryRun=All`).
    pub(super) async fn dry_run(&self, request: http::request::Builder, body: Vec<u8>) -> Result<Answer, Failure> {
        self.pause.over().await;
        self.send(request, body, ANSWER_TIMEOUT).await
    }

    /// Sends what changes something, if this process may: the answer is waited for no longer than it surely may.
    pub(super) async fn write(
        &self,
        request: http::request::Builder,
        body: Vec<u8>,
        leadership: &Leadership,
    ) -> Result<Answer, Failure> {
        self.pause.over().await;
        let left = leadership.left().ok_or(Failure::NotLeader)?;
        // An eighth is left for the request's way and for clocks that do not run alike.
        let deadline = (left - left / 8).min(ANSWER_TIMEOUT);
        if deadline < SHORTEST {
            return Err(Failure::NotLeader);
        }
        self.send(request, body, deadline).await
    }

    /// Begins to read an answer that has no end. Until the answer begins there is a deadline, thereafter none.
    pub(super) async fn stream(&self, request: http::request::Builder) -> Result<Body, Failure> {
        self.pause.over().await;
        let request = request.body(Body::empty()).map_err(|error| Failure::unsent(&error))?;
        let answer = async {
            let response = self.client.send(request).await.map_err(|error| Failure::of(&error))?;
            let (head, body) = response.into_parts();
            if head.status.is_success() {
                return Ok(body);
            }
            Err(refusal(head.status, &head.headers, body).await)
        };
        tokio::time::timeout(ANSWER_TIMEOUT, answer).await.unwrap_or_else(|_| Err(Failure::late(ANSWER_TIMEOUT)))
    }

    async fn send(
        &self,
        request: http::request::Builder,
        body: Vec<u8>,
        deadline: Duration,
    ) -> Result<Answer, Failure> {
        let request = request.body(Body::from(body)).map_err(|error| Failure::unsent(&error))?;
        let answer = async {
            let response = self.client.send(request).await.map_err(|error| Failure::of(&error))?;
            let (head, body) = response.into_parts();
            if !head.status.is_success() {
                return Err(refusal(head.status, &head.headers, body).await);
            }
            let body = body.collect().await.map_err(|error| Failure::cut(&error))?.to_bytes();
            Ok(Answer { body })
        };
        tokio::time::timeout(deadline, answer).await.unwrap_or_else(|_| Err(Failure::late(deadline)))
    }
}

/// What the server says about why not.
async fn refusal(status: StatusCode, headers: &HeaderMap, body: Body) -> Failure {
    let retry_after = retry_after(headers);
    match body.collect().await {
        Ok(body) => Failure::answer(status, retry_after, &body.to_bytes()),
        // The status alone says enough.
        Err(_) => Failure::answer(status, retry_after, b""),
    }
}

/// RFC 9110, section 10.2.3, in seconds; a date is not used by API servers.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

fn client(mut config: Config, pause: Arc<Pause>, requests: ApiRequests) -> anyhow::Result<Client> {
    let agent = HeaderValue::from_static(concat!("otto-scaler/", env!("CARGO_PKG_VERSION")));
    config.headers.push((USER_AGENT, agent));
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // What is asked again, and when, is decided where it is known what it would do.
    config.default_retry = false;
    if let Some(proxy) = &config.proxy_url
        && proxy::is_bypassed(proxy, &config.cluster_url, |name| std::env::var(name).ok())
    {
        config.proxy_url = None;
    }
    if config.proxy_url.is_some() {
        let layer = tower::util::MapResponseLayer::new(move |response: http::Response<_>| {
            pause.note(response.status(), response.headers());
            response
        });
        let layers = tower::ServiceBuilder::new().layer(layer).layer(CountLayer(requests));
        return Ok(ClientBuilder::try_from(config)?.with_layer(&layers).build());
    }
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_nodelay(true);
    connector.set_keepalive(Some(KEEPALIVE));
    connector.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    connector.set_keepalive_retries(Some(3));
    connector.set_tcp_user_timeout(Some(ANSWER_TIMEOUT));
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_timer(hyper_util::rt::TokioTimer::new())
        .build::<_, Body>(connector);
    let service = tower::ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_response(move |response: http::Response<_>| {
            pause.note(response.status(), response.headers());
            response
        })
        .map_err(tower::BoxError::from)
        .layer(CountLayer(requests))
        .service(client);
    Ok(Client::new(service, config.default_namespace))
}

/// RFC 1123 label.
fn is_label(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with('-') && !text.ends_with('-')
}

/// A GET of a path with its query.
pub(super) fn get(path: &str) -> http::request::Builder {
    Request::get(path).header(http::header::ACCEPT, "application/json")
}
