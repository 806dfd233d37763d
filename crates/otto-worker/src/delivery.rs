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

/// How long it is waited for the log server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// With nothing acknowledged for so long. `None`: for ever.
    silence: Option<Duration>,
    /// Until then, whatever is acknowledged.
    until: Option<Instant>,
    /// Somebody else sends what is left, so who is told to end leaves it soon.
    hand_over: bool,
    times_told: u32,
}

impl Patience {
    /// Of one after whom another may send the rest: told to end, it is less patient, and told twice not at all. Whoever
    /// told it before will kill it at `end_by`.
    pub(crate) fn of_sender(silence: Duration, end_by: Option<Instant>) -> Self {
        Patience { silence: Some(silence), until: end_by, hand_over: true, times_told: 0 }
    }

    /// Of the last one: told to end, it goes on until it is done, or told twice. `told`: it was told once.
    pub(crate) fn of_drainer(silence: Option<Duration>, told: bool) -> Self {
        Patience { silence, until: None, hand_over: false, times_told: u32::from(told) }
    }

    /// Whether it was told to end.
    pub(crate) fn told(&self) -> bool {
        self.times_told > 0
    }

    fn tell(&mut self, now: Instant) {
        self.times_told += 1;
        if self.times_told > 1 {
            self.until = Some(now);
        } else if self.hand_over {
            self.silence = Some(self.silence.map_or(SHORT_PATIENCE, |silence| silence.min(SHORT_PATIENCE)));
        }
    }

    /// When to give up, with the last acknowledgement at `heard`.
    fn give_up(&self, heard: Instant) -> Option<Instant> {
        let silent = self.silence.and_then(|silence| heard.checked_add(silence));
        silent.into_iter().chain(self.until).min()
    }
}

/// What came of a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// All that could be opened is with the log server; whether it was told to end.
    Done {
        told: bool,
    },
    GaveUp,
}

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

    /// Waits until all runs are with the log server, or its patience ends. Spools of runs that are there are removed.
    pub(crate) async fn wait(&mut self, mut patience: Patience, signals: &mut Signals) -> Waited {
        let mut acked = self.acked();
        let mut heard = Instant::now();
        while !self.tasks.is_empty() {
            let give_up = patience.give_up(heard);
            let now = Instant::now();
            if give_up.is_some_and(|at| at <= now) {
                break;
            }
            let look = give_up.map_or(now + TICK, |at| at.min(now + TICK));
            tokio::select! {
                biased;
                Some(ended) = self.tasks.join_next() => match ended {
                    Ok((number, delivered)) => self.delivered(number, delivered),
                    // Its lines are in the spool.
                    Err(error) => tracing::error!("the upload of a run has died: {error}"),
                },
                () = signals.told_to_end() => patience.tell(Instant::now()),
                () = tokio::time::sleep_until(look), if give_up.is_some() => {
                    let before = std::mem::replace(&mut acked, self.acked());
                    if acked > before {
                        heard = Instant::now();
                    }
                }
            }
        }
        let waited = if self.tasks.is_empty() { Waited::Done { told: patience.told() } } else { Waited::GaveUp };
        self.tasks.abort_all();
        waited
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_told_to_end_hands_over_soon() {
        let start = Instant::now();
        let after = |seconds| Some(start + Duration::from_secs(seconds));
        let mut sender = Patience::of_sender(Duration::from_secs(30), None);
        assert_eq!(sender.give_up(start), after(30));
        sender.tell(start);
        assert_eq!(sender.give_up(start), after(2));
        sender.tell(start);
        assert_eq!(sender.give_up(start), after(0));
        // Whatever is acknowledged.
        assert_eq!(Patience::of_sender(Duration::from_secs(30), after(5)).give_up(start), after(5));
    }

    #[test]
    fn the_last_one_goes_on_until_it_is_told_twice() {
        let start = Instant::now();
        let mut drainer = Patience::of_drainer(None, false);
        drainer.tell(start);
        assert_eq!((drainer.give_up(start), drainer.told()), (None, true));
        drainer.tell(start);
        assert_eq!(drainer.give_up(start), Some(start));
    }
}
