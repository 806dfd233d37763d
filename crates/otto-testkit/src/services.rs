use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tonic::transport::Channel;

use crate::{PATIENCE, Process, binary};

/// What a program was started with, so that it can be started again.
#[derive(Clone)]
struct Setup {
    dir: PathBuf,
    extra: Vec<String>,
    env: Vec<(String, String)>,
}

/// otto-log-ingest on ports of its own choice.
pub struct LogIngest {
    /// The running program.
    pub process: Process,
    setup: Setup,
    grpc: String,
    http: String,
}

impl LogIngest {
    /// Starts it with its data in `dir`/log-data. `extra` are further flags.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn start(dir: &Path, extra: &[&str]) -> anyhow::Result<Self> {
        Self::start_with_env(dir, extra, &[]).await
    }

    /// As `start`, with further environment variables.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn start_with_env(dir: &Path, extra: &[&str], env: &[(&str, &str)]) -> anyhow::Result<Self> {
        let extra = extra.iter().map(ToString::to_string).collect();
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self::launch(Setup { dir: dir.to_owned(), extra, env }, "127.0.0.1:0", "127.0.0.1:0").await
    }

    async fn launch(setup: Setup, grpc: &str, http: &str) -> anyhow::Result<Self> {
        let ready = setup.dir.join("log-ingest.ready");
        let mut args = flags(&[
            ("--grpc-addr", grpc),
            ("--http-addr", http),
            ("--data-dir", &setup.dir.join("log-data").display().to_string()),
            ("--ready-file", &ready.display().to_string()),
        ]);
        args.extend(setup.extra.iter().cloned());
        let (process, addresses) = start("otto-log-ingest", args, &setup, &ready).await?;
        let grpc = address(&addresses, "grpc_addr")?;
        let http = address(&addresses, "http_addr")?;
        Ok(Self { process, setup, grpc, http })
    }

    /// Starts it again after its end, on the same addresses and data.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        *self = Self::launch(self.setup.clone(), &self.grpc.clone(), &self.http.clone()).await?;
        Ok(())
    }

    /// `http://127.0.0.1:PORT` of its gRPC server.
    #[must_use]
    pub fn grpc_url(&self) -> String {
        format!("http://{}", self.grpc)
    }

    /// `127.0.0.1:PORT` of its gRPC server.
    #[must_use]
    pub fn grpc_addr(&self) -> &str {
        &self.grpc
    }

    /// `http://127.0.0.1:PORT` of its page and API.
    #[must_use]
    pub fn http_url(&self) -> String {
        format!("http://{}", self.http)
    }

    /// A channel to its gRPC server.
    ///
    /// # Errors
    /// When it is not reachable.
    pub async fn channel(&self) -> anyhow::Result<Channel> {
        Ok(Channel::from_shared(self.grpc_url())?.connect().await?)
    }
}

/// otto-scaler with the process driver, on ports of its own choice.
pub struct Scaler {
    /// The running program.
    pub process: Process,
    setup: Setup,
    grpc: String,
    admin: String,
}

impl Scaler {
    /// Starts it with its data in `dir`/scaler-data. `extra` are further flags (`--redis-url`, `--log-server`, …).
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn start(dir: &Path, extra: &[&str]) -> anyhow::Result<Self> {
        Self::start_with_env(dir, extra, &[]).await
    }

    /// As `start`, with further environment variables.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn start_with_env(dir: &Path, extra: &[&str], env: &[(&str, &str)]) -> anyhow::Result<Self> {
        let extra = extra.iter().map(ToString::to_string).collect();
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self::launch(Setup { dir: dir.to_owned(), extra, env }, "127.0.0.1:0", "127.0.0.1:0").await
    }

    async fn launch(setup: Setup, grpc: &str, admin: &str) -> anyhow::Result<Self> {
        let ready = setup.dir.join("scaler.ready");
        let mut args = flags(&[
            ("--driver", "process"),
            ("--grpc-addr", grpc),
            ("--admin-addr", admin),
            ("--data-dir", &setup.dir.join("scaler-data").display().to_string()),
            ("--ready-file", &ready.display().to_string()),
            ("--worker-binary", &binary("otto-worker")?.display().to_string()),
        ]);
        args.extend(setup.extra.iter().cloned());
        let (process, addresses) = start("otto-scaler", args, &setup, &ready).await?;
        let grpc = address(&addresses, "grpc_addr")?;
        let admin = address(&addresses, "admin_addr")?;
        Ok(Self { process, setup, grpc, admin })
    }

    /// Starts it again after its end, on the same addresses and data.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        *self = Self::launch(self.setup.clone(), &self.grpc.clone(), &self.admin.clone()).await?;
        Ok(())
    }

    /// `http://127.0.0.1:PORT` of its gRPC server.
    #[must_use]
    pub fn grpc_url(&self) -> String {
        format!("http://{}", self.grpc)
    }

    /// `127.0.0.1:PORT` of its gRPC server.
    #[must_use]
    pub fn grpc_addr(&self) -> &str {
        &self.grpc
    }

    /// `http://127.0.0.1:PORT` of its metrics and probes.
    #[must_use]
    pub fn admin_url(&self) -> String {
        format!("http://{}", self.admin)
    }

    /// A channel to its gRPC server.
    ///
    /// # Errors
    /// When it is not reachable.
    pub async fn channel(&self) -> anyhow::Result<Channel> {
        Ok(Channel::from_shared(self.grpc_url())?.connect().await?)
    }
}

fn flags(pairs: &[(&str, &str)]) -> Vec<String> {
    pairs.iter().flat_map(|(flag, value)| [(*flag).to_owned(), (*value).to_owned()]).collect()
}

fn address(ready: &serde_json::Value, key: &str) -> anyhow::Result<String> {
    Ok(ready[key].as_str().with_context(|| format!("the ready file has no {key}"))?.to_owned())
}

/// Starts a program and waits for the file it writes when it serves.
async fn start(
    name: &str,
    args: Vec<String>,
    setup: &Setup,
    ready: &Path,
) -> anyhow::Result<(Process, serde_json::Value)> {
    if ready.exists() {
        std::fs::remove_file(ready)?;
    }
    let env: Vec<_> = setup.env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let mut process = Process::start(&binary(name)?, args, &env, &setup.dir.join(format!("{name}.log")))?;
    let started = std::time::Instant::now();
    loop {
        if let Ok(text) = std::fs::read(ready) {
            return Ok((process, serde_json::from_slice(&text)?));
        }
        process.check_running().with_context(|| format!("{name} did not become ready"))?;
        if started.elapsed() > PATIENCE {
            bail!("{name} did not become ready; its log:\n{}", process.log_tail());
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}
