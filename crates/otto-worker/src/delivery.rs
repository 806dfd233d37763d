//! Waits until runs are with the log server, or gives up, and says what is left where.

use std::path::Path;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::Instrument;

use crate::child::Signals;
use crate::rundir::RunDir;
use crate::spool::Spool;
use crate::upload::{Delivered, Uploader, Watcher};

/// How often progress is looked at. The end of an upload is noticed at once.
const TICK: Duration = Duration::from_millis(100);
/// Of one who was told to end, and only has to send what is there.
const SHORT_PATIENCE: Duration = Duration::from_secs(2);

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

    /// Waits until all runs are with the log server, or nothing was acknowledged for `patience`. Who is
    /// told to end is less patient, and who is told twice not at all. Spools of runs that are there are removed.
    pub(crate) async fn wait(&mut self, mut patience: Duration, signals: &mut Signals) {
        let mut acked = self.acked();
        let mut give_up = Instant::now() + patience;
        let mut times_told = 0;
        while !self.tasks.is_empty() && Instant::now() < give_up {
            tokio::select! {
                biased;
                Some(ended) = self.tasks.join_next() => match ended {
                    Ok((number, delivered)) => self.delivered(number, delivered),
                    // Its lines are in the spool.
                    Err(error) => tracing::error!("the upload of a run has died: {error}"),
                },
                () = signals.told_to_end() => {
                    times_told += 1;
                    patience = if times_told == 1 { patience.min(SHORT_PATIENCE) } else { Duration::ZERO };
                    give_up = give_up.min(Instant::now() + patience);
                }
                () = tokio::time::sleep_until(give_up.min(Instant::now() + TICK)) => {
                    let before = std::mem::replace(&mut acked, self.acked());
                    if acked > before {
                        give_up = Instant::now() + patience;
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

    /// Says what the log server does not have and, when nothing more can be sent, notes it in the run directory. Returns
    /// whether nothing is left here.
    pub(crate) fn conclude(&self, spool_dir: &Path, log_server: Option<&str>, run_dir: Option<&RunDir>) -> bool {
        let missing = self.missing();
        if !missing.is_empty() {
            tracing::warn!("{missing}");
        }
        if let Some(left) = self.left(spool_dir, log_server) {
            tracing::warn!("{left}");
            return false;
        }
        if let Some(dir) = run_dir
            && let Err(error) = dir.write_drained(&missing)
        {
            tracing::error!("{error:#}");
        }
        true
    }

    /// What can never be sent, in words; empty if the log is complete.
    fn missing(&self) -> String {
        let gaps = |run: &Delivery| {
            let refused = run.watcher.as_ref().map_or(0, |watcher| watcher.borrow().refused);
            run.delivered.map_or(0, |delivered| delivered.missing.max(refused))
        };
        match self.runs.iter().map(gaps).sum() {
            0 => String::new(),
            gaps => format!("{} missing in the log: dropped, refused or lost", lines(gaps)),
        }
    }

    /// What is still here, in words.
    fn left(&self, spool_dir: &Path, log_server: Option<&str>) -> Option<String> {
        let left: Vec<&Delivery> = self.runs.iter().filter(|run| run.delivered.is_none()).collect();
        if left.is_empty() {
            return None;
        }
        let count = lines(left.iter().map(|run| run.spool.pending().lines).sum());
        let dir = std::path::absolute(spool_dir).unwrap_or_else(|_| spool_dir.to_owned());
        let dir = dir.display();
        let (why, url) = match log_server {
            None => ("there is no log server (--log-server)".to_owned(), "URL"),
            Some(url) => (format!("not all is with the log server {url}"), url),
        };
        let trouble = left.iter().find_map(|run| run.watcher.as_ref()?.borrow().trouble.clone());
        let trouble = trouble.map(|trouble| format!(" ({trouble})")).unwrap_or_default();
        Some(format!(
            "{why}{trouble}: {count} kept in {dir}; `otto-worker drain --spool-dir {dir} --log-server {url}` sends them"
        ))
    }
}

fn lines(count: u64) -> String {
    if count == 1 { "1 line is".to_owned() } else { format!("{count} lines are") }
}
