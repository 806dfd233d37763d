//! Waits until runs are with the log server, or gives up, and says what is left where.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::Instrument;

use crate::spool::Spool;
use crate::upload::{Delivered, Uploader, Watcher};

/// How often progress is looked at. The end of an upload is noticed at once.
const TICK: Duration = Duration::from_millis(100);

/// Runs on their way.
#[derive(Default)]
pub(crate) struct Deliveries {
    tasks: JoinSet<(usize, Delivered)>,
    runs: Vec<Delivery>,
}

struct Delivery {
    spool: Spool,
    /// Absent: it is not on its way.
    watcher: Option<Watcher>,
    delivered: Option<Delivered>,
}

impl Deliveries {
    /// Begins to send a run.
    pub(crate) fn add(&mut self, spool: Spool, (uploader, watcher): (Uploader, Watcher)) {
        let number = self.runs.len();
        self.runs.push(Delivery { spool, watcher: Some(watcher), delivered: None });
        self.tasks.spawn(async move { (number, uploader.run().await) }.in_current_span());
    }

    /// Keeps a run that cannot be sent, to tell of it.
    pub(crate) fn keep(&mut self, spool: Spool) {
        self.runs.push(Delivery { spool, watcher: None, delivered: None });
    }

    /// Waits until all runs are with the log server, nothing was acknowledged for `patience`, or `hurry` ends. Spools of
    /// those that are there are removed.
    pub(crate) async fn wait(&mut self, patience: Duration, hurry: impl Future<Output = ()>) {
        tokio::pin!(hurry);
        let mut acked = self.acked();
        let mut give_up = Instant::now() + patience;
        let mut hurried = false;
        while !self.tasks.is_empty() {
            tokio::select! {
                biased;
                Some(ended) = self.tasks.join_next() => match ended {
                    Ok((number, delivered)) => self.delivered(number, delivered),
                    // Its lines are in the spool.
                    Err(error) => tracing::error!("the upload of a run has died: {error}"),
                },
                () = &mut hurry, if !hurried => {
                    hurried = true;
                    give_up = give_up.min(Instant::now() + TICK);
                }
                () = tokio::time::sleep_until(give_up.min(Instant::now() + TICK)) => {
                    let now = Instant::now();
                    let before = std::mem::replace(&mut acked, self.acked());
                    if acked > before && !hurried {
                        give_up = now + patience;
                    }
                    if now >= give_up {
                        break;
                    }
                }
            }
        }
        self.tasks.abort_all();
    }

    fn acked(&self) -> u64 {
        self.runs.iter().filter_map(|run| Some(run.watcher.as_ref()?.borrow().acked)).sum()
    }

    fn delivered(&mut self, number: usize, delivered: Delivered) {
        let Some(run) = self.runs.get_mut(number) else { return };
        run.delivered = Some(delivered);
        if let Err(error) = run.spool.remove() {
            tracing::warn!("removing {}: {error}", run.spool.dir().display());
        }
    }

    /// What the log server does not have, in words; empty if it has everything.
    pub(crate) fn missing(&self, spool_dir: &Path, log_server: Option<&str>) -> String {
        let mut text = String::new();
        let (mut lines, mut bytes, mut runs, mut gaps) = (0, 0, 0, 0);
        let mut trouble = None;
        for run in &self.runs {
            let progress = run.watcher.as_ref().map(|watcher| watcher.borrow().clone()).unwrap_or_default();
            match run.delivered {
                Some(delivered) => gaps += delivered.missing.max(progress.refused),
                None => {
                    let pending = run.spool.pending();
                    lines += pending.lines;
                    bytes += pending.bytes;
                    runs += 1;
                    trouble = trouble.or(progress.trouble);
                }
            }
        }
        if gaps > 0 {
            let _ = write!(text, "{gaps} lines are missing in the log: they were dropped, refused or lost");
        }
        if runs > 0 {
            let dir = std::path::absolute(spool_dir).unwrap_or_else(|_| spool_dir.to_owned());
            let dir = dir.display();
            let separator = if text.is_empty() { "" } else { "; " };
            let server = log_server.unwrap_or("URL");
            let _ = match log_server {
                None => write!(text, "{separator}there is no log server (--log-server): "),
                Some(url) => write!(text, "{separator}not all is with the log server {url}: "),
            };
            let _ = write!(text, "{lines} lines ({bytes} bytes) are kept in {dir}");
            if let Some(trouble) = trouble {
                let _ = write!(text, " ({trouble})");
            }
            let _ = write!(text, "; `otto-worker drain --spool-dir {dir} --log-server {server}` sends them");
        }
        text
    }
}
