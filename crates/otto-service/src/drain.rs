//! Draining: the first SIGTERM or Ctrl-C asks the program to finish what it does, the second ends its waiting.

use std::io;
use std::sync::Arc;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// The request to drain. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Drain {
    token: CancellationToken,
    _listener: Option<Listener>,
}

/// Signals are listened for as long as a `Drain` or `Abort` is held.
type Listener = Arc<AbortOnDropHandle<()>>;

/// The second signal: stop waiting, return from `main` at once.
#[derive(Clone, Debug)]
pub struct Abort {
    token: CancellationToken,
    _listener: Listener,
}

impl Drain {
    /// A drain that only [`Drain::request`] starts: for tests, and for parts that end by themselves.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Drain { token: CancellationToken::new(), _listener: None }
    }

    /// Waits until draining is requested. Returns at once if it was already.
    pub async fn requested(&self) {
        self.token.cancelled().await;
    }

    /// Whether draining was requested.
    pub fn is_requested(&self) -> bool {
        self.token.is_cancelled()
    }

    /// A token that is cancelled when draining is requested.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Requests draining, as a first signal would: when a part of the program cannot go on.
    pub fn request(&self) {
        self.token.cancel();
    }
}

impl Abort {
    /// Waits for the second signal.
    pub async fn requested(&self) {
        self.token.cancelled().await;
    }

    /// Whether the second signal came.
    pub fn is_requested(&self) -> bool {
        self.token.is_cancelled()
    }
}

/// Listens for SIGTERM and SIGINT.
///
/// ```no_run
/// # async fn serve(_: otto_service::drain::Drain) -> anyhow::Result<()> { Ok(()) }
/// # async fn example() -> anyhow::Result<()> {
/// let (drain, abort) = otto_service::drain::signals()?;
/// tokio::select! {
///     result = serve(drain) => result,
///     () = abort.requested() => anyhow::bail!("ended by a second signal before everything was drained"),
/// }
/// # }
/// ```
///
/// # Errors
/// If the handlers cannot be installed. Must be called within a tokio runtime.
pub fn signals() -> io::Result<(Drain, Abort)> {
    let terminate = signal(SignalKind::terminate())?;
    let interrupt = signal(SignalKind::interrupt())?;
    let drain = CancellationToken::new();
    let abort = CancellationToken::new();
    let listener = tokio::spawn(listen(terminate, interrupt, drain.clone(), abort.clone()));
    let listener = Arc::new(AbortOnDropHandle::new(listener));
    Ok((Drain { token: drain, _listener: Some(listener.clone()) }, Abort { token: abort, _listener: listener }))
}

async fn listen(mut terminate: Signal, mut interrupt: Signal, drain: CancellationToken, abort: CancellationToken) {
    let mut next = async || {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    };
    let name = next().await;
    tracing::info!(signal = name, "draining; a second signal ends the program at once");
    drain.cancel();
    let name = next().await;
    tracing::warn!(signal = name, "ending without waiting for the drain");
    abort.cancel();
}
