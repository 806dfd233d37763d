//! A gate between the scaler and Redis: it holds a command, or the answer to it, while the scaler is killed.

use std::sync::Arc;

use otto_testkit::PATIENCE;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// What is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// The command: Redis has not seen it.
    Command,
    /// The answer: Redis has done it.
    Answer,
}

/// What all connections share: what is held, if anything is, and whether it has come.
struct State {
    rule: watch::Sender<Option<(Hold, String)>>,
    held: watch::Sender<bool>,
}

/// A running gate. Ends when it is dropped.
pub(crate) struct RedisGate {
    port: u16,
    state: Arc<State>,
    accepting: JoinHandle<()>,
}

impl RedisGate {
    pub(crate) async fn start(redis: u16) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let state = Arc::new(State { rule: watch::Sender::new(None), held: watch::Sender::new(false) });
        let shared = Arc::clone(&state);
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(("127.0.0.1", redis)).await else { continue };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                let answers = watch::Sender::new(false);
                let answered = answers.subscribe();
                connections.spawn(commands(from_client, to_server, Arc::clone(&shared), answers));
                connections.spawn(replies(from_server, to_client, answered));
            }
        });
        Ok(Self { port, state, accepting })
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Holds the next command that contains this text, and everything after it on the same connection.
    pub(crate) fn hold(&self, what: Hold, text: &str) {
        self.state.held.send_replace(false);
        self.state.rule.send_replace(Some((what, text.to_owned())));
    }

    /// Waits until it holds what it was told to.
    pub(crate) async fn reached(&self) {
        let mut held = self.state.held.subscribe();
        let reached = tokio::time::timeout(PATIENCE, held.wait_for(|held| *held)).await;
        assert!(reached.is_ok(), "the command did not come: {:?}", *self.state.rule.borrow());
    }

    /// Holds nothing from now on. What is held stays so: its sender is dead.
    pub(crate) fn open(&self) {
        self.state.rule.send_replace(None);
    }
}

impl Drop for RedisGate {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn commands(mut client: OwnedReadHalf, mut server: OwnedWriteHalf, state: Arc<State>, mute: watch::Sender<bool>) {
    let mut buffer = vec![0; 1 << 18];
    while let Ok(count @ 1..) = client.read(&mut buffer).await {
        let rule = state.rule.borrow().clone();
        if let Some((what, text)) = rule
            && buffer[..count].windows(text.len()).any(|part| part == text.as_bytes())
        {
            state.rule.send_replace(None);
            if what == Hold::Command {
                state.held.send_replace(true);
                return std::future::pending().await;
            }
            mute.send_replace(true);
            if server.write_all(&buffer[..count]).await.is_err() {
                return;
            }
            // Its answer tells that Redis has done it; nobody gets to see that answer.
            mute.closed().await;
            state.held.send_replace(true);
            return;
        }
        if server.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

async fn replies(mut server: OwnedReadHalf, mut client: OwnedWriteHalf, mute: watch::Receiver<bool>) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(count @ 1..) = server.read(&mut buffer).await {
        if *mute.borrow() {
            drop(mute);
            // The connection stays, silent.
            return std::future::pending().await;
        }
        if client.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
