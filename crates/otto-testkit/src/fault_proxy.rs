//! A proxy between a client and the API server that does what networks, load balancers and busy servers do.
//!
//! It ends the client's TLS with a certificate that the control plane's clients trust, passes requests on with the
//! client's own credentials, and applies [`Rule`]s that tests add and remove while it runs.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::Context;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use kube::client::Body;
use kube::{Client, Config};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

mod live;
mod rule;

pub use rule::{Asked, Fault, Fired, Rule};

use crate::ControlPlane;
use live::Live;
use rule::{Rules, Verdict};

type Answer = Response<UnsyncBoxBody<Bytes, anyhow::Error>>;

/// A running proxy. Ends when it is dropped.
pub struct FaultProxy {
    port: u16,
    shared: Shared,
    accepting: JoinHandle<()>,
}

/// What all connections share.
#[derive(Clone)]
struct Shared {
    upstream: Client,
    rules: Rules,
    /// Requests that came, in order.
    asked: Arc<Mutex<Vec<Asked>>>,
    /// What is done to watches that are open.
    live: broadcast::Sender<Live>,
    /// Ends all connections of now; replaced by the next.
    cut: Arc<Mutex<CancellationToken>>,
    /// Requests that reach the server though their client has gone.
    late: Arc<Mutex<JoinSet<()>>>,
}

impl FaultProxy {
    /// Starts one on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn start(plane: &ControlPlane) -> anyhow::Result<Self> {
        let mut config = Config::new(plane.url().parse()?);
        let authority = CertificateDer::from_pem_file(plane.ca_file()).context("certificate of the authority")?;
        config.root_cert = Some(vec![authority.to_vec()]);
        config.read_timeout = None;
        config.default_retry = false;
        let upstream = Client::try_from(config)?;
        let tls = plane.acceptor()?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let shared = Shared {
            upstream,
            rules: Rules::default(),
            asked: Arc::default(),
            live: broadcast::Sender::new(16),
            cut: Arc::default(),
            late: Arc::default(),
        };
        let accepting = tokio::spawn(accept(listener, tls, shared.clone()));
        Ok(Self { port, shared, accepting })
    }

    /// `https://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Adds a rule after all others.
    #[must_use]
    pub fn add(&self, rule: Rule) -> Fired {
        self.shared.rules.add(rule)
    }

    /// Takes all rules away, and lets go on what they hold.
    pub fn clear(&self) {
        self.shared.rules.clear();
    }

    /// Cuts all connections of now, in the middle of whatever they do.
    pub fn cut(&self) {
        let mut cut = self.shared.cut.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *cut).cancel();
    }

    /// All open watches get this error as an event (410: "Expired"), and end.
    pub fn fail_watches(&self, code: u16) {
        // Nobody listens: no watch is open.
        let _ = self.shared.live.send(Live::Error(code));
    }

    /// All open watches end as the API server ends them now and then, without an error.
    pub fn end_watches(&self) {
        let _ = self.shared.live.send(Live::End);
    }

    /// Requests that came so far, in order.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many requests with this method came whose path and query contain `path`.
    #[must_use]
    pub fn count(&self, method: &Method, path: &str) -> usize {
        let fits = |asked: &&Asked| asked.method == *method && format!("{}?{}", asked.path, asked.query).contains(path);
        self.asked().iter().filter(fits).count()
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, shared: Shared) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    connections.spawn(serve(stream, tls.clone(), shared.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Serves a connection until either side ends it, or it is cut.
async fn serve(stream: TcpStream, tls: TlsAcceptor, shared: Shared) {
    let all = shared.cut.lock().unwrap_or_else(PoisonError::into_inner).child_token();
    let own = all.clone();
    let serving = async {
        let _ = stream.set_nodelay(true);
        let stream = tls.accept(stream).await?;
        let service = service_fn(|request| {
            let (shared, cut) = (shared.clone(), own.clone());
            async move { answer(request, shared, cut).await }
        });
        let builder = auto::Builder::new(TokioExecutor::new());
        let served = builder.serve_connection(TokioIo::new(stream), service).await;
        served.map_err(|error| anyhow::anyhow!("{error}"))
    };
    tokio::select! {
        _ = serving => {}
        () = all.cancelled() => {}
    }
}

async fn answer(request: Request<Incoming>, shared: Shared, cut: CancellationToken) -> anyhow::Result<Answer> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let asked = Asked {
        at: Instant::now(),
        method: parts.method.clone(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        body: String::from_utf8_lossy(&body).into_owned(),
    };
    shared.asked.lock().unwrap_or_else(PoisonError::into_inner).push(asked.clone());
    let verdict = shared.rules.judge(&asked);
    let mut forwarded = Request::from_parts(parts, Body::from(body));
    // Of the connection, not of the request.
    for header in [http::header::CONNECTION, http::header::TE, http::header::HOST] {
        forwarded.headers_mut().remove(header);
    }
    let path = forwarded.uri().path_and_query().map_or("/", http::uri::PathAndQuery::as_str).parse()?;
    *forwarded.uri_mut() = path;
    *forwarded.version_mut() = http::Version::HTTP_11;
    let Some(verdict) = verdict else { return forward(forwarded, &asked, &shared, None).await };
    faulty(forwarded, &asked, &shared, verdict, &cut).await
}

async fn faulty(
    request: Request<Body>,
    asked: &Asked,
    shared: &Shared,
    mut verdict: Verdict,
    cut: &CancellationToken,
) -> anyhow::Result<Answer> {
    match verdict.fault.clone() {
        Fault::CutBefore => {
            verdict.reached();
            ended(cut).await
        }
        Fault::CutAfter => {
            whole(forward(request, asked, shared, None).await?).await?;
            verdict.reached();
            ended(cut).await
        }
        Fault::HoldBefore => {
            verdict.reached();
            verdict.released().await;
            forward(request, asked, shared, None).await
        }
        Fault::HoldAfter => {
            let answer = whole(forward(request, asked, shared, None).await?).await?;
            verdict.reached();
            verdict.released().await;
            Ok(answer)
        }
        Fault::Late => {
            verdict.reached();
            let upstream = shared.upstream.clone();
            let (answered, answer) = tokio::sync::oneshot::channel();
            shared.late.lock().unwrap_or_else(PoisonError::into_inner).spawn(async move {
                verdict.released().await;
                let answer = upstream.send(request).await.map(|answer| answer.map(Body::boxed_here));
                // The client has gone: nobody is told.
                let _ = answered.send(answer);
            });
            Ok(answer.await??)
        }
        Fault::Delay(delay) => {
            verdict.reached();
            tokio::time::sleep(delay).await;
            forward(request, asked, shared, None).await
        }
        Fault::Answer(status, retry_after) => {
            verdict.reached();
            refusal(status, retry_after)
        }
        Fault::AnswerAfter(status) => {
            whole(forward(request, asked, shared, None).await?).await?;
            verdict.reached();
            refusal(status, None)
        }
        fault @ (Fault::WatchError(_) | Fault::SlowWatch(_) | Fault::SilentWatch) => {
            let answer = forward(request, asked, shared, Some(fault)).await?;
            verdict.reached();
            Ok(answer)
        }
    }
}

/// Ends the connection under the request's feet.
async fn ended(cut: &CancellationToken) -> anyhow::Result<Answer> {
    cut.cancel();
    std::future::pending().await
}

/// Passes a request on. A watch is passed on as it comes, and obeys what is done to open watches.
async fn forward(
    request: Request<Body>,
    asked: &Asked,
    shared: &Shared,
    fault: Option<Fault>,
) -> anyhow::Result<Answer> {
    let mut answer = match shared.upstream.send(request).await {
        Ok(answer) => answer,
        // What a load balancer says whose server is away.
        Err(error) => return refusal_that_says(502, None, &error.to_string()),
    };
    // Of the connection to the server, not of the answer.
    answer.headers_mut().remove(http::header::TRANSFER_ENCODING);
    answer.headers_mut().remove(http::header::CONNECTION);
    if asked.is_watch() && answer.status() == StatusCode::OK {
        let orders = shared.live.subscribe();
        return Ok(answer.map(|body| live::body(body, orders, fault)));
    }
    Ok(answer.map(Body::boxed_here))
}

/// Reads all of an answer: then the server has done all of it.
async fn whole(answer: Answer) -> anyhow::Result<Answer> {
    let (parts, body) = answer.into_parts();
    let body = body.collect().await?.to_bytes();
    Ok(Response::from_parts(parts, text(body)))
}

fn refusal(status: u16, retry_after: Option<u32>) -> anyhow::Result<Answer> {
    refusal_that_says(status, retry_after, "a fault of the test")
}

fn refusal_that_says(status: u16, retry_after: Option<u32>, message: &str) -> anyhow::Result<Answer> {
    let mut answer = Response::builder().status(status).header("content-type", "application/json");
    if let Some(seconds) = retry_after {
        answer = answer.header("retry-after", seconds.to_string());
    }
    Ok(answer.body(text(live::status(status, message).to_string().into()))?)
}

fn text(body: Bytes) -> UnsyncBoxBody<Bytes, anyhow::Error> {
    Full::new(body).map_err(|never| match never {}).boxed_unsync()
}

/// A body of kube's as one of ours.
trait BoxedHere {
    fn boxed_here(self) -> UnsyncBoxBody<Bytes, anyhow::Error>;
}

impl BoxedHere for Body {
    fn boxed_here(self) -> UnsyncBoxBody<Bytes, anyhow::Error> {
        self.map_err(|error| anyhow::anyhow!("{error}")).boxed_unsync()
    }
}
