//! Signals for the agent, most of which are meant for the job.

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use rustix::process::Signal;
use tokio::signal::unix::{Signal as Listener, SignalKind, signal};

use super::reap::reap_all;

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

/// Those which images name as the signal that ends their program (nginx QUIT, httpd WINCH, haproxy USR1), besides TERM.
const STOPS: [Signal; 6] = [Signal::INT, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2, Signal::WINCH];
/// And systemd's, `SIGRTMIN+3` of the C library: <https://systemd.io/CONTAINER_INTERFACE/>.
const STOP_OF_SYSTEMD: i32 = 37;

/// Listens from its making on.
pub(crate) struct Signals {
    passed_on: Vec<(Signal, Listener)>,
    child: Listener,
}

impl Signals {
    /// `any_stops`: whatever an image may have as its stop signal is told as SIGTERM.
    ///
    /// # Errors
    /// When a handler cannot be installed.
    pub(crate) fn listen(any_stops: bool) -> io::Result<Self> {
        let ignored = ignored(&std::fs::read_to_string("/proc/self/status").unwrap_or_default());
        // What whoever started us ignores (nohup), the job shall ignore too: caught, it would be the default for the job.
        let wanted = PASSED_ON.into_iter().filter(|signal| ignored & (1 << (signal.as_raw() - 1)) == 0);
        let listen = |number: i32, told: Signal| signal(SignalKind::from_raw(number)).map(|listener| (told, listener));
        let told = |which: Signal| if any_stops && STOPS.contains(&which) { Signal::TERM } else { which };
        let mut passed_on: Vec<_> =
            wanted.map(|which| listen(which.as_raw(), told(which))).collect::<io::Result<_>>()?;
        if any_stops {
            passed_on.push(listen(STOP_OF_SYSTEMD, Signal::TERM)?);
        }
        Ok(Signals { passed_on, child: signal(SignalKind::child())? })
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

    /// Waits until we are told to end, and reaps meanwhile: there must be no job (any more). May be cancelled.
    pub(crate) async fn told_to_end(&mut self) {
        loop {
            match self.next().await {
                Some(Signal::TERM | Signal::INT | Signal::QUIT | Signal::HUP) => return,
                Some(_) => {}
                None => reap_all(),
            }
        }
    }
}

/// Bit n-1 is set if signal n is ignored, by the text of /proc/PID/status.
fn ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_that_are_ignored() {
        let hup_and_pipe = "Name:\tx\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t1\n";
        assert_eq!(ignored(hup_and_pipe), 1 << (Signal::HUP.as_raw() - 1) | 1 << (Signal::PIPE.as_raw() - 1));
        assert_eq!(ignored(""), 0);
    }
}
