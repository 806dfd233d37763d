//! Signals for the agent, most of which are meant for the job.

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use rustix::process::Signal;
use tokio::signal::unix::{Signal as Listener, SignalKind, signal};

/// Those that are passed on to the job's process group. (SIGCHLD is ours; SIGPIPE is ignored; others cannot be caught or
/// mean a defect of the agent itself.)
const PASSED_ON: [Signal; 9] = [
    Signal::TERM,
    Signal::INT,
    Signal::HUP,
    Signal::QUIT,
    Signal::USR1,
    Signal::USR2,
    Signal::WINCH,
    Signal::ALARM,
    Signal::CONT,
];

/// Listens from its making on.
pub(crate) struct Signals {
    passed_on: Vec<(Signal, Listener)>,
    child: Listener,
}

impl Signals {
    /// # Errors
    /// When a handler cannot be installed.
    pub(crate) fn listen() -> io::Result<Self> {
        let listen = |which: Signal| signal(SignalKind::from_raw(which.as_raw())).map(|listener| (which, listener));
        Ok(Signals {
            passed_on: PASSED_ON.into_iter().map(listen).collect::<io::Result<_>>()?,
            child: signal(SignalKind::child())?,
        })
    }

    /// The next one: `Some` to pass on, `None` when a child has ended. May be cancelled.
    pub(crate) async fn next(&mut self) -> Option<Signal> {
        poll_fn(|context| {
            if self.child.poll_recv(context).is_ready() {
                return Poll::Ready(None);
            }
            for (signal, listener) in &mut self.passed_on {
                if listener.poll_recv(context).is_ready() {
                    return Poll::Ready(Some(*signal));
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Waits until we are told to end. May be cancelled.
    pub(crate) async fn told_to_end(&mut self) {
        while !matches!(self.next().await, Some(Signal::TERM | Signal::INT | Signal::QUIT | Signal::HUP)) {}
    }
}
