//! How the upload goes, for whoever waits for it and for people.

use std::path::Path;

use tokio::sync::watch;

use super::Break;

/// How the upload goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Everything up to this sequence is with the server.
    pub(crate) acked: u64,
    /// Lines the server refused for good.
    pub(crate) refused: u64,
    /// Why the last session ended, while there is no other.
    pub(crate) trouble: Option<String>,
}

/// Watches the upload.
pub(crate) type Watcher = watch::Receiver<Progress>;

pub(super) fn channel(acked: u64) -> (Reporter, Watcher) {
    let (sender, receiver) = watch::channel(Progress { acked, ..Progress::default() });
    (Reporter { sender, told: None }, receiver)
}

/// The upload's side.
pub(super) struct Reporter {
    sender: watch::Sender<Progress>,
    /// The trouble that was logged.
    told: Option<String>,
}

impl Reporter {
    pub(super) fn acked(&self) -> u64 {
        self.sender.borrow().acked
    }

    pub(super) fn acknowledged(&self, sequence: u64) {
        self.sender.send_if_modified(|progress| {
            let more = sequence > progress.acked;
            progress.acked = progress.acked.max(sequence);
            more
        });
    }

    /// The server takes our lines.
    pub(super) fn connected(&mut self) {
        self.sender.send_modify(|progress| progress.trouble = None);
        if self.told.take().is_some() {
            tracing::info!("the log server takes our lines again");
        }
    }

    pub(super) fn refused(&self, lines: u64, why: &str) {
        self.sender.send_modify(|progress| progress.refused += lines);
        self.tell_refused(lines, why);
    }

    /// As [`Reporter::refused`], where lines are counted elsewhere.
    pub(super) fn tell_refused(&self, lines: u64, why: &str) {
        tracing::warn!("the log server refused {lines} lines: {why}");
    }

    /// Logged once, not with each try.
    pub(super) fn broken(&mut self, why: &Break, url: &str, spool: &Path) {
        let why = why.to_string();
        if self.told.as_ref() == Some(&why) {
            tracing::debug!("{why}");
        } else {
            let spool = spool.display();
            tracing::warn!("the log server {url} does not take our lines, they are kept in {spool}: {why}");
            self.told = Some(why.clone());
        }
        self.sender.send_modify(|progress| progress.trouble = Some(why));
    }
}
