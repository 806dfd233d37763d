use std::net::TcpListener;
use std::path::PathBuf;

use anyhow::{Context, bail};
use redis::AsyncConnectionConfig;
use redis::aio::MultiplexedConnection;
use tempfile::TempDir;

use crate::{PATIENCE, Process, program};

/// A real redis-server with its append-only file in a directory of its own.
pub struct RedisServer {
    process: Process,
    dir: TempDir,
    port: u16,
    appendfsync: &'static str,
}

impl RedisServer {
    /// Starts one on a free port of 127.0.0.1 that syncs every write.
    ///
    /// # Errors
    /// When redis-server is not installed or does not come up.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_syncing("always").await
    }

    /// Starts one with this `appendfsync`: `always`, `everysec` or `no`.
    ///
    /// # Errors
    /// When redis-server is not installed or does not come up.
    pub async fn start_syncing(appendfsync: &'static str) -> anyhow::Result<Self> {
        let mut dir = tempfile::tempdir()?;
        for _ in 0..20 {
            // Another process may take the port in between; then the pid in INFO is not ours, and the next is tried.
            let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
            let process = spawn(&dir, port, appendfsync)?;
            let mut server = Self { process, dir, port, appendfsync };
            if server.ready().await? {
                return Ok(server);
            }
            dir = server.dir;
        }
        bail!("no free port for redis-server")
    }

    /// `redis://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A new connection.
    ///
    /// # Errors
    /// When it is not reachable.
    pub async fn connect(&self) -> anyhow::Result<MultiplexedConnection> {
        // The default waits half a second for an answer, which a loaded machine may take.
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(PATIENCE)).set_response_timeout(Some(PATIENCE));
        Ok(redis::Client::open(self.url())?.get_multiplexed_async_connection_with_config(&config).await?)
    }

    /// SIGKILL. What the append-only file has stays.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        self.process.kill().await
    }

    /// Starts it again on the same port and directory.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        let start = std::time::Instant::now();
        loop {
            self.process = spawn(&self.dir, self.port, self.appendfsync)?;
            if self.ready().await? {
                return Ok(());
            }
            // A connection of another process may have the port for a moment.
            if start.elapsed() > PATIENCE {
                bail!("redis-server does not start on port {} again; its log:\n{}", self.port, self.process.log_tail());
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    }

    /// Waits until it answers; false if another process answers on its port.
    async fn ready(&mut self) -> anyhow::Result<bool> {
        let start = std::time::Instant::now();
        loop {
            if let Ok(mut connection) = self.connect().await {
                let info: Result<String, _> = redis::cmd("INFO").arg("server").query_async(&mut connection).await;
                if let Ok(info) = info {
                    return Ok(info.contains(&format!("process_id:{}\r", self.process.pid().as_raw_nonzero())));
                }
            }
            if self.process.check_running().is_err() {
                return Ok(false);
            }
            if start.elapsed() > PATIENCE {
                bail!("redis-server does not answer; its log:\n{}", self.process.log_tail());
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
}

fn spawn(dir: &TempDir, port: u16, appendfsync: &str) -> anyhow::Result<Process> {
    let path: PathBuf = dir.path().to_owned();
    let args: Vec<String> = vec![
        "--port".into(),
        port.to_string(),
        "--bind".into(),
        "127.0.0.1".into(),
        "--dir".into(),
        path.display().to_string(),
        "--appendonly".into(),
        "yes".into(),
        "--appendfsync".into(),
        appendfsync.into(),
        "--save".into(),
        String::new(),
        "--daemonize".into(),
        "no".into(),
    ];
    Process::start(&program("redis-server")?, args, &[], &path.join("redis.log")).context("redis-server")
}
