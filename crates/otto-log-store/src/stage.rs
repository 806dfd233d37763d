//! What one group commit, or a stretch of a segment that is read again, changes. The same functions change what is
//! known whether a record is being written or was found on disk.

use std::sync::Arc;

use otto_proto::v1::{FinishRun, LogBlock, LogGap, WorkerEvent, WorkerMetadata, worker_event};
use prost::Message;

use crate::batch::{Batch, Body};
use crate::catalogue::Catalogue;
use crate::error::StoreError;
use crate::index::{Expiry, IndexError};
use crate::layer::{Layer, LayerRun, LayerTask};
use crate::record::{Header, Kind};
use crate::rows::{Entry, EntryKind, MAX_CONTEXT, RunRow, TaskRow};
use crate::types::{Record, RunId, RunKey, RunState};

mod replay;

/// A silent run that is opened again is noted once in so many nanoseconds (a day).
const NOTE_ACTIVITY: i64 = 24 * 3600 * 1_000_000_000;

/// Changes on top of a catalogue, and the records that make them durable.
pub(crate) struct Stage<'a> {
    catalogue: &'a Catalogue,
    pub(crate) delta: Layer,
    pub(crate) next_run: u64,
    pub(crate) next_task: u64,
    /// By the store's clock, nanoseconds.
    now: i64,
}

/// What a stage becomes when its records are on disk.
pub(crate) struct Staged {
    pub(crate) delta: Layer,
    pub(crate) next_run: u64,
    pub(crate) next_task: u64,
}

impl From<IndexError> for StoreError {
    fn from(error: IndexError) -> Self {
        tracing::error!(%error, "the index cannot be read");
        if error.is_passing() { Self::Busy } else { Self::Failed(error.to_string()) }
    }
}

impl<'a> Stage<'a> {
    pub(crate) fn new(catalogue: &'a Catalogue, now: i64) -> Self {
        Self { catalogue, delta: Layer::default(), next_run: catalogue.next_run, next_task: catalogue.next_task, now }
    }

    pub(crate) fn finish(self) -> Staged {
        Staged { delta: self.delta, next_run: self.next_run, next_task: self.next_task }
    }

    /// The newest row; `None` if there is no such run.
    fn run(&self, id: u64) -> Result<Option<RunRow>, IndexError> {
        match self.delta.run(id) {
            Some(run) => Ok((!run.row.removed).then(|| run.row.clone())),
            None => self.catalogue.run(id),
        }
    }

    fn task(&self, name: &str) -> Result<Option<TaskRow>, IndexError> {
        match self.delta.tasks.get(name) {
            Some(task) => Ok((!task.row.removed).then(|| task.row.clone())),
            None => self.catalogue.task(name),
        }
    }

    fn find(&self, key: &RunKey) -> Result<Option<u64>, IndexError> {
        let found = match self.delta.keys.get(key) {
            Some(id) => Some(*id),
            None => self.catalogue.find(key)?,
        };
        Ok(found.filter(|id| self.delta.run(*id).is_none_or(|run| !run.row.removed)))
    }

    /// Puts a task into the delta; its state goes to the segment where it is the first of the task in it.
    fn touch_task(&mut self, batch: &mut Batch, name: &str) -> Result<bool, IndexError> {
        if let Some(task) = self.delta.tasks.get(name) {
            return Ok(!task.row.removed);
        }
        let Some(row) = self.catalogue.task(name)? else { return Ok(false) };
        if !self.catalogue.active.tasks.contains_key(name) {
            put(batch, Kind::Task, row.number, 0, &row.encode(), self.now);
        }
        self.insert_task(row, false);
        Ok(true)
    }

    fn insert_task(&mut self, row: TaskRow, created: bool) {
        self.delta.tasks.insert(row.name.clone(), LayerTask::new(row, created));
    }

    /// Puts a run and its task into the delta likewise.
    fn touch_run(&mut self, batch: &mut Batch, id: u64) -> Result<bool, IndexError> {
        if let Some(run) = self.delta.run(id) {
            return Ok(!run.row.removed);
        }
        let Some(row) = self.catalogue.run(id)? else { return Ok(false) };
        self.touch_task(batch, &row.key.task_id)?;
        if self.catalogue.active.run(id).is_none() {
            put(batch, Kind::Run, id, 0, &row.encode(false), self.now);
        }
        self.insert_run(row, false);
        Ok(true)
    }

    fn insert_run(&mut self, row: RunRow, created: bool) {
        if let Some(task) = self.delta.tasks.get_mut(&*row.key.task_id)
            && task.row.number == row.task
        {
            task.runs.push(row.id);
        }
        self.delta.runs.insert(row.id, LayerRun { row, entries: Vec::new(), created });
    }

    /// Finds or makes a run.
    pub(crate) fn open_run(
        &mut self,
        batch: &mut Batch,
        key: &RunKey,
        metadata: Option<WorkerMetadata>,
    ) -> Result<RunState, StoreError> {
        if let Some(id) = self.find(key)? {
            let row = self.run(id)?.ok_or(StoreError::UnknownRun)?;
            let changed = metadata.is_some() && metadata.as_ref() != row.metadata.as_deref();
            if row.finish.is_none() && (changed || self.now - row.active_at > NOTE_ACTIVITY) {
                self.touch_run(batch, id)?;
                let now = self.now;
                if let Some(run) = self.delta.runs.get_mut(&id) {
                    run.row.active_at = now;
                    if changed {
                        if let Some(task) = self.delta.tasks.get_mut(&*key.task_id) {
                            task.changed = true;
                        }
                        run.row.metadata = metadata.map(Arc::new);
                    }
                    put(batch, Kind::Run, id, 0, &run.row.encode(false), now);
                }
            }
            let finished = row.finish.is_some();
            return Ok(RunState { id: RunId(id), expected: row.expected, finished, created: false });
        }
        let task = self.task_or_new(batch, &key.task_id)?;
        let mut row = RunRow::new(self.next_run, task, Arc::new(key.clone()), self.now);
        row.metadata = metadata.map(Arc::new);
        let id = row.id;
        put(batch, Kind::Run, id, 0, &row.encode(true), self.now);
        self.add_run(row)?;
        Ok(RunState { id: RunId(id), expected: 1, finished: false, created: true })
    }

    fn task_or_new(&mut self, batch: &mut Batch, name: &str) -> Result<u64, IndexError> {
        if !self.touch_task(batch, name)? {
            let row = TaskRow::new(self.next_task, name.into(), self.now);
            self.next_task += 1;
            put(batch, Kind::Task, row.number, 0, &row.encode(), self.now);
            self.insert_task(row, true);
        }
        Ok(self.delta.tasks.get(name).map_or(0, |task| task.row.number))
    }

    /// Adds a run that did not exist.
    fn add_run(&mut self, row: RunRow) -> Result<(), IndexError> {
        let known_worker = self.worker_has_other_run(&row)?;
        self.next_run = self.next_run.max(row.id + 1);
        self.delta.keys.insert(row.key.clone(), row.id);
        self.delta.workers.insert((row.task, row.key.worker_id.as_str().into()), row.id);
        if let Some(task) = self.delta.tasks.get_mut(&*row.key.task_id) {
            task.changed = true;
            task.row.runs += 1;
            task.row.workers += u32::from(!known_worker);
            task.row.last_seen = task.row.last_seen.max(row.opened_at);
        }
        self.insert_run(row, true);
        Ok(())
    }

    fn worker_has_other_run(&self, row: &RunRow) -> Result<bool, IndexError> {
        let worker = (row.task, Box::from(row.key.worker_id.as_str()));
        let in_memory = std::iter::once(&self.delta)
            .chain(self.catalogue.layers())
            .filter_map(|layer| layer.workers.get(&worker).copied());
        let indexed = self.catalogue.index.reader()?.worker_runs(&row.key.task_id, &row.key.worker_id)?;
        for id in in_memory.chain(indexed).filter(|id| *id != row.id) {
            if self.run(id)?.is_some_and(|other| other.task == row.task) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Adds a record to a run; returns the sequence expected next.
    pub(crate) fn append(&mut self, batch: &mut Batch, run: RunId, record: Record) -> Result<u64, StoreError> {
        let id = run.0;
        // Look first: a refused record must not leave the run's state in the batch.
        let row = self.run(id)?.ok_or(StoreError::UnknownRun)?;
        if row.finish.is_some() {
            return Err(StoreError::Finished);
        }
        let begins = match &record {
            Record::Block(block) => block.first_sequence,
            Record::Gap(gap) => gap.first_sequence,
            Record::Finish(finish) => finish.last_sequence.saturating_add(1),
        };
        if begins != row.expected {
            return Err(StoreError::Sequence { expected: row.expected });
        }
        self.touch_run(batch, id)?;
        match record {
            Record::Block(block) => self.append_block(batch, id, block),
            Record::Gap(gap) => {
                let body = gap.encode_to_vec();
                let header = Header::new(Kind::Gap, id, gap.first_sequence, &body, self.now);
                let offset = batch.push(header, Body::Copied(&body));
                self.add_gap(id, &gap, &header, batch.place().segment, batch.place().generation, offset);
            }
            Record::Finish(finish) => {
                let body = finish.encode_to_vec();
                batch.push(Header::new(Kind::Finish, id, row.expected, &body, self.now), Body::Copied(&body));
                self.add_finish(id, finish, self.now);
            }
        }
        Ok(self.delta.run(id).map_or(row.expected, |run| run.row.expected))
    }

    fn append_block(&mut self, batch: &mut Batch, id: u64, block: LogBlock) {
        let header = Header::block(id, &block, self.now);
        let offset = batch.push(header, Body::Shared(block.payload));
        self.add_block(id, &header, batch.place().segment, batch.place().generation, offset);
    }

    fn add_block(&mut self, id: u64, header: &Header, segment: u64, generation: u32, offset: u64) {
        let Some(run) = self.delta.runs.get_mut(&id) else { return };
        let end = header.first + u64::from(header.lines);
        run.entries.push(Entry::new(EntryKind::Block, header, end, segment, generation, offset));
        let row = &mut run.row;
        row.expected = end;
        row.open_gap = false;
        row.lines += u64::from(header.lines);
        row.bytes += u64::from(header.payload_bytes);
        row.first_time = Some(row.first_time.map_or(header.min_time, |time| time.min(header.min_time)));
        row.last_time = Some(row.last_time.map_or(header.max_time, |time| time.max(header.max_time)));
        row.active_at = header.stored_at;
        if let Some(task) = self.delta.tasks.get_mut(&*row.key.task_id) {
            task.row.lines += u64::from(header.lines);
            task.row.bytes += u64::from(header.payload_bytes);
            task.row.last_seen = task.row.last_seen.max(header.stored_at);
        }
        self.delta.stored(header.stored_at);
    }

    fn add_gap(&mut self, id: u64, gap: &LogGap, header: &Header, segment: u64, generation: u32, offset: u64) {
        let Some(run) = self.delta.runs.get_mut(&id) else { return };
        let end = if gap.last_sequence == 0 { gap.first_sequence } else { gap.last_sequence + 1 };
        run.entries.push(Entry::new(EntryKind::Gap, header, end, segment, generation, offset));
        run.row.add_gap(gap);
        run.row.active_at = header.stored_at;
        self.delta.stored(header.stored_at);
    }

    fn add_finish(&mut self, id: u64, finish: FinishRun, stored_at: i64) {
        let Some(run) = self.delta.runs.get_mut(&id) else { return };
        run.row.finish = Some(Arc::new(finish));
        run.row.open_gap = false;
        run.row.active_at = stored_at;
        if let Some(task) = self.delta.tasks.get_mut(&*run.row.key.task_id) {
            task.changed = true;
            task.row.last_seen = task.row.last_seen.max(stored_at);
        }
        self.delta.stored(stored_at);
    }

    /// Adds events that are not stored yet; returns how many.
    pub(crate) fn put_events(&mut self, batch: &mut Batch, events: Vec<WorkerEvent>) -> Result<u32, StoreError> {
        let mut new = 0;
        for event in events {
            let known = match self.task(&event.task_id)? {
                Some(task) => {
                    let staged = self.delta.tasks.get(&task.name);
                    staged.is_some_and(|staged| staged.event_ids.contains(&*event.event_id))
                        || self.catalogue.has_event(&task, &event.event_id)?
                }
                None => false,
            };
            if known {
                continue;
            }
            let number = self.task_or_new(batch, &event.task_id)?;
            let next = self.delta.tasks.get(&*event.task_id).map_or(0, |task| task.row.next_event);
            put(batch, Kind::Event, number, next, &event.encode_to_vec(), self.now);
            self.add_event(event, next, self.now);
            new += 1;
        }
        Ok(new)
    }

    fn add_event(&mut self, event: WorkerEvent, number: u64, stored_at: i64) {
        let Some(task) = self.delta.tasks.get_mut(&*event.task_id) else { return };
        task.row.next_event = number + 1;
        task.row.last_seen = task.row.last_seen.max(stored_at);
        if event.r#type == i32::from(worker_event::Type::TaskEnded) {
            task.row.state = event.task_state.as_str().into();
        }
        if !event.context.is_empty() {
            let context = Arc::make_mut(&mut task.row.context);
            let mut bytes: usize = context.iter().map(|(name, value)| name.len() + value.len()).sum();
            for (name, value) in &event.context {
                bytes += name.len() + value.len();
                if bytes <= MAX_CONTEXT {
                    context.insert(name.clone(), value.clone());
                }
            }
        }
        task.add_event(number, event);
        self.delta.stored(stored_at);
    }

    /// Removes a task with all its runs; returns whether there was one.
    pub(crate) fn remove_task(&mut self, batch: &mut Batch, name: &str) -> Result<bool, StoreError> {
        if self.task(name)?.is_none() {
            return Ok(false);
        }
        put(batch, Kind::TaskRemoved, 0, 0, name.as_bytes(), self.now);
        self.drop_task(name)?;
        Ok(true)
    }

    fn drop_task(&mut self, name: &str) -> Result<(), IndexError> {
        let Some(mut row) = self.task(name)? else { return Ok(()) };
        let mut ids = self.catalogue.run_ids(&row)?;
        if let Some(task) = self.delta.tasks.get(name) {
            ids.extend(task.runs.iter().copied());
        }
        for id in ids {
            self.drop_run(id)?;
        }
        self.delta.removed_tasks.push((row.number, row.name.clone()));
        row.removed = true;
        self.insert_task(row, false);
        self.delta.stored(self.now);
        Ok(())
    }

    /// Hides a run; its task's counters are the caller's.
    fn drop_run(&mut self, id: u64) -> Result<(), IndexError> {
        let Some(mut row) = self.run(id)? else { return Ok(()) };
        row.removed = true;
        (row.metadata, row.finish, row.gaps) = (None, None, Arc::default());
        let created = self.delta.run(id).is_some_and(|run| run.created);
        self.delta.runs.insert(id, LayerRun { row, entries: Vec::new(), created });
        Ok(())
    }

    /// Takes a run that is gone out of its task's counters.
    fn uncount(&mut self, row: &RunRow) -> Result<(), IndexError> {
        let other = self.worker_has_other_run(row)?;
        if let Some(task) = self.delta.tasks.get_mut(&*row.key.task_id) {
            task.row.runs = task.row.runs.saturating_sub(1);
            task.row.workers = task.row.workers.saturating_sub(u32::from(!other));
            task.row.lines = task.row.lines.saturating_sub(row.lines);
            task.row.bytes = task.row.bytes.saturating_sub(row.bytes);
        }
        Ok(())
    }

    /// Hides what the oldest segment holds. What must outlive it is written anew: the state of runs that go on, of
    /// their tasks. Runs last active before `silent_since` do not go on. Doing it twice changes nothing more.
    pub(crate) fn expire(&mut self, batch: &mut Batch, expiry: &Expiry, silent_since: i64) -> Result<(), StoreError> {
        let in_memory = |catalogue: &Catalogue, name: &str| catalogue.task_in_memory(name).is_some();
        let mut only_here = Vec::new();
        for name in &expiry.tasks {
            if let Some(task) = self.task(name)?
                && task.last_segment == expiry.segment
                && !in_memory(self.catalogue, name)
            {
                only_here.push(name.clone());
            }
        }
        for (id, end, lines, bytes) in &expiry.runs {
            let Some(row) = self.run(*id)? else { continue };
            let newest_here = row.last_segment == expiry.segment && self.catalogue.run_in_memory(*id).is_none();
            if newest_here && (row.finish.is_some() || row.active_at < silent_since) {
                self.touch_task(batch, &row.key.task_id)?;
                put(batch, Kind::RunRemoved, *id, 0, &[], self.now);
                self.drop_run(*id)?;
                self.uncount(&row)?;
                continue;
            }
            let lines_go = row.expired_through + 1 < *end;
            if !lines_go && !newest_here {
                continue;
            }
            self.touch_run(batch, *id)?;
            let now = self.now;
            if let Some(run) = self.delta.runs.get_mut(id)
                && lines_go
            {
                run.row.expire(end - 1, *lines, *bytes);
                put(batch, Kind::Run, *id, 0, &run.row.encode(false), now);
                if let Some(task) = self.delta.tasks.get_mut(&*row.key.task_id) {
                    task.row.lines = task.row.lines.saturating_sub(*lines);
                    task.row.bytes = task.row.bytes.saturating_sub(*bytes);
                }
            }
        }
        for name in only_here {
            let empty = self.task(&name)?.is_some_and(|task| task.runs == 0);
            if empty {
                self.remove_task(batch, &name)?;
            } else {
                self.touch_task(batch, &name)?;
            }
        }
        let changed: Vec<TaskRow> =
            self.delta.tasks.values().map(|task| &task.row).filter(|row| !row.removed).cloned().collect();
        for row in changed {
            put(batch, Kind::Task, row.number, 0, &row.encode(), self.now);
        }
        Ok(())
    }
}

fn put(batch: &mut Batch, kind: Kind, owner: u64, first: u64, body: &[u8], now: i64) {
    batch.push(Header::new(kind, owner, first, body, now), Body::Copied(body));
}
