//! The same changes from records that were found on disk.

use std::sync::Arc;

use otto_proto::v1::{FinishRun, LogGap, WorkerEvent};
use prost::Message;

use super::Stage;
use crate::index::IndexError;
use crate::record::{Header, Kind, Place};
use crate::rows::{Entry, EntryKind, RunRow, TaskRow, damaged};
use crate::types::RunKey;

/// The task under which lines are shown whose run is not known any more because its record is damaged.
const LOST_TASK: &str = "otto.damaged";

impl Stage<'_> {
    /// Applies a record. `merged`: rows in the file are those at the segment's end, so blocks only add themselves.
    pub(crate) fn replay(
        &mut self,
        place: Place,
        offset: u64,
        header: &Header,
        body: &[u8],
        merged: bool,
    ) -> Result<(), IndexError> {
        let known = match header.kind {
            Kind::Block => {
                self.replay_block(place, offset, header, merged)?;
                true
            }
            Kind::Gap => match LogGap::decode(body) {
                Ok(gap) => {
                    self.replay_gap(place, offset, header, &gap, merged)?;
                    true
                }
                Err(_) => false,
            },
            Kind::Finish => match FinishRun::decode(body) {
                Ok(finish) => {
                    self.known_run(header.run)?;
                    self.fill_hole(header.run, header.first, place);
                    self.add_finish(header.run, finish, header.stored_at);
                    true
                }
                Err(_) => false,
            },
            Kind::Run => match RunRow::decode(body) {
                Some((row, created)) => {
                    self.replay_run(row, created, merged)?;
                    true
                }
                None => false,
            },
            Kind::Task => match TaskRow::decode(body) {
                Some(row) => {
                    self.replay_task(row)?;
                    true
                }
                None => false,
            },
            Kind::Event => match WorkerEvent::decode(body) {
                Ok(event) => {
                    self.replay_event(event, header, merged)?;
                    true
                }
                Err(_) => false,
            },
            Kind::TaskRemoved => match std::str::from_utf8(body) {
                Ok(name) => {
                    self.drop_task(name)?;
                    true
                }
                Err(_) => false,
            },
            Kind::RunRemoved => {
                if let Some(row) = self.run(header.run)? {
                    self.known_task(&row.key.task_id)?;
                    self.drop_run(header.run)?;
                    self.uncount(&row)?;
                }
                true
            }
            Kind::End | Kind::Closed => true,
        };
        self.delta.damaged |= !known;
        self.delta.stored(header.stored_at);
        Ok(())
    }

    /// A record whose header is whole and whose body is not.
    pub(crate) fn replay_damaged(&mut self, place: Place, header: &Header, merged: bool) -> Result<(), IndexError> {
        self.delta.damaged = true;
        if header.kind != Kind::Block {
            return Ok(());
        }
        self.known_run(header.run)?;
        let end = header.first.saturating_add(u64::from(header.lines));
        if merged {
            if let Some(run) = self.delta.runs.get_mut(&header.run) {
                run.entries.push(Entry::hole(header.first, end, place.segment, place.generation));
            }
        } else {
            self.fill_hole(header.run, end, place);
        }
        Ok(())
    }

    /// A record that cannot be read was a block of this run up to there.
    pub(crate) fn replay_lost(
        &mut self,
        place: Place,
        block: Option<(u64, u64)>,
        merged: bool,
    ) -> Result<(), IndexError> {
        match block {
            Some((run, end)) if run > 0 && !merged => {
                self.known_run(run)?;
                self.fill_hole(run, end, place);
            }
            _ => {}
        }
        Ok(())
    }

    fn replay_block(&mut self, place: Place, offset: u64, header: &Header, merged: bool) -> Result<(), IndexError> {
        self.known_run(header.run)?;
        let end = header.first.saturating_add(u64::from(header.lines));
        if merged {
            if let Some(run) = self.delta.runs.get_mut(&header.run) {
                run.entries.push(Entry::new(EntryKind::Block, header, end, place.segment, place.generation, offset));
            }
            return Ok(());
        }
        self.fill_hole(header.run, header.first, place);
        if self.expected(header.run) == Some(header.first) {
            self.add_block(header.run, header, place.segment, place.generation, offset);
        }
        Ok(())
    }

    fn replay_gap(
        &mut self,
        place: Place,
        offset: u64,
        header: &Header,
        gap: &LogGap,
        merged: bool,
    ) -> Result<(), IndexError> {
        self.known_run(header.run)?;
        if merged {
            let end = if gap.last_sequence == 0 { gap.first_sequence } else { gap.last_sequence + 1 };
            if let Some(run) = self.delta.runs.get_mut(&header.run) {
                run.entries.push(Entry::new(EntryKind::Gap, header, end, place.segment, place.generation, offset));
            }
            return Ok(());
        }
        self.fill_hole(header.run, header.first, place);
        if self.expected(header.run) == Some(header.first) {
            self.add_gap(header.run, gap, header, place.segment, place.generation, offset);
        }
        Ok(())
    }

    fn expected(&self, id: u64) -> Option<u64> {
        self.delta.run(id).map(|run| run.row.expected)
    }

    /// The run goes on at `next`, so what lies before and was not found is damaged.
    fn fill_hole(&mut self, id: u64, next: u64, place: Place) {
        let Some(run) = self.delta.runs.get_mut(&id) else { return };
        let expected = run.row.expected;
        if expected < next {
            self.delta.damaged = true;
            run.entries.push(Entry::hole(expected, next, place.segment, place.generation));
            run.row.add_gap(&damaged(expected, next - 1));
        }
    }

    /// Puts a run into the delta; one that nothing is known of under a name that says so.
    fn known_run(&mut self, id: u64) -> Result<(), IndexError> {
        if self.delta.runs.contains_key(&id) {
            return Ok(());
        }
        let row = match self.catalogue.run(id)? {
            Some(row) => row,
            None => {
                self.delta.damaged = true;
                let task = self.lost_task()?;
                let key =
                    RunKey { task_id: LOST_TASK.to_owned(), worker_id: format!("run-{id}"), run_id: String::new() };
                let row = RunRow::new(id, task, Arc::new(key), self.now);
                return self.add_run(row);
            }
        };
        self.known_task(&row.key.task_id)?;
        self.insert_run(row, false);
        Ok(())
    }

    fn lost_task(&mut self) -> Result<u64, IndexError> {
        if !self.known_task(LOST_TASK)? {
            let row = TaskRow::new(self.next_task, LOST_TASK.into(), self.now);
            self.next_task += 1;
            self.insert_task(row, true);
        }
        Ok(self.delta.tasks.get(LOST_TASK).map_or(0, |task| task.row.number))
    }

    fn known_task(&mut self, name: &str) -> Result<bool, IndexError> {
        if let Some(task) = self.delta.tasks.get(name) {
            return Ok(!task.row.removed);
        }
        let Some(row) = self.catalogue.task(name)? else { return Ok(false) };
        self.insert_task(row, false);
        Ok(true)
    }

    fn replay_run(&mut self, row: RunRow, created: bool, merged: bool) -> Result<(), IndexError> {
        let id = row.id;
        self.next_run = self.next_run.max(id + 1);
        if !self.known_task(&row.key.task_id)? {
            // The task's own record is damaged.
            self.delta.damaged = true;
            let task = TaskRow::new(row.task, row.key.task_id.as_str().into(), row.opened_at);
            self.next_task = self.next_task.max(row.task + 1);
            self.insert_task(task, true);
        }
        let exists = self.delta.run(id).is_some_and(|run| !run.row.removed) || self.catalogue.run(id)?.is_some();
        if created && !exists && !merged {
            return self.add_run(row);
        }
        if created || !exists {
            // Where the index is built anew, this may be the first that is known of the run.
            self.delta.keys.insert(row.key.clone(), id);
        }
        match self.delta.runs.get_mut(&id) {
            Some(run) => run.row = row,
            None => self.insert_run(row, created && !exists),
        }
        Ok(())
    }

    fn replay_task(&mut self, row: TaskRow) -> Result<(), IndexError> {
        self.next_task = self.next_task.max(row.number + 1);
        match self.delta.tasks.get_mut(&row.name) {
            Some(task) if task.row.number == row.number => task.row = row,
            Some(_) => self.insert_task(row, true),
            None => {
                let created = self.catalogue.task(&row.name)?.is_none();
                self.insert_task(row, created);
            }
        }
        Ok(())
    }

    fn replay_event(&mut self, event: WorkerEvent, header: &Header, merged: bool) -> Result<(), IndexError> {
        if !self.known_task(&event.task_id)? {
            self.delta.damaged = true;
            let row = TaskRow::new(header.run, event.task_id.as_str().into(), header.stored_at);
            self.next_task = self.next_task.max(header.run + 1);
            self.insert_task(row, true);
        }
        if merged {
            if let Some(task) = self.delta.tasks.get_mut(&*event.task_id) {
                task.add_event(header.first, event);
            }
            return Ok(());
        }
        self.add_event(event, header.first, header.stored_at);
        Ok(())
    }
}
