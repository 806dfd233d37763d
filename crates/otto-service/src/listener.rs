//! Listening and accepting: what every server does before it speaks a protocol.

use crate::drain::Drain;
use anyhow::Context as _;
use rustix::io::Errno;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Pause after the system refused to give a descriptor or memory for a connection that is waiting: accept would fail
/// again at once, and spin.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);
/// At most one warning of a kind in this time.
const WARNING_PERIOD: Duration = Duration::from_secs(10);
/// Connections the kernel keeps waiting until they are accepted.
const BACKLOG: i32 = 1024;
/// Unacknowledged data or probes for so long end a connection. Slightly more than HTTP/2's own keepalive, which should
/// be the one to notice.
const USER_TIMEOUT: Duration = Duration::from_secs(35);

/// Binds `address`, given by `flag` (such as `--grpc-addr`). Port 0 lets the system choose one. `[::]` is all addresses, those
/// of IPv4 too; where the system has no IPv6, 0.0.0.0 takes its place.
///
/// # Errors
/// Names the flag and the address, and what to do about it.
pub fn bind(flag: &str, address: SocketAddr) -> anyhow::Result<std::net::TcpListener> {
    let bound = try_bind(address).or_else(|error| match without_ipv6(address, &error) {
        Some(ipv4) => {
            tracing::info!(%address, flag, "there is no IPv6 on this machine: listening on {ipv4} instead");
            try_bind(ipv4)
        }
        None => Err(error),
    });
    bound.map_err(|error| {
        let text = match error.kind() {
            io::ErrorKind::AddrInUse => {
                format!("address {address} ({flag}) is in use: end the program that listens there (`ss -ltnp` shows it), or give another {flag}")
            }
            io::ErrorKind::PermissionDenied => {
                format!("no permission to listen on {address} ({flag}): ports below 1024 need privileges; give another {flag}")
            }
            io::ErrorKind::AddrNotAvailable => {
                format!("address {address} ({flag}) is none of this machine's: give another {flag}, such as 127.0.0.1:{}", address.port())
            }
            _ => format!("cannot listen on {address} ({flag})"),
        };
        anyhow::Error::new(error).context(text)
    })
}

fn try_bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    // A restarted server must not wait for connections of its predecessor to be forgotten.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    if is_all(address) {
        // Whatever net.ipv6.bindv6only says.
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn is_all(address: SocketAddr) -> bool {
    address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
}

/// What `[::]` becomes where this error says that the system has no IPv6.
fn without_ipv6(address: SocketAddr, error: &io::Error) -> Option<SocketAddr> {
    let missing = matches!(Errno::from_io_error(error), Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL));
    (is_all(address) && missing).then(|| SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()))
}

/// An address of IPv4 as such, and not as IPv6 shows it (`::ffff:10.0.0.7`).
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// A bound socket, of the standard library's or tokio's type.
pub trait IntoListener {
    /// Hands it to the runtime.
    ///
    /// # Errors
    /// If the runtime cannot take it.
    fn into_listener(self) -> io::Result<TcpListener>;
}

impl IntoListener for TcpListener {
    fn into_listener(self) -> io::Result<TcpListener> {
        Ok(self)
    }
}

impl IntoListener for std::net::TcpListener {
    fn into_listener(self) -> io::Result<TcpListener> {
        self.set_nonblocking(true)?;
        TcpListener::from_std(self)
    }
}

/// Raises the limit of open descriptors to what the system allows, and tells what it is now. For servers with many
/// connections; children inherit the limit.
///
/// # Errors
/// If the system refuses.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    Ok(limit.current.unwrap_or(u64::MAX))
}

/// How many connections may be open: as many as configured, but never so many that no descriptors are left for the
/// program's files and its own connections.
fn affordable(configured: usize, protocol: &str) -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let affordable = limit.map_or(usize::MAX, |limit| usize::try_from(limit / 4 * 3).unwrap_or(usize::MAX));
    if affordable < configured {
        tracing::info!(
            configured,
            affordable,
            protocol,
            "fewer connections are accepted: the limit of open files is low"
        );
    }
    configured.min(affordable)
}

/// Bounds of an accept loop.
pub(crate) struct Accept {
    /// For messages: `gRPC`, `HTTP`.
    pub(crate) protocol: &'static str,
    /// Open connections at most; more are refused at once.
    pub(crate) max_connections: usize,
    /// How long connections may go on after draining was requested.
    pub(crate) drain_timeout: Duration,
    /// Sent to a refused connection before it is closed.
    pub(crate) refusal: Option<fn(&TcpStream)>,
    /// Number of open connections now.
    pub(crate) open: prometheus_client::metrics::gauge::Gauge,
    /// Number of connections refused because there were too many.
    pub(crate) refused: prometheus_client::metrics::counter::Counter,
}

impl Accept {
    /// Accepts connections and runs `serve` on each until draining is requested; then tells all by the token and waits
    /// for them until the deadline, and drops those that are left.
    ///
    /// # Errors
    /// If the listener itself is broken.
    pub(crate) async fn run<S, F>(self, listener: TcpListener, drain: &Drain, serve: S) -> anyhow::Result<()>
    where
        S: Fn(TcpStream, SocketAddr, CancellationToken) -> F,
        F: Future<Output = ()> + Send + 'static,
    {
        let address = listener.local_addr().context("the listening socket is broken")?;
        let max_connections = affordable(self.max_connections, self.protocol);
        let mut connections = JoinSet::new();
        let draining = CancellationToken::new();
        let mut warned: Option<Instant> = None;
        let mut may_warn = move || {
            let due = warned.is_none_or(|last| last.elapsed() >= WARNING_PERIOD);
            if due {
                warned = Some(Instant::now());
            }
            due
        };
        tracing::info!(%address, protocol = self.protocol, "listening");
        loop {
            tokio::select! {
                biased;
                () = drain.requested() => break,
                Some(ended) = connections.join_next() => self.ended(ended, connections.len()),
                accepted = listener.accept() => match accepted.map(|(stream, peer)| (stream, canonical(peer))) {
                    Ok((stream, peer)) if connections.len() < max_connections => {
                        if let Err(error) = prepare(&stream) {
                            tracing::debug!(%peer, %error, "connection lost before it was used");
                            continue;
                        }
                        connections.spawn(serve(stream, peer, draining.clone()));
                        self.open.set(connections.len() as i64);
                    }
                    Ok((stream, peer)) => {
                        self.refused.inc();
                        if may_warn() {
                            tracing::warn!(%peer, limit = max_connections, protocol = self.protocol, "connection refused: there are too many");
                        }
                        if let Some(refuse) = self.refusal {
                            refuse(&stream);
                        }
                    }
                    Err(error) if is_exhaustion(&error) => {
                        if may_warn() {
                            tracing::error!(%error, open = connections.len(), protocol = self.protocol, "cannot accept connections for now; raise the limit of open files, or lower the limit of connections");
                        }
                        tokio::time::sleep(EXHAUSTED_PAUSE).await;
                    }
                    // A connection that ended while it was waiting; accept(2) lists what Linux reports here.
                    Err(error) => tracing::debug!(%error, "a waiting connection was lost"),
                },
            }
        }
        // New clients are refused from here on instead of waiting for an answer that never comes.
        drop(listener);
        draining.cancel();
        let deadline = tokio::time::sleep(self.drain_timeout);
        tokio::pin!(deadline);
        loop {
            tokio::select! {
                ended = connections.join_next() => match ended {
                    Some(ended) => self.ended(ended, connections.len()),
                    None => break,
                },
                () = &mut deadline => {
                    tracing::warn!(connections = connections.len(), protocol = self.protocol, timeout = ?self.drain_timeout, "closing connections that did not end in time");
                    connections.shutdown().await;
                    break;
                }
            }
        }
        self.open.set(0);
        tracing::info!(%address, protocol = self.protocol, "drained");
        Ok(())
    }

    fn ended(&self, ended: Result<(), tokio::task::JoinError>, left: usize) {
        self.open.set(left as i64);
        if let Err(error) = ended
            && error.is_panic()
        {
            tracing::error!(%error, protocol = self.protocol, "a connection's task panicked");
        }
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(15))
        .with_interval(Duration::from_secs(5))
        .with_retries(4);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}

fn is_exhaustion(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_named_with_its_flag() {
        let first = bind("--grpc-addr", "127.0.0.1:0".parse().unwrap()).unwrap();
        let address = first.local_addr().unwrap();
        let error = bind("--grpc-addr", address).unwrap_err().to_string();
        assert!(error.starts_with(&format!("address {address} (--grpc-addr) is in use")), "{error}");
        drop(first);
        // A fork elsewhere may hold a copy of the descriptor for a moment.
        let begun = Instant::now();
        while let Err(error) = bind("--grpc-addr", address) {
            assert!(begun.elapsed() < Duration::from_secs(30), "{error:#}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_foreign_address_is_named_with_its_flag() {
        // TEST-NET-1, RFC 5737.
        let error = bind("--http-addr", "192.0.2.1:80".parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("192.0.2.1:80 (--http-addr)"), "{error}");
    }

    #[test]
    fn all_addresses_are_those_of_ipv4_too() {
        let listener = bind("--grpc-addr", "[::]:0".parse().unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        let stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let peer = loop {
            match listener.accept() {
                Ok((_, peer)) => break canonical(peer),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}"),
            }
        };
        assert_eq!(peer, stream.local_addr().unwrap());
    }

    #[test]
    fn without_ipv6_all_addresses_are_those_of_ipv4() {
        let instead = |address: &str, errno: Errno| {
            without_ipv6(address.parse().unwrap(), &errno.into()).map(|address| address.to_string())
        };
        for errno in [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL] {
            assert_eq!(instead("[::]:9090", errno).as_deref(), Some("0.0.0.0:9090"));
            assert_eq!(instead("[::1]:9090", errno), None);
            assert_eq!(instead("0.0.0.0:9090", errno), None);
        }
        assert_eq!(instead("[::]:9090", Errno::ADDRINUSE), None);
    }

    #[test]
    fn the_descriptor_limit_becomes_the_hard_limit() {
        let limit = raise_descriptor_limit().unwrap();
        let now = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        assert_eq!(now.current.unwrap_or(u64::MAX), limit);
        assert_eq!(now.current, now.maximum);
    }
}
