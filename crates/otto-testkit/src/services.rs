use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::Channel;

use crate::{PATIENCE, Process, binary};

/// What a program was started with, so that it can be started again.
#[derive(Clone)]
struct Setup {
    dir: PathBuf,
    extra: Vec<String>,
    env: Vec<(String, String)>,
}

/// What tells one server program from another.
pub trait Program {
    /// Its name.
    const NAME: &'static str;
    /// Its folder below the test's.
    const DATA: &'static str;
    /// Flag of its second address.
    const SECOND_FLAG: &'static str;
    /// The same in the ready file.
    const SECOND_KEY: &'static str;

    /// Further flags it is always started with.
    ///
    /// # Errors
    /// When a program they name is not built.
    fn flags() -> anyhow::Result<Vec<String>>;
}

/// The log server.
pub struct LogIngestProgram;

impl Program for LogIngestProgram {
    const NAME: &'static str = "otto-log-ingest";
    const DATA: &'static str = "log-data";
    const SECOND_FLAG: &'static str = "--http-addr";
    const SECOND_KEY: &'static str = "http_addr";

    fn flags() -> anyhow::Result<Vec<String>> {
        Ok(Vec::new())
    }
}

/// The scaler, with the process driver.
pub struct ScalerProgram;

impl Program for ScalerProgram {
    const NAME: &'static str = "otto-scaler";
    const DATA: &'static str = "scaler-data";
    const SECOND_FLAG: &'static str = "--admin-addr";
    const SECOND_KEY: &'static str = "admin_addr";

    fn flags() -> anyhow::Result<Vec<String>> {
        Ok(flags(&[("--driver", "process"), ("--worker-binary", &binary("otto-worker")?.display().to_string())]))
    }
}

/// otto-log-ingest on ports of its own choice.
pub type LogIngest = Service<LogIngestProgram>;

/// otto-scaler with the process driver, on ports of its own choice.
pub type Scaler = Service<ScalerProgram>;

/// The scaler with the Kubernetes driver: where the cluster is, say flags and environment.
pub struct PodScalerProgram;

impl Program for PodScalerProgram {
    const NAME: &'static str = ScalerProgram::NAME;
    const DATA: &'static str = ScalerProgram::DATA;
    const SECOND_FLAG: &'static str = ScalerProgram::SECOND_FLAG;
    const SECOND_KEY: &'static str = ScalerProgram::SECOND_KEY;

    fn flags() -> anyhow::Result<Vec<String>> {
        Ok(flags(&[("--driver", "kubernetes")]))
    }
}

/// otto-scaler with the Kubernetes driver, on ports of its own choice.
pub type PodScaler = Service<PodScalerProgram>;

/// The scaler, whatever its driver.
pub trait AnyScaler: Program {}

impl AnyScaler for ScalerProgram {}

impl AnyScaler for PodScalerProgram {}

/// A server program on ports of its own choice.
pub struct Service<P> {
    /// The running program.
    pub process: Process,
    setup: Setup,
    grpc: String,
    second: String,
    program: PhantomData<P>,
}

impl<P: Program> Service<P> {
    /// Starts it with its data in a folder of its own below `dir`. `extra` are further flags (`--redis-url`,
    /// `--log-server`, …).
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

    async fn launch(setup: Setup, grpc: &str, second: &str) -> anyhow::Result<Self> {
        let ready = setup.dir.join(format!("{}.ready", P::NAME));
        let mut args = flags(&[
            ("--grpc-addr", grpc),
            (P::SECOND_FLAG, second),
            ("--data-dir", &setup.dir.join(P::DATA).display().to_string()),
            ("--ready-file", &ready.display().to_string()),
        ]);
        args.extend(P::flags()?);
        args.extend(setup.extra.iter().cloned());
        let (process, addresses) = start(P::NAME, args, &setup, &ready).await?;
        let grpc = address(&addresses, "grpc_addr")?;
        let second = address(&addresses, P::SECOND_KEY)?;
        Ok(Self { process, setup, grpc, second, program: PhantomData })
    }

    /// Starts it again after its end, on the same addresses and data.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            match Self::launch(self.setup.clone(), &self.grpc, &self.second).await {
                Ok(again) => {
                    *self = again;
                    return Ok(());
                }
                // A connection of another process may have one of the ports for a moment.
                Err(error) => {
                    let in_use = format!("{error:#}").contains("Address already in use");
                    if !in_use || started.elapsed() > PATIENCE {
                        return Err(error);
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
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

    /// A channel to its gRPC server.
    ///
    /// # Errors
    /// When it is not reachable.
    pub async fn channel(&self) -> anyhow::Result<Channel> {
        Ok(Channel::from_shared(self.grpc_url())?.connect().await?)
    }
}

impl LogIngest {
    /// `http://127.0.0.1:PORT` of its page and API.
    #[must_use]
    pub fn http_url(&self) -> String {
        format!("http://{}", self.second)
    }
}

impl<P: AnyScaler> Service<P> {
    /// `http://127.0.0.1:PORT` of its metrics and probes.
    #[must_use]
    pub fn admin_url(&self) -> String {
        format!("http://{}", self.second)
    }

    /// Waits until all its parts can do their work (`/readyz`). One that has just started may not be there yet.
    ///
    /// # Errors
    /// When it ends, or does not come to that.
    pub async fn until_ready(&mut self) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            let answer = tokio::time::timeout(PATIENCE, readyz(&self.second)).await?;
            if answer.as_ref().is_ok_and(|text| text.starts_with("HTTP/1.1 200 ")) {
                return Ok(());
            }
            self.process.check_running().with_context(|| format!("{} did not become ready", P::NAME))?;
            if started.elapsed() > PATIENCE {
                bail!("{} is not ready: {answer:?}; its log:\n{}", P::NAME, self.process.log_tail());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn readyz(address: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
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
    let started = Instant::now();
    loop {
        if let Ok(text) = std::fs::read(ready) {
            return Ok((process, serde_json::from_slice(&text)?));
        }
        process.check_running().with_context(|| format!("{name} did not become ready"))?;
        if started.elapsed() > PATIENCE {
            bail!("{name} did not become ready; its log:\n{}", process.log_tail());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
