//! One connection to Redis that comes back: it is made when it is needed, dropped when it fails, and made again, by one
//! caller at a time. Commands of many callers share it (pipelined in the order in which they were first polled).
//!
//! A command whose connection broke is sent once more over a new one: everything that goes this way may be repeated.
//! On a Redis Cluster all keys of one link must have one slot; the link follows MOVED to the node which has it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, Pipeline,
    ProtocolVersion, RedisError, RedisFuture, RedisResult, ServerErrorKind, TlsCertificates, Value,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Callers which come this soon after a failed attempt get its error instead of an attempt of their own.
const SHARED_FAILURE: Duration = Duration::from_millis(50);
/// Oldest Redis with XAUTOCLAIM's list of deleted entries.
const MIN_VERSION: (u32, u32) = (7, 0);

/// Where Redis is. Never shows the password.
#[derive(Clone)]
pub(crate) struct Url(ConnectionInfo);

impl Url {
    /// Host and port, or the socket's path; without user and password.
    pub(crate) fn host(&self) -> String {
        self.0.addr().to_string()
    }

    fn is_tls(&self) -> bool {
        matches!(self.0.addr(), ConnectionAddr::TcpTls { .. })
    }
}

impl std::str::FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const ACCEPTED: &str = "accepted: redis://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE], rediss://… for TLS, or \
            unix:///PATH[?db=N&user=U&pass=P]";
        // The text may hold a password, so the message repeats nothing of it but the scheme.
        let scheme = text.split_once("://").map(|(scheme, _)| scheme);
        match scheme {
            Some("redis" | "rediss" | "valkey" | "valkeys" | "unix" | "redis+unix") => {}
            Some(scheme) if scheme.len() <= 20 && scheme.chars().all(|c| c.is_ascii_alphanumeric() || c == '+') => {
                return Err(format!("scheme `{scheme}` is not known ({ACCEPTED})"));
            }
            _ => return Err(format!("this is no URL ({ACCEPTED})")),
        }
        let info = text.into_connection_info().map_err(|e| format!("{} ({ACCEPTED})", e.category()))?;
        let tcp = TcpSettings::default()
            .set_nodelay(true)
            .set_keepalive(
                socket2::TcpKeepalive::new()
                    .with_time(Duration::from_secs(10))
                    .with_interval(Duration::from_secs(5))
                    .with_retries(3),
            )
            .set_user_timeout(Duration::from_secs(20));
        // The replies are read as RESP2 has them. The library's name would need another permission.
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP2).set_skip_set_lib_name();
        Ok(Self(info.set_tcp_settings(tcp).set_redis_settings(settings)))
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Url").field(&self.host()).finish()
    }
}

/// Whether events are being read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    Serving,
    /// Not, and why: a sentence for people.
    NotServing(String),
}

/// Cheap handle to one connection.
#[derive(Clone)]
pub(crate) struct Link(Arc<Shared>);

struct Shared {
    configured: Url,
    certificates: Option<TlsCertificates>,
    state: Mutex<State>,
    /// Held by the one who connects.
    connecting: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    current: Option<MultiplexedConnection>,
    /// Counts connections, so that a late failure of an old one does not end the new one.
    generation: u64,
    failed: Option<(Instant, RedisError)>,
    /// Node of a cluster which has our slot.
    moved: Option<ConnectionAddr>,
    /// What was last said about the server's settings.
    remarks: Vec<String>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Link").field(&self.0.configured).finish()
    }
}

impl Link {
    /// Connects nowhere yet. `ca`: PEM certificates of the authorities to trust for `rediss://` instead of the public ones.
    pub(crate) fn new(url: Url, ca: Option<Vec<u8>>) -> Self {
        if url.is_tls() {
            // An error means that the program has chosen a provider already.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        Self(Arc::new(Shared {
            configured: url,
            certificates: ca.map(|root| TlsCertificates { client_tls: None, root_cert: Some(root) }),
            state: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
        }))
    }

    /// Host and port for messages.
    pub(crate) fn host(&self) -> String {
        self.0.configured.host()
    }

    /// A connection of its own for commands that block for up to `block`.
    pub(crate) async fn dedicated(&self, block: Duration) -> RedisResult<MultiplexedConnection> {
        self.open(block + RESPONSE_TIMEOUT).await
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connection(&self) -> RedisResult<(u64, MultiplexedConnection)> {
        let current = |state: &State| state.current.clone().map(|connection| (state.generation, connection));
        if let Some(found) = current(&self.state()) {
            return Ok(found);
        }
        let _one_at_a_time = self.0.connecting.lock().await;
        {
            let state = self.state();
            if let Some(found) = current(&state) {
                return Ok(found);
            }
            if let Some((at, error)) = &state.failed
                && at.elapsed() < SHARED_FAILURE
            {
                return Err(error.clone());
            }
        }
        let opened = async {
            let mut connection = self.open(RESPONSE_TIMEOUT).await?;
            self.inspect(&mut connection).await?;
            Ok(connection)
        }
        .await;
        match opened {
            Ok(connection) => {
                let generation = {
                    let mut state = self.state();
                    state.generation += 1;
                    state.failed = None;
                    state.current = Some(connection.clone());
                    state.generation
                };
                Ok((generation, connection))
            }
            Err(error) => {
                let error: RedisError = error;
                {
                    let mut state = self.state();
                    state.failed = Some((Instant::now(), error.clone()));
                    // The node may be gone for good; the configured address knows better.
                    state.moved = None;
                }
                Err(error)
            }
        }
    }

    async fn open(&self, response_timeout: Duration) -> RedisResult<MultiplexedConnection> {
        let mut info = self.0.configured.0.clone();
        if let Some(moved) = self.state().moved.clone() {
            info = info.set_addr(moved);
        }
        let client = match &self.0.certificates {
            Some(certificates) if self.0.configured.is_tls() => Client::build_with_tls(info, certificates.clone())?,
            _ => Client::open(info)?,
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(response_timeout));
        client.get_multiplexed_async_connection_with_config(&config).await
    }

    /// Refuses a Redis that cannot do what is needed, and warns of settings that lose events.
    async fn inspect(&self, connection: &mut MultiplexedConnection) -> RedisResult<()> {
        let mut command = redis::cmd("INFO");
        let info: String = match command.arg("default").query_async(connection).await {
            Ok(info) => info,
            // Its user may not ask, or a provider has taken it away. Then it is taken on trust.
            Err(e) if matches!(e.kind(), ErrorKind::Server(_)) => return Ok(()),
            Err(e) => return Err(e),
        };
        let value = |name: &str| value_of(&info, name);
        if value("loading") == Some("1") {
            return Err((ErrorKind::Io, "Redis is loading its data").into());
        }
        if let Some(version) = value("redis_version") {
            let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
            if (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) < MIN_VERSION {
                let message = "Redis 7.0 or newer is needed, this is";
                return Err((ErrorKind::InvalidClientConfig, message, version.to_owned()).into());
            }
        }
        let remarks = remarks(&info);
        let news = {
            let mut state = self.state();
            let news = (state.remarks != remarks).then(|| remarks.clone());
            state.remarks = remarks;
            news
        };
        for remark in news.into_iter().flatten() {
            tracing::warn!(redis = %self.host(), "{remark}");
        }
        Ok(())
    }

    /// Takes note of a failed command. True: a new connection may do better at once.
    fn failed(&self, generation: u64, error: &RedisError) -> bool {
        let moved = self.moved_to(error);
        let replace = moved.is_some()
            || error.is_io_error()
            || error.is_connection_dropped()
            || error.is_unrecoverable_error()
            || matches!(
                error.kind(),
                ErrorKind::Server(
                    ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown | ServerErrorKind::BusyLoading
                )
            );
        if !replace {
            return false;
        }
        let mut state = self.state();
        if state.generation == generation && state.current.take().is_some() && moved.is_some() {
            state.moved = moved;
        }
        // After a timeout the caller has waited long enough.
        !error.is_timeout()
    }

    fn moved_to(&self, error: &RedisError) -> Option<ConnectionAddr> {
        if error.kind() != ErrorKind::Server(ServerErrorKind::Moved) {
            return None;
        }
        let (host, port) = error.redirect_node()?.0.rsplit_once(':')?;
        let port = port.parse().ok()?;
        // An empty host is the one that answered.
        let host =
            |ours: &str| if host.is_empty() { ours.to_owned() } else { host.trim_matches(['[', ']']).to_owned() };
        match self.0.configured.0.addr() {
            ConnectionAddr::Tcp(ours, _) => Some(ConnectionAddr::Tcp(host(ours), port)),
            ConnectionAddr::TcpTls { host: ours, insecure, tls_params, .. } => Some(ConnectionAddr::TcpTls {
                host: host(ours),
                port,
                insecure: *insecure,
                tls_params: tls_params.clone(),
            }),
            _ => None,
        }
    }

    /// An error for people: which Redis, and what was wrong.
    pub(crate) fn describe(&self, error: &RedisError) -> String {
        format!("Redis at {} (--redis-url): {error}", self.host())
    }
}

/// A value of the answer to INFO.
fn value_of<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
}

/// What is to be said about the server's settings.
pub(super) fn remarks(info: &str) -> Vec<String> {
    let mut remarks = Vec::new();
    // What keeps a job from running twice has a time to expire: the ended task's record, the stream's owner.
    if let Some(policy) = value_of(info, "maxmemory_policy").filter(|policy| *policy != "noeviction") {
        remarks.push(format!(
            "maxmemory-policy is {policy}: Redis may evict task records and who owns the stream, and jobs run twice; use \
             noeviction"
        ));
    }
    if value_of(info, "aof_enabled") == Some("0") {
        remarks.push("appendonly is off: a restart of Redis may lose events and task records".to_owned());
    }
    remarks
}

impl ConnectionLike for Link {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            let (generation, mut connection) = self.connection().await?;
            let answer = connection.req_packed_command(command).await;
            match refused(answer.as_ref().map(std::slice::from_ref)) {
                Some(error) if self.failed(generation, &error) => {
                    let (generation, mut connection) = self.connection().await?;
                    let answer = connection.req_packed_command(command).await;
                    if let Some(error) = refused(answer.as_ref().map(std::slice::from_ref)) {
                        self.failed(generation, &error);
                    }
                    answer
                }
                _ => answer,
            }
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            let (generation, mut connection) = self.connection().await?;
            let answers = connection.req_packed_commands(pipeline, offset, count).await;
            match refused(answers.as_deref()) {
                Some(error) if self.failed(generation, &error) => {
                    let (generation, mut connection) = self.connection().await?;
                    let answers = connection.req_packed_commands(pipeline, offset, count).await;
                    if let Some(error) = refused(answers.as_deref()) {
                        self.failed(generation, &error);
                    }
                    answers
                }
                _ => answers,
            }
        })
    }

    fn get_db(&self) -> i64 {
        self.0.configured.0.redis_settings().db()
    }
}

/// The first error: of the connection, or the answer to one of the commands.
fn refused(answers: Result<&[Value], &RedisError>) -> Option<RedisError> {
    match answers {
        Ok(answers) => answers.iter().find_map(|answer| match answer {
            Value::ServerError(error) => Some(error.clone().into()),
            _ => None,
        }),
        Err(error) => Some(error.clone()),
    }
}
