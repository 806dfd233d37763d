//! The one thread that writes. It takes everything that waits, writes it, waits for the disk once, answers all of it and
//! shows it to readers. What arrives meanwhile is the next commit: the busier, the larger. No timers.

use std::sync::Arc;
use std::time::Duration;

use crate::batch::{Batch, Body};
use crate::catalogue::Catalogue;
use crate::error::{Health, StoreError};
use crate::queue::{Job, Taken};
use crate::record::{FILE_HEADER, FileHeader, Header, Kind, Place};
use crate::segment::{ActiveFile, WriteError};
use crate::shared::{Shared, add};
use crate::stage::{Stage, Staged};
use crate::types::SYNC_BOUNDS_SECONDS;

/// A layer that takes more memory than this is sealed however small its file.
const MAX_WEIGHT: usize = 16 << 20;

/// Sealed segments that are not in the index yet; with more the writer waits for the sealer.
const MAX_FROZEN: usize = 8;

/// How often a full disk is tried when nobody writes.
const RETRY: Duration = Duration::from_millis(500);

pub(crate) struct Writer {
    shared: Arc<Shared>,
    active: Option<ActiveFile>,
    next_segment: u64,
    batch: Batch,
    disk_full: bool,
}

/// An answer that is sent when the commit is on disk.
type Answer = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// What one commit consists of.
struct Commit {
    staged: Staged,
    answers: Vec<Answer>,
    seal: bool,
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, active: Option<ActiveFile>, next_segment: u64) -> Self {
        let place = Place { salt: shared.directory.salt, segment: 0, generation: 0 };
        Self { shared, active, next_segment, batch: Batch::new(place, 0), disk_full: false }
    }

    /// Works until the queue is closed and empty.
    pub(crate) fn run(mut self) {
        let _noticed = Ended(self.shared.clone());
        loop {
            let timeout = self.disk_full.then_some(RETRY);
            match self.shared.queue.take(self.shared.options.commit_bytes, timeout) {
                Taken::Jobs(jobs) => self.work(jobs),
                Taken::Idle => self.probe(),
                Taken::Closed => break,
            }
        }
        self.close();
    }

    fn work(&mut self, jobs: Vec<Job>) {
        if let Some(failure) = self.shared.failure() {
            for job in jobs {
                job.refuse(failure.clone());
            }
            return;
        }
        let frees_space = jobs.iter().any(Job::frees_space);
        if self.disk_full && !frees_space && !self.shared.directory.take_reserve() {
            for job in jobs {
                job.refuse(StoreError::DiskFull);
            }
            return;
        }
        if !frees_space && self.is_stuck() {
            for job in jobs {
                job.refuse(self.shared.failure().unwrap_or(StoreError::DiskFull));
            }
            return;
        }
        let commit = self.stage(jobs);
        let result = match self.write() {
            Err(WriteError::NoSpace) if frees_space => {
                self.disk_full = true;
                self.shared.directory.give_reserve();
                let result = self.write();
                // What is left of it is kept for the next time.
                if result.is_ok() && !self.shared.directory.take_reserve() {
                    let _ = self.failed(WriteError::NoSpace);
                }
                result
            }
            result => result,
        };
        match result {
            Ok(()) => {
                self.publish(commit.staged);
                for answer in commit.answers {
                    answer(Ok(()));
                }
                if commit.seal || self.is_full() {
                    self.seal();
                }
            }
            Err(error) => {
                self.batch.abandon();
                let error = self.failed(error);
                for answer in commit.answers {
                    answer(Err(error.clone()));
                }
            }
        }
    }

    /// Whether so much waits for an index that cannot be written that no more may be added.
    fn is_stuck(&mut self) -> bool {
        let Some(why) = self.shared.index_blocked() else { return false };
        if self.shared.catalogue().frozen.len() < MAX_FROZEN {
            return false;
        }
        self.disk_full = why == Health::DiskFull;
        self.shared.set_health(why);
        true
    }

    fn is_full(&self) -> bool {
        let file = self.active.as_ref().is_some_and(|active| active.end >= self.shared.options.segment_bytes);
        file || self.shared.catalogue().active.weight >= MAX_WEIGHT
    }

    /// Turns jobs into records.
    fn stage(&mut self, jobs: Vec<Job>) -> Commit {
        let (place, start) = match &self.active {
            Some(active) => (active.place, active.end),
            None => {
                let place = Place { salt: self.shared.directory.salt, segment: self.next_segment, generation: 0 };
                (place, FILE_HEADER as u64)
            }
        };
        self.batch.restart(place, start);
        let batch = &mut self.batch;
        let catalogue = self.shared.catalogue();
        let now = self.shared.options.clock.now_unix_nanos();
        let mut stage = Stage::new(&catalogue, now);
        let mut answers: Vec<Answer> = Vec::with_capacity(jobs.len());
        let mut seal = false;
        for job in jobs {
            match job {
                Job::Append(run, record, reply) => {
                    answers.push(answer(stage.append(batch, run, record), reply));
                }
                Job::OpenRun(key, metadata, reply) => {
                    answers.push(answer(stage.open_run(batch, &key, metadata), reply));
                }
                Job::PutEvents(events, reply) => answers.push(answer(stage.put_events(batch, events), reply)),
                Job::RemoveTask(task, reply) => answers.push(answer(stage.remove_task(batch, &task), reply)),
                Job::Expire(expiry, silent_since, reply) => {
                    answers.push(answer(stage.expire(batch, &expiry, silent_since), reply));
                }
                Job::Seal => seal = true,
            }
        }
        let mut staged = stage.finish();
        if !batch.is_empty() {
            staged.delta.stored(now);
        }
        Commit { staged, answers, seal }
    }

    /// Brings the batch to the disk.
    fn write(&mut self) -> Result<(), WriteError> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let shared = &self.shared;
        let active = match &mut self.active {
            Some(active) => active,
            None => {
                let (next_run, next_task) = {
                    let catalogue = shared.catalogue();
                    (catalogue.next_run, catalogue.next_task)
                };
                let created_at = shared.options.clock.now_unix_nanos();
                let header = FileHeader { place: self.batch.place(), created_at, next_run, next_task };
                let made = ActiveFile::create(&shared.directory.segments(), &header)?;
                let mut catalogue = shared.catalogue_mut();
                catalogue.active.segment = made.place.segment;
                catalogue.active.file = Some(made.file.clone());
                drop(catalogue);
                self.next_segment = made.place.segment + 1;
                self.active.insert(made)
            }
        };
        active.sparing = self.disk_full;
        let took = active.commit(&self.batch, &*shared.options.faults)?;
        let counters = &shared.counters;
        add(&counters.records, self.batch.records());
        add(&counters.written_bytes, self.batch.len());
        add(&counters.commits, 1);
        add(&counters.sync_nanos, u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        add(&counters.sync_counts[SYNC_BOUNDS_SECONDS.partition_point(|bound| *bound < took.as_secs_f64())], 1);
        counters.active_bytes.store(active.end, std::sync::atomic::Ordering::Relaxed);
        if self.disk_full {
            self.disk_full = false;
            tracing::info!("the disk has space again");
            self.shared.set_health(Health::Ok);
        }
        Ok(())
    }

    /// Shows what is on disk to readers.
    fn publish(&mut self, staged: Staged) {
        let runs: Vec<u64> = staged.delta.runs.keys().copied().collect();
        // A task's watchers wait for new runs, events and ends, not for lines.
        let tasks: Vec<Arc<str>> = staged
            .delta
            .tasks
            .values()
            .filter(|task| task.changed || task.row.removed)
            .map(|task| task.row.name.clone())
            .collect();
        let lines: u64 = staged.delta.runs.values().flat_map(|run| &run.entries).map(crate::rows::Entry::lines).sum();
        add(&self.shared.counters.lines, lines);
        {
            let mut catalogue = self.shared.catalogue_mut();
            let Catalogue { active, next_run, next_task, .. } = &mut *catalogue;
            active.absorb(staged.delta);
            (*next_run, *next_task) = (staged.next_run, staged.next_task);
        }
        self.shared.runs.notify(runs.iter());
        if !tasks.is_empty() {
            self.shared.tasks.notify(tasks.iter().map(|name| &**name));
            self.shared.all_tasks.notify(std::iter::once(&()));
        }
    }

    fn failed(&mut self, error: WriteError) -> StoreError {
        match error {
            WriteError::NoSpace => {
                if !self.disk_full {
                    tracing::error!("the disk is full: nothing can be stored until there is space");
                }
                self.disk_full = true;
                self.shared.set_health(Health::DiskFull);
                StoreError::DiskFull
            }
            WriteError::Fatal(reason) => {
                tracing::error!(reason, "the store cannot write any more; it must be opened again");
                self.shared.set_health(Health::Failed(reason.clone()));
                StoreError::Failed(reason)
            }
        }
    }

    /// Whether a full disk has space again, when nobody writes.
    fn probe(&mut self) {
        if !self.is_stuck() && self.shared.directory.take_reserve() {
            self.disk_full = false;
            tracing::info!("the disk has space again");
            self.shared.set_health(Health::Ok);
        }
    }

    /// Ends the active segment and leaves it to the sealer.
    fn seal(&mut self) {
        let mut inbox = self.shared.sealer();
        while self.shared.catalogue().frozen.len() >= MAX_FROZEN {
            if self.shared.index_blocked().is_some() || self.shared.failure().is_some() {
                // The segment goes on until the index can be written again, or the store is opened again.
                return;
            }
            inbox = self.shared.wait_for_sealer(inbox, Duration::from_millis(100));
        }
        drop(inbox);
        if let Err(error) = self.end_file(Kind::End) {
            // Without its end it goes on; it is tried again after the next commit.
            self.failed(error);
            return;
        }
        let Some(active) = self.active.take() else { return };
        {
            let mut catalogue = self.shared.catalogue_mut();
            let mut layer = std::mem::take(&mut catalogue.active);
            layer.bytes = active.end;
            catalogue.frozen.push_back(Arc::new(layer));
        }
        self.shared.counters.active_bytes.store(0, std::sync::atomic::Ordering::Relaxed);
        add(&self.shared.counters.sealed_segments, 1);
        add(&self.shared.counters.sealed_bytes, active.end);
        self.shared.wake_sealer(|_| {});
    }

    /// Writes a last record, which proves that everything before it was on disk.
    fn end_file(&mut self, kind: Kind) -> Result<(), WriteError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        let now = self.shared.options.clock.now_unix_nanos();
        self.batch.restart(active.place, active.end);
        self.batch.push(Header::new(kind, 0, 0, &[], now), Body::Copied(&[]));
        if let Err(error) = active.commit(&self.batch, &*self.shared.options.faults) {
            self.batch.abandon();
            return Err(error);
        }
        active.seal()
    }

    fn close(&mut self) {
        if self.shared.failure().is_none()
            && let Err(error) = self.end_file(Kind::Closed)
        {
            // Everything acknowledged is on disk without it.
            self.failed(error);
        }
    }
}

fn answer<T: Send + 'static>(
    result: Result<T, StoreError>,
    reply: tokio::sync::oneshot::Sender<Result<T, StoreError>>,
) -> Answer {
    Box::new(move |committed| {
        // Whoever asked may have gone.
        let _ = reply.send(committed.and(result));
    })
}

/// Notices the end of the writer, however it comes.
struct Ended(Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.set_health(Health::Failed("the writer's thread failed".to_owned()));
        }
        self.0.queue.close();
        while let Taken::Jobs(jobs) = self.0.queue.take(usize::MAX, None) {
            for job in jobs {
                job.refuse(self.0.failure().unwrap_or(StoreError::Closed));
            }
        }
        self.0.runs.close();
        self.0.tasks.close();
        self.0.all_tasks.close();
        self.0.wake_sealer(|inbox| inbox.closing = true);
    }
}
