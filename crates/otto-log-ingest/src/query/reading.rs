use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use otto_log_store::{RunInfo, TaskWatch};
use otto_proto::v1::worker_event::Type;
use otto_proto::v1::{ReadLogsResponse, WorkerEvent};
use tokio::sync::OwnedSemaphorePermit;

use super::merge::{Merge, Next, Start};
use super::request::Wanted;
use super::search::Search;
use super::token::Token;
use super::{Mode, Query, QueryError, summary, tail};

/// A part has at most so many lines,
const PART_LINES: usize = 4096;
/// and about so many bytes,
const PART_BYTES: usize = 256 << 10;
/// and so many events.
const PART_EVENTS: usize = 256;
/// With more runs, not every part says where each of them is.
const TOKEN_RUNS: usize = 256;
/// But one within this time does.
const TOKEN_PERIOD: Duration = Duration::from_secs(1);
/// How often it is looked whether the workers of an ended task are still connected.
const LINGER_PERIOD: Duration = Duration::from_millis(500);

/// Lines being read. Pulls from the store as fast as it is asked to, so a slow reader slows only itself.
pub struct Reading {
    query: Query,
    wanted: Wanted,
    mode: Mode,
    search: Search,
    merge: Merge,
    watch: Option<TaskWatch>,
    part: ReadLogsResponse,
    part_bytes: usize,
    /// Lines that may still be shown.
    left: Option<u64>,
    /// Runs below it are left out.
    floor: u64,
    /// Something changed that only a listing tells.
    due: bool,
    /// Not before: a large task is not listed all the time.
    next_listing: Instant,
    /// Number of the next event to read, and of the next one to show.
    next_event: u64,
    shown_event: u64,
    ends: Ends,
    token_at: Option<Instant>,
    phase: Phase,
    _permit: OwnedSemaphorePermit,
    _count: Counted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The runs were not listed yet.
    Begin,
    Lines,
    /// Everything wanted was shown; the status is left.
    Status,
    Over,
}

/// What tells that nothing more will come.
#[derive(Debug, Default)]
struct Ends {
    /// The scaler told of the task.
    told: bool,
    /// Workers of which the scaler told the end.
    workers: HashSet<String>,
    /// The scaler told the task's end.
    task: bool,
    /// Everything is finished.
    complete: bool,
    /// The task has ended, but not the log of a worker that is not connected: it is waited for until then.
    linger: Option<Instant>,
}

/// Counts a reading while it is open.
struct Counted(prometheus_client::metrics::gauge::Gauge);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Reading {
    pub(super) fn new(query: Query, wanted: Wanted, mode: Mode, permit: OwnedSemaphorePermit) -> Self {
        let follow = mode == Mode::Follow;
        let token = wanted.token.as_ref();
        let search = Search::new(wanted.matcher.clone(), query.searches.clone());
        query.readers.inc();
        Self {
            merge: Merge::new(query.store.clone(), search.clone(), follow, query.reader_bytes),
            // Made before anything is read, so that no change falls in between.
            watch: follow.then(|| query.store.watch_task(&wanted.task_id)),
            part: ReadLogsResponse::default(),
            part_bytes: 0,
            left: wanted.limit,
            floor: token.map_or(0, |token| token.floor),
            due: true,
            next_listing: Instant::now(),
            next_event: 0,
            shown_event: token.map_or(0, |token| token.event),
            ends: Ends::default(),
            token_at: None,
            phase: Phase::Begin,
            _permit: permit,
            _count: Counted(query.readers.clone()),
            search,
            query,
            wanted,
            mode,
        }
    }

    /// The next part; `None` after the last one, which carries `status`. Each part with a `resume_token` can be the
    /// last a client saw: a new request with that token goes on right after it. Dropping the future loses nothing.
    ///
    /// # Errors
    /// If the store cannot be read; then the reading is over.
    pub async fn next(&mut self) -> Option<Result<ReadLogsResponse, QueryError>> {
        if self.phase == Phase::Over {
            return None;
        }
        let part = self.next_part().await;
        if part.is_err() {
            self.phase = Phase::Over;
        }
        Some(part)
    }

    /// Lists the runs for the first time.
    pub(super) async fn begin(&mut self) -> Result<(), QueryError> {
        self.list().await?;
        self.phase = Phase::Lines;
        Ok(())
    }

    async fn next_part(&mut self) -> Result<ReadLogsResponse, QueryError> {
        loop {
            if self.phase == Phase::Begin {
                self.begin().await?;
            }
            if self.phase == Phase::Status {
                return self.status().await;
            }
            if self.due && Instant::now() >= self.next_listing {
                self.list().await?;
            }
            let settled = self.merge.settle().await?;
            if settled && self.fill() {
                return Ok(self.take_part());
            }
            if settled {
                continue;
            }
            if !self.is_part_empty() {
                return Ok(self.take_part());
            }
            if self.mode == Mode::Read {
                self.phase = Phase::Status;
            } else if self.is_over() {
                // What came after the last listing is not forgotten.
                self.list().await?;
                if self.is_over() && self.is_part_empty() && !self.merge.settle().await? {
                    self.phase = Phase::Status;
                }
            } else {
                self.wait().await?;
            }
        }
    }

    /// Takes what is there; whether the part should be sent before anything else is done.
    fn fill(&mut self) -> bool {
        loop {
            if self.left == Some(0) {
                self.phase = Phase::Status;
                return !self.is_part_empty();
            }
            if self.part.lines.len() >= PART_LINES || self.part_bytes >= PART_BYTES {
                return true;
            }
            // Gaps of a part stand before its lines.
            if !self.part.lines.is_empty() && self.merge.is_gap_next() {
                return true;
            }
            match self.merge.take() {
                Some(Next::Line(line)) => {
                    self.part_bytes += line.message.len() + line.worker_id.len() + line.run_id.len() + 32;
                    self.part.lines.push(line);
                    self.left = self.left.map(|left| left - 1);
                }
                Some(Next::Gap(gap)) => {
                    self.part_bytes += 128;
                    self.part.gaps.push(gap);
                }
                None => return false,
            }
        }
    }

    fn is_part_empty(&self) -> bool {
        self.part.lines.is_empty() && self.part.gaps.is_empty() && self.part.events.is_empty()
    }

    fn take_part(&mut self) -> ReadLogsResponse {
        self.part_bytes = 0;
        let mut part = std::mem::take(&mut self.part);
        let now = Instant::now();
        let told = self.token_at.is_some_and(|at| now.duration_since(at) < TOKEN_PERIOD);
        if self.merge.len() <= TOKEN_RUNS || !told {
            self.token_at = Some(now);
            part.resume_token = self.token();
        }
        part
    }

    fn token(&self) -> String {
        let token = Token { event: self.shown_event, floor: self.floor, positions: self.merge.positions() };
        let (worker, run) = (self.wanted.worker_id.as_deref(), self.wanted.run_id.as_deref());
        token.encode(&self.wanted.task_id, worker.unwrap_or_default(), run.unwrap_or_default())
    }

    /// The last part.
    async fn status(&mut self) -> Result<ReadLogsResponse, QueryError> {
        if !self.is_part_empty() {
            return Ok(self.take_part());
        }
        let runs = self.runs().await?;
        let mut part = self.take_part();
        part.resume_token = self.token();
        part.status = summary::workers(runs, &self.query.registry);
        part.last = true;
        self.phase = Phase::Over;
        Ok(part)
    }

    /// The runs that are read, as they are now.
    async fn runs(&mut self) -> Result<Vec<RunInfo>, QueryError> {
        let mut runs = self.query.store.runs(&self.wanted.task_id).await?;
        // Numbers of runs are the store's: a place in another one (the volume was lost) leaves out nothing here.
        if self.floor > 0 && self.wanted.token.as_ref().is_some_and(|token| !token.fits(&runs)) {
            self.floor = 0;
        }
        runs.retain(|run| {
            run.id.0 >= self.floor
                && self.wanted.worker_id.as_ref().is_none_or(|worker| run.key.worker_id == *worker)
                && self.wanted.run_id.as_ref().is_none_or(|wanted| run.key.run_id == *wanted)
        });
        Ok(runs)
    }

    /// Notices new runs, events and ends.
    async fn list(&mut self) -> Result<(), QueryError> {
        let begun = Instant::now();
        let first = self.phase == Phase::Begin;
        let events = if self.mode == Mode::Follow { self.read_events().await? } else { Vec::new() };
        let mut runs = self.runs().await?;
        if first {
            self.check_known(&runs).await?;
            if self.wanted.from_sequence.is_some() && self.wanted.run_id.is_none() && self.wanted.token.is_none() {
                let older = runs.len().saturating_sub(1);
                runs.drain(..older);
                self.floor = runs.first().map_or(0, |run| run.id.0);
            }
        }
        if !first
            && runs.is_empty()
            && self.merge.len() > 0
            && self.query.store.task(&self.wanted.task_id).await?.is_none()
        {
            return Err(QueryError::NotFound(format!("task {:?} (it was deleted)", self.wanted.task_id)));
        }
        let tail = match self.wanted.tail_lines.filter(|_| first && self.wanted.token.is_none()) {
            Some(count) => Some(tail::starts(&self.query.store, &runs, count, &self.search).await?),
            None => None,
        };
        // Nothing is awaited from here on: a dropped future has changed nothing.
        self.note_events(events);
        let newest = self.merge.newest();
        for run in runs.iter().filter(|run| newest.is_none_or(|newest| run.id > newest)) {
            let start = self.start_of(run, first, tail.as_ref());
            let end = if self.mode == Mode::Follow { u64::MAX } else { run.expected };
            self.merge.add(run, start, end);
        }
        if self.mode == Mode::Follow {
            self.note_ends(&runs);
        }
        self.due = false;
        self.next_listing = Instant::now() + begun.elapsed() * 10;
        Ok(())
    }

    fn start_of(&self, run: &RunInfo, first: bool, tail: Option<&HashMap<otto_log_store::RunId, u64>>) -> Start {
        if let Some(token) = &self.wanted.token {
            return match token.next_of(run.id, &run.key) {
                Some(0) => Start::Done,
                Some(next) => Start::Sequence(next),
                None => Start::Sequence(1),
            };
        }
        if let Some(start) = tail.and_then(|starts| starts.get(&run.id)) {
            return Start::Sequence(*start);
        }
        if let Some(sequence) = self.wanted.from_sequence.filter(|_| first) {
            return Start::Sequence(sequence);
        }
        self.wanted.matcher.filter().since_unix_nanos.map_or(Start::Sequence(1), Start::Time)
    }

    /// Something must be there to be read; a follower waits for it instead.
    async fn check_known(&mut self, runs: &[RunInfo]) -> Result<(), QueryError> {
        if !runs.is_empty() || self.mode == Mode::Follow {
            return Ok(());
        }
        let task_id = &self.wanted.task_id;
        if self.query.store.task(task_id).await?.is_none() {
            return Err(QueryError::NotFound(format!("task {task_id:?}")));
        }
        match (&self.wanted.worker_id, &self.wanted.run_id) {
            (None, _) => Ok(()),
            (Some(worker), None) => {
                Err(QueryError::NotFound(format!("a log of worker {worker:?} of task {task_id:?}")))
            }
            (Some(worker), Some(run)) => {
                Err(QueryError::NotFound(format!("run {run:?} of worker {worker:?} of task {task_id:?}")))
            }
        }
    }

    /// Events that were not read yet, each with its number.
    async fn read_events(&mut self) -> Result<Vec<(u64, WorkerEvent)>, QueryError> {
        let mut events: Vec<(u64, WorkerEvent)> = Vec::new();
        loop {
            let from = events.last().map_or(self.next_event, |(number, _)| number + 1);
            let more = self.query.store.events(&self.wanted.task_id, from).await?;
            if more.is_empty() {
                return Ok(events);
            }
            events.extend(more);
        }
    }

    fn note_events(&mut self, events: Vec<(u64, WorkerEvent)>) {
        for (number, event) in events {
            self.next_event = number + 1;
            self.ends.told = true;
            match event.r#type() {
                Type::TaskEnded => self.ends.task = true,
                Type::Succeeded | Type::Failed | Type::Stopped => {
                    self.ends.workers.insert(event.worker_id.clone());
                }
                _ => {}
            }
            let concerns = event.worker_id.is_empty()
                || self.wanted.worker_id.as_ref().is_none_or(|worker| *worker == event.worker_id);
            if number >= self.shown_event {
                self.shown_event = number + 1;
                if concerns {
                    self.part.events.push(event);
                }
            }
        }
        if self.part.events.len() > PART_EVENTS {
            self.part_bytes = PART_BYTES;
        }
    }

    /// Works out whether anything more can come.
    fn note_ends(&mut self, runs: &[RunInfo]) {
        // A worker's newest run counts: an older one without Finish has ended without telling.
        let newest: HashMap<&str, &RunInfo> = runs.iter().map(|run| (run.key.worker_id.as_str(), run)).collect();
        let unfinished: Vec<&RunInfo> = newest.into_values().filter(|run| run.finish.is_none()).collect();
        let ended = match &self.wanted.worker_id {
            Some(worker) => self.ends.task || self.ends.workers.contains(worker),
            None => self.ends.task,
        };
        self.ends.complete = if self.wanted.run_id.is_some() {
            !runs.is_empty() && unfinished.is_empty()
        } else if self.ends.told {
            ended && unfinished.is_empty()
        } else {
            !runs.is_empty() && unfinished.is_empty()
        };
        let waits = ended && !unfinished.is_empty();
        let connected = unfinished.iter().any(|run| self.query.registry.is_connected(run.id));
        self.ends.linger = match self.ends.linger {
            _ if !waits => None,
            Some(until) if !connected => Some(until),
            _ => Some(Instant::now() + self.query.tail_linger),
        };
    }

    /// Nothing more can come. Once it is over and this is false, somebody was waited for in vain.
    pub fn is_complete(&self) -> bool {
        self.ends.complete
    }

    fn is_over(&self) -> bool {
        self.ends.complete || self.ends.linger.is_some_and(|until| Instant::now() >= until)
    }

    /// Waits until there may be more.
    async fn wait(&mut self) -> Result<(), QueryError> {
        let Some(watch) = &mut self.watch else { return Ok(()) };
        let listing = self.due.then_some(self.next_listing);
        let linger = self.ends.linger.map(|until| until.min(Instant::now() + LINGER_PERIOD));
        tokio::select! {
            changed = self.merge.changed() => changed?,
            open = watch.changed(), if !self.due => {
                if !open {
                    return Err(QueryError::Store(otto_log_store::ReadError::Io("the store was closed".to_owned())));
                }
                self.due = true;
            }
            () = crate::session::entries::sleep_until(listing), if listing.is_some() => {}
            () = crate::session::entries::sleep_until(linger), if linger.is_some() => self.due = true,
        }
        Ok(())
    }
}
