//! Who may: one static bearer token, kept in a file, for every server and client; a server may know others, which are
//! good for one thing alone ([`Scope`]).
//!
//! Invariant: a server that is reachable from other machines demands a token, unless it was told not to by
//! `--insecure-no-auth`.

mod layer;
mod token;

pub use layer::{Auth, AuthLayer, COOKIE};
pub use token::TokenFile;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Settings of a server. Flatten it: `#[command(flatten)] auth: auth::ServerAuth`.
///
/// A program that is a client too uses the same token for that: [`ServerAuth::client`].
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ServerAuth {
    /// File with the bearer token that callers must present, and that this program presents to others. Several lines:
    /// each is accepted, the first is presented. Read again when it changes.
    #[arg(long, env = "OTTO_AUTH_TOKEN_FILE", value_name = "FILE")]
    pub auth_token_file: Option<PathBuf>,

    /// File with a bearer token that is good for GET /metrics alone, for who collects them. Several lines: each is
    /// accepted. Read again when it changes.
    #[arg(long, env = "OTTO_METRICS_TOKEN_FILE", value_name = "FILE")]
    pub metrics_token_file: Option<PathBuf>,

    /// Serve other machines without asking for a token: everyone who can reach the port may do everything.
    #[arg(long, env = "OTTO_INSECURE_NO_AUTH")]
    pub insecure_no_auth: bool,
}

/// Settings of a client. Flatten it: `#[command(flatten)] auth: auth::ClientAuth`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ClientAuth {
    /// File with the bearer token to present to the server (its first line). Read again when it changes.
    #[arg(long, env = "OTTO_AUTH_TOKEN_FILE", value_name = "FILE")]
    pub auth_token_file: Option<PathBuf>,
}

/// Why a server may not start, or a client has nothing to present.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The token file cannot be read.
    #[error("cannot read the token file {} ({flag}): {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Which flag gave it.
        flag: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The token file holds no token, or one that no HTTP header can carry.
    #[error("the token file {} ({flag}) {what}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Which flag gave it.
        flag: &'static str,
        /// What is wrong, and what is accepted.
        what: String,
    },
    /// A server for other machines without a token.
    #[error(
        "{address} can be reached from other machines: give --auth-token-file, listen on a loopback address \
         such as 127.0.0.1, or allow everyone with --insecure-no-auth"
    )]
    TokenRequired {
        /// The address that is not loopback.
        address: SocketAddr,
    },
}

/// Whom a server lets in. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Policy {
    token: Option<Arc<TokenFile>>,
    limited: Vec<Arc<Limited>>,
}

/// Tokens that are good for one thing alone.
#[derive(Debug)]
struct Limited {
    token: TokenFile,
    flag: &'static str,
    scope: Scope,
}

/// The one thing that a token is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// A gRPC service, by its full name, such as `ottoscaler.v1.LogStreamingService`; and reflection, which shows nothing but
    /// the contract.
    Service(&'static str),
    /// Reading one path of an HTTP server, such as `/metrics`.
    Path(&'static str),
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Scope::Service(name) => f.write_str(name),
            Scope::Path(path) => write!(f, "GET {path}"),
        }
    }
}

/// What a token that was presented is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    /// Whatever the server has.
    Everything,
    /// One thing.
    Only {
        /// Which.
        scope: Scope,
        /// Which flag says so.
        flag: &'static str,
    },
}

const AUTH_TOKEN_FILE: &str = "--auth-token-file";
const METRICS_TOKEN_FILE: &str = "--metrics-token-file";

/// Why a caller is not let in. The text is meant for the caller, and does not help guessing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No `authorization` header.
    #[error(
        "a bearer token is required: send the header `authorization: Bearer TOKEN` (--auth-token-file of otto's programs)"
    )]
    Missing,
    /// The header is not of the form `Bearer TOKEN`.
    #[error("the authorization header is not of the form `Bearer TOKEN`")]
    Malformed,
    /// Another token.
    #[error("the bearer token is not valid here")]
    Wrong,
    /// A token for something else.
    #[error("this bearer token is good for {scope} alone ({flag})")]
    Elsewhere {
        /// What it is good for.
        scope: Scope,
        /// Which flag says so.
        flag: &'static str,
    },
}

impl ServerAuth {
    /// Decides whom to let in on these addresses.
    ///
    /// # Errors
    /// If an address is not loopback and there is neither a token nor `--insecure-no-auth`, or if the token file cannot
    /// be used.
    pub fn policy(&self, addresses: &[SocketAddr]) -> Result<Policy, Error> {
        if let Some(path) = &self.auth_token_file {
            if self.insecure_no_auth {
                tracing::warn!("--insecure-no-auth has no effect: a token is demanded, as --auth-token-file is given");
            }
            let policy = Policy { token: Some(Arc::new(TokenFile::open(path, AUTH_TOKEN_FILE)?)), limited: Vec::new() };
            return match &self.metrics_token_file {
                Some(path) => policy.with_limited(path, METRICS_TOKEN_FILE, Scope::Path("/metrics")),
                None => Ok(policy),
            };
        }
        if self.metrics_token_file.is_some() {
            tracing::warn!("--metrics-token-file has no effect: without --auth-token-file no token is demanded");
        }
        if let Some(address) = addresses.iter().find(|address| !address.ip().to_canonical().is_loopback()) {
            if !self.insecure_no_auth {
                return Err(Error::TokenRequired { address: *address });
            }
            tracing::warn!(%address, "everyone who can reach this address may do everything (--insecure-no-auth)");
        }
        Ok(Policy::open())
    }

    /// The same token, for presenting it to other servers.
    pub fn client(&self) -> ClientAuth {
        ClientAuth { auth_token_file: self.auth_token_file.clone() }
    }
}

impl ClientAuth {
    /// The token to present, if one is configured.
    ///
    /// # Errors
    /// If the token file cannot be used.
    pub fn token(&self) -> Result<Option<Arc<TokenFile>>, Error> {
        self.auth_token_file.as_deref().map(|path| TokenFile::open(path, AUTH_TOKEN_FILE).map(Arc::new)).transpose()
    }
}

impl Policy {
    /// Lets everyone in.
    pub fn open() -> Self {
        Policy { token: None, limited: Vec::new() }
    }

    /// Also lets in who presents a token of the file `path`, given by `flag`, but only as far as `scope` says. Read again
    /// when it changes. Without effect where no token is demanded.
    ///
    /// # Errors
    /// If the token file cannot be used.
    pub fn with_limited(mut self, path: &Path, flag: &'static str, scope: Scope) -> Result<Self, Error> {
        self.limited.push(Arc::new(Limited { token: TokenFile::open(path, flag)?, flag, scope }));
        Ok(self)
    }

    /// Whether a token is demanded.
    pub fn demands_token(&self) -> bool {
        self.token.is_some()
    }

    /// Checks the `authorization` header.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, headers: &http::HeaderMap) -> Result<Grant, Denied> {
        if self.token.is_none() {
            return Ok(Grant::Everything);
        }
        let value = headers.get(http::header::AUTHORIZATION).ok_or(Denied::Missing)?.as_bytes();
        // The scheme's name knows no case: RFC 9110, section 11.1.
        let (scheme, presented) = value.split_at_checked(7).ok_or(Denied::Malformed)?;
        if !scheme.eq_ignore_ascii_case(b"bearer ") {
            return Err(Denied::Malformed);
        }
        self.grant(presented.trim_ascii()).ok_or(Denied::Wrong)
    }

    /// What a token is good for that is given in whatever way, such as a form or a cookie; `None`: for nothing.
    pub fn grant(&self, presented: &[u8]) -> Option<Grant> {
        if self.token.as_ref().is_none_or(|token| token.accepts(presented)) {
            return Some(Grant::Everything);
        }
        let limited = self.limited.iter().find(|limited| limited.token.accepts(presented))?;
        Some(Grant::Only { scope: limited.scope, flag: limited.flag })
    }

    /// For [`crate::grpc::Server`]: UNAUTHENTICATED without a valid token, PERMISSION_DENIED with one for something else;
    /// `grpc.health.v1.Health` is exempt, because probes carry none.
    pub(crate) fn grpc_layer(&self) -> AuthLayer {
        AuthLayer::grpc(self.clone())
    }

    /// For an axum router: 401 without a token that is good for this; `exempt` paths need none. A path that ends in `/`
    /// stands for all below it. Besides the header, requests that change nothing (GET, HEAD) may carry the token in the cookie
    /// [`COOKIE`], so that a page in a browser can follow an event stream.
    pub fn http_layer(&self, exempt: &[&str]) -> AuthLayer {
        AuthLayer::http(self.clone(), exempt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(token: Option<&std::path::Path>, insecure: bool) -> ServerAuth {
        ServerAuth { auth_token_file: token.map(Into::into), insecure_no_auth: insecure, ..ServerAuth::default() }
    }

    fn headers(value: &str) -> http::HeaderMap {
        let mut headers = http::HeaderMap::new();
        headers.insert(http::header::AUTHORIZATION, value.parse().unwrap());
        headers
    }

    #[test]
    fn loopback_needs_no_token_everything_else_does() {
        let loopback = ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"].map(|a| a.parse().unwrap());
        assert!(!server(None, false).policy(&loopback).unwrap().demands_token());
        for open in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "[::ffff:10.0.0.1]:1"] {
            let address: SocketAddr = open.parse().unwrap();
            let error = server(None, false).policy(&[loopback[0], address]).unwrap_err().to_string();
            assert!(error.contains(open) && error.contains("--auth-token-file"), "{error}");
            assert!(!server(None, true).policy(&[address]).unwrap().demands_token());
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), "t\n").unwrap();
            assert!(server(Some(file.path()), false).policy(&[address]).unwrap().demands_token());
            // The token wins: asking for more than was wanted is the safe way to be wrong.
            assert!(server(Some(file.path()), true).policy(&[address]).unwrap().demands_token());
        }
    }

    #[test]
    fn header_forms() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "s3cret\nnext-one\n").unwrap();
        let policy = server(Some(file.path()), false).policy(&[]).unwrap();
        for good in ["Bearer s3cret", "bearer s3cret", "BEARER  s3cret", "Bearer next-one"] {
            assert_eq!(policy.check(&headers(good)), Ok(Grant::Everything), "{good}");
        }
        for (bad, why) in [
            ("Bearer s3cre", Denied::Wrong),
            ("Bearer s3crett", Denied::Wrong),
            ("Bearer s3cret\tnext-one", Denied::Wrong),
            ("Bearer ", Denied::Wrong),
            ("Bearer", Denied::Malformed),
            ("s3cret", Denied::Malformed),
            ("Basic s3cret", Denied::Malformed),
        ] {
            assert_eq!(policy.check(&headers(bad)), Err(why), "{bad}");
        }
        assert_eq!(policy.check(&http::HeaderMap::new()), Err(Denied::Missing));
        let everything = Some(Grant::Everything);
        assert_eq!((policy.grant(b"next-one"), policy.grant(b""), policy.grant(b"other")), (everything, None, None));
        assert_eq!(Policy::open().grant(b""), everything);
        assert!(Policy::open().check(&http::HeaderMap::new()).is_ok());
    }

    #[test]
    fn a_limited_token_is_good_for_one_thing() {
        let dir = tempfile::tempdir().unwrap();
        let (full, limited) = (dir.path().join("full"), dir.path().join("limited"));
        std::fs::write(&full, "s3cret\n").unwrap();
        std::fs::write(&limited, "weak\ns3cret\n").unwrap();
        let policy = server(Some(&full), false).policy(&[]).unwrap();
        let policy = policy.with_limited(&limited, "--worker-token-file", Scope::Service("test.v1.Echo")).unwrap();
        let one = Grant::Only { scope: Scope::Service("test.v1.Echo"), flag: "--worker-token-file" };
        assert_eq!(policy.check(&headers("Bearer weak")), Ok(one));
        assert_eq!(policy.check(&headers("Bearer s3cret")), Ok(Grant::Everything), "in both files");
        assert_eq!(policy.check(&headers("Bearer other")), Err(Denied::Wrong));

        let missing = dir.path().join("missing");
        let error = Policy::open().with_limited(&missing, "--worker-token-file", Scope::Path("/x")).unwrap_err();
        assert!(error.to_string().contains("missing (--worker-token-file)"), "{error}");
    }
}
