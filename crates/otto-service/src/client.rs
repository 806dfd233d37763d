//! The gRPC client: one connection that is made again when it breaks, with credentials, keepalive and trace context.

mod backoff;
mod channel;

pub use backoff::Backoff;
pub use channel::{Channel, ChannelBody};

use crate::auth::{ClientAuth, TokenFile};
use anyhow::Context as _;
use std::sync::Arc;
use std::time::Duration;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Fixed windows, as the server's: adaptive ones are slower.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 2 << 20;

/// Where a server is, and how to talk to it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    endpoint: tonic::transport::Endpoint,
    token: Option<Arc<TokenFile>>,
}

impl Endpoint {
    /// `url` is `http://HOST:PORT`. Nothing is connected yet; proxies are not used.
    ///
    /// # Errors
    /// If the URL is none, or the token file cannot be used. Check the URL earlier, in the flag's `value_parser`
    /// ([`parse_url`]), so that the message names the flag.
    pub fn new(url: &str, auth: &ClientAuth) -> anyhow::Result<Self> {
        let url = parse_url(url).map_err(|error| anyhow::anyhow!("{url:?} is no server's URL: {error}"))?;
        let endpoint = tonic::transport::Endpoint::from_shared(url.clone())
            .with_context(|| format!("{url:?} is no server's URL"))?
            .user_agent(concat!("ottoscaler/", env!("CARGO_PKG_VERSION")))
            .context("the user agent")?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .tcp_keepalive(Some(Duration::from_secs(15)))
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_max_header_list_size(64 << 10);
        Ok(Endpoint { endpoint, token: auth.token()? })
    }

    /// A deadline for every call made through this endpoint, up to the response's headers. Not for streams that wait
    /// for work.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.endpoint = self.endpoint.timeout(timeout);
        self
    }

    /// A channel that connects with the first call, and again after each break. Its name is resolved each time.
    /// Must be called within a tokio runtime.
    pub fn connect_lazy(&self) -> Channel {
        Channel::new(self.endpoint.connect_lazy(), self.token.clone())
    }

    /// A channel that is connected. For programs that should say at once that nobody is there.
    ///
    /// # Errors
    /// If there is no connection within 5 seconds.
    pub async fn connect(&self) -> anyhow::Result<Channel> {
        let uri = self.endpoint.uri();
        let channel = self.endpoint.connect().await.with_context(|| format!("cannot connect to {uri}"))?;
        Ok(Channel::new(channel, self.token.clone()))
    }
}

/// A server's URL, for a flag's `value_parser`: `http://HOST:PORT`, port 80 if there is none.
///
/// # Errors
/// Says what was wrong and what is accepted.
pub fn parse_url(text: &str) -> Result<String, String> {
    let accepted = "a server is http://HOST:PORT, such as http://127.0.0.1:50051";
    let text = text.trim();
    let uri: http::Uri = text.parse().map_err(|error| format!("{error}; {accepted}"))?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => return Err(format!("TLS is not supported yet; {accepted}")),
        Some(other) => return Err(format!("unknown scheme {other:?}; {accepted}")),
        None => return Err(format!("no scheme; {accepted}")),
    }
    if uri.host().is_none_or(str::is_empty) {
        return Err(format!("no host; {accepted}"));
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(format!("no user and password are used here; {accepted}"));
    }
    if uri
        .authority()
        .is_some_and(|authority| !authority.as_str().ends_with(authority.host()) && uri.port_u16().is_none())
    {
        return Err(format!("no port number; {accepted}"));
    }
    if uri.path_and_query().is_some_and(|path| path.as_str() != "/") {
        return Err(format!("a path is not used by gRPC; {accepted}"));
    }
    Ok(text.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for good in ["http://127.0.0.1:50051", "http://log-ingest", "http://[::1]:1", " http://a:1/ "] {
            assert_eq!(parse_url(good).as_deref(), Ok(good.trim().trim_end_matches('/')), "{good}");
        }
        for bad in [
            "",
            "127.0.0.1:50051",
            "localhost",
            "https://a:1",
            "ftp://a",
            "http://",
            "http://a:1/x",
            "http://u:p@a",
            "http://a:b",
        ] {
            let error = parse_url(bad).unwrap_err();
            assert!(error.contains("http://HOST:PORT"), "{bad}: {error}");
        }
    }
}
