//! `PROGRAM --check-health URL`: asks a running server how it is. For health checks of containers whose image holds
//! nothing but the program.

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::auth::ClientAuth;
use crate::client::Endpoint;

/// What `--help` says of it: `#[command(after_help = probe::HELP)]`.
pub const HELP: &str = "With `--check-health URL` and nothing else it asks the server at URL (http://HOST:PORT, gRPC) whether it serves: exit \
     code 0 if so, 1 otherwise.";

/// Longest time the server may take.
const PATIENCE: Duration = Duration::from_secs(4);

/// Does it, if the command line asks for it. Called before settings are read: a probe needs none.
pub fn run_if_asked() -> Option<ExitCode> {
    let url = asked(std::env::args_os().skip(1))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.context("cannot start the runtime").and_then(|runtime| runtime.block_on(check(&url)));
    match result {
        Ok(()) => Some(ExitCode::SUCCESS),
        Err(error) => {
            eprintln!("--check-health: {error:#}");
            Some(ExitCode::FAILURE)
        }
    }
}

fn asked(mut arguments: impl Iterator<Item = OsString>) -> Option<String> {
    let first = arguments.next()?;
    if first != OsStr::new("--check-health") {
        return None;
    }
    // What is missing is told by the check of the URL.
    Some(arguments.next().unwrap_or_default().to_string_lossy().into_owned())
}

async fn check(url: &str) -> anyhow::Result<()> {
    let endpoint = Endpoint::new(url, &ClientAuth::default())?;
    let answer = tokio::time::timeout(PATIENCE, async {
        let mut client = HealthClient::new(endpoint.connect().await?);
        Ok::<_, anyhow::Error>(client.check(HealthCheckRequest::default()).await?.into_inner())
    });
    let answer = answer.await.with_context(|| format!("{url} did not answer within {PATIENCE:?}"))??;
    match answer.status() {
        ServingStatus::Serving => Ok(()),
        status => bail!("{url} is {}", status.as_str_name()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_asked_for_by_the_first_argument_only() {
        let asked = |words: &[&str]| asked(words.iter().map(OsString::from));
        assert_eq!(asked(&["--check-health", "http://a:1"]).as_deref(), Some("http://a:1"));
        assert_eq!(asked(&["--check-health"]).as_deref(), Some(""));
        assert_eq!(asked(&["--data-dir", "--check-health"]), None);
        assert_eq!(asked(&[]), None);
    }
}
